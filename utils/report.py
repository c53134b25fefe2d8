"""Pictures and pages of runs, drawn from their directories alone.

    python utils/report.py RUN_DIR                  results.png, ..., report.html in RUN_DIR
    python utils/report.py RUN_DIR RUN_DIR ... [-o comparison.html]    one page that compares them

To compare, directories of `yolo train` are taken too, as centralised runs. What a run directory
lacks (it was not evaluated, an older version made it) is left out of its pictures and pages.

Exit codes: 0 done, 1 the files could not be written, 2 wrong input (nothing was written),
130 interrupted.
"""

import argparse
import base64
import csv
import html
import json
import math
import statistics
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import yaml

if __name__ == "__main__" and not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from utils.config import InputError
from utils.run_dir import CONFIG_FILE, RESULTS, read_csv, write_atomically

REPORT = "report.html"
SERVER = "(server)"  # the client column's name for the server's data
NO_VALUE = "–"
# The metric that a task is judged by; a model of masks or keypoints has boxes too.
PRIMARY = (
    "metrics/mAP50-95(M)",
    "metrics/mAP50-95(P)",
    "metrics/mAP50-95(B)",
    "metrics/accuracy_top1",
)
OUTPUTS = {"(B)": "boxes", "(M)": "masks", "(P)": "keypoints"}
TEXT_COLUMNS = {"client", "class", "note", "model", "owner", "data"}
NEEDED_COLUMNS = {
    "clients.csv": ("round", "client"),
    "classes.csv": ("round", "client", "class"),
    "test.csv": ("client",),
    "cross_client.csv": ("model", "data"),
}
# Okabe and Ito's colours (2008), told apart by the colour-blind; five, each in four dashes.
COLORS = ("#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")
DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}  # Plotly's and Matplotlib's
INK, ACCENT = "#1c1f23", "#0072b2"
SHADES = ("#e3edf5", "#9cc3dd", "#3f8dbd", "#0b4f86")  # of the heat maps, from low to high
MAX_CLASSES = 30  # beyond that, curves and pictures of single classes cannot be read

Row = dict[str, Any]


# Reading.


@dataclass(frozen=True)
class Run:
    """What a run directory holds. Tables have numbers as floats, None where there is none.

    name: unique among the runs of a page. settings: args.yaml. info: run.json.
    """

    path: Path
    name: str
    is_federated: bool
    settings: Row
    info: Row
    rounds: list[Row]
    clients: list[Row]
    classes: list[Row]
    tests: list[Row]
    matrix: list[Row]

    @cached_property
    def client_names(self) -> list[str]:
        """The clients, in the order of all tables and charts."""
        known = [*self.info.get("clients", {}), *(row["client"] for row in self.clients)]
        return list(dict.fromkeys(known))

    @cached_property
    def metric(self) -> str | None:
        """The column that the run is judged by, None when nothing was evaluated."""
        found = _filled((*self.rounds, *self.clients, *self.matrix, *self.tests))
        return next((m for m in PRIMARY if m in found or f"server/{m}" in found), None)

    @cached_property
    def score_column(self) -> str | None:
        """The same in results.csv: on the server's data, where it has any."""
        on_server = f"server/{self.metric}"
        return on_server if on_server in _filled(self.rounds) else self.metric

    @cached_property
    def best(self) -> Row | None:
        """The best evaluated round: as for best.pt, the latest of equals."""
        column = self.score_column
        scored = [row for row in self.rounds if column and row.get(column) is not None]
        by = "fitness" if "fitness" in _filled(scored) else str(column)
        return max(scored, key=lambda row: (row.get(by) or 0.0, row["round"]), default=None)

    @cached_property
    def best_score(self) -> float | None:
        """The run's judged metric in its best round."""
        return self.best[str(self.score_column)] if self.best else None

    @cached_property
    def is_personal(self) -> bool:
        """Whether each client has a model of its own, because some arrays are not shared."""
        return any(row["model"] == "personal" for row in self.matrix)


def read_run(path: Path, name: str | None = None) -> Run:
    """Read a run directory. Raises InputError with every problem of it."""
    if not path.is_dir():
        reason = "is a file" if path.exists() else "no such directory"
        raise InputError(f"{path}: {reason}; expected the directory of a run")
    problems: list[str] = []
    rounds = _collect(problems, lambda: _read_rounds(path), [])
    settings = _collect(problems, lambda: _read_mapping(path / CONFIG_FILE, yaml.safe_load), {})
    info = _collect(problems, lambda: _read_info(path / "run.json"), {})
    tables = {
        table: _collect(problems, lambda file=path / table: read_table(file), [])
        for table in NEEDED_COLUMNS
    }
    if problems:
        raise InputError(problems)
    is_federated = "round" in rounds[0]
    if not is_federated:
        rounds = [{"round": row["epoch"], **row} for row in rounds]
    return Run(
        path, name or path.resolve().name, is_federated, settings, info, rounds, *tables.values()
    )


def _collect(problems: list[str], read: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return read()
    except InputError as error:
        problems.extend(error.problems)
        return otherwise


def _read_rounds(path: Path) -> list[Row]:
    if not (path / RESULTS).exists():
        raise InputError(f"{path}: has no {RESULTS}; expected the directory of a run")
    rounds = read_table(path / RESULTS)
    if not rounds:
        raise InputError(f"{path / RESULTS}: no round was finished; there is nothing to draw yet")
    column = "round" if "round" in rounds[0] else "epoch"
    for number, row in enumerate(rounds, 1):
        if row.get(column) is None:
            raise InputError(
                f"{path / RESULTS}: row {number}: found columns {', '.join(row)}, expected a "
                "number under 'round', or 'epoch' of yolo train; restore the file"
            )
    return rounds


def read_table(path: Path) -> list[Row]:
    """Rows of a CSV, none if it is not there. Raises InputError for a damaged one."""
    if not path.exists():
        return []
    try:
        rows = read_csv(path)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore the file") from error
    missing = [c for c in NEEDED_COLUMNS.get(path.name, ()) if rows and c not in rows[0]]
    if missing:
        raise InputError(
            f"{path}: found columns {', '.join(map(str, rows[0]))}, expected also "
            f"{', '.join(missing)}; restore the file"
        )
    return [_parsed(path, number, row) for number, row in enumerate(rows, 1)]


def _parsed(path: Path, number: int, row: Mapping[Any, Any]) -> Row:
    """Cells as text or numbers. csv.DictReader's None tells of a row of another length."""
    where = f"{path}: row {number}"
    if None in row or None in row.values():
        raise InputError(f"{where}: has more or fewer cells than the header; restore the file")
    result: Row = {}
    for name, text in row.items():
        column = str(name).strip()  # older versions of Ultralytics pad them
        if column in TEXT_COLUMNS:
            result[column] = text
            continue
        try:
            value = float(text) if text.strip() else None
        except ValueError as error:
            raise InputError(
                f"{where}: column '{column}': found '{text[:40]}', expected a number; restore "
                "the file"
            ) from error
        result[column] = value if value is not None and math.isfinite(value) else None
    if "round" in result and result["round"] is None:
        raise InputError(f"{where}: no number under 'round'; restore the file")
    return result


def _read_info(path: Path) -> Row:
    info = _read_mapping(path, json.loads)
    clients = info.get("clients", {})
    counts = clients.items() if isinstance(clients, dict) else ()
    expected = [
        ("names", info.get("names", []), list),
        ("versions", info.get("versions", {}), dict),
        ("clients", clients, dict),
        *((f"clients.{name}", found, dict) for name, found in counts),
    ]
    for name, found, kind in expected:
        if not isinstance(found, kind):
            raise InputError(
                f"{path}: '{name}': found {type(found).__name__}, expected {kind.__name__}; "
                "restore the file"
            )
    return info


def _read_mapping(path: Path, parse: Callable[[str], Any]) -> Row:
    if not path.exists():
        return {}
    try:
        found = parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({reason}); restore the file") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: found {type(found).__name__}, expected names and values")
    return found


