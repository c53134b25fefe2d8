"""Make the page of one run, report.html."""

import base64
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml

from federated_yolo.common.text import (
    NO_VALUE,
    counted,
    format_bytes,
    format_count,
    format_duration,
    format_score,
)
from federated_yolo.reporting.charts import Chart, bar_chart, heat_chart, line_chart
from federated_yolo.reporting.page import Mark, Number, Page, Picture, Section, Sheet
from federated_yolo.reporting.personal_section import personal_section
from federated_yolo.reporting.run_numbers import (
    MAX_CLASSES,
    ClientResult,
    Line,
    best_local,
    class_names,
    client_results,
    counted_by_class,
    cross_client_grid,
    curve_columns,
    data_label,
    first_clients,
    lines_of,
    look_of,
    make_grid,
    metric_title,
    output_of,
    title_of,
    total_bytes,
    total_seconds,
)
from federated_yolo.reporting.run_record import Row, Run, filled_columns
from federated_yolo.storage.run_dir import JPEG, SERVER


def run_page(run: Run) -> Page:
    """Return all content of report.html, without sections that the directory has no data for."""
    sections = [
        Section("Predictions", pictures=list(_pictures(run))),
        _curves_section(run),
        _clients_section(run),
        _classes_section(run),
        _matrix_section(run),
        _tests_section(run),
        personal_section(run),
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
        headline=[*headline(run), centralised_number([])],
        legend=order,
        sections=[section for section in sections if not section.is_empty],
        settings=_settings(run),
    )


def _subtitle(run: Run) -> str:
    """Describe the run in one line."""
    settings, info = run.settings, run.info
    base = info.get("base_model") or Path(str(settings.get("base_model", ""))).name
    epochs = settings.get("local_epochs")
    rounds = counted(len(run.rounds), "round")
    planned = settings.get("num_rounds")
    if isinstance(planned, int) and planned > len(run.rounds) and not run.early_end:
        rounds = f"{len(run.rounds)} of {planned} rounds"
    strategy = settings.get("strategy")
    parts = [
        base,
        info.get("task"),
        counted(len(run.client_names), "client") if run.client_names else None,
        f"{rounds} of {counted(epochs, 'epoch')}" if isinstance(epochs, int) else rounds,
        f"ended by patience: {run.early_end}" if run.early_end else None,
        strategy.get("name") if isinstance(strategy, dict) else strategy,
        f"on {info['device']}" if info.get("device") else None,
        _date(info.get("started")),
    ]
    return " · ".join(str(part) for part in parts if part)


def _date(text: Any) -> str | None:
    """Format an ISO time for readers; a text that is no time is returned unchanged."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(str(text)).strftime("%Y-%m-%d %H:%M %Z")
    except ValueError:
        return str(text)


def headline(run: Run) -> list[Number]:
    """Return the numbers that a run is judged by, as far as its directory contains them."""
    return [federated_number(run), best_local_number(run), *privacy_numbers(run)]


def federated_number(run: Run) -> Number:
    """Return the score of the federation's best round."""
    if run.best is None:
        note = "No round was evaluated yet; evaluate.every=1 scores each of them."
        return Number("Federated", NO_VALUE, note)
    if not run.best_score:
        note = "No round has scored above 0 yet: train longer, or look at the losses."
        return Number("Federated", format_score(run.best_score), note)
    if str(run.score_column).startswith("server/"):
        where = "of the global model on the server's data"
    elif run.is_personal:
        where = "of each client's own model on its own val split, mean weighted by images"
    else:
        where = "of the global model on the clients' val splits, mean weighted by images"
    note = (
        f"{metric_title(run)} {where}, after round {run.best['round']:.0f} of "
        f"{len(run.rounds)}, the best by fitness{'' if run.is_personal else ': best.pt'}."
    )
    return Number("Federated", format_score(run.best_score), note)


def best_local_number(run: Run) -> Number:
    """Return the score of the best model of a single client."""
    found = best_local(run)
    if found is None:
        when = "evaluate.cross_client=true measures it."
        if (run.settings.get("evaluate") or {}).get("cross_client"):
            when = "known when the run has ended."
        return Number("Best local", NO_VALUE, f"The best model of a single client; {when}")
    score, owner, where = found
    if not score:
        return Number(
            "Best local", format_score(score), "No client's model has scored above 0 yet."
        )
    note = (
        f"{metric_title(run)} on {where} of {owner} after its own epochs of a round, before "
        "averaging; the best of all rounds."
    )
    return Number("Best local", format_score(score), note)


