"""The numbers that pictures and pages show of a run, with their colours, dashes and texts."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from federated_yolo.common.figures import ACCENT, COLORS, INK
from federated_yolo.common.text import format_score
from federated_yolo.reporting.run_record import Row, Run, filled_columns
from federated_yolo.storage.run_dir import SERVER

OUTPUTS = {"(B)": "boxes", "(M)": "masks", "(P)": "keypoints"}

DASHES = ("solid", "dash", "dot", "dashdot")
NUM_LOOKS = len(COLORS) * len(DASHES)

# With more classes or clients than these, curves of single ones are unreadable and costly to draw.
MAX_CLASSES, MAX_CLIENTS = 30, 50


@dataclass(frozen=True)
class Line:
    """One curve. key: Id of its subject, equal in all charts of a page. color, dash: `look_of`."""

    key: str
    name: str
    color: str
    dash: str
    is_thick: bool
    x: list[float]
    y: list[float]


def look_of(number: int) -> tuple[str, str]:
    """Return the colour and dash of a client, run or class, by its position."""
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


def lines_of(run: Run, column: str) -> list[Line]:
    """Return a column's curves: the first MAX_CLIENTS clients, their mean, the server's data."""
    lines = []
    for number, client in enumerate(run.client_names[:MAX_CLIENTS]):
        points = series(run.client_rows[client], column)
        lines.append(Line(f"client{number}", client, *look_of(number), False, *points))
    mean = series(run.rounds, column)
    lines.append(Line("federation", "mean of the clients", INK, "solid", True, *mean))
    on_server = series(run.rounds, f"server/{column}")
    lines.append(Line("server", "server's data", ACCENT, "solid", True, *on_server))
    return [line for line in lines if line.x]


def series(
    rows: Iterable[Row], column: str, along: str = "round"
) -> tuple[list[float], list[float]]:
    """Return x and y of a curve, without the rows that have no value."""
    points = [(row[along], row[column]) for row in rows if row.get(column) is not None]
    return [x for x, _ in points], [y for _, y in points]


def curve_columns(run: Run) -> tuple[list[str], list[str]]:
    """Return the losses and the metrics that have any value, in the order of results.csv."""
    filled = filled_columns(run.rounds) | filled_columns(run.clients)
    names = list(dict.fromkeys(c for row in (*run.rounds, *run.clients) for c in row))
    names = [name.removeprefix("server/") for name in names if name in filled]
    losses = [name for name in names if name.startswith("train/")]
    return losses, list(dict.fromkeys(name for name in names if name.startswith("metrics/")))


def title_of(column: str, columns: Iterable[str] = ()) -> str:
    """Turn `train/box_loss` into "box loss"; the output is named if the columns have several."""
    name, output = column.split("/")[-1], output_of(column)
    if output:
        several = len({output_of(c) for c in columns} - {""}) > 1
        name = f"{name[:-3]} ({OUTPUTS[output]})" if several else name[:-3]
    return name.replace("_", " ")


def metric_title(run: Run) -> str:
    """Return the title of a run's judged metric, with its output if the model has several."""
    return title_of(str(run.metric), curve_columns(run)[1])


def output_of(column: str) -> str:
    """Return the output that a metric belongs to: "(B)", "(M)", "(P)", or "" if it names none."""
    return column[-3:] if column[-3:] in OUTPUTS else ""


def counted_by_class(run: Run) -> str:
    """Return the unit in which training data are counted by class: "images" or "boxes"."""
    return "images" if run.info.get("task") == "classify" else "boxes"