def _filled(rows: Iterable[Row]) -> set[str]:
    """Columns that hold at least one value."""
    return {name for row in rows for name, value in row.items() if value not in (None, "")}


# Numbers of a run.


@dataclass(frozen=True)
class Line:
    """One curve. key: the same for the same thing in all charts of a page; see `_look`."""

    key: str
    name: str
    color: str
    dash: str
    is_thick: bool
    x: list[float]
    y: list[float]


def _look(number: int) -> tuple[str, str]:
    """Colour and dash of a client or run, by its place in the order."""
    dashes = list(DASHES)
    return COLORS[number % len(COLORS)], dashes[number // len(COLORS) % len(dashes)]


def lines_of(run: Run, column: str) -> list[Line]:
    """A column by round: each client, then the federation, then the server's data."""
    lines = []
    for number, client in enumerate(run.client_names):
        rows = [row for row in run.clients if row["client"] == client]
        lines.append(Line(f"client{number}", client, *_look(number), False, *_series(rows, column)))
    mean = _series(run.rounds, column)
    lines.append(Line("federation", "mean of the clients", INK, "solid", True, *mean))
    on_server = _series(run.rounds, f"server/{column}")
    lines.append(Line("server", "server's data", ACCENT, "solid", True, *on_server))
    return [line for line in lines if line.x]


def _series(
    rows: Iterable[Row], column: str, along: str = "round"
) -> tuple[list[float], list[float]]:
    points = [(row[along], row[column]) for row in rows if row.get(column) is not None]
    return [x for x, _ in points], [y for _, y in points]


def curve_columns(run: Run) -> tuple[list[str], list[str]]:
    """Losses and metrics with a value anywhere, in the order of results.csv."""
    filled = _filled(run.rounds) | _filled(run.clients)
    names = list(dict.fromkeys(c for row in (*run.rounds, *run.clients) for c in row))
    names = [name.removeprefix("server/") for name in names if name in filled]
    losses = [name for name in names if name.startswith("train/")]
    return losses, list(dict.fromkeys(name for name in names if name.startswith("metrics/")))


def title_of(column: str, columns: Iterable[str] = ()) -> str:
    """`train/box_loss` -> box loss; the output is named where the columns tell of several."""
    name = column.split("/")[-1]
    outputs = {c[-3:] for c in columns if c[-3:] in OUTPUTS}
    if name[-3:] in OUTPUTS:
        name = f"{name[:-3]} ({OUTPUTS[name[-3:]]})" if len(outputs) > 1 else name[:-3]
    return name.replace("_", " ")


@dataclass(frozen=True)
class ClientResult:
    """What became of one client.

    first, best, final: the judged metric of the global model on its own val split, by round.
    own: its best model straight after its local epochs, there too. seconds: of each round.
    """

    name: str
    counts: Row
    first: float | None
    best: float | None
    final: float | None
    own: float | None
    seconds: list[float]
    download_bytes: float | None
    upload_bytes: float | None
    num_notes: int


def client_results(run: Run) -> list[ClientResult]:
    """One for each client, in their order."""
    results = []
    for name in run.client_names:
        rows = [row for row in run.clients if row["client"] == name]
        scores = _series(rows, run.metric or "")[1] or [None]
        own = _series(rows, f"local/{run.metric}")[1]
        down, up = (_series(rows, f"{way}_bytes")[1] for way in ("download", "upload"))
        results.append(
            ClientResult(
                name,
                run.info.get("clients", {}).get(name, {}),
                scores[0],
                max(scores, key=lambda score: -1.0 if score is None else score),
                scores[-1],
                max(own, default=None),
                _series(rows, "seconds")[1],
                sum(down) if down else None,
                sum(up) if up else None,
                sum(1 for row in rows if row.get("note")),
            )
        )
    return results


def best_local(run: Run) -> tuple[float, str, str] | None:
    """The best model of a single client: its score, whose it is, on what data.

    On the server's data, or else the mean over the clients' val splits weighted by images.
    """
    rows = [r for r in run.matrix if r["model"] == "local" and r.get(run.metric or "") is not None]
    on_server = {r["owner"]: r[str(run.metric)] for r in rows if r["data"] == SERVER}
    scores = on_server
    if not on_server:
        by_owner = defaultdict(list)
        for row in rows:
            by_owner[row["owner"]].append((row[str(run.metric)], row.get("num_examples") or 1))
        scores = {
            owner: sum(score * weight for score, weight in pairs) / sum(w for _, w in pairs)
            for owner, pairs in by_owner.items()
        }
    if not scores:
        return None
    owner = max(scores, key=lambda name: scores[name])
    return scores[owner], owner, "the server's data" if on_server else "the clients' val splits"


def class_names(run: Run) -> list[str]:
    """Classes of the federation by index, as far as the run directory tells."""
    names = run.info.get("names") or [row["class"] for row in run.classes]
    return list(dict.fromkeys(map(str, names)))


def model_label(row: Row) -> str:
    """A row of cross_client.csv: whose model it is."""
    if row["model"] == "global":
        return "global"
    return f"{row['owner']}, own" if row["model"] == "personal" else f"{row['owner']}, local"


def data_label(name: str) -> str:
    """A client column's name as a person says it."""
    return "server's data" if name == SERVER else name


@dataclass(frozen=True)
class Grid:
    """Numbers by row and column name. texts: of the cells. hovers: what each cell is."""

    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    texts: list[list[str]]
    hovers: list[list[str]]


def make_grid(
    cells: Mapping[tuple[str, str], float | None], show: Callable[[float], str], hover: str
) -> Grid:
    """Put cells by (row, column) in a grid. hover: a format of row, column and value."""
    rows, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    values = [[cells.get((row, column)) for column in columns] for row in rows]
    texts = [[NO_VALUE if v is None else show(v) for v in line] for line in values]
    hovers = [
        [hover.format(row=r, column=c, value=t) for c, t in zip(columns, line, strict=True)]
        for r, line in zip(rows, texts, strict=True)
    ]
    return Grid(rows, columns, values, texts, hovers)


def cross_client_grid(run: Run) -> Grid | None:
    """Models by data sets, or None."""
    cells = {
        (model_label(row), data_label(row["data"])): row.get(run.metric or "") for row in run.matrix
    }
    if all(value is None for value in cells.values()):
        return None
    return make_grid(cells, _score, "{row} model on {column}: {value}")


def _score(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:.3f}"


def _count(value: float | None) -> str:
    return NO_VALUE if value is None else f"{value:,.0f}".replace(",", "\u202f")


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _bytes(value: float | None) -> str:
    if value is None:
        return NO_VALUE
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return NO_VALUE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


# Pictures, with Matplotlib.


def write_pictures(run_dir: Path) -> None:
    """Draw results.png, and clients.png and cross_client.png where there is something to show.

    Raises InputError when the directory holds no finished round, or a damaged table.
    """
    _write_pictures(read_run(run_dir))


def _write_pictures(run: Run) -> None:
    pictures = {
        "results.png": _draw_curves(run),
        "clients.png": _draw_clients(run),
        "cross_client.png": _draw_matrix(run),
    }
    with warnings.catch_warnings():
        # Names in a script that Matplotlib's font lacks become boxes; report.html has them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        for name, figure in pictures.items():
            if figure is not None:
                _save_figure(figure, run.path / name)


def _save_figure(figure: Any, path: Path) -> None:
    write_atomically(path, lambda file: figure.savefig(file, dpi=120, format="png"))


def _new_figure(width: float, height: float) -> Any:
    """A figure of so many inches that no pyplot state knows of."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_curves(run: Run) -> Any:
    """Losses in one row and metrics in others: clients thin, federation and server thick."""
    losses, metrics = curve_columns(run)
    outputs = sorted({name[-3:] for name in metrics})
    rows = [losses, *([m for m in metrics if m[-3:] == output] for output in outputs)]
    rows = [row for row in rows if row]
    if not rows:
        return None
    num_columns = max(map(len, rows))
    legend: dict[str, Any] = {}
    figure = _new_figure(max(3.2 * num_columns, 6.4), 2.7 * len(rows) + 0.6)
    grid = figure.add_gridspec(len(rows), num_columns)
    for i, columns in enumerate(rows):
        for j, column in enumerate(columns):
            axes = figure.add_subplot(grid[i, j])
            for line in lines_of(run, column):
                legend.setdefault(line.name, _plot(axes, line))
            _finish(axes, title_of(column, metrics))
    num_legend_columns = max(2, round(1.8 * num_columns))
    handles = dict(sorted(legend.items(), key=lambda item: item[1].get_linewidth(), reverse=True))
    figure.legend(
        handles.values(), handles, loc="outside lower center", ncols=num_legend_columns,
        frameon=False, fontsize=9,
    )  # fmt: skip
    return figure


def _plot(axes: Any, line: Line) -> Any:
    """Draw one curve and return it; its points are marked while they are few."""
    few = len(line.x) <= 30
    if line.is_thick:
        look = {"lw": 2.4, "marker": "o" if few else "", "ms": 4, "zorder": 3}
    else:
        look = {"lw": 1, "marker": "." if few else "", "ms": 4, "alpha": 0.8}
    return axes.plot(line.x, line.y, color=line.color, ls=DASHES[line.dash], **look)[0]


def _finish(axes: Any, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("round", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(bottom=0)


def _draw_clients(run: Run) -> Any:
    """A line for each client through all panels: score, seconds, images, boxes by class."""
    results = client_results(run)
    names = class_names(run) if any(result.counts.get("boxes") for result in results) else []
    panels: list[Callable[[Any], None]] = []
    if any(result.final is not None for result in results):
        panels.append(lambda axes: _draw_scores(axes, results, title_of(str(run.metric))))
    if any(result.seconds for result in results):
        panels.append(lambda axes: _draw_seconds(axes, results))
    if any(result.counts.get("train_images") for result in results):
        panels.append(lambda axes: _draw_images(axes, results))
    if not panels:
        return None
    widths = [3.2] * len(panels)
    if 0 < len(names) <= MAX_CLASSES:
        panels.append(lambda axes: _draw_boxes(axes, results, names))
        widths.append(max(0.62 * len(names), 1.6))
    figure = _new_figure(sum(widths) + 1, 0.3 * len(results) + 1.6)
    grid = figure.add_gridspec(1, len(panels), width_ratios=widths)
    for number, draw in enumerate(panels):
        axes = figure.add_subplot(grid[0, number])
        draw(axes)
        axes.set_ylim(len(results) - 0.4, -0.6)
        labels = [result.name for result in results] if number == 0 else [""] * len(results)
        axes.set_yticks(range(len(results)), labels)
        axes.tick_params(labelsize=8, left=False)
    return figure


def _finish_bars(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    axes.set_xlim(0, 1.08 * axes.dataLim.xmax or 1)


def _draw_scores(axes: Any, results: Sequence[ClientResult], metric: str) -> None:
    """Dots: the federation's last model, and the client's own best joined to it by a line."""
    for y, result in enumerate(results):
        if result.own is not None and result.final is not None:
            axes.plot([result.own, result.final], [y, y], color="0.7", lw=1.5, zorder=1)
        if result.final is not None:
            axes.plot(result.final, y, "o", color=INK, ms=7)
        if result.own is not None:
            axes.plot(result.own, y, "o", color=INK, ms=6, mfc="white", zorder=2)
    _finish_bars(axes, f"{metric} on its own val split")
    handles = {"last model of the federation": axes.plot([], [], "o", color=INK, ms=7)[0]}
    if any(result.own is not None for result in results):
        own = axes.plot([], [], "o", color=INK, ms=6, mfc="white")[0]
        handles["its own best local model"] = own
    axes.figure.legend(
        handles.values(), handles, loc="outside lower left", ncols=2, frameon=False, fontsize=8
    )


def _draw_seconds(axes: Any, results: Sequence[ClientResult]) -> None:
    for y, result in enumerate(results):
        if result.seconds:
            color, _ = _look(y)
            axes.plot(result.seconds, [y] * len(result.seconds), "o", color=color, alpha=0.3, ms=5)
            median = statistics.median(result.seconds)
            axes.plot([median, median], [y - 0.3, y + 0.3], color=INK, lw=2)
    _finish_bars(axes, "seconds of each round, median")


def _draw_images(axes: Any, results: Sequence[ClientResult]) -> None:
    images = [result.counts.get("train_images") or 0 for result in results]
    colors = [_look(number)[0] for number in range(len(results))]
    bars = axes.barh(range(len(results)), images, height=0.6, color=colors)
    axes.bar_label(bars, fontsize=8, padding=3)
    _finish_bars(axes, "training images")


def _draw_boxes(axes: Any, results: Sequence[ClientResult], names: Sequence[str]) -> None:
    """A table shaded by the share of each class in the client's boxes."""
    for y, result in enumerate(results):
        boxes = result.counts.get("boxes") or {}
        total = sum(count or 0 for count in boxes.values()) or 1
        for x, name in enumerate(names):
            count = boxes.get(name)
            if count:
                axes.barh(y, 1, left=x - 0.5, height=0.9, color=ACCENT, alpha=0.6 * count / total)
            text = NO_VALUE if count is None else str(count)
            axes.text(x, y, text, ha="center", va="center", fontsize=8)
    axes.set_title("training boxes", fontsize=10, loc="left")
    axes.set_xlim(-0.5, len(names) - 0.5)
    _name_ticks(axes.xaxis, names, rotation=40 if len(names) > 1 else 0)
    axes.spines[:].set_visible(False)


def _name_ticks(axis: Any, names: Sequence[str], rotation: float = 0) -> None:
    """Names beside an axis, as they are: Matplotlib would read $...$ as a formula."""
    axis.set_ticks(
        range(len(names)), [_short(name) for name in names], rotation=rotation,
        ha="right" if rotation or axis.axis_name == "y" else "center", rotation_mode="anchor",
        fontsize=8, parse_math=False,
    )  # fmt: skip


def _draw_matrix(run: Run) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    grid = cross_client_grid(run)
    if grid is None:
        return None
    values = [[math.nan if v is None else v for v in row] for row in grid.values]
    figure = _new_figure(0.62 * len(grid.columns) + 2.6, 0.34 * len(grid.rows) + 1.6)
    axes = figure.add_subplot()
    shades = LinearSegmentedColormap.from_list("shades", SHADES)
    axes.imshow(values, cmap=shades, aspect="auto")
    known = [v for row in values for v in row if not math.isnan(v)]
    middle = min(known) + 0.6 * (max(known) - min(known))  # where dark text is no longer read
    for y, row in enumerate(grid.texts):
        for x, text in enumerate(row):
            color = "white" if values[y][x] > middle else INK
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=color)
    _name_ticks(axes.xaxis, grid.columns, rotation=40)
    _name_ticks(axes.yaxis, grid.rows)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(f"{title_of(str(run.metric))}: model (row) on val split (column)", fontsize=10)
    return figure