def privacy_numbers(run: Run) -> list[Number]:
    """Return epsilon, the privacy loss of the clients' updates so far; none without privacy."""
    privacy = run.settings.get("privacy") or {}
    spent = [row["epsilon"] for row in run.rounds if row.get("epsilon") is not None]
    if not spent or privacy.get("mode") not in ("central", "local"):
        return []
    hidden = (
        "whether a client's update went into a round's mean, from those who see the models"
        if privacy["mode"] == "central"
        else "each client's update, from the server too"
    )
    note = (
        f"At delta {privacy.get('delta')}, after {counted(len(run.rounds), 'round')}: less is more "
        f"private. Differential privacy ({privacy['mode']}) hides {hidden}; it does not cover "
        "losses, scores and counts of images."
    )
    return [Number("Epsilon", f"{spent[-1]:.3g}", note)]


def centralised_number(runs: Sequence[Run]) -> Number:
    """Return the score of the best run of yolo train."""
    scored = [run for run in runs if run.best_score is not None]
    best = max(scored, key=lambda run: run.best_score or 0.0, default=None)
    if best is None or best.best is None:
        note = (
            "Training on the pooled data is a run of its own: federated-yolo report RUN_DIR "
            "YOLO_TRAIN_DIR shows both."
        )
        return Number("Centralised", NO_VALUE, note)
    note = (
        f"{metric_title(best)} of {best.name} (yolo train) after epoch "
        f"{best.best['round']:.0f} of {len(best.rounds)}, its best; on its own val split."
    )
    return Number("Centralised", format_score(best.best_score), note)


def _is_classifier(run: Run) -> bool:
    return run.info.get("task") == "classify"


def _pictures(run: Run) -> Iterator[Picture]:
    for path in sorted(run.path.glob("predictions*.jpg")):
        data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
        if not data.startswith(JPEG):
            continue  # no run has written this file
        owner = path.stem.removeprefix("predictions").lstrip("_")
        whose = f"images of {owner}" if owner else "images of the server's data"
        source = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        alt = f"Labels and predictions of the first and the last round, {whose}"
        shown = "boxes with a confidence above 0.25"
        if _is_classifier(run):
            shown = "the likeliest class of each image"
        caption = f"Labels, round 1 and last round, on {whose}; {shown}"
        yield Picture(source, alt, caption)


def _curves_section(run: Run) -> Section:
    """Draw the judged metric large, then the other metrics, then the losses."""
    losses, metrics = curve_columns(run)
    charts = []
    if run.metric in metrics:
        name = f"{metric_title(run)} by round"
        charts.append(line_chart(name, lines_of(run, str(run.metric)), height=360, is_wide=True))
    for column in (*(m for m in metrics if m != run.metric), *losses):
        charts.append(line_chart(title_of(column, metrics), lines_of(run, column)))
    note = (
        "Thin lines are clients: metrics on their own val splits, losses on their own training "
        f"images. The mean of the clients weighs them by images.{first_clients(run)}"
    )
    return Section("Curves", note, charts=charts, has_legend=True)


def _clients_section(run: Run) -> Section:
    results = client_results(run)
    columns: dict[str, Callable[[ClientResult], str | None]] = {
        "rounds": lambda r: str(len(r.seconds)) if r.seconds else None,
        "first": lambda r: _cell(r.first, format_score),
        "best": lambda r: _cell(r.best, format_score),
        "final": lambda r: _cell(r.final, format_score),
        "own best local": lambda r: _cell(r.own, format_score),
        "gain": _gain,
        "seconds": lambda r: f"{sum(r.seconds):.0f}" if r.seconds else None,
        "received": lambda r: _cell(r.download_bytes, format_bytes),
        "sent": lambda r: _cell(r.upload_bytes, format_bytes),
        "remarks": lambda r: str(r.num_notes),
    }
    sheet = _sheet("Clients", results, columns)
    return Section("Clients", _clients_note(run, results), sheets=[sheet])


