"""After the last round: each client trains on for itself, and keeps the better model."""

import gc
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import NAMES, add_test_split, hitting_arrays, whole_image_dataset
from local_grid import LocalGrid
from recipes import assert_same, make_class_folders, make_dataset, outcome
from trainings import TRAIN, ForgetfulGrid, Silent, assert_identical, assert_learned, federation

from federated_yolo.client.personal import personal_settings
from federated_yolo.common.arrays import Arrays
from federated_yolo.data.data_yaml import read_data_yaml, write_private_yaml
from federated_yolo.protocol.instructions import Instructions
from federated_yolo.reporting.personal_section import personal_summary
from federated_yolo.reporting.run_page import run_page
from federated_yolo.reporting.run_record import read_run
from federated_yolo.server.server import Server
from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import read_csv
from federated_yolo.yolo.checkpoint import load_checkpoint_module, save_checkpoint
from federated_yolo.yolo.evaluator import Evaluation, Evaluator
from federated_yolo.yolo.model import build_model, load_into, to_arrays
from federated_yolo.yolo.slice_mixin import SliceSettings
from federated_yolo.yolo.trainer import SliceTrainer

KIND = "train.personalise"
SOON: dict[str, Any] = {"num_rounds": 1, "personalise": {"epochs": 2, "lr0": 1e-3}}


def kept_arrays(run_dir: Path, name: str, stem: str = "personal") -> Arrays:
    path = run_dir / "clients" / name / f"{stem}.pt"
    return to_arrays(load_checkpoint_module(str(path), where="test"))


def asked(grid: LocalGrid) -> list[str]:
    """The clients that were asked to train for themselves, in order."""
    sent = [m for m in grid.sent if m.metadata.message_type == KIND]
    return [f"c{grid.partitions[m.metadata.dst_node_id]}" for m in sent]


def plain_slice(
    grid: LocalGrid, data: Path, start: Arrays, folder: Path, *, seed: int
) -> tuple[Arrays, Any]:
    """What a SliceTrainer makes of these arrays in one round of two epochs; and its settings."""
    told = grid.sent[-1].content.config_records["config"]["instructions"]
    instructions = Instructions.from_json(str(told))
    folder.mkdir()
    settings = SliceSettings(
        architecture=instructions.architecture,
        task="detect",
        data=write_private_yaml(read_data_yaml(data, where="test"), folder),
        private_dir=folder,
        train={**instructions.train, "lr0": 1e-3},
        num_rounds=1,
        local_epochs=2,
        seed=seed,
        device="cpu",
    )
    return SliceTrainer(settings).train(1, start).arrays, settings


@pytest.fixture
def rising(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each evaluation score higher than the one before."""
    scores = itertools.count(1)
    monkeypatch.setattr(Evaluator, "__call__", lambda *_, **__: scored(next(scores) / 1000))


@pytest.fixture
def level(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let all evaluations score the same."""
    monkeypatch.setattr(Evaluator, "__call__", lambda *_, **__: scored(0.5))


def scored(fitness: float) -> Evaluation:
    return Evaluation({"metrics/mAP50-95(B)": fitness}, fitness, 3, {})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("data")
    return [make_dataset(folder / "a", num_train=4), make_dataset(folder / "b", 4, seed=1)]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], LocalGrid, Any]:
    """Two clients, one of which has a test split; their scores are above 0."""
    folder = tmp_path_factory.mktemp("run")
    model = build_model("yolov8n.yaml", "detect", {"names": NAMES, "nc": 3})
    load_into(model, hitting_arrays(0, 1))
    save_checkpoint(folder / "base.pt", model, {"imgsz": 128})
    data = [
        add_test_split(whole_image_dataset(folder / "one", [0, 1, 0]), 2),
        whole_image_dataset(folder / "two", [1, 2], seed=1),
    ]
    grid = LocalGrid(2)
    train = {**TRAIN, "imgsz": 128, "lr0": 1e-4, "warmup_bias_lr": 0.0}
    settings = {**SOON, "num_rounds": 2, "base_model": str(folder / "base.pt")}
    with pytest.MonkeyPatch.context() as patch:  # the last round is not the best
        patch.setattr(Server, "best", property(lambda server: server.rounds[0]))
        result = federation(
            data, folder / "runs", train, grid=grid, evaluate={"every": 1}, **settings
        )
    return data, grid, result