def _short(name: str, length: int = 24) -> str:
    return name if len(name) <= length else f"{name[: length - 1]}…"


# Pages, with Plotly and Jinja.


@dataclass(frozen=True)
class Chart:
    """A Plotly figure. label: what a reader hears who does not see it.

    is_wide: takes the whole width, of at least and at most so many pixels.
    """

    title: str
    figure: Any
    label: str
    height: int
    is_wide: bool = False
    min_width: int = 0
    max_width: int = 10_000


@dataclass(frozen=True)
class Mark:
    """A name in a table with the colour and dash of its curves."""

    name: str
    color: str
    dash: str


@dataclass(frozen=True)
class Sheet:
    """A table. text_columns: those that are no numbers."""

    label: str
    head: list[str]
    rows: list[list[Any]]
    text_columns: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Picture:
    """An image as a data URI."""

    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of a page. has_legend: the curves' legend stands above it."""

    title: str
    note: str = ""
    pictures: list[Picture] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    has_legend: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.pictures or self.charts or any(sheet.rows for sheet in self.sheets))


@dataclass(frozen=True)
class Number:
    """A number of the headline. note: what exactly it is, and on what data."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Page:
    """What utils/report.html.jinja shows. settings: folded away at the end."""

    title: str
    subtitle: str
    headline: list[Number]
    legend: list[Line]
    sections: list[Section]
    settings: dict[str, dict[str, str]]


def draw_report(run_dir: Path) -> None:
    """Write the pictures and report.html of a run. Raises as `write_pictures`."""
    run = read_run(run_dir)
    _write_pictures(run)
    _write_page(run_page(run), run.path / REPORT)


def write_report(run_dir: Path) -> Path:
    """Write report.html, one file that opens anywhere, and return its path.

    Raises InputError when the directory holds no finished round, or a damaged table.
    """
    run = read_run(run_dir)
    _write_page(run_page(run), run.path / REPORT)
    return run.path / REPORT


def _write_page(page: Page, path: Path) -> None:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    here = Path(__file__).resolve()
    # Names of clients and classes, and what clients say of their failures, are foreign text.
    environment = Environment(
        loader=FileSystemLoader(here.parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template("report.html.jinja").render(
        page=page,
        charts=[c.figure.to_plotly_json() for s in page.sections for c in s.charts],
        plotly=get_plotlyjs(),
        dashes={"solid": "none", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3"},
    )
    write_atomically(path, lambda file: file.write(text.encode()))


# Charts.


def _figure(data: list[Any], height: int, **layout: Any) -> Any:
    """A quiet figure; the page's style sheet colours its text and lines, light or dark."""
    import plotly.graph_objects as go

    clear = "rgba(0,0,0,0)"
    axis = {"fixedrange": True, "automargin": True, "showline": False, "zeroline": False}
    for name in ("xaxis", "yaxis"):
        layout[name] = {**axis, **layout.get(name, {})}
    return go.Figure(
        data,
        {
            "template": "none",
            "height": height,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "paper_bgcolor": clear,
            "plot_bgcolor": clear,
            "font": {"family": "system-ui, sans-serif", "size": 12},
            "showlegend": False,
            "dragmode": False,
            "hoverlabel": {"font": {"size": 13}, "namelength": -1},
            **layout,
        },
    )