def _clients_note(run: Run, results: Sequence[ClientResult]) -> str:
    """Explain the columns of the table of clients."""
    model = "its own model" if run.is_personal else "the global model"
    parts = []
    if any(result.final is not None for result in results):
        metric = metric_title(run)
        parts.append(f"first, best, final: {metric} of {model} on the client's val split, by round")
    if any(result.own is not None for result in results):
        parts.append("gain: how far that best is above the client's own best local model")
    parts.append(f"{'the other' if parts else 'all'} columns are totals of its rounds")
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
    """Make a table with a row for each client, without columns that are empty for all."""
    cells = {name: [show(result) for result in results] for name, show in columns.items()}
    cells = {name: values for name, values in cells.items() if any(v is not None for v in values)}
    rows = [
        [Mark(result.name, *look_of(i)), *(values[i] or NO_VALUE for values in cells.values())]
        for i, result in enumerate(results)
    ]
    return Sheet(label, ["client", *cells], rows if cells else [])


def _classes_section(run: Run) -> Section:
    """Show each class's last score by data set, and its curve on the server's data or as a mean."""
    known = ("mAP50-95", "mAP50", "accuracy_top1")
    metric = next((m for m in known if m in filled_columns(run.classes)), None)
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
    has_more = output_of(str(run.metric)) in ("(M)", "(P)")  # class scores exist for boxes only
    of_boxes = f"{metric} of the boxes" if has_more else title_of(metric)
    hover = f"{{row}} on {{column}}: {of_boxes} {{value}}"
    charts = [heat_chart(f"{of_boxes} after round {last:.0f}", make_grid(cells, hover))]
    on_server = [row for row in scored if row["client"] == SERVER]
    where = "on the server's data" if on_server else "mean over the clients that have it"
    if len(names) <= MAX_CLASSES and last > 1:
        lines = _class_lines(names, on_server or scored, metric)
        name = f"{of_boxes} by round, {where}"
        charts.append(line_chart(name, lines, height=340, is_wide=True, has_legend=True))
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
        lines.append(Line(f"class{number}", name, *look_of(number), False, list(by_round), means))
    return [line for line in lines if line.x]


def _matrix_section(run: Run) -> Section:
    grid = cross_client_grid(run)
    if grid is None:
        return Section("Every model on every data set")
    note = (
        "Rows are models, columns the val splits they were tried on. A local model is a client's "
        "best straight after its own training, before averaging; all other models are of the last "
        f"round.{first_clients(run)}"
    )
    charts = [heat_chart(metric_title(run), grid)]
    return Section("Every model on every data set", note, charts=charts)


def _tests_section(run: Run) -> Section:
    """Show the scores of the run's saved models on the test splits, in total and by class."""
    whole = [row for row in run.tests if not row.get("class")]
    columns = [c for c in dict.fromkeys(c for r in whole for c in r) if c in filled_columns(whole)]
    metrics = [c for c in columns if c.startswith("metrics/")]
    head = ["test split of", "model", "images", *(title_of(m, metrics) for m in metrics)]
    rows = [
        [
            data_label(r["client"]),
            _tested_model(run, r),
            format_count(r.get("num_examples")),
            *(format_score(r.get(m)) for m in metrics),
        ]
        for r in whole
    ]
    sheet = Sheet("Test splits", head, rows, text_columns=(0, 1))
    note = "No round or model was chosen by these images."
    if run.is_personal:
        note += " Each client's own model of the last round is tested, not its best.pt."
    return Section("Test splits", note, charts=list(_test_charts(run, metrics)), sheets=[sheet])


def _tested_model(run: Run, row: Row) -> str:
    """Return the tested model of a row of test.csv; without a `round` (older runs), the last."""
    last = run.rounds[-1]["round"]
    tested = row.get("round", last)
    if run.is_personal:
        return f"its own, round {tested:.0f}"
    rounds = {"best.pt": run.best["round"] if run.best else None, "last.pt": last}
    files = [name for name, number in rounds.items() if number == tested]
    return f"{' and '.join(files)}{', ' if files else ''}round {tested:.0f}"