def test_each_client_scores_the_best_global_model_and_what_it_trains_from_it(
    run: tuple[list[Path], LocalGrid, Any], tmp_path: Path
) -> None:
    data, grid, result = run
    rows = read_csv(result.run_dir / "personal.csv")
    assert [(row["client"], row["epochs"], row["lr0"]) for row in rows] == [
        ("c0", "2", "0.001"),
        ("c1", "2", "0.001"),
    ]
    start, _ = load_arrays(result.run_dir / "weights" / "round1.npz")
    fitness: dict[str, float] = {}
    for index, row in enumerate(rows):
        folder = tmp_path / row["client"]
        trained, settings = plain_slice(grid, data[index], start, folder, seed=1000 * index)
        assert_learned(trained, start)
        evaluator = Evaluator(
            read_data_yaml(data[index], where="test"), "detect", settings.train, folder
        )
        model = build_model("yolov8n.yaml", "detect", {"names": NAMES, "nc": 3})
        for name, arrays in (("global", start), ("personal", trained)):
            load_into(model, arrays)
            for split in ("val", "test") if index == 0 else ("val",):
                expected = evaluator(model, split)
                beginning = f"{'test/' if split == 'test' else ''}{name}/"
                assert float(row[f"{beginning}fitness"]) == expected.fitness
                assert {n: float(row[beginning + n]) for n in expected.metrics} == expected.metrics
            fitness[name] = float(row[f"{name}/fitness"])
        assert row["round"] == "1"
        assert row["num_examples"] == str(3 - index)
        is_kept = fitness["personal"] > fitness["global"]
        assert row["kept"] == str(is_kept).lower()
        assert (result.run_dir / "clients" / row["client"] / "personal.pt").exists() == is_kept
    assert fitness["global"] > 0
    assert rows[1]["test/global/fitness"] == ""


def test_the_report_and_the_terminal_tell_of_personal_models(
    run: tuple[list[Path], LocalGrid, Any],
) -> None:
    record = read_run(run[2].run_dir)
    section = next(s for s in run_page(record).sections if s.title == "Personal models")
    (sheet,) = section.sheets
    head = ["global", "personal", "test: global", "test: personal", "kept", "time", "remarks"]
    assert sheet.head == ["client", *head]
    for cells, row in zip(sheet.rows, record.personal_models, strict=True):
        shown = [f"{row[f'{m}/metrics/mAP50-95(B)']:.3f}" for m in ("global", "personal")]
        assert cells[:3] == [row["client"], *shown]
        assert cells[5] == {"true": "yes", "false": "no"}[row["kept"]]
    kept = [row["client"] for row in record.personal_models if row["kept"] == "true"]
    expected = f"{len(kept)} of 2 clients kept a personal model"
    assert personal_summary(record) == expected + (f": {', '.join(kept)}" if kept else "")


def test_no_weights_leave_a_client_that_trains_for_itself(
    run: tuple[list[Path], LocalGrid, Any],
) -> None:
    grid = run[1]
    replies = [r for r in grid.received if r.metadata.message_type == KIND]
    assert len(replies) == len(asked(grid)) == 2
    for reply in replies:
        assert not reply.content.array_records
        assert set(reply.content) == {"client", "metrics"}


