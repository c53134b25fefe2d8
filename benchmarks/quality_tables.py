"""Tables and plot of what the benchmark of quality has measured on one data set."""

import csv
import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.quality_jobs import KINDS, Job, Setup
from benchmarks.quality_summary import best_of, measured

MAX_CLASS_COLUMNS = 4
HIDDEN = ("metrics", "per_class", "frame")


def read_records(jobs: Sequence[Job], setup: Setup) -> list[dict[str, Any]]:
    """All results that may stand in one table with those of these jobs, by their names.

    Others stand beside them, such as those of other settings; but not those that go by the name of
    a job and are of other data, settings or batches.
    """
    paths = sorted((setup.out / "results").glob("*.json"))
    records = [json.loads(path.read_text()) for path in paths]
    records = [record for record in records if record["frame"] == setup.frame]
    names = {job.digest(setup): (job.split, job.name) for job in jobs}
    recipes = {(job.split, job.name): job.recipe(setup) for job in jobs}
    for record in records:
        label = (record["split"], record["name"])
        record["split"], record["name"] = names.get(record["digest"], label)
    records = [
        record
        for record in records
        if recipes.get((record["split"], record["name"]), record["recipe"]) == record["recipe"]
    ]
    order = {kind: number for number, kind in enumerate(KINDS)}
    records.sort(key=lambda r: (r["split"], order[r["kind"]], r["name"], r["recipe"], r["seed"]))
    return records


def write_tables(jobs: Sequence[Job], setup: Setup, failed: Mapping[str, str]) -> None:
    """Write the tables and the plot of these jobs and of what stands beside them; print one."""
    print(write_files(jobs, read_records(jobs, setup), setup, failed, setup.out), flush=True)


def write_files(
    jobs: Sequence[Job],
    records: Sequence[Mapping[str, Any]],
    setup: Setup,
    failed: Mapping[str, str],
    folder: Path,
) -> str:
    """Write results.csv, table.md and quality.png to a folder, and return the table.

    records: results of the jobs and of what is to stand beside them.
    """
    names = {job.digest(setup): job for job in jobs}
    done = {record["digest"] for record in records}
    missing = [str(job) for digest, job in names.items() if digest not in {*done, *failed}]
    lines = [describe(setup), "", markdown(records, setup.batch)]
    lines += [f"failed: {reason}" for digest, reason in failed.items() if digest in names]
    lines += [f"not run yet: {name}" for name in missing]
    text = "\n".join(lines)
    (folder / "table.md").write_text(f"{text}\n")
    write_csv(records, folder / "results.csv")
    if any(record["split"] != "all" for record in records):
        plot(records, folder / "quality.png")
    return text


def describe(setup: Setup) -> str:
    """What is the same for all rows of a table."""
    start = f" from {Path(setup.pretrained).name}" if setup.pretrained else ""
    arguments = "".join(f", {key}={value}" for key, value in setup.train.items())
    return (
        f"{Path(setup.base).name}{start} ({setup.data.task}), imgsz {setup.imgsz}, {setup.epochs} "
        f"epochs{arguments}, scored on the {setup.data.scored} split of {setup.data.test}"
    )


def write_csv(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """A row for each run."""
    rows = [
        {k: v for k, v in {**r, **r["metrics"], **r["per_class"]}.items() if k not in HIDDEN}
        for r in records
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def markdown(records: Sequence[Mapping[str, Any]], batch: int) -> str:
    """Mean and standard deviation over seeds, and the ratio to centralised with this batch."""
    if not records:
        return "no run is finished yet"
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    pooled: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["split"], record["name"], record["recipe"]].append(record)
        if record["name"] == f"centralised, batch {batch}":
            pooled[record["split"]].append(record)
    metrics = list(records[0]["metrics"])
    classes = list(dict.fromkeys(name for record in records for name in record["per_class"]))
    classes = [name for name in classes if name.rpartition("/")[2] in ("mAP50", "accuracy_top1")]
    classes = classes if len(classes) <= MAX_CLASS_COLUMNS else []
    head = ["data", "run", *metrics, "× centralised", *map(class_title, classes)]
    head += ["seeds", "s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    best = best_pooled(records)
    for (split, name, _), group in groups.items():
        title = f"{name} (best)" if best.get(split) == name else name
        fields = [split, title, *(spread(group, "metrics", metric) for metric in metrics)]
        reference = pooled.get(split) or pooled.get("all") or []
        fields.append(ratio(group, reference, metrics[0]))
        fields += [spread(group, "per_class", name) for name in classes]
        seconds = statistics.median(record["seconds"] for record in group)
        fields += [str(len(group)), f"{seconds:.0f}"]
        lines.append(f"| {' | '.join(field.replace('|', '/') for field in fields)} |")
    return "\n".join(lines)


def best_pooled(records: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The centralised training with the highest mean, by split, where there are several."""
    best: dict[str, str] = {}
    for split in dict.fromkeys(record["split"] for record in records):
        found = measured((r for r in records if r["split"] == split), "centralised")
        if (highest := best_of(found)) and len(found) > 1:
            best[split] = highest.name
    return best


def class_title(column: str) -> str:
    """`NAME/accuracy_top1` -> `NAME top1`."""
    name, _, metric = column.rpartition("/")
    return f"{name} {metric.removeprefix('accuracy_')}".replace("|", "/")


def ratio(
    group: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], metric: str
) -> str:
    """`1.036`: of the means; empty without a reference that has learned anything."""
    means = [statistics.mean(r["metrics"][metric] for r in g) for g in (group, reference) if g]
    return f"{means[0] / means[1]:.3f}" if len(means) == 2 and means[1] else ""


def spread(group: Sequence[Mapping[str, Any]], part: str, column: str) -> str:
    """`0.801 ± 0.004`: mean and sample standard deviation, which one run does not have."""
    values = [record[part][column] for record in group if column in record[part]]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A dot for each run, a bar at their mean; lines are the means of the centralised ones."""
    from federated_yolo.common.figures import new_figure, save_figure

    metric = next(iter(records[0]["metrics"]))
    splits = [s for s in dict.fromkeys(record["split"] for record in records) if s != "all"]
    figure = new_figure(3.4 * len(splits), 3.6)
    axes_of = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, split in zip(axes_of, splits, strict=True):
        groups: dict[str, list[float]] = defaultdict(list)
        lines: dict[str, list[float]] = defaultdict(list)
        for record in records:
            is_line = record["kind"] == "centralised" and record["split"] in ("all", split)
            if is_line or (record["split"] == split and record["kind"] != "centralised"):
                (lines if is_line else groups)[record["name"]].append(record["metrics"][metric])
        for position, (name, y) in enumerate(groups.items()):
            color = "C7" if name.endswith(" alone") else "C0"
            axes.plot([position] * len(y), y, "o", color=color, alpha=0.7)
            axes.plot(position, statistics.mean(y), "_", color=color, ms=22, mew=2.5)
        for number, (name, values) in enumerate(lines.items()):
            y = statistics.mean(values)
            axes.axhline(y, color="black", lw=1.2, ls=("--", ":", "-.")[number % 3])
            middle = max(len(groups) - 1, 0) / 2
            axes.annotate(name, (middle, y), ha="center", va="bottom", fontsize=8)
        labels = ["federated" if name == "defaults" else name for name in groups]
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=8)
        axes.set_xlim(-0.5, max(len(labels), 1) - 0.5)
        axes.set_title(split, fontsize=10)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes_of[0].set_ylabel(f"test {metric}", fontsize=9)
    save_figure(path, figure)
