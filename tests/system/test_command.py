"""The main command as users start it: a process of its own, from another directory, under Ray."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, federated, finished, processes_with, started, wait_until
from recipes import make_checkpoint, make_dataset
from sound_configs import write_config
from trainings import TRAIN, assert_identical, assert_learned, plain_training
from ultralytics import YOLO

from federated_yolo.common.torchvision_nms import ensure_torchvision_nms
from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import read_csv
from federated_yolo.yolo.model import to_arrays

TELLING = """
from pathlib import Path
from federated_yolo.client import workspace
from federated_yolo import YoloClient


class Telling(YoloClient):
    def tell(self, text):
        with Path(__file__).with_suffix(".log").open("a") as file:
            file.write(text + "\\n")

    def train(self, round_number, arrays, config):
        self.tell(f"train {round_number} {self.history('train').get('round', [])}")
        workspace.held_clients.clear()  # as if the next message went to another worker
        return super().train(round_number, arrays, config)

    def evaluate(self, parameters, config):
        workspace.held_clients.clear()
        return super().evaluate(parameters, config)

    def finish(self):
        self.tell(f"finish {self.history('train')['round']} {self.history('evaluate')['round']}")
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """One client, two rounds, held-out data; and the folder of everything."""
    folder = tmp_path_factory.mktemp("command")
    make_dataset(folder / "north")
    held_out = make_dataset(folder / "held_out", num_train=1, num_val=2, seed=5)
    config = write_config(folder, evaluate={"data": str(held_out), "cross_client": True})
    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    done = federated(str(config), "name=mine", cwd=elsewhere)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


def test_it_writes_what_it_promises_and_nothing_beside(run: tuple[Path, Any]) -> None:
    folder, _ = run
    run_dir = folder / "runs" / "mine"
    found = {p.relative_to(run_dir).as_posix() for p in run_dir.rglob("*") if p.is_file()}
    promised = {f"weights/{n}" for n in ("round0.npz", "round1.npz", "round2.npz")}
    promised |= {"weights/last.pt", "weights/best.pt", "args.yaml", "run.json", "report.html"}
    promised |= {"results.csv", "clients.csv", "classes.csv", "cross_client.csv"}
    promised |= {"results.png", "clients.png", "cross_client.png", "predictions.jpg"}
    assert promised <= found
    assert {p.split("/")[0] for p in found - promised} <= {"clients", "server"}
    assert not any(".tmp" in p for p in found)
    assert list((folder / "elsewhere").iterdir()) == []


def test_a_simulated_client_equals_plain_training_bit_for_bit(run: tuple[Path, Any]) -> None:
    folder, _ = run
    data = folder / "north" / "data.yaml"
    expected = plain_training("yolov8n.yaml", data, TRAIN, epochs=2, folder=folder)
    arrays, meta = load_arrays(folder / "runs" / "mine" / "weights" / "round2.npz")
    assert_identical(arrays, expected)
    assert meta is not None
    assert (meta.names, meta.task) == (("a", "b", "c"), "detect")


def test_the_terminal_shows_rounds_paths_and_next_steps_and_no_noise(
    run: tuple[Path, Any],
) -> None:
    _, done = run
    # After two epochs everything scores 0, and no round is called the best.
    for text in ("north", "round 1/2", "round 2/2", "last.pt", "yolo export model="):
        assert text in done.stdout
    assert done.stderr == ""
    for noise in ("flwr", "Flower", "raylet", "Ultralytics 8", "Warning", "WARNING", "Traceback"):
        assert noise not in done.stdout