@pytest.mark.usefixtures("rising")
def test_a_finished_run_can_be_personalised_and_its_rounds_stay(
    data: list[Path], tmp_path: Path
) -> None:
    first = LocalGrid(2)
    result = federation(data, tmp_path, TRAIN, grid=first, num_rounds=1)
    assert asked(first) == []
    assert not (result.run_dir / "personal.csv").exists()
    before = outcome(result.run_dir)
    again = LocalGrid(2)
    federation(data, tmp_path, TRAIN, grid=again, resume=True, **SOON)
    assert sorted(asked(again)) == ["c0", "c1"]
    assert {m.metadata.message_type for m in again.sent} == {"query.hello", "query", KIND}
    rows = read_csv(result.run_dir / "personal.csv")
    assert [row["kept"] for row in rows] == ["true", "true"]
    after = outcome(result.run_dir)
    assert_same({name: after[name] for name in before}, before)
    start, _ = load_arrays(result.run_dir / "weights" / "round1.npz")
    for index, path in enumerate(data):
        name = f"c{index}"
        expected, _ = plain_slice(again, path, start, tmp_path / name, seed=1000 * index)
        assert_identical(kept_arrays(result.run_dir, name), expected)
    folder = result.run_dir / "clients" / "c0"
    assert not list((folder / "personal").rglob("round*.pt"))  # its optimiser is of no more use
    idle = LocalGrid(2)
    federation(data, tmp_path, TRAIN, grid=idle, resume=True, **SOON)
    assert asked(idle) == []