def _plain(text: str) -> str:
    """Foreign text for Plotly, which reads some tags."""
    return html.escape(text, quote=False)


def _round_axis(x: Sequence[float], title: str, margin: float = 0.2) -> Row:
    first, last = min(x), max(x)
    margin = max(margin, 0.015 * (last - first))
    return {
        "title": {"text": title, "standoff": 6},
        "showgrid": False,
        "tickformat": "d",
        "range": [first - margin, last + margin],
        **({"dtick": 1, "tick0": first} if last - first < 8 else {"nticks": 8}),
    }


def line_chart(title: str, lines: Sequence[Line], x_title: str = "round", **look: Any) -> Chart:
    """Curves over rounds from zero up."""
    import plotly.graph_objects as go

    few = max(len(line.x) for line in lines) <= 30
    data = [
        go.Scatter(
            x=line.x, y=line.y, name=_plain(line.name), uid=line.key, legendgroup=line.key,
            mode="lines+markers" if few or len(line.x) == 1 else "lines",
            line={"color": line.color, "dash": line.dash, "width": 3 if line.is_thick else 1.3},
            marker={"color": line.color, "size": 6 if line.is_thick else 4},
            opacity=1 if line.is_thick else 0.9 if len(lines) <= 10 else 0.65,
            hovertemplate=f"%{{fullData.name}}<br>{x_title} %{{x}}: %{{y:.4~g}}<extra></extra>",
        )
        for line in lines
    ]  # fmt: skip
    xaxis = _round_axis([x for line in lines for x in line.x], x_title)
    height = look.get("height", 240)
    figure = _figure(
        data, height, hovermode="closest", xaxis=xaxis, yaxis={"rangemode": "tozero", "nticks": 6}
    )
    told = [line for line in lines if line.is_thick] or lines
    ends = "; ".join(f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in told)
    return Chart(title, figure, f"{title} by {x_title}: {ends}", height, look.get("wide", False))


