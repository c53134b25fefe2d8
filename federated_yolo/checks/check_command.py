"""`python federated.py check`: makes the checks of a run and shows what its data sets hold.

It trains only a few steps, to time them. It refuses what a run would refuse, by the same function
(checks/federation.py), but first it shows everything that can be read.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from ultralytics.utils import DEFAULT_CFG_DICT

from federated_yolo.checks.data_picture import draw_check
from federated_yolo.checks.data_report import (
    RELATIONS,
    SIZE_NAMES,
    DataReport,
    Twins,
    all_classes,
    find_twins,
    findings,
    look_at,
    pixel_problems,
)
from federated_yolo.checks.exports import made_notes, made_table, prepare_data
from federated_yolo.checks.federation import Federation, check, with_demo_data
from federated_yolo.checks.resolve import fraction_of
from federated_yolo.checks.round_estimate import RoundEstimate, estimate_round
from federated_yolo.checks.stages import SERVER_CACHES
from federated_yolo.common.errors import InputError
from federated_yolo.common.text import NO_VALUE, counted, format_bytes, format_duration
from federated_yolo.config.schema import Config
from federated_yolo.data.scan import check_dataset
from federated_yolo.server.registry import ClientRegistry
from federated_yolo.storage.run_dir import SERVER
from federated_yolo.yolo.checkpoint import LoadedBase, load_base

MAX_CLASSES = 8  # columns of the table on the terminal; the picture shows more
FOLDER = "check"  # below save_dir
TABLE = {"title_justify": "left", "header_style": "bold", "box": SIMPLE_HEAD}


class _SitesAreElsewhereError(Exception):
    """Raised where a run would wait for its SuperNodes: everything up to there is right."""


def check_and_show(console: Console, config: Config) -> None:
    """Check -> look at the data -> compare images -> try a few steps -> show.

    Raises InputError with all problems that would stop a run, after the rest is shown.
    """
    config = with_demo_data(config)
    with tempfile.TemporaryDirectory(prefix="federated-yolo-check-") as folder:
        _check_and_show(console, config, Path(folder))


def _check_and_show(console: Console, config: Config, caches: Path) -> None:
    with console.status("reading images and labels"):
        base = _base(config)
        prepared = prepare_data(config, base.task if base else "detect")
        federation, problems = _checked(prepared.config, caches)
        config = federation.config if federation else prepared.config
        reports = look_at(config, base, caches)
    with console.status("comparing images"):
        twins = find_twins(reports)
    problems += pixel_problems(reports, twins.unreadable)
    names = all_classes(config, reports)
    console.print(_heading(config, base), soft_wrap=True)
    if prepared.made:
        console.print(made_table(prepared.made))
        console.print("\n".join(made_notes(prepared.made)), soft_wrap=True, markup=False)
    if any(report.splits for report in reports):
        console.print(images_table(reports))
        console.print(objects_table(reports, names, config))
        console.print(twins_table(reports, twins) if twins.examples else _no_twins(twins))
    estimate = None
    if federation and not problems and config.ray.address is None:
        with console.status("trying a few training steps"):
            try:
                estimate = estimate_round(federation, _num_server_val(reports))
            except InputError as error:
                problems += error.problems
    if estimate:
        console.print(estimate_table(estimate))
        console.print("\n".join(estimate_lines(estimate, config)), soft_wrap=True, markup=False)
    elif not config.has_sites:
        reason = "there are problems" if problems else "machines of a Ray cluster will do the work"
        console.print(f"No estimate of time and memory: {reason}")
    is_single = bool(config.train.get("single_cls"))
    found = findings(reports, names, twins, single_cls=is_single)
    if estimate and config.train.get("warmup_epochs", DEFAULT_CFG_DICT["warmup_epochs"]):
        found += [
            f"'{name}' takes one step a round; that of round 1 has a learning rate of 0, as each "
            "warm-up begins: lower train.batch, or set train.warmup_epochs=0"
            for name, steps in estimate.num_steps.items()
            if steps == 1
        ]
    if found:
        console.print("Worth a look", style="bold")
        for line in found:
            console.print(Text(f"  {line}", "yellow"), soft_wrap=True)
    if any(report.splits for report in reports):
        _draw(console, config, reports, names, estimate)
    if problems:
        raise InputError(problems)
    console.print("Nothing was found that would stop a run", style="bold green")


def _checked(config: Config, caches: Path) -> tuple[Federation | None, list[str]]:
    """Make the checks of a run; return the federation, or None and the problems found."""

    def meet(config: Config, task: str) -> ClientRegistry:
        raise _SitesAreElsewhereError

    try:
        return check(config, caches, meet), []
    except InputError as error:
        return None, error.problems
    except _SitesAreElsewhereError:
        return None, _server_problems(config, caches)


def _server_problems(config: Config, caches: Path) -> list[str]:
    """Return the problems of the server's data, which a run reads once its sites have joined."""
    if config.evaluate.data is None:
        return []
    path, folder, base = Path(config.evaluate.data), caches / SERVER_CACHES, _base(config)
    try:
        check_dataset(
            path,
            base.task if base else "detect",
            folder,
            where="evaluate.data",
            splits=("val",),
            fraction=fraction_of(config),
        )
    except InputError as error:
        return error.problems
    return []