@dataclass(frozen=True)
class ClientResult:
    """Results of one client over all rounds.

    first, best, final: The judged metric of the global model (or of its own model, if arrays are
    private) on its val split. own: The best score there of its models right after local epochs.
    seconds: Seconds of each round. num_notes: Number of rounds with a note.
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
    """Return the results of each client, in the order of `client_names`."""
    results = []
    for name, rows in run.client_rows.items():
        scores = series(rows, run.metric or "")[1]
        own = series(rows, f"local/{run.metric}")[1]
        down, up = (series(rows, f"{way}_bytes")[1] for way in ("download", "upload"))
        results.append(
            ClientResult(
                name=name,
                counts=run.info.get("clients", {}).get(name, {}),
                first=scores[0] if scores else None,
                best=max(scores, default=None),
                final=scores[-1] if scores else None,
                own=max(own, default=None),
                seconds=series(rows, "seconds")[1],
                download_bytes=sum(down) if down else None,
                upload_bytes=sum(up) if up else None,
                num_notes=sum(1 for row in rows if row.get("note")),
            )
        )
    return results


def best_local(run: Run) -> tuple[float, str, str] | None:
    """Return the score of the best model of a single client, whose model it is, and the data.

    The score is on the server's data, or else the mean over the clients' val splits weighted by
    images, of the models that have a score on all of them. If each client has a model of its own,
    it is the mean of all these models, each on its client's own data.
    """
    rows = [r for r in run.matrix if r["model"] == "local" and r.get(run.metric or "") is not None]
    if run.is_personal:
        own = [row for row in rows if row["owner"] == row["data"]]
        return (_mean(run, own), "each client's model", "its own val split") if own else None
    by_owner = defaultdict(list)
    for row in rows:
        by_owner[row["owner"]].append(row)
    where = "the clients' val splits"
    if any(row["data"] == SERVER for row in rows):
        where = "the server's data"
        by_owner = {o: [r for r in found if r["data"] == SERVER] for o, found in by_owner.items()}
    num_places = max((len(found) for found in by_owner.values()), default=0)
    scores = {o: _mean(run, found) for o, found in by_owner.items() if len(found) == num_places}
    if not scores:
        return None
    owner = max(scores, key=lambda name: scores[name])
    return scores[owner], f"{owner}'s model", where


def _mean(run: Run, rows: list[Row]) -> float:
    """Return the mean of the judged metric, weighted by images."""
    weights = [row.get("num_examples") or 1 for row in rows]
    scores = [row[str(run.metric)] for row in rows]
    return sum(s * w for s, w in zip(scores, weights, strict=True)) / sum(weights)


def class_names(run: Run) -> list[str]:
    """Return the federation's class names by index, as far as the run directory contains them."""
    names = run.info.get("names") or [row["class"] for row in run.classes]
    return list(dict.fromkeys(map(str, names)))


def model_label(row: Row) -> str:
    """Return the label of the model in a row of cross_client.csv."""
    if row["model"] == "global":
        return "global"
    return f"{row['owner']}, own" if row["model"] == "personal" else f"{row['owner']}, local"


def data_label(name: str) -> str:
    """Return the label of a data set that is named in a column such as `client`."""
    return "server's data" if name == SERVER else name


@dataclass(frozen=True)
class Grid:
    """Numbers by row and column name. texts: Text in each cell. hovers: Hover text of each cell."""

    rows: list[str]
    columns: list[str]
    values: list[list[float | None]]
    texts: list[list[str]]
    hovers: list[list[str]]


def make_grid(cells: Mapping[tuple[str, str], float | None], hover: str) -> Grid:
    """Put scores by (row, column) in a grid. hover: Format text with {row}, {column}, {value}."""
    rows, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in (0, 1))
    values = [[cells.get((row, column)) for column in columns] for row in rows]
    texts = [[format_score(v) for v in line] for line in values]
    hovers = [
        [hover.format(row=r, column=c, value=t) for c, t in zip(columns, line, strict=True)]
        for r, line in zip(rows, texts, strict=True)
    ]
    return Grid(rows, columns, values, texts, hovers)


def cross_client_grid(run: Run) -> Grid | None:
    """Return scores of models by data sets, for the first MAX_CLIENTS clients; None without any."""
    shown = {"", SERVER, *run.client_names[:MAX_CLIENTS]}
    cells = {
        (model_label(row), data_label(row["data"])): row.get(run.metric or "")
        for row in run.matrix
        if row["owner"] in shown and row["data"] in shown
    }
    if all(value is None for value in cells.values()):
        return None
    return make_grid(cells, "{row} model on {column}: {value}")


def first_clients(run: Run) -> str:
    """Return a sentence if not all clients are drawn, or else an empty text."""
    num_clients = len(run.client_names)
    return f" Shown are the first {MAX_CLIENTS} of {num_clients}." * (num_clients > MAX_CLIENTS)


def total_bytes(run: Run) -> float | None:
    """Return the bytes of arrays that were sent in all rounds, both ways."""
    ways = ("download_bytes", "upload_bytes")
    found = [row[way] for row in run.rounds for way in ways if row.get(way) is not None]
    return sum(found) if found else None


def total_seconds(run: Run) -> float | None:
    """Return the seconds of all rounds; for yolo train, the time since its start."""
    if not run.is_federated:
        return run.rounds[-1].get("time")
    found = [row["seconds"] for row in run.rounds if row.get("seconds") is not None]
    return sum(found) if found else None
