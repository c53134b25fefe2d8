"""Make the page that compares several runs."""

from collections import defaultdict
from collections.abc import Callable, Sequence

from federated_yolo.common.text import NO_VALUE, format_bytes, format_duration, format_score, short
from federated_yolo.reporting.charts import line_chart
from federated_yolo.reporting.page import Mark, Number, Page, Section, Sheet
from federated_yolo.reporting.run_numbers import (
    Line,
    best_local,
    curve_columns,
    look_of,
    metric_title,
    series,
    title_of,
    total_bytes,
    total_seconds,
)
from federated_yolo.reporting.run_page import (
    best_local_number,
    centralised_number,
    federated_number,
    flat,
)
from federated_yolo.reporting.run_record import PRIMARY, Run, filled_columns


def comparison_page(runs: Sequence[Run]) -> Page:
    """Compare runs: their different settings, scores, costs and curves."""
    federated = [run for run in runs if run.is_federated]
    centralised = [run for run in runs if not run.is_federated]
    best = max(federated, key=lambda run: run.best_score or -1.0, default=None)
    local = max(federated, key=lambda run: (best_local(run) or (-1.0,))[0], default=None)
    none = "None of these runs is federated."
    headline = [
        _of_run(federated_number, best) if best else Number("Federated", NO_VALUE, none),
        _of_run(best_local_number, local) if local else Number("Best local", NO_VALUE, none),
        centralised_number(centralised),
    ]
    kinds = [(federated, "federated"), (centralised, "centralised")]
    counts = [f"{len(found)} {kind}" for found, kind in kinds if found]
    sections = [_runs_section(runs), _overlay_section(runs)]
    return Page(
        title="Comparison of runs",
        subtitle=f"{' and '.join(counts)} runs",
        headline=headline,
        legend=[Line(f"run{i}", run.name, *look_of(i), True, [], []) for i, run in enumerate(runs)],
        sections=[section for section in sections if not section.is_empty],
        settings={},
    )


def _of_run(number_of: Callable[[Run], Number], run: Run) -> Number:
    """Return a headline number of one run, with the run's name in its note."""
    number = number_of(run)
    if number.value == NO_VALUE:
        return number
    return Number(number.label, number.value, f"{run.name}: {number.note}")


def _runs_section(runs: Sequence[Run]) -> Section:
    head = ["run", "kind", "score", "best", "round", "time", "traffic", "settings that differ"]
    differences = _setting_differences(runs)
    rows = [
        [Mark(run.name, *look_of(i)), *_run_cells(run), differences[i]]
        for i, run in enumerate(runs)
    ]
    note = (
        "The best round of each run, or epoch of yolo train, by its own score. Scores can be "
        "compared only if they are on the same data."
    )
    sheet = Sheet("Runs", head, rows, text_columns=(0, 1, 2, 7))
    return Section("Runs", note, sheets=[sheet])


def _run_cells(run: Run) -> list[str]:
    best = run.best
    data = _data_of(run)
    return [
        "federated" if run.is_federated else "centralised",
        f"{metric_title(run)}, {data}" if best else "not evaluated",
        format_score(run.best_score),
        _best_round(run),
        format_duration(total_seconds(run)),
        format_bytes(total_bytes(run)),
    ]


def _best_round(run: Run) -> str:
    """Return the best round and the number of rounds, with a remark if the run ended early."""
    done, planned = (
        len(run.rounds),
        run.settings.get("num_rounds" if run.is_federated else "epochs"),
    )
    text = f"{run.best['round']:.0f} of {done}" if run.best else str(done)
    is_whole = not isinstance(planned, int) or done >= planned
    return (
        text
        if is_whole
        else f"{text}, ended{' by patience' * bool(run.early_end)} before {planned}"
    )


def _data_of(run: Run) -> str:
    if not run.is_federated:
        return f"val split of {run.settings.get('data', 'its data')}"
    if str(run.score_column).startswith("server/"):
        return "server's data"
    return "mean of the clients' val splits"


def _setting_differences(runs: Sequence[Run]) -> list[str]:
    """Return, for each run, its settings that have another value in another run."""
    skipped = ("name", "save_dir", "project", "verbose", "names", "client_resources.", "task")
    tables = [
        {k: v for k, v in _comparable(run).items() if not k.startswith(skipped)} for run in runs
    ]
    values = defaultdict(set)
    for table in tables:
        for name, value in table.items():
            values[name].add(value)
    return [
        ", ".join(f"{k}={short(v, 80)}" for k, v in table.items() if len(values[k]) > 1)
        for table in tables
    ]


def _comparable(run: Run) -> dict[str, str]:
    """Return settings under the names of Ultralytics' train arguments, if such a name exists."""
    settings = {name.removeprefix("train."): v for name, v in flat(run.settings).items()}
    if "base_model" in settings:
        settings["model"] = settings.pop("base_model")
    rounds, epochs = run.settings.get("num_rounds"), run.settings.get("local_epochs")
    if isinstance(rounds, int) and isinstance(epochs, int):
        settings["epochs"] = str(rounds * epochs)
    return settings


def _overlay_section(runs: Sequence[Run]) -> Section:
    """Draw the metrics, the judged one first, and the losses of all runs by epoch."""
    has_epochs = all(row.get("epoch") is not None for run in runs for row in run.rounds)
    along = "epoch" if has_epochs else "round"
    found = [curve_columns(run) for run in runs]
    losses, metrics = (list(dict.fromkeys(c for pair in found for c in pair[i])) for i in (0, 1))
    judged = next((m for m in PRIMARY if any(run.metric == m for run in runs)), None)
    charts = []
    for column in sorted(metrics, key=lambda c: c != judged) + losses:
        look = {"height": 360, "is_wide": True} if column == judged else {}
        lines = [
            Line(f"run{i}", run.name, *look_of(i), True, *series(run.rounds, name, along))
            for i, run in enumerate(runs)
            if (name := _found_column(run, column)) is not None
        ]
        if lines:
            charts.append(line_chart(title_of(column, metrics), lines, along, **look))
    note = "Metrics are on the server's data where a run has any, else on the val splits."
    return Section("Curves", note, charts=charts, has_legend=True)


def _found_column(run: Run, column: str) -> str | None:
    filled = filled_columns(run.rounds)
    return next((c for c in (f"server/{column}", column) if c in filled), None)