def _base(config: Config) -> LoadedBase | None:
    """Return the base model, whose task decides how labels are read; None if it was refused."""
    try:
        return load_base(config.base_model)
    except InputError:
        return None


def _num_server_val(reports: Sequence[DataReport]) -> int:
    return sum(len(r.splits["val"].images) for r in reports if r.name == SERVER)


def _heading(config: Config, base: LoadedBase | None) -> str:
    model = f"[bold]{escape(Path(config.base_model).name)}[/]"
    if config.has_sites:
        return (
            f"{model}: the clients are SuperNodes, whose data is not here: images, classes, "
            "duplicates, time and memory of theirs cannot be looked at. A site's data is checked "
            "when it joins; it can look for itself, with a config that lists its data.yaml under "
            "datasets."
        )
    return f"{model}: {counted(len(config.clients), 'client')}, {base.task if base else 'detect'}"


def images_table(reports: Sequence[DataReport]) -> Table:
    """Make the table of each data set's images, and how many are without objects or damaged."""
    table = Table(title="Images", **TABLE)
    table.add_column("client", vertical="bottom")
    for split in ("train", "val"):
        table.add_column(f"{split}\nimages", justify="right")
        table.add_column("without\nobjects", justify="right")
        table.add_column("\ndamaged", justify="right")
    table.add_column("test\nimages", justify="right")
    for report in reports:
        cells: list[str] = []
        for name in ("train", "val"):
            split = report.splits.get(name)
            if split is None:
                cells += [NO_VALUE] * 3
                continue
            damaged = f"[red]{split.num_damaged}[/]" if split.num_damaged else "0"
            cells += [str(len(split.images)), str(split.num_background), damaged]
        test = report.splits.get("test")
        table.add_row(report.name, *cells, str(len(test.images)) if test else NO_VALUE)
    unread = [report.name for report in reports if not report.splits]
    if unread:
        table.caption = f"{NO_VALUE} cannot be read, or is not there"
        table.caption_justify = "left"
    return table


def objects_table(reports: Sequence[DataReport], names: Sequence[str], config: Config) -> Table:
    """Make the table of objects by class and of boxes by size; for a classifier, of images."""
    has_boxes = any(split.size_counts.any() for r in reports for split in r.splits.values())
    counts = {report.name: report.objects(names) for report in reports}
    totals = [sum(row[i] or 0 for row in counts.values()) for i in range(len(names))]
    common = sorted(range(len(names)), key=lambda i: -totals[i])[:MAX_CLASSES]
    shown = sorted(common)
    others = [i for i in range(len(names)) if i not in common]
    title = "Objects in train" if has_boxes else "Images by class"
    title += f" ({SERVER[1:-1]}: in val)" if any(r.name == SERVER for r in reports) else ""
    table = Table(title=title, **TABLE)
    table.add_column("client")
    for i in shown:
        table.add_column(escape(names[i]), justify="right")
    if others:
        table.add_column(f"{len(others)} other classes", justify="right")
    for size in SIZE_NAMES if has_boxes else ():
        table.add_column(size, justify="right", style="cyan")
    for report in reports:
        row = counts[report.name]
        cells = [NO_VALUE if row[i] is None else str(row[i]) for i in shown]
        if others:
            cells.append(str(sum(row[i] or 0 for i in others)))
        split = report.objects_split
        sizes = map(str, split.size_counts) if split else [NO_VALUE] * len(SIZE_NAMES)
        table.add_row(report.name, *cells, *(sizes if has_boxes else ()))
    imgsz = config.train.get("imgsz", DEFAULT_CFG_DICT["imgsz"])
    captions = [
        f"small < 32² ≤ medium < 96² ≤ large: area of the box in pixels, as in COCO, but of the "
        f"image at imgsz {imgsz}"
    ] * has_boxes
    if any(cell is None for row in counts.values() for cell in row):
        captions.append(f"{NO_VALUE} not annotated there: says nothing about that class")
    table.caption = "\n".join(captions)
    table.caption_justify = "left"
    return table


