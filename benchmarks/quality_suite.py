"""The benchmark of quality over a list of data sets, which can be stopped and goes on.

Every set is a call of quality.py with the arguments that the list has for it. Trainings that sets
have in common, such as the pooled ones of the splits of one data set, are done once. Seed 0 comes
first, of all sets, then the next; with a seed, first what the summary needs, then --settings.
OUT/sets/NAME has the table and plot of each set; OUT/summary.md, .csv and .png all sets together.
They are renewed whenever a set is done with a seed.
"""

import argparse
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.digits import make_digits
from benchmarks.quality_data import find_data, read_split, with_whole_paths
from benchmarks.quality_jobs import Job, Setup, record_path, refuse_wrong
from benchmarks.quality_plan import make_setup, plan_jobs
from benchmarks.quality_runs import run_missing
from benchmarks.quality_summary import DEFAULTS, Row, measured, write_summary
from benchmarks.quality_tables import write_files
from federated_yolo.common.errors import InputError, nearest


@dataclass(frozen=True)
class BenchmarkSet:
    """A data set, split among clients in one way.

    arguments: of quality.py; {shared} and {digits} stand for folders. is_alike: whether clients
    have data of one kind and amount. is_chosen_on: whether defaults may be chosen on it; other
    settings than the defaults are not even tried on the sets that are kept away.
    """

    name: str
    arguments: str
    is_alike: bool
    is_chosen_on: bool


SETS = (
    BenchmarkSet("bccd-iid3", "--data {shared}/data/bccd --splits iid3", True, True),
    BenchmarkSet("bccd-dirichlet03", "--data {shared}/data/bccd --splits dirichlet03", False, True),
    BenchmarkSet(
        "bccd-unequal", "--data {shared}/data/bccd --splits unequal_70_20_10", False, True
    ),
    BenchmarkSet("hituav-iid4", "--data {shared}/data/hituav --splits iid4", True, True),
    BenchmarkSet("digits-iid3", "--data {digits} --splits iid3", True, True),
    BenchmarkSet("digits-unlike3", "--data {digits} --splits unlike3", False, True),
    BenchmarkSet("digits-domain5", "--data {digits} --splits domain5", False, True),
    BenchmarkSet("digits-unequal", "--data {digits} --splits unequal_70_20_10", False, True),
    # Kept away.
    BenchmarkSet("hituav-domain4", "--data {shared}/data/hituav --splits domain4", False, False),
    BenchmarkSet("bccd-10", "--data {shared}/data/bccd/all --num-clients 10", True, False),
    BenchmarkSet(
        "bccd-10-part",
        "--data {shared}/data/bccd/all --num-clients 10 --always fraction_train=0.3",
        True,
        False,
    ),
    BenchmarkSet(
        "bccd-30-part",
        "--data {shared}/data/bccd/all --num-clients 30 --alone 3 --always fraction_train=0.3",
        True,
        False,
    ),
    # 25 epochs of 12 images are too few steps to learn anything.
    BenchmarkSet(
        "nuts-seg",
        "--data {shared}/data/nuts-seg --num-clients 2 --base yolov8n-seg.yaml --epochs 100",
        True,
        False,
    ),
)
COMMON = "--batches 16 8 4"  # of pooled trainings; the first is also that of a federation
# What the list gives for each set, so that the command line cannot.
GIVEN = ("data", "clients", "pooled", "test", "splits", "num_clients", "masking", "alone", "always")


@dataclass(frozen=True)
class Part:
    """A set with what it comes to: the common arguments of its trainings, and these."""

    benchmark: BenchmarkSet
    setup: Setup
    jobs: tuple[Job, ...]

    def records(self) -> list[dict[str, Any]]:
        """The results that there are, in the order of the jobs and by their names."""
        there = [(job, record_path(job, self.setup)) for job in self.jobs]
        return [
            {**json.loads(path.read_text()), "name": job.name, "split": job.split}
            for job, path in there
            if path.exists()
        ]

    def row(self) -> Row:
        """What the summary says of it."""
        records = self.records()
        split, clients = next(iter(self.setup.data.clients.items()))
        alone = {job.name for job in self.jobs if (job.kind, job.split) == ("local", split)}
        images, objects = count_test(self.setup)
        return Row(
            self.benchmark.name,
            self.benchmark.is_alike,
            self.benchmark.is_chosen_on,
            measured(records, "centralised"),
            measured(records, "local"),
            measured(records, "federated"),
            len(clients),
            len(alone),
            images,
            objects,
        )


def run_suite(
    parser: argparse.ArgumentParser, options: argparse.Namespace, words: Sequence[str]
) -> int:
    """Run what is missing of the sets that `--suite` names, and write all tables.

    words: of the command line, which `options` are of. Returns the exit code. Raises InputError
    with what is wrong in any set, before the first training.
    """
    parts = prepare(parser, options, words)
    failed: dict[str, str] = {}

    def tell() -> None:
        print(progress(parts, failed), flush=True)

    tell()
    try:
        for part, jobs in stages(parts, options.seeds):
            if any(not record_path(job, part.setup).exists() for job in jobs):
                run_missing(jobs, part.setup, failed, tell)
                write_all(parts, failed, options.out)
    finally:
        print(write_all(parts, failed, options.out), flush=True)
        for reason in failed.values():
            print(f"failed: {reason}", flush=True)
    return int(bool(failed))