def heat_chart(title: str, grid: Grid) -> Chart:
    """A shaded table; a cell without a number is left clear."""
    import plotly.graph_objects as go

    ticks = {
        name: {
            "tickvals": list(range(len(names))),
            "ticktext": [_plain(_short(n)) for n in names],
            "showgrid": False,
            "ticks": "",
        }
        for name, names in (("xaxis", grid.columns), ("yaxis", grid.rows))
    }
    heat = go.Heatmap(
        z=grid.values,
        text=[[text if text != NO_VALUE else "" for text in row] for row in grid.texts],
        texttemplate="%{text}",
        hovertext=[[_plain(text) for text in row] for row in grid.hovers],
        hoverinfo="text",
        colorscale=[[i / (len(SHADES) - 1), shade] for i, shade in enumerate(SHADES)],
        showscale=False,
        hoverongaps=False,
        xgap=2,
        ygap=2,
    )
    height = 30 * len(grid.rows) + 90
    names = 9 * max(len(_short(name)) for name in grid.rows)
    widths = [names + pixels * len(grid.columns) for pixels in (60, 180)]
    figure = _figure(
        [heat], height, xaxis={**ticks["xaxis"], "side": "top"},
        yaxis={**ticks["yaxis"], "autorange": "reversed"},
    )  # fmt: skip
    known = [v for row in grid.values for v in row if v is not None]
    label = f"{title}: {len(grid.rows)} rows, {len(grid.columns)} columns"
    label += f", from {min(known):.3f} to {max(known):.3f}"
    return Chart(title, figure, label, height, True, *widths)


def bar_chart(title: str, x: list[float], parts: Mapping[str, list[float]], unit: str) -> Chart:
    """Stacked bars, one for each round; parts from the bottom up."""
    import plotly.graph_objects as go

    shades = [SHADES[3], SHADES[2], SHADES[1]]
    data = [
        go.Bar(
            x=x, y=values, name=name, marker={"color": shade, "line": {"width": 0}},
            hovertemplate=f"{name}<br>round %{{x}}: %{{y:.4~g}} {unit}<extra></extra>",
        )
        for shade, (name, values) in zip(shades, parts.items(), strict=False)
    ]  # fmt: skip
    xaxis = _round_axis(x, "round", margin=0.6)
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"}
    figure = _figure(
        data, 280, barmode="stack", bargap=0.2, xaxis=xaxis, yaxis={"nticks": 6},
        showlegend=len(parts) > 1, legend={**legend, "itemclick": False, "itemdoubleclick": False},
    )  # fmt: skip
    totals = ", ".join(f"{name} {sum(values):.4g} {unit}" for name, values in parts.items())
    return Chart(title, figure, f"{title}; in all: {totals}", 280)


# The page of one run.


def run_page(run: Run) -> Page:
    """Everything that report.html says of a run; what its directory lacks is left out."""
    sections = [
        Section("Predictions", pictures=list(_pictures(run))),
        _curves_section(run),
        _clients_section(run),
        _classes_section(run),
        _matrix_section(run),
        _tests_section(run),
        _cost_section(run),
        _notes_section(run),
        _data_section(run),
    ]
    columns = [column for found in curve_columns(run) for column in found]
    legend = {line.key: line for column in columns for line in lines_of(run, column)}
    order = sorted(legend.values(), key=lambda line: not line.is_thick)
    return Page(
        title=run.name,
        subtitle=_subtitle(run),
        headline=[_federated(run), _local(run), _centralised([])],
        legend=order,
        sections=[section for section in sections if not section.is_empty],
        settings=_settings(run),
    )


def _subtitle(run: Run) -> str:
    """What was run, in a line."""
    settings, info = run.settings, run.info
    base = info.get("base_model") or Path(str(settings.get("base_model", ""))).name
    epochs = settings.get("local_epochs")
    rounds = _counted(len(run.rounds), "round")
    strategy = settings.get("strategy")
    parts = [
        base,
        info.get("task"),
        _counted(len(run.client_names), "client") if run.client_names else None,
        f"{rounds} of {_counted(epochs, 'epoch')}" if isinstance(epochs, int) else rounds,
        strategy.get("name") if isinstance(strategy, dict) else strategy,
        f"on {info['device']}" if info.get("device") else None,
        _date(info.get("started")),
    ]
    return " · ".join(str(part) for part in parts if part)


