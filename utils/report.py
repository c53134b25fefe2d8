"""Pictures of a run, drawn from its directory alone."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.run_dir import read_csv, write_atomically


def plot_results(run_dir: Path) -> Path:
    """Draw `results.png`: losses and mAP by round, each client thin and the federation thick.

    Returns the path of the picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rounds = read_csv(run_dir / "results.csv")
    clients = defaultdict(list)
    for row in read_csv(run_dir / "clients.csv"):
        clients[row["client"]].append(row)
    columns = [c for c in rounds[0] if c.startswith(("train/", "metrics/mAP"))]
    figure = Figure(figsize=(3.2 * len(columns), 3.4), layout="constrained")
    FigureCanvasAgg(figure)  # no global pyplot state
    for index, column in enumerate(columns):
        axes = figure.add_subplot(1, len(columns), index + 1)
        for number, (name, rows) in enumerate(clients.items()):
            x, y = _series(rows, column)
            axes.plot(x, y, lw=1, marker=".", ms=4, alpha=0.8, color=f"C{number + 1}", label=name)
        is_metric = column.startswith("metrics/")
        x, y = _series(rounds, column)
        axes.plot(x, y, lw=2.4, color="black", marker="o", ms=3, label="mean of the clients")
        x, y = _series(rounds, f"server/{column}")
        if x:
            axes.plot(x, y, lw=2.4, color="C0", marker="o", ms=3, label="server's data")
        _finish(axes, column, is_metric)
        if index == len(columns) - 1:  # a metric, so the axes that have every line
            figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=6)
    path = run_dir / "results.png"
    write_atomically(path, lambda file: figure.savefig(file, dpi=120, format="png"))
    return path


def _series(rows: Sequence[dict[str, str]], column: str) -> tuple[list[int], list[float]]:
    points = [(int(r["round"]), float(r[column])) for r in rows if r.get(column)]
    return [x for x, _ in points], [y for _, y in points]


def _finish(axes: Any, column: str, is_metric: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(column, fontsize=10)
    axes.set_xlabel("round", fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylim(bottom=0, top=1 if is_metric else None)
