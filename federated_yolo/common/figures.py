"""Matplotlib helpers that all pictures share: colours, axes and tables."""

import math
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from federated_yolo.common.files import write_atomically
from federated_yolo.common.text import NO_VALUE, short

# Okabe and Ito's colours (2008), which colour-blind people can distinguish. There are five, each
# used with four dash patterns.
COLORS = ("#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9")

INK, ACCENT = "#1c1f23", "#0072b2"
SHADES = ("#e3edf5", "#9cc3dd", "#3f8dbd", "#0b4f86")  # for heat maps, from low to high


def save_figure(path: Path, figure: Any) -> None:
    """Write a figure as a PNG."""
    with warnings.catch_warnings():
        # Characters that Matplotlib's font lacks become boxes; report.html shows them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        write_atomically(path, partial(figure.savefig, dpi=120, format="png"))


def new_figure(width: float, height: float, **look: Any) -> Any:
    """Return a figure of this size in inches that is independent of pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", **look)
    FigureCanvasAgg(figure)
    return figure


def finish_bars(axes: Any, title: str) -> None:
    """Set the title and the appearance of a horizontal bar chart."""
    axes.set_title(title, fontsize=10, loc="left")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    largest = axes.dataLim.xmax  # infinite where there is no bar
    axes.set_xlim(0, 1.08 * largest if 0 < largest < math.inf else 1)


def name_ticks(axis: Any, names: Sequence[str], rotation: float = 0) -> None:
    """Write names beside an axis unchanged; Matplotlib would read $...$ as a formula."""
    axis.set_ticks(
        range(len(names)), [short(name) for name in names], rotation=rotation,
        ha="right" if rotation or axis.axis_name == "y" else "center", rotation_mode="anchor",
        fontsize=8, parse_math=False,
    )  # fmt: skip


MAX_CLASSES, MAX_CLIENTS = 80, 100  # most that are shown; with more, names are unreadable
MAX_NUMBERS = 20  # most classes for which each count is also written as a number


def draw_class_table(
    axes: Any, counts: Sequence[Sequence[int | None]], names: Sequence[str], *, with_numbers: bool
) -> None:
    """Draw counts, one row per client, shaded by their share of the class; None is unknown."""
    from matplotlib.colors import LinearSegmentedColormap

    values = np.array([[count or 0 for count in row] for row in counts])
    shares = values / np.maximum(values.sum(axis=0), 1)
    highest = max(shares.max(initial=0), 1e-9)
    shades = LinearSegmentedColormap.from_list("shades", ("#ffffff", *SHADES))
    axes.imshow(shares, cmap=shades, vmin=0, vmax=highest, aspect="auto")
    if with_numbers:
        for (y, x), share in np.ndenumerate(shares):
            color = "white" if share > 0.6 * highest else INK
            text = NO_VALUE if counts[y][x] is None else str(counts[y][x])
            axes.text(x, y, text, ha="center", va="center", fontsize=8, color=color)
    name_ticks(axes.xaxis, names, rotation=40 if with_numbers else 90)
    axes.spines[:].set_visible(False)