def prepare(
    parser: argparse.ArgumentParser, options: argparse.Namespace, words: Sequence[str]
) -> list[Part]:
    """Find the data of all sets and plan their trainings. Raises InputError with all problems."""
    chosen = chosen_sets(parser, options)
    digits = options.out / "data" / "digits"
    if any("{digits}" in one.arguments for one in chosen) and not digits.exists():
        digits.parent.mkdir(parents=True, exist_ok=True)
        make_digits(digits)
    parts: list[Part] = []
    problems: list[str] = []
    for one in chosen:
        # Folders may have spaces in their names.
        given = [
            word.format(shared=options.shared, digits=digits)
            for word in f"{COMMON} {one.arguments}".split()
        ]
        try:
            own = with_whole_paths(parser.parse_args([*given, *words]))
            own.settings = [DEFAULTS]
            if one.is_chosen_on:
                own.settings = list(dict.fromkeys([DEFAULTS, *options.settings]))
            setup = make_setup(own, find_data(own))
            part = Part(one, setup, tuple(plan_jobs(own, setup)))
            refuse_wrong(part.jobs, setup)
            parts.append(part)
        except InputError as error:
            problems += [f"{one.name}: {line}" for line in error.problems]
    if problems:
        raise InputError(problems)
    return parts


def chosen_sets(parser: argparse.ArgumentParser, options: argparse.Namespace) -> list[BenchmarkSet]:
    """The sets that --suite names, or all. Raises InputError."""
    names = [one.name for one in SETS]
    problems = [
        f"--suite {name}: unknown set{nearest(name, names)}; there are {', '.join(names)}"
        for name in options.suite
        if name not in names
    ]
    problems += [
        f"--{name.replace('_', '-')}: each set of --suite has its own; leave it out"
        for name in GIVEN
        if getattr(options, name) != parser.get_default(name)
    ]
    if problems:
        raise InputError(problems)
    return [one for one in SETS if one.name in (options.suite or names)]


def stages(parts: Sequence[Part], seeds: Iterable[int]) -> Iterator[tuple[Part, list[Job]]]:
    """What is run together: by seed, then what the summary needs before --settings, then set."""
    for seed in seeds:
        for is_extra in (False, True):
            for part in parts:
                jobs = [
                    job
                    for job in part.jobs
                    if job.seed == seed
                    and (job.kind == "federated" and job.name != DEFAULTS) == is_extra
                ]
                if jobs:
                    yield part, jobs


def count_test(setup: Setup) -> tuple[int, int]:
    """Images and objects of the split on which all are scored; a classified image is an object."""
    data = setup.data
    images = read_split(data.test, data.task, data.scored, setup.caches).images
    if data.task == "classify":
        return len(images), len(images)
    return len(images), sum(bool(row.strip()) for _, text in images for row in text.splitlines())


# How long it takes.


def progress(parts: Sequence[Part], failed: Iterable[str]) -> str:
    """`12 of 240 trainings are done, about 5 h 10 min left`."""
    jobs = {job.digest(part.setup): (part, job) for part in parts for job in part.jobs}
    done: list[tuple[str, str, float]] = []
    missing: list[tuple[str, str]] = []
    for digest, (part, job) in jobs.items():
        path = record_path(job, part.setup)
        if path.exists():
            seconds = json.loads(path.read_text())["seconds"]
            done.append((part.benchmark.name, job.kind, seconds))
        elif digest not in failed:
            missing.append((part.benchmark.name, job.kind))
    seconds, is_whole = remaining(missing, done)
    text = f"{len(done)} of {len(jobs)} trainings are done"
    if not missing or not seconds:
        return text
    minutes = round(seconds / 60)
    about = "about" if is_whole else "more than"
    return f"{text}, {about} {minutes // 60} h {minutes % 60:02} min left"


def remaining(
    missing: Iterable[tuple[str, str]], done: Iterable[tuple[str, str, float]]
) -> tuple[float, bool]:
    """Seconds for what is missing, and whether all of it could be estimated.

    missing: set and kind of each training. done: the same with seconds. What a set has no training
    of is taken to last as long as that kind does elsewhere. Two plain trainings run at once.
    """
    seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
    for name, kind, took in done:
        seconds[name, kind].append(took)
        seconds["", kind].append(took)
    total, is_whole = 0.0, True
    for name, kind in missing:
        known = seconds.get((name, kind)) or seconds.get(("", kind))
        if known:
            total += statistics.mean(known) / (1 if kind == "federated" else 2)
        else:
            is_whole = False
    return total, is_whole


def write_all(parts: Sequence[Part], failed: dict[str, str], out: Path) -> str:
    """Write the tables of all sets and the summary, whose text is returned."""
    for part in parts:
        folder = out / "sets" / part.benchmark.name
        folder.mkdir(parents=True, exist_ok=True)
        write_files(part.jobs, part.records(), part.setup, failed, folder)
    return write_summary([part.row() for part in parts], out)
