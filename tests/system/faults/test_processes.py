"""Real processes under Ray are killed and hang; the federation ends as it should."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import federated, started, wait_until, working_since
from recipes import assert_same, make_dataset, outcome
from sound_configs import write_config
from trainings import TRAIN

from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import read_csv

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]


HANGING = """
import threading
from federated_yolo import YoloClient


class Hanging(YoloClient):
    def train(self, round_number, arrays, config):
        if self.name == "north" and round_number == 2:
            threading.Event().wait()
        return super().train(round_number, arrays, config)
"""


def sites(folder: Path, **changes: Any) -> Path:
    """Two clients, each with more images than mosaic keeps in memory."""
    for index, name in enumerate(("north", "south")):
        make_dataset(folder / name, num_train=20, num_val=2, seed=index)
    data = [{"name": n, "data": str(folder / n / "data.yaml")} for n in ("north", "south")]
    changes = {"num_rounds": 2, **changes}
    return write_config(folder, datasets=data, train={**TRAIN, "imgsz": 64}, **changes)


def test_a_worker_killed_in_every_round_changes_nothing_but_the_time(tmp_path: Path) -> None:
    config = sites(tmp_path, evaluate={"every": 0})
    done = federated(str(config), "name=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / "runs" / "train" / "clients" / "north"
    with started(str(config), cwd=tmp_path) as (process, marker):
        for last in (folder.parents[1] / "weights" / f"round{n}.npz" for n in range(2)):
            assert wait_until(last.exists, 120)
            assert wait_until((folder / "ultralytics").exists, 120)  # training, not the greeting
            assert wait_until(lambda: working_since(marker, folder) is not None, 60)
            time.sleep(0.2)
            victim = working_since(marker, folder)
            assert victim is not None
            os.kill(victim, signal.SIGKILL)
        output, errors = process.communicate(timeout=200)
    assert process.returncode == 0, output + errors
    assert "Traceback" not in errors
    found, expected = (outcome(tmp_path / "runs" / name) for name in ("train", "whole"))
    rows = found["clients.csv"]
    notes = [(row["round"], row["client"]) for row in rows if row.pop("note", "")]
    assert {r for r, _ in notes} == {"1", "2"}
    assert ": its worker died at work; it did the work again" in output
    assert "raylet" not in output  # Ray reports it too, at length
    assert_same(found, expected)


def test_a_client_that_hangs_is_left_out_and_named_and_comes_back(tmp_path: Path) -> None:
    """North waits in round 2 for what does not come, as from a network share that hangs."""
    (tmp_path / "hanging.py").write_text(HANGING)
    client = f"{tmp_path / 'hanging.py'}:Hanging"
    config = sites(tmp_path, num_rounds=3, round_timeout_s=30, evaluate={"every": 0}, client=client)
    run_dir = tmp_path / "runs" / "train"
    done = federated(str(config), cwd=tmp_path)
    output = done.stdout
    assert done.returncode == 0, output + done.stderr
    rows = {(row["round"], row["client"]): row for row in read_csv(run_dir / "clients.csv")}
    reason = "no answer within round_timeout_s (30 s), its worker was stopped"
    assert reason in rows["2", "north"]["note"]
    assert rows["2", "north"]["num_examples"] == ""
    assert [rows[r, "north"]["num_examples"] for r in ("1", "3")] == ["20", "20"]
    assert reason in output
    stack = (run_dir / "clients" / "north" / "hang.txt").read_text()
    assert "client/yolo_client.py" in stack


def kill_at(event: Callable[[], bool], delay_s: float, config: Path, folder: Path) -> None:
    with started(str(config), cwd=folder) as (process, _):
        assert wait_until(event, 120)
        time.sleep(delay_s)
        process.kill()  # its workers notice later; a lock keeps them out of what is resumed


def test_a_server_killed_and_resumed_gives_the_same(tmp_path: Path) -> None:
    config = sites(tmp_path, strategy="fedavgm", server_ema=0.5)
    done = federated(str(config), "name=whole", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    first = tmp_path / "runs" / "train" / "weights" / "round1.npz"
    kill_at(first.exists, 1.0, config, tmp_path)
    moved = tmp_path / "another place" / "train"
    moved.parent.mkdir()
    first.parents[1].rename(moved)  # and where it was cannot even be made again
    (tmp_path / "runs").rename(tmp_path / "before")
    (tmp_path / "runs").touch()
    done = federated("resume=true", f"save_dir={moved.parent}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert_same(outcome(moved), outcome(tmp_path / "before" / "whole"))
    again = federated(f"resume={moved / 'weights' / 'round1.npz'}", cwd=tmp_path)
    assert again.returncode == 0, again.stdout + again.stderr
    assert "All rounds are complete" in again.stdout


def test_data_that_vanishes_ends_the_run_with_a_clear_error(tmp_path: Path) -> None:
    config = sites(tmp_path, num_rounds=500)
    run_dir = tmp_path / "runs" / "train"
    with started(str(config), cwd=tmp_path) as (process, _):
        assert wait_until((run_dir / "weights" / "round1.npz").exists, 120)
        for name in ("north", "south"):
            (tmp_path / name).rename(tmp_path / f"{name} is gone")
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 1, output + errors
    assert "0 of 2 clients returned a usable update" in errors
    assert f"federated.py resume={run_dir.relative_to(tmp_path)}\n" in errors
    assert "Traceback" not in output + errors
    assert "north" in output
    load_arrays(run_dir / "weights" / "round1.npz")
    assert any(row["note"] for row in read_csv(run_dir / "clients.csv"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MB: a few rounds of the nano model and its optimiser states."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80m", "none", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no right to mount a small file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_ends_the_run_which_goes_on_when_there_is_room(
    small_disk: Path, tmp_path: Path
) -> None:
    config = sites(tmp_path, num_rounds=3, evaluate={"every": 0})
    whole = federated(str(config), "name=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stdout + whole.stderr
    done = federated(str(config), f"save_dir={small_disk}", cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "No space left on device" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    weights = small_disk / "train" / "weights"
    rounds = sorted(weights.glob("round*.npz"))
    assert rounds
    for path in rounds:
        load_arrays(path)
    subprocess.run(["mount", "-o", "remount,size=900m", str(small_disk)], check=True)
    done = federated(f"resume={small_disk / 'train'}", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same(outcome(small_disk / "train"), outcome(tmp_path / "runs" / "whole"))


def test_a_run_directory_that_vanishes_ends_the_run_with_its_name(tmp_path: Path) -> None:
    config = sites(tmp_path, num_rounds=500)
    run_dir = tmp_path / "runs" / "train"
    with started(str(config), cwd=tmp_path) as (process, _):
        assert wait_until((run_dir / "weights" / "round1.npz").exists, 120)
        (run_dir / "weights").rename(tmp_path / "weights")
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 1, output + errors
    assert "No such file or directory" in errors
    assert "Traceback" not in output + errors
    load_arrays(tmp_path / "weights" / "round1.npz")
