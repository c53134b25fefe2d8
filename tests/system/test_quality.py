"""The benchmark of quality: its plan, what it keeps, its tables; and a whole one, small."""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from processes import ROOT, finished
from recipes import make_class_folders, make_data, make_dataset

from benchmarks import quality, quality_data, quality_jobs, quality_runs
from benchmarks.quality_data import find_data
from benchmarks.quality_jobs import Job, Setup, refuse_wrong, write_config
from benchmarks.quality_plan import make_setup, plan_jobs
from benchmarks.quality_runs import run_missing
from benchmarks.quality_tables import write_tables
from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import class_names, read_data_yaml
from federated_yolo.data.scan import scan_split
from federated_yolo.storage.run_dir import read_csv

SHARED_DATA = ROOT.parent / "shared" / "data"
SMALL = "--pretrained none --imgsz 32 --epochs 1 --seeds 0"


def planned(folder: Path, *arguments: str) -> tuple[list[Job], Setup, argparse.Namespace]:
    """What these arguments make of the benchmark, without running it. folder: takes its output."""
    parser = quality.make_quality_parser()
    # As the command line has them.
    words = [*SMALL.split(), "--out", str(folder / "out"), *arguments]
    parse_args = parser.parse_args
    parser.parse_args = lambda *_: parse_args(words)  # pyright: ignore[reportAttributeAccessIssue]
    options = quality.parse(parser)
    setup = make_setup(options, find_data(options))
    return plan_jobs(options, setup), setup, options


def federated_layout(folder: Path, names: Sequence[str] = ("a", "b", "c")) -> Path:
    """all/ and fed/iid2, fed/uneven2 with two clients each, as in the layout that it takes."""
    make_dataset(folder / "all", num_train=4, num_val=2, names=names)
    for number, split in enumerate(("uneven2", "iid2")):
        for client in range(2):
            path = folder / "fed" / split / f"client_{client}"
            make_dataset(path, num_train=2, num_val=1, names=names, seed=1 + number * 2 + client)
    return folder


def fields(jobs: Sequence[Job]) -> list[tuple[str, str, str, int]]:
    return [(job.kind, job.split, job.name, job.batch) for job in jobs]


def test_the_plan_has_pooled_local_and_federated_trainings_of_each_split(tmp_path: Path) -> None:
    data = federated_layout(tmp_path / "data")
    jobs, setup, _ = planned(tmp_path, "--data", str(data), "--settings", "fedavgm", "strategy=x")
    assert fields(jobs) == [
        ("centralised", "all", "centralised, batch 16", 16),
        ("centralised", "all", "centralised, batch 8", 8),
        *(
            (kind, split, name, batch)
            for split in ("iid2", "uneven2")
            for kind, name, batch in (
                ("local", "client_0 alone", 8),
                ("local", "client_1 alone", 8),
                ("federated", "fedavgm", 0),
                ("federated", "strategy=x", 0),
            )
        ),
    ]
    assert setup.data.scored == "val"
    assert jobs[4].settings == ("strategy=fedavgm",)
    given = ("--batches", "4", "32", "--seeds", "3", "5", "--splits", "iid2", "--federated")
    jobs, setup, _ = planned(tmp_path, "--data", str(data), *given)
    assert [(job.name, job.seed) for job in jobs] == [("defaults", 3), ("defaults", 5)]
    config = write_config(jobs[0], tmp_path / "config", setup).read_text()
    assert "global_batch: 4\n" in config
    jobs, _, _ = planned(tmp_path, "--data", str(data), *given[:-1])
    batches = [job.batch for job in jobs if job.seed == 3]
    assert batches == [4, 32, 2, 2, 0]


def test_the_same_by_two_names_is_run_once(tmp_path: Path) -> None:
    data = federated_layout(tmp_path / "data")
    settings = ("--splits", "iid2", "--federated", "--settings", "fedavgm", "strategy=fedavgm")
    jobs, _, _ = planned(tmp_path, "--data", str(data), *settings)
    assert [job.name for job in jobs] == ["fedavgm"]