def _date(text: Any) -> str | None:
    """An ISO time as a person reads it; what is no time is shown as it is."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(str(text)).strftime("%Y-%m-%d %H:%M %Z")
    except ValueError:
        return str(text)


def _federated(run: Run) -> Number:
    if run.best is None:
        return Number(
            "Federated", NO_VALUE, "No round was evaluated; evaluate.every=1 scores each of them."
        )
    if str(run.score_column).startswith("server/"):
        where = "of the global model on the server's data"
    elif run.is_personal:
        where = "of each client's own model on its own val split, mean weighted by images"
    else:
        where = "of the global model on the clients' val splits, mean weighted by images"
    note = (
        f"{title_of(str(run.metric))} {where}, after round {run.best['round']:.0f} of "
        f"{len(run.rounds)}, the best by fitness."
    )
    return Number("Federated", _score(run.best_score), note)


def _local(run: Run) -> Number:
    found = best_local(run)
    if found is None:
        note = "The best model of a single client; evaluate.cross_client=true would tell."
        return Number("Best local", NO_VALUE, note)
    score, owner, where = found
    note = (
        f"{title_of(str(run.metric))} of the best client's own model ({owner}), straight after "
        f"its local training, on {where}."
    )
    return Number("Best local", _score(score), note)


def _centralised(runs: Sequence[Run]) -> Number:
    scored = [run for run in runs if run.best_score is not None]
    best = max(scored, key=lambda run: run.best_score or 0.0, default=None)
    if best is None or best.best is None:
        note = (
            "Training on the pooled data is a run of its own: python utils/report.py RUN_DIR "
            "YOLO_TRAIN_DIR shows both."
        )
        return Number("Centralised", NO_VALUE, note)
    note = (
        f"{title_of(str(best.metric))} of {best.name} (yolo train) after epoch "
        f"{best.best['round']:.0f} of {len(best.rounds)}, its best; on its own val split."
    )
    return Number("Centralised", _score(best.best_score), note)


def _pictures(run: Run) -> Iterator[Picture]:
    for path in sorted(run.path.glob("predictions*.jpg")):
        owner = path.stem.removeprefix("predictions").lstrip("_")
        whose = f"images of {owner}" if owner else "images of the server's data"
        source = f"data:image/jpeg;base64,{base64.b64encode(path.read_bytes()).decode()}"
        alt = f"Labels and predictions of the first and the last round, {whose}"
        yield Picture(source, alt, f"Labels, round 1 and last round, on {whose}")


def _curves_section(run: Run) -> Section:
    """The judged metric large, then the other metrics, then the losses."""
    losses, metrics = curve_columns(run)
    charts = []
    if run.metric in metrics:
        name = f"{title_of(str(run.metric), metrics)} by round"
        charts.append(line_chart(name, lines_of(run, str(run.metric)), height=360, wide=True))
    for column in (*(m for m in metrics if m != run.metric), *losses):
        charts.append(line_chart(title_of(column, metrics), lines_of(run, column)))
    note = (
        "Thin lines are clients: metrics on their own val splits, losses on their own training "
        "images. The mean of the clients weighs them by images."
    )
    return Section("Curves", note, charts=charts, has_legend=True)


def _clients_section(run: Run) -> Section:
    results = client_results(run)
    columns: dict[str, Callable[[ClientResult], str | None]] = {
        "rounds": lambda r: str(len(r.seconds)) if r.seconds else None,
        "first": lambda r: _cell(r.first, _score),
        "best": lambda r: _cell(r.best, _score),
        "final": lambda r: _cell(r.final, _score),
        "own best local": lambda r: _cell(r.own, _score),
        "gain": lambda r: _gain(r),
        "seconds": lambda r: f"{sum(r.seconds):.0f}" if r.seconds else None,
        "received": lambda r: _cell(r.download_bytes, _bytes),
        "sent": lambda r: _cell(r.upload_bytes, _bytes),
        "remarks": lambda r: str(r.num_notes),
    }
    sheet = _sheet("Clients", results, columns)
    return Section("Clients", _clients_note(run, results), sheets=[sheet])


def _clients_note(run: Run, results: Sequence[ClientResult]) -> str:
    """What the columns of the table of clients are."""
    model = "its own model" if run.is_personal else "the global model"
    parts = []
    if any(result.final is not None for result in results):
        metric = title_of(str(run.metric))
        parts.append(f"first, best, final: {metric} of {model} on the client's val split, by round")
    if any(result.own is not None for result in results):
        parts.append("gain: how far that best is above the client's own best local model")
    parts.append("the rest is of all its rounds together")
    note = "; ".join(parts)
    return f"{note[0].upper()}{note[1:]}."


def _cell(value: float | None, show: Callable[[float | None], str]) -> str | None:
    return None if value is None else show(value)


def _gain(result: ClientResult) -> str | None:
    if result.own is None or result.best is None:
        return None
    return f"{result.best - result.own:+.3f}".replace("-", "−")


def _sheet(
    label: str,
    results: Sequence[ClientResult],
    columns: Mapping[str, Callable[[ClientResult], str | None]],
) -> Sheet:
    """A row for each client; columns that are empty for all are left out."""
    cells = {name: [show(result) for result in results] for name, show in columns.items()}
    cells = {name: values for name, values in cells.items() if any(v is not None for v in values)}
    rows = [
        [Mark(result.name, *_look(i)), *(values[i] or NO_VALUE for values in cells.values())]
        for i, result in enumerate(results)
    ]
    return Sheet(label, ["client", *cells], rows if cells else [])


def _classes_section(run: Run) -> Section:
    """Each class at the end by data set, and over the rounds on the server's data or the mean."""
    metric = next((m for m in ("mAP50-95", "mAP50") if m in _filled(run.classes)), None)
    if metric is None:
        return Section("Classes")
    names = class_names(run)
    scored = [row for row in run.classes if row.get(metric) is not None]
    last = max(row["round"] for row in scored)
    cells = {
        (row["class"], data_label(row["client"])): row.get(metric)
        for row in run.classes
        if row["round"] == last
    }
    hover = f"{{row}} on {{column}}: {metric} {{value}}"
    charts = [heat_chart(f"{metric} after round {last:.0f}", make_grid(cells, _score, hover))]
    on_server = [row for row in scored if row["client"] == SERVER]
    where = "on the server's data" if on_server else "mean over the clients that have it"
    if len(names) <= MAX_CLASSES and last > 1:
        lines = _class_lines(names, on_server or scored, metric)
        charts.append(
            _with_legend(line_chart(f"{metric} by round, {where}", lines, wide=True, height=340))
        )
    note = "A cell is empty where a data set has no such class."
    return Section("Classes", note, charts=charts)


def _class_lines(names: Sequence[str], rows: Sequence[Row], metric: str) -> list[Line]:
    lines = []
    for number, name in enumerate(names):
        by_round = defaultdict(list)
        for row in rows:
            if row["class"] == name:
                by_round[row["round"]].append(row[metric])
        means = [statistics.fmean(values) for values in by_round.values()]
        lines.append(Line(f"class{number}", name, *_look(number), False, list(by_round), means))
    return [line for line in lines if line.x]


def _with_legend(chart: Chart) -> Chart:
    """A chart of other things than the page's legend names."""
    legend = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    chart.figure.update_layout(
        showlegend=True, legend={**legend, "itemclick": "toggle", "itemdoubleclick": False}
    )
    return chart


def _matrix_section(run: Run) -> Section:
    grid = cross_client_grid(run)
    if grid is None:
        return Section("Every model on every data set")
    note = (
        "Rows are models, columns the val splits they were tried on. A local model is a client's "
        "best straight after its own training, before averaging."
    )
    charts = [heat_chart(title_of(str(run.metric)), grid)]
    return Section("Every model on every data set", note, charts=charts)


