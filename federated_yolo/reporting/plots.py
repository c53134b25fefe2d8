"""Draw results.png, clients.png and cross_client.png of a run with Matplotlib."""

import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from federated_yolo.common.figures import (
    ACCENT,
    INK,
    SHADES,
    finish_bars,
    name_ticks,
    new_figure,
    save_figure,
)
from federated_yolo.common.text import NO_VALUE, short
from federated_yolo.reporting.run_numbers import (
    MAX_CLASSES,
    MAX_CLIENTS,
    NUM_LOOKS,
    ClientResult,
    Line,
    class_names,
    client_results,
    counted_by_class,
    cross_client_grid,
    curve_columns,
    lines_of,
    look_of,
    metric_title,
    output_of,
    title_of,
)
from federated_yolo.reporting.run_record import Run

DASHES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-."}


def write_pictures(run: Run) -> list[Path]:
    """Draw every picture for which the run has data, and return their paths."""
    figures = {
        "results.png": _draw_curves(run),
        "clients.png": _draw_clients(run),
        "cross_client.png": _draw_matrix(run),
    }
    pictures = {run.path / name: figure for name, figure in figures.items() if figure is not None}
    for path, figure in pictures.items():
        save_figure(path, figure)
    return list(pictures)


def _draw_curves(run: Run) -> Any:
    """Draw losses in one row and metrics in others: clients thin, federation and server thick."""
    losses, metrics = curve_columns(run)
    outputs = sorted({output_of(name) for name in metrics})
    rows = [losses, *([m for m in metrics if output_of(m) == output] for output in outputs)]
    rows = [row for row in rows if row]
    if not rows:
        return None
    num_columns = max(map(len, rows))
    lines: dict[str, Any] = {}
    figure = new_figure(max(3.2 * num_columns, 6.4), 2.7 * len(rows) + 0.6)
    grid = figure.add_gridspec(len(rows), num_columns)
    for i, columns in enumerate(rows):
        for j, column in enumerate(columns):
            axes = figure.add_subplot(grid[i, j])
            for line in lines_of(run, column):
                lines.setdefault(line.name, _plot(axes, line))
            _finish(axes, title_of(column, metrics))
    _add_legend(figure, lines, max(2, round(1.8 * num_columns)))
    return figure