@pytest.mark.parametrize("task", ["segment", "classify"])
def test_one_data_set_of_any_task_is_split(tmp_path: Path, task: str) -> None:
    data = make_data(tmp_path / "data", task, num_train=6, num_val=3, seed=1)
    data = data if task == "classify" else data.parent
    jobs, setup, _ = planned(tmp_path, "--data", str(data), "--num-clients", "2")
    # Polygons with four corners are taken for oriented boxes, unless a base says otherwise.
    assert setup.data.task == ("obb" if task == "segment" else task)
    assert [job.name for job in jobs if job.kind == "local"] == ["client_0 alone", "client_1 alone"]
    assert set(setup.data.clients) == {"iid2"}
    assert setup.base == {"segment": "yolov8n-obb.yaml", "classify": "yolov8n-cls.yaml"}[task]
    again, _, _ = planned(tmp_path, "--data", str(data), "--num-clients", "2")
    assert [job.digest(setup) for job in again] == [job.digest(setup) for job in jobs]


def rows_by_class(data: dict[str, Any], split: str, caches: Path) -> list[str]:
    """The class name of each object of a split, in order."""
    caches.mkdir(exist_ok=True)
    labels = scan_split(data, "detect", split, caches).labels  # pyright: ignore[reportAttributeAccessIssue]
    return sorted(data["names"][int(index)] for label in labels for index in label["cls"].ravel())


def test_classes_in_another_order_are_renumbered_for_the_pooled_data(tmp_path: Path) -> None:
    one = make_dataset(tmp_path / "one", names=("a", "b", "c"), seed=1)
    two = make_dataset(tmp_path / "two", names=("c", "d", "a"), seed=2)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    _, setup, _ = planned(tmp_path, "--clients", str(one), str(two))
    assert setup.data.names == ("a", "b", "c", "d")
    pooled = read_data_yaml(Path(setup.data.pooled["clients"]), where="test")
    assert class_names(pooled) == setup.data.names
    for split in ("train", "val"):
        expected = []
        for path in (one, two):
            data = read_data_yaml(path, where="test")
            expected += rows_by_class(data, split, tmp_path / f"{path.parent.name}-{split}")
        assert rows_by_class(pooled, split, tmp_path / split) == sorted(expected)
    assert {path: path.read_bytes() for path in before} == before
    # And where all agree, it is their own lists.
    same = make_dataset(tmp_path / "same", names=("a", "b", "c"), seed=3)
    _, setup, _ = planned(tmp_path, "--clients", str(one), str(same))
    pooled = read_data_yaml(Path(setup.data.pooled["clients"]), where="test")
    assert pooled["train"] == [str(path.parent / "images/train") for path in (one, same)]


def test_classifiers_are_pooled_by_the_names_of_their_folders(tmp_path: Path) -> None:
    one = make_class_folders(tmp_path / "one", names=("a", "b"))
    two = make_class_folders(tmp_path / "two", names=("b", "c"), seed=1)
    _, setup, _ = planned(tmp_path, "--clients", str(one), str(two))
    pooled = Path(setup.data.pooled["clients"])
    for split in ("train", "val"):
        expected = {
            name: sum(len(list((site / split / name).glob("*"))) for site in (one, two))
            for name in "abc"
        }
        found = {name: len(list((pooled / split / name).iterdir())) for name in "abc"}
        assert found == expected


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ("--test DIR/other/data.yaml", r"--test: class 'zebra' is not among a, b, c of the pooled"),
        ("--splits iid7", r"--splits iid7: found iid2, uneven2"),
        ("--settings fedavgn", r"--settings 'fedavgn': .*did you mean 'fedavgm'\?"),
        ("--base yolov8n-seg.yaml", r"segment"),  # boxes are no outlines
        ("--train lr=1", r"--train: train.lr: unknown"),
        ("--train batch=1", r"--train: batch: has an option of its own"),
        ("--local-epochs 2", r"local_epochs=2: found --epochs 1, expected a multiple of it"),
        ("--settings stratagy=fedprox", r"stratagy: unknown setting.*did you mean 'strategy'"),
        ("--settings strategy=krum", r"krum"),
        ("--pretrained nowhere.pt", r"nowhere.pt: no such file"),
    ],
)
def test_what_is_wrong_is_refused_before_training(
    tmp_path: Path, arguments: str, problem: str
) -> None:
    data = federated_layout(tmp_path / "data")
    make_dataset(tmp_path / "other", names=("a", "zebra"))
    words = arguments.replace("DIR", str(tmp_path)).split()

    def prepare() -> None:
        jobs, setup, _ = planned(tmp_path, "--data", str(data), *words)
        refuse_wrong(jobs, setup)

    with pytest.raises(InputError, match=problem):
        prepare()
    assert not (tmp_path / "out" / "runs").exists()