@pytest.fixture(scope="module")
def run_again(run: tuple[Path, Any]) -> Path:
    """The folder of a run of the saved args, with a client that tells what it remembers."""
    folder, _ = run
    (folder / "telling.py").write_text(TELLING)
    args = str(folder / "runs" / "mine" / "args.yaml")
    done = federated(args, "client=telling.py:Telling", cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs" / "mine2"


def test_a_simulated_client_remembers_all_rounds_to_the_end(run_again: Path) -> None:
    """Flower's engine keeps what each message leaves in the client's context, not its worker."""
    told = (run_again.parents[1] / "telling.log").read_text().splitlines()
    assert told == ["train 1 []", "train 2 [1.0]", "finish [1.0, 2.0] [1.0, 2.0]"]


def test_the_saved_args_run_again_to_the_same_arrays(
    run: tuple[Path, Any], run_again: Path
) -> None:
    folder, again = run[0], run_again
    arrays, _ = load_arrays(again / "weights" / "round2.npz")
    expected, _ = load_arrays(folder / "runs" / "mine" / "weights" / "round2.npz")
    assert_identical(arrays, expected)
    rows, first = (read_csv(d / "results.csv") for d in (again, folder / "runs" / "mine"))
    assert [r["fitness"] for r in rows] == [r["fitness"] for r in first]


def test_the_readmes_first_example_fine_tunes_a_coco_checkpoint_exports_it_and_predicts(
    tmp_path: Path,
) -> None:
    readme = (ROOT / "README.md").read_text()
    (tmp_path / "my_config.yaml").write_text(readme.split("```yaml\n")[1].split("```")[0])
    coco = [f"thing {i}" for i in range(80)]
    make_checkpoint(tmp_path / "yolo11n.pt", coco, "yolo11n.yaml", as_trained=True)
    for seed, site in enumerate(("sites/north", "sites/south", "server")):
        make_dataset(tmp_path / site, num_train=4, num_val=2, names=("red", "green"), seed=seed)
    done = federated("my_config.yaml", "num_rounds=1", "train.imgsz=64", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    run_dir = tmp_path / "runs" / "federated" / "train"
    arrays, _ = load_arrays(run_dir / "weights" / "round1.npz")
    start, _ = load_arrays(run_dir / "weights" / "round0.npz")
    assert_learned(arrays, start)
    assert arrays["model.23.cv3.0.0.1.conv.weight"].shape[0] == 80  # as `yolo train` would have it
    export = [sys.executable, str(ROOT / "utils" / "export_federated.py"), "yolo11n.pt"]
    done = finished([*export, "runs/federated/train/weights/round1.npz"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    ensure_torchvision_nms()
    for path in (tmp_path / "saved_model.pt", run_dir / "weights" / "last.pt"):
        model = YOLO(path)
        assert model.names == {0: "red", 1: "green"}
        assert_identical(to_arrays(model.model), arrays)  # pyright: ignore[reportArgumentType]
        image = tmp_path / "server" / "images" / "val" / "0.jpg"
        assert len(list(model.predict(image, imgsz=64, save=False, verbose=False))) == 1


def test_wrong_input_gives_one_line_per_problem_and_exit_2(tmp_path: Path) -> None:
    make_dataset(tmp_path / "north")
    config = write_config(tmp_path)
    done = federated(
        str(config), "num_rounds=-1", "train.imgszz=3", "strategy=fedavgg", cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 2  # the strategy is looked at once the settings can be read
    assert all(line.startswith("error: ") for line in lines)
    assert not (tmp_path / "runs").exists()


def test_wrong_data_gives_exit_2_and_no_run_directory(tmp_path: Path) -> None:
    make_dataset(tmp_path / "north")
    (tmp_path / "north" / "images" / "train" / "0.jpg").write_bytes(b"no image")
    config = write_config(tmp_path)
    done = federated(str(config), "strategy=fedavgg", cwd=tmp_path)
    assert done.returncode == 2
    assert "0.jpg" in done.stderr
    assert "found 'fedavgg'" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "runs").exists()


def test_a_failure_while_running_gives_exit_1_and_leaves_the_rounds(tmp_path: Path) -> None:
    """A gain near the largest float makes the loss infinite."""
    make_dataset(tmp_path / "north")
    config = write_config(tmp_path, train={**TRAIN, "box": 3e38})
    done = federated(str(config), cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "client 'north' is left out" in done.stdout
    assert "lower train.lr0" in done.stdout
    assert "error: round " in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "runs" / "train" / "weights" / "round0.npz").exists()


def test_help_names_the_arguments_and_exit_codes() -> None:
    done = federated("--help", cwd=ROOT)
    assert done.returncode == 0
    assert "key=value" in done.stdout


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for orphans in /proc")
@pytest.mark.parametrize(
    ("moment", "interrupt"),
    [("while workers start", signal.SIGTERM), ("within round 2", signal.SIGINT)],
)
def test_an_interrupt_ends_with_130_and_leaves_no_process(
    moment: str, interrupt: signal.Signals, tmp_path: Path
) -> None:
    make_dataset(tmp_path / "north", num_train=40)
    config = write_config(tmp_path, num_rounds=500, train={**TRAIN, "imgsz": 64})
    weights = tmp_path / "runs" / "train" / "weights"
    with started(str(config), cwd=tmp_path) as (process, marker):
        awaited = weights / ("round0.npz" if moment == "while workers start" else "round1.npz")
        assert wait_until(awaited.exists, 120)
        time.sleep(1)
        os.killpg(process.pid, interrupt)
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 130, output + errors
    assert "error: interrupted\n" in errors
    assert "Traceback" not in errors
    assert str(weights.parent.name) in errors
    # Ray's own helpers see after a moment that nobody needs them any more.
    assert wait_until(lambda: not processes_with(marker), 30), processes_with(marker)
    if moment == "within round 2":
        assert "finished round" in errors
        assert (weights.parent / "results.png").exists()
        load_arrays(weights / "round1.npz")
    else:
        assert "no round was finished" in errors
