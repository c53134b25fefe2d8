"""Makes the tables of a run for a terminal: the headline and the rounds."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from federated_yolo.reporting.run_page import headline
from federated_yolo.reporting.run_record import Run
from federated_yolo.server.results import RoundResult


def headline_table(run: Run) -> Table:
    """Make the table of the numbers that a run is judged by, each with its exact meaning."""
    table = Table(
        title="Headline", title_justify="left", show_header=False, box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column(no_wrap=True)
    table.add_column(style="bold green", justify="right", vertical="top")
    table.add_column(style="dim", max_width=70)
    for number in headline(run):
        table.add_row(number.label, number.value, escape(number.note))
    return table


def rounds_table(
    rounds: Sequence[RoundResult], best: RoundResult | None, console: Console
) -> Table:
    """Make the table of the rounds for the end of a run; the best round is marked.

    If the console is too narrow, losses are left out, and then all but the strictest scores.
    """
    columns = dict.fromkeys(name for r in rounds for name in r.row)
    scores = [name for name in columns if _is_judged(name)]
    strict = [name for name in scores if not name.split("(")[0].endswith("mAP50")]
    losses = [name for name in columns if name.startswith("train/")]
    tables = [_rounds_table(rounds, best, names) for names in (losses + scores, scores, strict)]
    # With the console's own options, a table is never measured wider than the console.
    unlimited = console.options.update(width=10_000)
    for table in tables:
        if console.measure(table, options=unlimited).maximum <= console.width:
            return table
    return tables[-1]


def _rounds_table(
    rounds: Sequence[RoundResult], best: RoundResult | None, names: Sequence[str]
) -> Table:
    table = Table(
        title="Rounds", title_justify="left", header_style="bold", box=SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("round", justify="right", vertical="bottom")
    for name in names:
        table.add_column(short_name(name).replace(" ", "\n"), justify="right", vertical="bottom")
    table.add_column("s", justify="right", vertical="bottom")
    for result in rounds:
        is_best = best is not None and bool(best.score) and result.round == best.round
        cells = [_cell(result.row.get(name)) for name in names]
        number = f"{'* ' if is_best else ''}{result.round}"
        seconds = f"{result.row['seconds']:.1f}"
        table.add_row(number, *cells, seconds, style="bold green" if is_best else "")
    table.caption_justify = "left"
    if best is None:
        table.caption = "no round has a score: none was evaluated"
    elif best.score:
        table.caption = "* best round by fitness, saved as best.pt"
    else:
        table.caption = "no round has scored above 0 yet: train longer, or look at the losses"
    return table


def short_name(column: str) -> str:
    """`metrics/mAP50(B)` -> `mAP50`, `server/metrics/mAP50(B)` -> `server mAP50`."""
    prefix = "server " if column.startswith("server/") else ""
    name = column.split("/")[-1].replace("(B)", "").removeprefix("accuracy_")
    name = name.replace("(M)", " masks").replace("(P)", " keypoints")
    if column.startswith("train/"):
        name = name.removesuffix("loss").removesuffix("_") + " loss"
    return prefix + name.strip()


def is_loss_name(name: str, value: object) -> bool:
    return name.startswith("train/") and isinstance(value, float)


def _is_judged(name: str) -> bool:
    """Whether a task is judged by this column; others, such as precision, stay in results.csv."""
    return name.removeprefix("server/").startswith(("metrics/mAP", "metrics/accuracy"))


def is_score_name(name: str, value: object) -> bool:
    return _is_judged(name) and isinstance(value, float)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return ""
    return f"{value:.3f}" if value < 1e4 else f"{value:.3g}"