def _tests_section(run: Run) -> Section:
    """The last model on the test splits, as a whole and by class."""
    whole = [row for row in run.tests if not row.get("class")]
    columns = [c for c in dict.fromkeys(c for r in whole for c in r) if c in _filled(whole)]
    metrics = [c for c in columns if c.startswith("metrics/")]
    head = ["test split of", "images", *(title_of(m, metrics) for m in metrics)]
    rows = [
        [
            data_label(r["client"]),
            _count(r.get("num_examples")),
            *(_score(r.get(m)) for m in metrics),
        ]
        for r in whole
    ]
    cells = {
        (row["class"], data_label(row["client"])): row.get(run.metric or "")
        for row in run.tests
        if row.get("class")
    }
    charts = []
    if any(value is not None for value in cells.values()):
        name = title_of(str(run.metric))
        grid = make_grid(cells, _score, f"{{row}}, test split of {{column}}: {name} {{value}}")
        charts.append(heat_chart(f"{name} by class", grid))
    note = "The model of the last round on images that nothing was chosen by."
    return Section("Test splits", note, charts=charts, sheets=[Sheet("Test splits", head, rows)])


def _cost_section(run: Run) -> Section:
    """Time and traffic of each round, and the time of each client."""
    charts = [*_time_chart(run), *_traffic_chart(run)]
    seconds = [line for line in lines_of(run, "seconds") if line.key.startswith("client")]
    if seconds:
        charts.append(line_chart("Seconds of each client", seconds, height=280))
    time, traffic = total_seconds(run), total_bytes(run)
    parts = [
        f"{_duration(time)} in all" if time is not None else "",
        f"{_bytes(traffic)} of arrays to and from the clients" if traffic is not None else "",
    ]
    note = ", ".join(part for part in parts if part)
    return Section("Time and traffic", f"{note}." if note else "", charts=charts)


def _time_chart(run: Run) -> Iterator[Chart]:
    """Seconds of the rounds, by what they were spent on as far as results.csv tells."""
    timed = [row for row in run.rounds if row.get("seconds") is not None]
    if not timed:
        return
    parts: dict[str, list[float]] = {}
    rest = [row["seconds"] for row in timed]
    for name in ("train", "evaluate"):
        if f"{name}_seconds" in _filled(timed):
            parts[name] = [row.get(f"{name}_seconds") or 0.0 for row in timed]
            rest = [max(a - b, 0.0) for a, b in zip(rest, parts[name], strict=True)]
    parts["rest" if parts else "whole round"] = rest
    yield bar_chart("Seconds of each round", [row["round"] for row in timed], parts, "s")


def _traffic_chart(run: Run) -> Iterator[Chart]:
    ways = {"to the clients": "download_bytes", "from the clients": "upload_bytes"}
    parts = {
        name: [(row.get(column) or 0.0) / 1e6 for row in run.rounds]
        for name, column in ways.items()
        if column in _filled(run.rounds)
    }
    if parts:
        rounds = [row["round"] for row in run.rounds]
        yield bar_chart("Traffic of each round, MB", rounds, parts, "MB")


def total_bytes(run: Run) -> float | None:
    """Arrays that travelled in all rounds, both ways."""
    ways = ("download_bytes", "upload_bytes")
    found = [row[way] for row in run.rounds for way in ways if row.get(way) is not None]
    return sum(found) if found else None


def _notes_section(run: Run) -> Section:
    rows = [
        [f"{row['round']:.0f}", row["client"], row["note"]]
        for row in run.clients
        if row.get("note")
    ]
    sheet = Sheet(
        "Failures and remarks", ["round", "client", "what happened"], rows, text_columns=(0, 1, 2)
    )
    note = "A client that fails is left out of its round and asked again in the next."
    return Section("Failures and remarks", note, sheets=[sheet])


def _data_section(run: Run) -> Section:
    """Images of each split and boxes of each class, by client."""
    columns: dict[str, Callable[[ClientResult], str | None]] = {}
    for split in ("train", "val", "test"):
        columns[f"{split} images"] = lambda r, key=f"{split}_images": _cell(
            r.counts.get(key), _count
        )
    results = client_results(run)
    has_boxes = any(result.counts.get("boxes") for result in results)
    for name in class_names(run) if has_boxes else []:
        columns[name] = lambda r, key=name: _count((r.counts.get("boxes") or {}).get(key))
    sheet = _sheet("Data of the clients", results, columns)
    gaps = f" {NO_VALUE} stands where a class is not annotated." if has_boxes else ""
    note = "Images of each split, and training boxes of each class." + gaps
    return Section("Data", note, sheets=[sheet])


