"""Draws the picture of `python federated.py check`: one row per data set across all panels."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from federated_yolo.checks.data_report import SIZE_NAMES, DataReport
from federated_yolo.common.figures import (
    ACCENT,
    COLORS,
    MAX_CLASSES,
    MAX_CLIENTS,
    MAX_NUMBERS,
    SHADES,
    draw_class_table,
    finish_bars,
    name_ticks,
    new_figure,
    save_figure,
)

PARTS = {  # part of a data set's images -> colour
    "train": ACCENT,
    "train, no object": SHADES[1],
    "val": COLORS[1],
    "val, no object": "#8fd1be",
    "damaged": COLORS[0],
}
SIZES: dict[str, str] = dict(zip(SIZE_NAMES, SHADES[1:], strict=True))


def draw_check(
    path: Path, reports: Sequence[DataReport], names: Sequence[str], seconds: Mapping[str, float]
) -> None:
    """Draw images, objects of each class, sizes of boxes, and seconds of a round's training.

    names: Classes of the federation. seconds: Estimated seconds by client; empty without estimate.
    """
    reports = list(reports)[:MAX_CLIENTS]
    counts = [report.objects(names) for report in reports]
    totals = [sum(row[i] or 0 for row in counts) for i in range(len(names))]
    most = sorted(sorted(range(len(names)), key=lambda i: -totals[i])[:MAX_CLASSES])
    wide = len(most) <= MAX_NUMBERS
    sizes = np.array([_sizes(report) for report in reports])
    widths = [3.6, max((0.62 if wide else 0.19) * len(most), 2.4)]
    widths += [2.8] if sizes.any() else []  # a classifier has no boxes
    widths += [2.6] if seconds else []
    figure = new_figure(sum(widths) + 1.2, 0.32 * len(reports) + 2.2)
    grid = figure.add_gridspec(1, len(widths), width_ratios=widths)
    panels = [figure.add_subplot(grid[0, i]) for i in range(len(widths))]
    _draw_parts(panels[0], np.array([_parts(report) for report in reports]), PARTS)
    finish_bars(panels[0], "images")
    shown = [[row[i] for i in most] for row in counts]
    draw_class_table(panels[1], shown, [names[i] for i in most], with_numbers=wide)
    more = f" ({len(most)} of {len(names)})" if len(most) < len(names) else ""
    things = "objects" if sizes.any() else "images"
    panels[1].set_title(f"{things} by class{more}", fontsize=10, loc="left")
    if sizes.any():
        shares = 100 * sizes / np.maximum(sizes.sum(axis=1, keepdims=True), 1)
        _draw_parts(panels[2], shares, SIZES)
        finish_bars(panels[2], "their boxes, %")
    if seconds:
        bars = panels[-1].barh(
            range(len(reports)), [seconds.get(r.name, 0) for r in reports], 0.6, color=ACCENT
        )
        labels = [f"{seconds[r.name]:.3g}" if r.name in seconds else "" for r in reports]
        panels[-1].bar_label(bars, labels, fontsize=8, padding=3)
        finish_bars(panels[-1], "training, s a round (estimated)")
    for number, axes in enumerate(panels):
        axes.set_ylim(len(reports) - 0.4, -0.6)
        axes.tick_params(labelsize=8, left=False)
        name_ticks(axes.yaxis, [r.name if number == 0 else "" for r in reports])
    save_figure(path, figure)


def _parts(report: DataReport) -> list[int]:
    """Return the numbers of a data set's images, in the order of PARTS."""
    parts, damaged = [], 0
    for name in ("train", "val"):
        split = report.splits.get(name)
        empty = split.num_background if split else 0
        parts += [len(split.images) - empty if split else 0, empty]
        damaged += split.num_damaged if split else 0
    return [*parts, damaged]


def _sizes(report: DataReport) -> list[int]:
    split = report.objects_split
    return split.size_counts.tolist() if split else [0] * len(SIZES)


def _draw_parts(axes: Any, values: np.ndarray, colors: Mapping[str, str]) -> None:
    """Draw stacked bars; a part that no data set has is left out of the legend.

    values: (rows, parts).
    """
    left = np.zeros(len(values))
    for column, (label, color) in zip(values.T, colors.items(), strict=True):
        if column.any():
            axes.barh(range(len(values)), column, 0.6, left=left, color=color, label=label)
        left += column
    if values.any():
        axes.legend(
            loc="upper left", bbox_to_anchor=(-0.02, -0.12 - 0.3 / len(values)), ncols=3,
            frameon=False, fontsize=7, handlelength=1, columnspacing=1,
        )  # fmt: skip