def twins_table(reports: Sequence[DataReport], twins: Twins) -> Table:
    """Make the table of how many images have a near-duplicate, and in which split."""
    table = Table(title="Near-duplicates (of these, exact)", **TABLE)
    table.add_column("client", vertical="bottom")
    for title in RELATIONS.values():
        table.add_column(title.replace(", ", "\n"), justify="right")
    for report in reports:
        cells = []
        for relation in RELATIONS:
            near, exact = (x[relation][report.name] for x in (twins.near, twins.exact))
            cells.append(f"{near} ({exact})" if near else "0")
        if report.name == SERVER:
            cells[:3] = [NO_VALUE] * 3
        table.add_row(report.name, *cells)
    table.caption = (
        f"images that have a twin there, of {counted(twins.num_images, 'image')} compared by "
        "perceptual hashes; exact: byte for byte"
    )
    table.caption_justify = "left"
    return table


def _no_twins(twins: Twins) -> str:
    return (
        f"Near-duplicates: no train image has one, of {counted(twins.num_images, 'image')} in all"
    )


def estimate_table(estimate: RoundEstimate) -> Table:
    """Make the table of the steps and the time of each client's training in a round."""
    table = Table(title="Training, estimated", **TABLE)
    table.add_column("client")
    table.add_column("steps", justify="right")
    table.add_column("time", justify="right")
    for name, steps in estimate.num_steps.items():
        table.add_row(name, str(steps), format_duration(estimate.seconds[name]))
    return table


def estimate_lines(estimate: RoundEstimate, config: Config) -> list[str]:
    """Return lines with the time of a round and of the run, the memory, and how they were found."""
    every = config.evaluate.every
    num_evaluated = sum(
        config.evaluate.is_due(number, config.num_rounds)
        for number in range(1, config.num_rounds + 1)
    )
    run_s = config.num_rounds * estimate.round_s + num_evaluated * estimate.evaluation_s
    at_once, free = estimate.at_once, psutil.virtual_memory().available
    memory = f"Memory: about {format_bytes(estimate.memory)} for each client at work"
    if at_once > 1:
        memory += f", {format_bytes(estimate.memory * at_once)} for {at_once} at once"
    memory += f"; {format_bytes(free)} are free"
    if estimate.gpu_memory:
        memory += f". Of the GPU: {format_bytes(estimate.gpu_memory)} for each"
    if estimate.memory * at_once > free:
        memory += ". That is too little: give client_resources.num_cpus more, for fewer at once"
    evaluation = f", {format_duration(estimate.evaluation_s)} more with evaluation" if every else ""
    return [
        f"A round: about {format_duration(estimate.round_s)}, {at_once} at once{evaluation}; "
        f"{counted(config.num_rounds, 'round')}: {format_duration(run_s)}",
        memory,
        f"An estimate, from a few training steps of '{estimate.tried}' on this machine as it is "
        "now; the start, the first reading of the data, and in each round some seconds for "
        "messages and saving come on top",
    ]


def _draw(
    console: Console,
    config: Config,
    reports: Sequence[DataReport],
    names: Sequence[str],
    estimate: RoundEstimate | None,
) -> None:
    """Write the picture and print its path, or print why it could not be drawn."""
    path = Path(config.save_dir) / FOLDER / f"{config.name}.png"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_check(path, reports, names, estimate.seconds if estimate else {})
    except Exception as error:  # from the disk or Matplotlib; the verdict does not depend on it
        reason = f"{type(error).__name__}: {error}"
        console.print(f"No picture: {reason}", style="yellow", soft_wrap=True, markup=False)
        return
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    console.print(f"Picture: {shown}", soft_wrap=True, markup=False)