def _settings(run: Run) -> dict[str, dict[str, str]]:
    """What is folded away: settings, and versions of what ran."""
    about = {
        "parameters of the model": _cell(run.info.get("num_parameters"), _count),
        **(run.info.get("versions") or {}),
    }
    found = {
        "Settings (args.yaml)": flat(run.settings),
        "Versions": {name: str(value) for name, value in about.items() if value is not None},
    }
    return {title: table for title, table in found.items() if table}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{train: {lr0: 0.01}}` -> `train.lr0`, with texts as in YAML; clients go by their names."""
    result: dict[str, str] = {}
    for name, value in settings.items():
        if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
            value = {str(v.get("name", i)): _without(v, "name") for i, v in enumerate(value)}
        if isinstance(value, dict) and value:
            result.update(flat(value, f"{prefix}{name}."))
        else:
            text = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
            result[f"{prefix}{name}"] = text.removesuffix("\n").removesuffix("\n...")
    return result


def _without(mapping: Mapping[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in mapping.items() if key != name}


# The page of several runs.


def comparison_page(runs: Sequence[Run]) -> Page:
    """Runs side by side: what differs, how well they did, at what cost, and their curves."""
    federated = [run for run in runs if run.is_federated]
    centralised = [run for run in runs if not run.is_federated]
    best = max(federated, key=lambda run: run.best_score or -1.0, default=None)
    local = max(federated, key=lambda run: (best_local(run) or (-1.0,))[0], default=None)
    none = Number("Federated", NO_VALUE, "None of these runs is federated.")
    headline = [
        _of_run(_federated(best), best) if best else none,
        _of_run(_local(local), local) if local else Number("Best local", NO_VALUE, none.note),
        _centralised(centralised),
    ]
    kinds = [(federated, "federated"), (centralised, "centralised")]
    counts = [f"{len(found)} {kind}" for found, kind in kinds if found]
    sections = [_runs_section(runs), _overlay_section(runs)]
    return Page(
        title="Comparison of runs",
        subtitle=f"{' and '.join(counts)} runs",
        headline=headline,
        legend=[Line(f"run{i}", run.name, *_look(i), True, [], []) for i, run in enumerate(runs)],
        sections=[section for section in sections if not section.is_empty],
        settings={},
    )


def _of_run(number: Number, run: Run) -> Number:
    if number.value == NO_VALUE:
        return number
    return Number(number.label, number.value, f"{run.name}: {number.note}")


def _runs_section(runs: Sequence[Run]) -> Section:
    head = ["run", "kind", "score", "best", "round", "time", "traffic", "settings that differ"]
    differences = setting_differences(runs)
    rows = [
        [Mark(run.name, *_look(i)), *_run_cells(run), differences[i]] for i, run in enumerate(runs)
    ]
    note = (
        "The best round of each run, or epoch of yolo train, by its own score. Scores compare only "
        "where they are of the same data."
    )
    sheet = Sheet("Runs", head, rows, text_columns=(0, 1, 2, 7))
    return Section("Runs", note, sheets=[sheet])


def _run_cells(run: Run) -> list[str]:
    best = run.best
    data = _data_of(run)
    return [
        "federated" if run.is_federated else "centralised",
        f"{title_of(str(run.metric))}, {data}" if best else "not evaluated",
        _score(run.best_score),
        f"{best['round']:.0f} of {len(run.rounds)}" if best else str(len(run.rounds)),
        _duration(total_seconds(run)),
        _bytes(total_bytes(run)),
    ]


def _data_of(run: Run) -> str:
    if not run.is_federated:
        return f"val split of {run.settings.get('data', 'its data')}"
    if str(run.score_column).startswith("server/"):
        return "server's data"
    return "mean of the clients' val splits"


def total_seconds(run: Run) -> float | None:
    """Of all rounds; yolo train writes the time since its start."""
    if not run.is_federated:
        return run.rounds[-1].get("time")
    found = [row["seconds"] for row in run.rounds if row.get("seconds") is not None]
    return sum(found) if found else None


def setting_differences(runs: Sequence[Run]) -> list[str]:
    """For each run, the settings that it has in common with another run, with another value."""
    skipped = ("name", "save_dir", "project", "verbose", "names", "client_resources.", "task")
    tables = [
        {k: v for k, v in _comparable(run).items() if not k.startswith(skipped)} for run in runs
    ]
    values = defaultdict(set)
    for table in tables:
        for name, value in table.items():
            values[name].add(value)
    return [
        ", ".join(f"{k}={_short(v, 80)}" for k, v in table.items() if len(values[k]) > 1)
        for table in tables
    ]


def _comparable(run: Run) -> dict[str, str]:
    """Settings under the names of Ultralytics' train arguments, where there is one."""
    settings = {name.removeprefix("train."): v for name, v in flat(run.settings).items()}
    if "base_model" in settings:
        settings["model"] = settings.pop("base_model")
    rounds, epochs = run.settings.get("num_rounds"), run.settings.get("local_epochs")
    if isinstance(rounds, int) and isinstance(epochs, int):
        settings["epochs"] = str(rounds * epochs)
    return settings


def _overlay_section(runs: Sequence[Run]) -> Section:
    """The judged metrics and the losses of all runs by epoch."""
    has_epochs = all(row.get("epoch") is not None for run in runs for row in run.rounds)
    along = "epoch" if has_epochs else "round"
    metrics = list(dict.fromkeys(c for run in runs for c in curve_columns(run)[1]))
    judged = next((m for m in PRIMARY if any(run.metric == m for run in runs)), None)
    losses = list(dict.fromkeys(c for run in runs for c in curve_columns(run)[0]))
    charts = []
    for column in sorted(metrics, key=lambda c: c != judged) + losses:
        look = {"height": 360, "wide": True} if column == judged else {}
        lines = [
            Line(f"run{i}", run.name, *_look(i), True, *_series(run.rounds, found, along))
            for i, run in enumerate(runs)
            if (found := _found_column(run, column)) is not None
        ]
        charts.append(line_chart(title_of(column, metrics), lines, along, **look))
    note = "Metrics are on the server's data where a run has any, else on the val splits."
    return Section("Curves", note, charts=charts, has_legend=True)


def _found_column(run: Run, column: str) -> str | None:
    filled = _filled(run.rounds)
    return next((c for c in (f"server/{column}", column) if c in filled), None)


# The command.


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Report wrong usage as any other wrong input."""
        raise InputError(f"{message}; see --help")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises InputError."""
    parser = _Parser(
        prog="report.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "-o", "--output", type=Path, help="page of a comparison (default: comparison.html)"
    )
    options = parser.parse_args(arguments)
    if options.output is not None and len(options.run_dirs) == 1:
        raise InputError(
            f"--output {options.output}: it is the page of a comparison; one run's {REPORT} "
            "stays in its directory, so leave it out or name another run"
        )
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    try:
        options = parse(arguments)
        runs = read_runs(options.run_dirs)
        if len(runs) == 1:
            _draw_one(runs[0])
        else:
            output = options.output or Path("comparison.html")
            if not output.parent.is_dir() or output.is_dir():
                raise InputError(
                    f"--output {output}: expected a file in a directory that is there; make the "
                    "directory, or choose another"
                )
            _write_page(comparison_page(runs), output)
            print(output)
    except InputError as error:
        return _fail(error.problems, 2)
    except OSError as error:  # a full disk, a directory that may not be written to
        return _fail([f"{error.filename or 'writing'}: {error.strerror or error}"], 1)
    except KeyboardInterrupt:
        return _fail(["interrupted"], 130)
    return 0


def _draw_one(run: Run) -> None:
    if not run.is_federated:
        raise InputError(
            f"{run.path}: a run of yolo train, which has pictures of its own; name it beside a "
            "federated run to compare them"
        )
    _write_pictures(run)
    _write_page(run_page(run), run.path / REPORT)
    for path in (*sorted(run.path.glob("*.png")), run.path / REPORT):
        print(path)


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs under names that tell them apart. Raises InputError with all their problems."""
    problems = [
        f"{path}: given twice; name each run once"
        for i, path in enumerate(paths)
        if path.resolve() in [other.resolve() for other in paths[:i]]
    ]
    runs = [
        _collect(problems, lambda p=path, n=name: read_run(p, n), None)
        for path, name in zip(paths, _names(paths), strict=True)
    ]
    if problems:
        raise InputError(problems)
    return runs


def _names(paths: Sequence[Path]) -> list[str]:
    """The ends of the paths, as long as it takes to tell them apart."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path.resolve()) for path in paths]


def _fail(problems: Sequence[str], code: int) -> int:
    for problem in problems:
        print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