def test_a_model_that_is_no_better_is_not_kept_and_an_older_one_goes(
    data: list[Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("rising")
    result = federation(data[:1], tmp_path, TRAIN, **SOON)
    path = result.run_dir / "clients" / "c0" / "personal.pt"
    assert torch.load(path, weights_only=False)["train_args"]["lr0"] == 1e-3
    request.getfixturevalue("level")
    others = {**SOON, "personalise": {"epochs": 1, "lr0": 1e-3}}
    federation(data[:1], tmp_path, TRAIN, resume=True, **others)
    (row,) = read_csv(result.run_dir / "personal.csv")
    assert (row["epochs"], row["kept"]) == ("1", "false")
    assert row["global/fitness"] == row["personal/fitness"] == "0.5"
    assert not path.exists()


@pytest.mark.usefixtures("rising")
def test_a_client_with_arrays_of_its_own_starts_from_its_own_model(
    data: list[Path], tmp_path: Path
) -> None:
    grid = LocalGrid(2)
    shared: dict[str, Any] = {"shared": {"batchnorm": "local"}, "evaluate": {"every": 1}}
    result = federation(data, tmp_path, TRAIN, grid=grid, **SOON, **shared)
    for index, path in enumerate(data):
        name = f"c{index}"
        start = kept_arrays(result.run_dir, name, "last")
        expected, _ = plain_slice(grid, path, start, tmp_path / name, seed=1000 * index)
        assert_identical(kept_arrays(result.run_dir, name), expected)


@pytest.mark.usefixtures("rising")
def test_a_run_that_was_killed_meanwhile_ends_as_if_it_had_not(
    data: list[Path], tmp_path: Path
) -> None:
    whole = federation(data, tmp_path / "whole", TRAIN, **SOON)

    def kill(name: str, text: str) -> None:
        raise KeyboardInterrupt

    display = Silent()
    display.client_done = kill  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        federation(data, tmp_path / "killed", TRAIN, display=display, **SOON)
    gc.collect()  # nobody holds its directory any more
    grid = ForgetfulGrid(2)
    rest = federation(data, tmp_path / "killed", TRAIN, grid=grid, resume=True, **SOON)
    for name in ("c0", "c1"):
        assert_identical(kept_arrays(rest.run_dir, name), kept_arrays(whole.run_dir, name))
    rows = [read_csv(r.run_dir / "personal.csv") for r in (rest, whole)]
    settled = [[(r["client"], r["kept"], r["lr0"]) for r in table] for table in rows]
    assert settled[0] == settled[1]


def test_a_client_that_fails_says_why_and_a_resumed_run_asks_only_it(
    data: list[Path], tmp_path: Path
) -> None:
    paths = [shutil.copytree(p.parent, tmp_path / p.parent.name) / p.name for p in data]
    val = paths[1].parent / "images" / "val"

    def lose_val(_: Any) -> None:
        val.rename(tmp_path / "val")
        val.mkdir()

    display = Silent()
    display.round_done = lose_val  # type: ignore[method-assign]
    result = federation(paths, tmp_path / "runs", TRAIN, display=display, **SOON)
    done, failed = read_csv(result.run_dir / "personal.csv")
    assert (done["client"], failed["client"]) == ("c0", "c1")
    assert done["kept"]
    assert (failed["kept"], failed["global/fitness"]) == ("", "")
    assert failed["note"].startswith("val: ")
    assert display.notices[-1] == "personal.csv lacks c1; a resumed run tries again"
    val.rmdir()
    (tmp_path / "val").rename(val)
    grid = LocalGrid(2)
    federation(paths, tmp_path / "runs", TRAIN, grid=grid, resume=True, **SOON)
    assert asked(grid) == ["c1"]
    rows = read_csv(result.run_dir / "personal.csv")
    assert rows[0]["seconds"] == done["seconds"]
    assert rows[1]["kept"]
    assert "note" not in rows[1]


@pytest.mark.usefixtures("rising")
def test_scores_that_a_client_cannot_have_are_refused(data: list[Path], tmp_path: Path) -> None:
    lies = iter([{"global/fitness": 7.0}, {"local/fitness": 0.1}, {"personal/fitness": 0.0}])

    def lie(reply: Any) -> Any:
        if reply.metadata.message_type == KIND:
            reply.content["metrics"].update(next(lies))
        return reply

    grid, display = LocalGrid(1, lie), Silent()
    for resume in (False, True, True):
        federation(data[:1], tmp_path, TRAIN, grid=grid, display=display, resume=resume, **SOON)
    reasons = [reason for _, reason in display.failures]
    assert reasons[0] == "fitness: found 7, expected 0 to 1"
    assert reasons[1].startswith("found a number 'local/fitness', expected global/, personal/")
    assert reasons[2] == "is-kept: found True, which its scores do not say"


def test_a_classifier_is_personalised_too(tmp_path: Path) -> None:
    folders = [make_class_folders(tmp_path / "x")]
    shutil.copytree(folders[0] / "val", folders[0] / "test")
    display = Silent()
    result = federation(
        folders, tmp_path / "runs", TRAIN, base_model="yolov8n-cls.yaml", display=display, **SOON
    )
    assert (display.failures, display.notices) == ([], [])
    (row,) = read_csv(result.run_dir / "personal.csv")
    assert float(row["test/personal/metrics/accuracy_top5"]) == 1
    titles = [section.title for section in run_page(read_run(result.run_dir)).sections]
    assert "Personal models" in titles


STOPPING = """
from federated_yolo import YoloClient


class Stopping(YoloClient):
    def prepare(self):
        self.add_callback("on_train_batch_end", self.stop)

    def stop(self, trainer):
        if trainer.args.lr0 == 1e-3:
            self.abort("not for myself")
"""


def test_callbacks_are_called_and_may_abort_it(data: list[Path], tmp_path: Path) -> None:
    (tmp_path / "stopping.py").write_text(STOPPING)
    display = Silent()
    client = f"{tmp_path / 'stopping.py'}:Stopping"
    result = federation(data[:1], tmp_path / "runs", TRAIN, display=display, client=client, **SOON)
    assert display.failures == [("c0", "not for myself")]
    (row,) = read_csv(result.run_dir / "personal.csv")
    assert (row["kept"], row["note"]) == ("", "not for myself")


def test_its_training_is_a_plain_one_with_its_own_learning_rate(tmp_path: Path) -> None:
    settings: Any = SliceSettings(
        architecture=None,  # type: ignore[arg-type]
        task="detect",
        data=tmp_path / "data.yaml",
        private_dir=tmp_path,
        train={"lr0": 0.1, "momentum": 0.9},
        num_rounds=9,
        local_epochs=3,
        seed=4,
        device="cpu",
    )
    found = personal_settings(settings, 5, 0.02)
    assert (found.num_rounds, found.local_epochs, found.seed) == (1, 5, 4)
    assert found.train == {"lr0": 0.02, "momentum": 0.9}
    assert (found.data, found.private_dir) == (settings.data, tmp_path / "personal")