def test_a_damaged_image_is_refused_before_training(tmp_path: Path) -> None:
    data = federated_layout(tmp_path / "data")
    (data / "fed/iid2/client_1/images/train/0.jpg").write_bytes(b"\xff\xd8 no image")
    with pytest.raises(InputError, match=r"0\.jpg: .*repair or remove"):
        planned(tmp_path, "--data", str(data))


@pytest.fixture
def plan(tmp_path: Path) -> tuple[list[Job], Setup, argparse.Namespace]:
    data = federated_layout(tmp_path / "data")
    return planned(tmp_path, "--data", str(data), "--splits", "iid2")


def pretend(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[Job], BaseException | None] = lambda _: None
) -> list[str]:
    """Keep results without training, and return the names of what was run."""
    done: list[str] = []

    def run(job: Job, setup: Setup, running: Any) -> None:
        done.append(job.name)
        error = fails(job)
        if error:
            raise error
        value = len(done) / 10
        record = {
            **{"kind": job.kind, "name": job.name, "split": job.split, "seed": job.seed},
            **{"digest": job.digest(setup), "recipe": job.recipe(setup)},
            **{"frame": setup.frame, "seconds": 1.0},
            **{"metrics": {"mAP50-95": value}, "per_class": {"a/mAP50": value}},
        }
        if job.kind == "local":
            record["per_class"] = {}  # its model was tested on images without that class
        quality_jobs.keep(record, quality_jobs.record_path(job, setup))

    monkeypatch.setattr(quality_runs, "run_job", run)
    return done