def _add_legend(figure: Any, lines: dict[str, Any], num_columns: int) -> None:
    """Name the lines below the figure: thick ones first, then clients if their looks differ."""
    thick = {name: line for name, line in lines.items() if line.get_linewidth() > 1}
    thin = {name: line for name, line in lines.items() if name not in thick}
    if len(thin) > NUM_LOOKS:  # more names would also leave no room for the curves
        thin = {"one line for each client": next(iter(thin.values()))}
    handles = {**thick, **thin}
    legend = figure.legend(
        handles.values(), map(short, handles), loc="outside lower center", ncols=num_columns,
        frameon=False, fontsize=9,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set_parse_math(False)


def _plot(axes: Any, line: Line) -> Any:
    """Draw one curve and return it; its points are marked if they are few."""
    few = len(line.x) <= 30
    if line.is_thick:
        look = {"lw": 2.4, "marker": "o" if few else "", "ms": 4, "zorder": 3}
    else:
        look = {"lw": 1, "marker": "." if few else "", "ms": 4, "alpha": 0.8}
    return axes.plot(line.x, line.y, color=line.color, ls=DASHES[line.dash], **look)[0]


def _finish(axes: Any, title: str) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=10, loc="left", parse_math=False)
    axes.set_xlabel("round", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(bottom=0)


def _draw_clients(run: Run) -> Any:
    """Draw one row per client across all panels: score, seconds, images, boxes by class."""
    results = client_results(run)[:MAX_CLIENTS]
    names = class_names(run) if any(result.counts.get("boxes") for result in results) else []
    panels: list[Callable[[Any], None]] = []
    if any(result.final is not None for result in results):
        panels.append(lambda axes: _draw_scores(axes, results, metric_title(run)))
    if any(result.seconds for result in results):
        panels.append(lambda axes: _draw_seconds(axes, results))
    if any(result.counts.get("train_images") for result in results):
        panels.append(lambda axes: _draw_images(axes, results))
    if not panels:
        return None
    widths = [3.2] * len(panels)
    if 0 < len(names) <= MAX_CLASSES:
        panels.append(lambda axes: _draw_boxes(axes, results, names, counted_by_class(run)))
        widths.append(max(0.62 * len(names), 1.6))
    figure = new_figure(sum(widths) + 1, 0.3 * len(results) + 1.6)
    grid = figure.add_gridspec(1, len(panels), width_ratios=widths)
    for number, draw in enumerate(panels):
        axes = figure.add_subplot(grid[0, number])
        draw(axes)
        axes.set_ylim(len(results) - 0.4, -0.6)
        axes.tick_params(labelsize=8, left=False)
        name_ticks(axes.yaxis, [result.name if number == 0 else "" for result in results])
    return figure


def _draw_scores(axes: Any, results: Sequence[ClientResult], metric: str) -> None:
    """Draw a dot for the federation's last model, joined to one for the client's own best model."""
    for y, result in enumerate(results):
        if result.own is not None and result.final is not None:
            axes.plot([result.own, result.final], [y, y], color="0.7", lw=1.5, zorder=1)
        if result.final is not None:
            axes.plot(result.final, y, "o", color=INK, ms=7, clip_on=False)
        if result.own is not None:
            axes.plot(result.own, y, "o", color=INK, ms=6, mfc="white", zorder=2, clip_on=False)
    finish_bars(axes, f"{metric} on its own val split")
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
            color, _ = look_of(y)
            axes.plot(result.seconds, [y] * len(result.seconds), "o", color=color, alpha=0.3, ms=5)
            median = statistics.median(result.seconds)
            axes.plot([median, median], [y - 0.3, y + 0.3], color=INK, lw=2)
    finish_bars(axes, "seconds of each round, median")


def _draw_images(axes: Any, results: Sequence[ClientResult]) -> None:
    images = [result.counts.get("train_images") or 0 for result in results]
    colors = [look_of(number)[0] for number in range(len(results))]
    bars = axes.barh(range(len(results)), images, height=0.6, color=colors)
    axes.bar_label(bars, fontsize=8, padding=3)
    finish_bars(axes, "training images")


def _draw_boxes(
    axes: Any, results: Sequence[ClientResult], names: Sequence[str], what: str
) -> None:
    """Draw a table shaded by each class's share of a client's boxes. what: "boxes" or "images"."""
    for y, result in enumerate(results):
        boxes = result.counts.get("boxes") or {}
        total = sum(count or 0 for count in boxes.values()) or 1
        for x, name in enumerate(names):
            count = boxes.get(name)
            if count:
                axes.barh(y, 1, left=x - 0.5, height=0.9, color=ACCENT, alpha=0.6 * count / total)
            text = NO_VALUE if count is None else str(count)
            axes.text(x, y, text, ha="center", va="center", fontsize=8)
    axes.set_title(f"training {what}", fontsize=10, loc="left")
    axes.set_xlim(-0.5, len(names) - 0.5)
    name_ticks(axes.xaxis, names, rotation=40 if len(names) > 1 else 0)
    axes.spines[:].set_visible(False)


def _draw_matrix(run: Run) -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    grid = cross_client_grid(run)
    if grid is None:
        return None
    values = [[math.nan if v is None else v for v in row] for row in grid.values]
    figure = new_figure(0.62 * len(grid.columns) + 2.6, 0.34 * len(grid.rows) + 1.6)
    axes = figure.add_subplot()
    shades = LinearSegmentedColormap.from_list("shades", SHADES)
    known = [v for row in values for v in row if not math.isnan(v)]
    low, high = min(known), max(known)
    axes.imshow(values, cmap=shades, vmin=low, vmax=high if high > low else low + 1, aspect="auto")
    middle = low + 0.6 * (high - low)  # on darker shades than this, dark text is hard to read
    for y, row in enumerate(grid.texts):
        for x, text in enumerate(row):
            color = "white" if values[y][x] > middle else INK
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=color)
    name_ticks(axes.xaxis, grid.columns, rotation=40)
    name_ticks(axes.yaxis, grid.rows)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    axes.set_title(f"{metric_title(run)}: model (row) on val split (column)", fontsize=10)
    return figure
