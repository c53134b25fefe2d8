"""Draws partitions.png: each client's number of images, and its classes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from federated_yolo.common.figures import (
    ACCENT,
    MAX_CLASSES,
    MAX_CLIENTS,
    MAX_NUMBERS,
    draw_class_table,
    finish_bars,
    name_ticks,
    new_figure,
    save_figure,
)


def draw_partitions(
    path: Path, num_images: Mapping[str, int], counts: np.ndarray, names: Sequence[str], unit: str
) -> None:
    """Draw a row for each client: a bar of its train images, and its counts of each class.

    Counts are shaded by their share of the class, so that a common class does not hide the others.

    num_images: Train images by client. counts: (clients, classes) int, of the train split.
    names: Class names by index. unit: Noun for the counts, e.g. "objects".
    """
    clients = list(num_images)[:MAX_CLIENTS]
    most = np.sort(np.argsort(-counts.sum(axis=0), kind="stable")[:MAX_CLASSES])
    shown = counts[: len(clients), most]
    wide = len(most) <= MAX_NUMBERS
    width = max((0.62 if wide else 0.19) * len(most), 3.2)
    figure = new_figure(3.2 + width + 1, 0.3 * len(clients) + 1.8)
    grid = figure.add_gridspec(1, 2, width_ratios=[3.2, width])
    bars, table = (figure.add_subplot(grid[0, i]) for i in range(2))
    drawn = bars.barh(
        range(len(clients)), [num_images[name] for name in clients], height=0.6, color=ACCENT
    )
    bars.bar_label(drawn, fontsize=8, padding=3)
    finish_bars(bars, "train images")
    draw_class_table(table, shown.tolist(), [names[int(i)] for i in most], with_numbers=wide)
    more = f" ({len(most)} of {len(names)} classes)" if len(most) < len(names) else ""
    title = f"train {unit} of each class{more}\ndarker: a larger part of the class"
    table.set_title(title, fontsize=10, loc="left")
    for axes, labels in ((bars, clients), (table, [""] * len(clients))):
        axes.set_ylim(len(clients) - 0.4, -0.6)
        axes.tick_params(labelsize=8, left=False)
        name_ticks(axes.yaxis, labels)
    save_figure(path, figure)