def test_a_rerun_does_what_is_missing(
    plan: tuple[list[Job], Setup, argparse.Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, setup, _ = plan
    done = pretend(monkeypatch)
    run_missing(jobs[2:4], setup, {})
    assert sorted(done) == ["client_0 alone", "client_1 alone"]
    run_missing(jobs, setup, {})
    assert len(done) == len(jobs) == len(set(done))
    run_missing(jobs, setup, {})
    assert len(done) == len(jobs)


def test_results_of_other_settings_are_other_results(
    plan: tuple[list[Job], Setup, argparse.Namespace], tmp_path: Path
) -> None:
    jobs, setup, _ = plan
    local, federated = jobs[2], jobs[-1]
    others = [
        (jobs[3], setup),
        (replace(local, kind="centralised"), setup),
        (replace(local, seed=1), setup),
        (replace(local, batch=3), setup),
        (federated, setup),
        (replace(federated, settings=("a=1",)), setup),
        (replace(federated, settings=("a=1", "a=2")), setup),
        (replace(federated, settings=("a=2", "a=1")), setup),
        *(
            (federated, replace(setup, **{name: value}))
            for name, value in (
                ("epochs", 2),
                ("imgsz", 64),
                ("batch", 4),
                ("base", "yolov8s.yaml"),
                ("pretrained", __file__),
                ("train", {"mosaic": 0.0}),
                ("data", replace(setup.data, test=local.data["client_0"])),
            )
        ),
    ]
    digests = [local.digest(setup), *(job.digest(other) for job, other in others)]
    assert len(set(digests)) == len(digests)
    # But not by what it is called, or where it lies.
    assert replace(federated, name="x", split="y").digest(setup) == federated.digest(setup)
    moved = federated_layout(tmp_path / "moved")
    again, elsewhere, _ = planned(tmp_path, "--data", str(moved), "--splits", "iid2")
    assert [job.digest(elsewhere) for job in again] == [job.digest(setup) for job in jobs]
    # A client class by what its file has.
    hooks = tmp_path / "hooks.py"
    hooked = replace(federated, settings=(f"client={hooks}:Client",))
    hooks.write_text("one")
    before = hooked.digest(setup)
    hooks.write_text("two")
    assert hooked.digest(setup) != before
    # The same path with another label is another training.
    label = next((moved / "fed/iid2/client_0/labels/train").glob("*.txt"))
    label.write_text("0 0.5 0.5 0.25 0.25\n")
    quality_data._splits.clear()
    changed, elsewhere, _ = planned(tmp_path, "--data", str(moved), "--splits", "iid2")
    differ = [a.digest(elsewhere) != b.digest(setup) for a, b in zip(changed, jobs, strict=True)]
    assert [job.name for job, d in zip(jobs, differ, strict=True) if d] == [
        "client_0 alone",
        "defaults",
    ]


def test_the_table_has_what_there_is_and_names_what_failed(
    plan: tuple[list[Job], Setup, argparse.Namespace],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    jobs, setup, _ = plan
    write_tables(jobs, setup, {})
    assert "no run is finished yet" in (setup.out / "table.md").read_text()
    jobs = [*jobs, *(replace(job, seed=1) for job in jobs)]
    failed: dict[str, str] = {}
    error = RuntimeError("exit code 1, see log.txt")
    pretend(monkeypatch, lambda job: error if job.name == "client_0 alone" else None)
    monkeypatch.setattr(quality_runs, "ThreadPoolExecutor", lambda _: Pool())
    run_missing(jobs[:-1], setup, failed)
    write_tables(jobs, setup, failed)
    text = (setup.out / "table.md").read_text()
    assert text in capsys.readouterr().out
    lines = text.splitlines()
    assert lines[2:5] == [
        "| data | run | mAP50-95 | × centralised | a mAP50 | seeds | s |",
        "|---|---|---|---|---|---|---|",
        "| all | centralised, batch 16 | 0.300 ± 0.283 | 1.000 | 0.300 ± 0.283 | 2 | 1 |",
    ]
    assert lines[6] == "| iid2 | client_1 alone | 0.600 ± 0.283 | 2.000 |  | 2 | 1 |"
    assert [line for line in lines if line.startswith("failed")] == [
        f"failed: client_0 alone, iid2, seed {seed}: exit code 1, see log.txt" for seed in (0, 1)
    ]
    assert lines[-1] == "not run yet: defaults, iid2, seed 1"
    rows = read_csv(setup.out / "results.csv")
    assert len(rows) == 7
    assert {row["a/mAP50"] == "" for row in rows if row["kind"] == "local"} == {True}
    assert (setup.out / "quality.png").exists()
    # Of another size of image, none of these counts.
    write_tables(jobs, replace(setup, imgsz=64), {})
    assert "no run is finished yet" in (setup.out / "table.md").read_text()


def test_runs_of_one_name_and_other_data_are_not_averaged(
    plan: tuple[list[Job], Setup, argparse.Namespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs, setup, _ = plan
    federated = jobs[-1]
    pretend(monkeypatch)
    others = [
        replace(federated, seed=1, data=dict(list(federated.data.items())[:1])),
        replace(federated, seed=2, settings=("a=1",)),
        replace(federated, name="mine", seed=3, settings=("a=2",)),
        replace(federated, name="mine", seed=4, settings=("a=3",)),
        replace(federated, name="mine", seed=5, settings=("a=3",)),
    ]
    run_missing([federated, *others], setup, {})
    write_tables([federated], setup, {})
    lines = (setup.out / "table.md").read_text().splitlines()[4:]
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    assert sorted((row[2], row[6]) for row in cells) == [
        ("defaults", "1"),
        ("mine", "1"),
        ("mine", "2"),
    ]


class Pool:
    """Does all in this thread, so that results have an order."""

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return [function(item) for item in items]

    def shutdown(self, **_: Any) -> None: ...


def test_an_interrupted_benchmark_writes_its_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = federated_layout(tmp_path / "data")
    words = f"quality.py --data {data} --splits iid2 --out {tmp_path / 'out'} {SMALL}"
    monkeypatch.setattr(sys, "argv", words.split())
    pretend(monkeypatch, lambda job: KeyboardInterrupt() if job.kind == "federated" else None)
    monkeypatch.setattr(quality, "remove_private_settings", lambda: None)
    handlers: list[Any] = []
    monkeypatch.setattr(quality.signal, "signal", lambda *args: handlers.append(args))
    assert quality.main() == 130
    table = (tmp_path / "out" / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "| iid2 | client_1 alone |" in table
    assert "not run yet: defaults, iid2, seed 0" in table
    assert "failed" not in table
    assert len(handlers) == 1


def documented_commands() -> list[str]:
    pages = (ROOT / "README.md", ROOT / "benchmarks" / "README.md")
    found = [
        re.findall(r"python benchmarks/quality\.py[^`\n]*", page.read_text()) for page in pages
    ]
    return sorted({command for commands in found for command in commands})


@pytest.mark.skipif(not (SHARED_DATA / "bccd").is_dir(), reason="needs BCCD beside the project")
def test_the_commands_of_the_docs_are_understood(tmp_path: Path) -> None:
    commands = [c for c in documented_commands() if ".yaml" not in c and "DIR" not in c]
    assert len(commands) >= 3
    for command in commands:
        words = shlex.split(command.removeprefix("python benchmarks/quality.py"))
        words = [word.replace("../shared/data", str(SHARED_DATA)) for word in words]
        jobs, _, options = planned(tmp_path, *words)
        assert jobs, command
        if options.masking is not None:
            assert {job.split for job in jobs} == {"iid3"}
            assert "datasets.1.not_annotated=[Platelets]" in jobs[0].settings
            assert jobs[0].name == "Platelets left out of its loss"


@pytest.mark.timeout(1800)  # ten processes that import PyTorch, one after the other
def test_a_small_benchmark_comes_to_its_table_and_repeats_only_what_failed(tmp_path: Path) -> None:
    one = make_dataset(tmp_path / "one", names=("a", "b"), num_train=4, seed=1)
    two = make_dataset(tmp_path / "two", names=("b", "a"), num_train=4, seed=2)
    raising = tmp_path / "raising.py"
    raising.write_text(
        "import os\n"
        "from federated_yolo import YoloClient\n\n\n"
        "class Raising(YoloClient):\n"
        "    def train(self, *arguments):\n"
        "        if 'MENDED' not in os.environ:\n"
        "            raise ValueError('broken')\n"
        "        return super().train(*arguments)\n"
    )
    command = [sys.executable, str(ROOT / "benchmarks/quality.py"), *SMALL.split()]
    command += ["--clients", str(one), str(two), "--batches", "4", "--out", str(tmp_path / "out")]
    command += ["--settings", "shared.batchnorm=local", f"client={raising}:Raising"]
    before = {path: path.read_bytes() for path in tmp_path.glob("*/*/*/*")}
    first = finished(command, cwd=tmp_path, timeout_s=1200)
    assert first.returncode == 1, first.stderr
    rows = read_csv(tmp_path / "out" / "results.csv")
    assert [row["name"] for row in rows] == [
        "centralised, batch 4",
        "one alone",
        "two alone",
        "shared.batchnorm=local",
    ]
    assert all(0 <= float(row["mAP50-95"]) <= 1 for row in rows)
    assert f"failed: client={raising}:Raising, clients, seed 0: exit code 1" in first.stdout
    kept = {path: path.read_bytes() for path in (tmp_path / "out/results").iterdir()}
    again = finished(command, cwd=tmp_path, timeout_s=600, MENDED="1")
    assert again.returncode == 0, again.stdout + again.stderr
    names = [json.loads(line)["name"] for line in again.stdout.splitlines() if line[:1] == "{"]
    assert names == [f"client={raising}:Raising, clients, seed 0"]
    assert {path: path.read_bytes() for path in kept} == kept
    assert {path: path.read_bytes() for path in before} == before
    assert not list((tmp_path / "one").rglob("*.cache"))
