"""The benchmark of quality over several sets: in which order, and that it goes on when stopped."""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from recipes import make_dataset

from benchmarks import quality, quality_runs, quality_suite
from benchmarks.quality_data import with_whole_paths
from benchmarks.quality_jobs import Job, Setup, keep, num_rounds_of, record_path
from benchmarks.quality_suite import BenchmarkSet, Part, prepare, remaining, run_suite, stages
from federated_yolo.common.errors import InputError

WORDS = "--pretrained none --imgsz 32 --epochs 4 --settings fedavgm --seeds 1 0"


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Arguments for two sets of one small data set, the second of which is kept away."""
    small = tmp_path / "shared/data/small"
    make_dataset(small / "all", num_train=8, num_val=2)
    for split, number in (("two", 2), ("four", 4)):
        for client in range(number):
            folder = small / "fed" / split / f"client_{client}"
            make_dataset(folder, num_train=2, num_val=1, seed=1 + client)
    data = "--data {shared}/data/small --splits"
    sets = (
        BenchmarkSet("two", f"{data} two", is_alike=True, is_chosen_on=True),
        BenchmarkSet("away", f"{data} four --alone 1", is_alike=True, is_chosen_on=False),
    )
    monkeypatch.setattr(quality_suite, "SETS", sets)
    folders = ["--shared", str(tmp_path / "shared"), "--out", str(tmp_path / "out")]
    return ["--suite", *WORDS.split(), *folders]


def parsed(words: Sequence[str]) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = quality.make_quality_parser()
    options = with_whole_paths(parser.parse_args(words))
    options.out.mkdir(exist_ok=True)
    return parser, options


def parts_of(words: Sequence[str]) -> list[Part]:
    return prepare(*parsed(words), words)


def run(words: Sequence[str]) -> int:
    return run_suite(*parsed(words), words)


def pretend(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[int], BaseException | None]
) -> list[str]:
    """Keep results without training; return the names of what was run, in order.

    fails: Gives what is raised in place of a result, by how many were begun.
    """
    begun: list[str] = []

    def run_job(job: Job, setup: Setup, _: Any) -> None:
        begun.append(str(job))
        if error := fails(len(begun)):
            raise error
        record = {
            **{"kind": job.kind, "name": job.name, "split": job.split, "seed": job.seed},
            **{"digest": job.digest(setup), "recipe": job.recipe(setup), "frame": setup.frame},
            **{"metrics": {"mAP50-95": 0.5}, "per_class": {}, "seconds": 60.0},
        }
        keep(record, record_path(job, setup))

    monkeypatch.setattr(quality_runs, "run_job", run_job)
    return begun


def test_a_seed_of_all_sets_comes_before_the_next_and_the_summary_before_settings(
    words: list[str],
) -> None:
    found = [
        (part.benchmark.name, [(job.kind, job.name, job.seed) for job in jobs])
        for part, jobs in stages(parts_of(words), [1, 0])
    ]
    pooled = [("centralised", f"centralised, batch {batch}") for batch in (16, 8, 4)]
    two = [("local", "client_0 alone"), ("local", "client_1 alone")]
    away = [("local", "client_0 alone")]  # --alone 1
    defaults = [("federated", "defaults")]
    assert found == [
        stage
        for seed in (1, 0)
        for stage in (
            ("two", [(*job, seed) for job in [*pooled, *two, *defaults]]),
            ("away", [(*job, seed) for job in [*pooled, *away, *defaults]]),
            ("two", [("federated", "fedavgm", seed)]),
        )
    ]


def test_sets_of_one_data_set_share_its_pooled_trainings(words: list[str]) -> None:
    two, away = parts_of(words)
    pooled = [
        {job.digest(part.setup) for job in part.jobs if job.kind == "centralised"}
        for part in (two, away)
    ]
    assert pooled[0] == pooled[1]
    assert len(pooled[0]) == 6


def test_an_interrupted_suite_writes_what_it_has_and_goes_on_where_it_was(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The sixth is the first federation, which runs in the main thread, as Ctrl-C arrives.
    begun = pretend(monkeypatch, lambda number: KeyboardInterrupt() if number == 6 else None)
    with pytest.raises(KeyboardInterrupt):
        run(words)
    assert len(begun) == 6
    summary = (tmp_path / "out/summary.md").read_text()
    assert "| two | alike |  | batch 16: 0.500 |" in summary
    before = {path: path.read_bytes() for path in (tmp_path / "out/results").iterdir()}
    assert len(before) == 5
    again = pretend(monkeypatch, lambda _: None)
    assert run(words) == 0
    # 2 seeds of 3 pooled, 2 + 1 alone, 2 federations of the defaults and 1 of other settings
    assert len(again) == 2 * 9 - 5
    assert not set(again) & set(begun[:5])
    assert again[0] == begun[5]
    assert {path: path.read_bytes() for path in before} == before
    summary = (tmp_path / "out/summary.md").read_text()
    assert "| two | alike | 0.500 ± 0.000 |" in summary
    assert "best of the 1 largest: client_0" in summary
    assert "| fedavgm | 1.000 |" in summary
    assert (tmp_path / "out/summary.png").exists()
    assert "not run yet" not in (tmp_path / "out/sets/away/table.md").read_text()
    assert pretend(monkeypatch, lambda _: None) == []
    assert run(words) == 0


def test_one_that_fails_does_not_stop_the_others(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun = pretend(monkeypatch, lambda number: RuntimeError("broken") if number == 6 else None)
    assert run(words) == 1
    assert len(begun) == 18
    assert "failed: defaults, two, seed 1: broken" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--suite", "tow"], r"--suite tow: unknown set.*did you mean 'two'"),
        (["--splits", "iid3"], r"--splits: each set of --suite has its own"),
        (["--base", "yolov8n-seg.yaml"], r"two: "),
        (["--settings", "strategy=krumm"], r"two: strategy=krumm, two: .*krum"),
        (["--shared", "nowhere"], r"away: .*nowhere/data/small: not found; give --shared"),
    ],
)
def test_what_is_wrong_is_told_of_all_sets_before_the_first_training(
    words: list[str], given: list[str], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        parts_of([*words, *given])


def test_rounds_make_up_for_clients_that_do_not_train(words: list[str]) -> None:
    _, away = parts_of(words)
    job = next(job for job in away.jobs if job.kind == "federated")

    def rounds(*settings: str) -> int:
        return num_rounds_of(Job("federated", "", "", 0, job.data, settings), away.setup)

    assert rounds() == 4
    assert rounds("fraction_train=0.5") == 8  # 2 of 4 clients
    assert rounds("fraction_train=0.3") == 16  # 1 of 4
    assert rounds("fraction_train=0.5", "local_epochs=2") == 4
    assert rounds("fraction_train=much") == 4  # which federated.py refuses


def test_the_time_that_is_left_is_known_by_set_and_kind() -> None:
    done = [("a", "local", 10.0), ("a", "local", 30.0), ("a", "federated", 100.0)]
    assert remaining([("a", "local"), ("a", "federated")], done) == (10 + 100, True)
    assert remaining([("b", "local")] * 3, done) == (30, True)  # as elsewhere
    assert remaining([("a", "local"), ("a", "centralised")], done) == (10, False)
    assert remaining([], done) == (0, True)


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])


def test_what_a_killed_benchmark_left_running_is_ended_before_its_folder_is_used(
    tmp_path: Path,
) -> None:
    ours, other = sleeper(), sleeper()
    try:
        started = psutil.Process(ours.pid).create_time()
        for name, pid in (("ours", ours.pid), ("other", other.pid), ("gone", 2**22 + 1)):
            path = tmp_path / "runs" / name / quality_runs.PROCESS_FILE
            path.parent.mkdir(parents=True)
            # The second number is that of a process which was begun at another time.
            is_ours = name == "ours"
            path.write_text(json.dumps({"pid": pid, "started": started - (not is_ours) * 100}))
        (tmp_path / "runs/gone" / quality_runs.PROCESS_FILE).write_text("{")
        quality_runs.end_leftovers(tmp_path)
        assert not psutil.pid_exists(ours.pid)
        assert other.poll() is None
        assert not list(tmp_path.rglob(quality_runs.PROCESS_FILE))
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def test_after_a_stop_nothing_runs_and_nothing_is_begun(tmp_path: Path) -> None:
    processes = quality_runs.Processes()
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(processes.run(command, tmp_path, None)))
    thread.start()
    while not (tmp_path / quality_runs.PROCESS_FILE).exists():
        time.sleep(0.01)
    processes.stop()
    thread.join()
    assert codes[0] != 0
    with pytest.raises(InterruptedError):
        processes.run(command, tmp_path, None)
    assert not (tmp_path / quality_runs.PROCESS_FILE).exists()


def test_two_benchmarks_do_not_train_in_one_folder(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        FileLock(tmp_path / "out" / ".lock"),
        pytest.raises(InputError, match="another benchmark trains here"),
    ):
        run(words)