def _test_charts(run: Run, metrics: Sequence[str]) -> Iterator[Chart]:
    """Draw a table of classes by test split, for each model."""
    # Scores of single classes exist for boxes only.
    metric = next((m for m in metrics if "accuracy_top1" in m), "metrics/mAP50-95(B)")
    models: dict[str, dict[tuple[str, str], float | None]] = defaultdict(dict)
    for row in run.tests:
        if row.get("class"):
            cell = (row["class"], data_label(row["client"]))
            models[_tested_model(run, row)][cell] = row.get(metric)
    name = title_of(metric, metrics)
    for model, cells in models.items():
        if any(value is not None for value in cells.values()):
            grid = make_grid(cells, f"{{row}}, test split of {{column}}: {name} {{value}}")
            yield heat_chart(f"{name} by class: {model}", grid)


def _cost_section(run: Run) -> Section:
    """Show time and traffic of each round, and the time of each client."""
    charts = [*_time_chart(run), *_traffic_chart(run)]
    seconds = [line for line in lines_of(run, "seconds") if line.key.startswith("client")]
    if seconds:
        charts.append(line_chart("Seconds of each client", seconds, height=280))
    time, traffic = total_seconds(run), total_bytes(run)
    parts = [
        f"{format_duration(time)} in all rounds" if time is not None else "",
        f"{format_bytes(traffic)} of arrays to and from the clients" if traffic is not None else "",
    ]
    note = ", ".join(part for part in parts if part)
    note += "; without the time and traffic before and after the rounds" if note else ""
    return Section("Time and traffic", f"{note}." if note else "", charts=charts)


def _time_chart(run: Run) -> Iterator[Chart]:
    """Draw the seconds of each round, split into steps as far as results.csv contains them."""
    timed = [row for row in run.rounds if row.get("seconds") is not None]
    if not timed:
        return
    parts: dict[str, list[float]] = {}
    rest = [row["seconds"] for row in timed]
    for name in ("train", "evaluate"):
        if f"{name}_seconds" in filled_columns(timed):
            parts[name] = [row.get(f"{name}_seconds") or 0.0 for row in timed]
            rest = [max(a - b, 0.0) for a, b in zip(rest, parts[name], strict=True)]
    parts["rest" if parts else "whole round"] = rest
    yield bar_chart("Seconds of each round", [row["round"] for row in timed], parts, "s")


def _traffic_chart(run: Run) -> Iterator[Chart]:
    ways = {"to the clients": "download_bytes", "from the clients": "upload_bytes"}
    parts = {
        name: [(row.get(column) or 0.0) / 1e6 for row in run.rounds]
        for name, column in ways.items()
        if column in filled_columns(run.rounds)
    }
    if parts:
        rounds = [row["round"] for row in run.rounds]
        yield bar_chart("Traffic of each round, MB", rounds, parts, "MB")


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
    """Show the images of each split and the boxes (or images) of each class, by client."""
    columns: dict[str, Callable[[ClientResult], str | None]] = {}
    for split in ("train", "val", "test"):
        columns[f"{split} images"] = lambda r, key=f"{split}_images": _cell(
            r.counts.get(key), format_count
        )
    results = client_results(run)
    has_boxes = any(result.counts.get("boxes") for result in results)
    for name in class_names(run) if has_boxes else []:
        columns[name] = lambda r, key=name: format_count((r.counts.get("boxes") or {}).get(key))
    sheet = _sheet("Data of the clients", results, columns)
    has_gaps = has_boxes and not _is_classifier(run)
    gaps = f" {NO_VALUE} marks a class that is not annotated." if has_gaps else ""
    note = f"Images of each split, and training {counted_by_class(run)} of each class.{gaps}"
    return Section("Data", note, sheets=[sheet])


def _settings(run: Run) -> dict[str, dict[str, str]]:
    """Return the tables that are folded away: settings, and the versions that ran."""
    about = {
        "parameters of the model": _cell(run.info.get("num_parameters"), format_count),
        **(run.info.get("versions") or {}),
    }
    found = {
        "Settings (args.yaml)": flat(run.settings),
        "Versions": {name: str(value) for name, value in about.items() if value is not None},
    }
    return {title: table for title, table in found.items() if table}


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Turn `{train: {lr0: 0.01}}` into `train.lr0` with YAML texts; clients are keyed by name."""
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
