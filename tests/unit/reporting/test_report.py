"""The pages of runs as they are written, and what the command says where it cannot write them."""

import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import ROOT
from recorded_runs import (
    HOSTILE_CLASS,
    HOSTILE_NOTE,
    PNG,
    keep_columns,
    without_metrics,
    write_table,
)

from federated_yolo.reporting import draw as report
from federated_yolo.reporting.comparison_page import comparison_page
from federated_yolo.reporting.page import Mark
from federated_yolo.reporting.run_numbers import cross_client_grid, lines_of
from federated_yolo.reporting.run_page import run_page
from federated_yolo.reporting.run_record import read_run, read_runs
from federated_yolo.storage.run_dir import RunDir, read_csv


def make_old(run_dir: Path) -> None:
    """Leave what a run of an early version has."""
    for path in run_dir.iterdir():
        if path.name not in ("args.yaml", "results.csv", "clients.csv"):
            path.unlink()
    new = (
        "_bytes",
        "train_seconds",
        "evaluate_seconds",
        "note",
        "update_norm",
        "statistics_factor",
    )
    for name in ("results.csv", "clients.csv"):
        keep_columns(run_dir / name, lambda c: not c.startswith("local/") and not c.endswith(new))


class _Text(HTMLParser):
    """Text and tags of a page, without scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self._is_hidden = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._is_hidden = tag in ("script", "style")
        if tag == "img":
            self.images.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._is_hidden = False

    def handle_data(self, data: str) -> None:
        if not self._is_hidden and data.strip():
            self.parts.append(data.strip())


def parsed(path: Path) -> _Text:
    text = _Text()
    text.feed(path.read_text(encoding="utf-8"))
    return text


def test_a_run_that_patience_ended_is_not_shown_as_interrupted(run_dir: Path) -> None:
    settings = yaml.safe_load((run_dir / "args.yaml").read_text()) | {"num_rounds": 9}
    (run_dir / "args.yaml").write_text(yaml.safe_dump(settings))
    assert " · 4 of 9 rounds of 1 epoch · " in run_page(read_run(run_dir)).subtitle
    reason = "no better score than round 2's in the last 2 rounds"
    RunDir(run_dir).note_end(reason)
    expected = f" · 4 rounds of 1 epoch · ended by patience: {reason} · "
    assert expected in run_page(read_run(run_dir)).subtitle
    RunDir(run_dir).note_end("")
    assert " · 4 of 9 rounds of 1 epoch · " in run_page(read_run(run_dir)).subtitle


def headline(run_dir: Path) -> dict[str, tuple[str, str]]:
    page = run_page(read_run(run_dir))
    return {number.label: (number.value, number.note) for number in page.headline}


def titles(run_dir: Path) -> list[str]:
    return [section.title for section in run_page(read_run(run_dir)).sections]


def test_a_run_directory_gets_its_pictures_and_one_page(run_dir: Path) -> None:
    report.draw_report(run_dir)
    for name in ("results.png", "clients.png", "cross_client.png"):
        assert (run_dir / name).read_bytes().startswith(PNG)
    text = parsed(run_dir / "report.html")
    shown = " ".join(text.parts)
    for expected in ("Federated", "0.451", "north", "RBC", "48.3 MB", "lr0", "8.4.190", "yolov8n"):
        assert expected in shown
    alts = [str(image["alt"]) for image in text.images]
    assert [alt.split(", ")[-1] for alt in alts] == [
        "images of the server's data",
        "images of north",
    ]
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") for image in text.images)
    assert not list(run_dir.glob("*.tmp"))


def test_the_headline_says_what_its_numbers_are_and_on_what_data(run_dir: Path) -> None:
    found = headline(run_dir)
    assert found["Federated"] == (
        "0.451",
        "mAP50-95 of the global model on the server's data, after round 4 of 4, the best by "
        "fitness: best.pt.",
    )
    value, note = found["Best local"]
    scores = {
        row["owner"]: row["metrics/mAP50-95(B)"]
        for row in read_csv(run_dir / "cross_client.csv")
        if row["model"] == "local" and row["data"] == "(server)"
    }
    owner = max(scores, key=lambda name: float(scores[name]))
    assert value == f"{float(scores[owner]):.3f}"
    assert f"of {owner}'s model" in note
    assert "on the server's data" in note
    assert found["Centralised"][0] == "–"
    assert "federated-yolo report RUN_DIR" in found["Centralised"][1]


def test_gain_is_the_federations_best_less_the_clients_own_best(run_dir: Path) -> None:
    metric = "metrics/mAP50-95(B)"
    rows = [
        {"round": 1, "client": "north", metric: 0.2, f"local/{metric}": 0.25},
        {"round": 2, "client": "north", metric: 0.5, f"local/{metric}": 0.45},
        {"round": 3, "client": "north", metric: 0.4, f"local/{metric}": 0.3},
        {"round": 3, "client": "west", "note": "gone"},
    ]
    write_table(run_dir / "clients.csv", rows)
    page = run_page(read_run(run_dir))
    (sheet,) = next(s for s in page.sections if s.title == "Clients").sheets
    by_client = {row[0].name: dict(zip(sheet.head[1:], row[1:], strict=True)) for row in sheet.rows}
    assert by_client["north"] == {
        "first": "0.200",
        "best": "0.500",
        "final": "0.400",
        "own best local": "0.450",
        "gain": "+0.050",
        "remarks": "0",
    }
    assert by_client["west"]["gain"] == "–"
    assert by_client["west"]["remarks"] == "1"


def test_a_run_of_an_early_version_is_drawn_without_what_it_lacks(run_dir: Path) -> None:
    make_old(run_dir)
    report.draw_report(run_dir)
    assert not (run_dir / "cross_client.png").exists()
    assert titles(run_dir) == ["Curves", "Clients", "Time and traffic"]
    page = run_page(read_run(run_dir))
    time = page.sections[-1]
    assert [chart.title for chart in time.charts] == [
        "Seconds of each round",
        "Seconds of each client",
    ]
    assert [trace.name for trace in time.charts[0].figure.data] == ["whole round"]
    assert headline(run_dir)["Best local"] == (
        "–",
        "The best model of a single client; known when the run has ended.",
    )


def test_a_run_without_evaluation_shows_its_losses(run_dir: Path) -> None:
    without_metrics(run_dir)
    report.draw_report(run_dir)
    assert headline(run_dir)["Federated"][0] == "–"
    page = run_page(read_run(run_dir))
    curves = next(section for section in page.sections if section.title == "Curves")
    assert [chart.title for chart in curves.charts] == ["box loss", "cls loss", "dfl loss"]
    assert "Classes" not in titles(run_dir)


def without_metrics_of_rounds(run_dir: Path) -> None:
    for name in ("results.csv", "clients.csv"):
        keep_columns(run_dir / name, lambda c: "metrics/" not in c and not c.endswith("fitness"))


def test_models_that_were_only_compared_at_the_end_are_shown(run_dir: Path) -> None:
    without_metrics_of_rounds(run_dir)
    report.draw_report(run_dir)
    assert (run_dir / "cross_client.png").exists()
    found = headline(run_dir)
    assert (found["Federated"][0], found["Best local"][0]) == ("–", "0.378")
    assert {"Every model on every data set", "Test splits"} <= set(titles(run_dir))


def rows_of_tests(run_dir: Path) -> list[list[Any]]:
    """Client, model and images of each row of the table of test splits."""
    page = run_page(read_run(run_dir))
    section = next(section for section in page.sections if section.title == "Test splits")
    return [row[:3] for row in section.sheets[0].rows]


def test_scores_of_test_splits_say_which_model_they_are_of(run_dir: Path) -> None:
    rows = read_csv(run_dir / "results.csv")
    rows[2]["fitness"] = rows[2]["server/metrics/mAP50-95(B)"] = "0.9"
    write_table(run_dir / "results.csv", rows)
    tests = read_csv(run_dir / "test.csv")
    both = [{"round": number, **row} for number in (3, 4) for row in tests]
    write_table(run_dir / "test.csv", both)
    places = ["north", "south", "west", "server's data"]
    models = ["best.pt, round 3", "last.pt, round 4"]
    assert rows_of_tests(run_dir) == [[place, model, "8"] for model in models for place in places]
    page = run_page(read_run(run_dir))
    section = next(section for section in page.sections if section.title == "Test splits")
    assert [chart.title for chart in section.charts] == [
        f"mAP50-95 by class: {model}" for model in models
    ]
    assert "after round 3 of 4, the best by fitness: best.pt." in headline(run_dir)["Federated"][1]
    report.draw_report(run_dir)


def test_tests_from_before_they_had_rounds_are_of_the_last_model(run_dir: Path) -> None:
    assert "round" not in read_csv(run_dir / "test.csv")[0]
    assert {model for _, model, _ in rows_of_tests(run_dir)} == {"best.pt and last.pt, round 4"}
    without_metrics_of_rounds(run_dir)
    assert {model for _, model, _ in rows_of_tests(run_dir)} == {"last.pt, round 4"}


def test_models_of_the_clients_own_are_tested_after_the_last_round(run_dir: Path) -> None:
    (run_dir / "args.yaml").write_text("shared: {batchnorm: local}\n")
    assert {model for _, model, _ in rows_of_tests(run_dir)} == {"its own, round 4"}
    assert "best.pt" not in headline(run_dir)["Federated"][1]


def test_results_alone_are_enough(run_dir: Path) -> None:
    for path in run_dir.iterdir():
        if path.name != "results.csv":
            path.unlink()
    report.draw_report(run_dir)
    assert titles(run_dir) == ["Curves", "Time and traffic"]
    assert not (run_dir / "clients.png").exists()


def test_one_round_of_one_client_is_drawn(run_dir: Path) -> None:
    for name in ("results.csv", "clients.csv", "classes.csv"):
        rows = [r for r in read_csv(run_dir / name) if r["round"] == "1"]
        write_table(run_dir / name, [r for r in rows if r.get("client", "north") == "north"])
    report.draw_report(run_dir)
    lines = lines_of(read_run(run_dir), "metrics/mAP50-95(B)")
    assert [(line.name, len(line.x)) for line in lines] == [
        ("north", 1),
        ("mean of the clients", 1),
        ("server's data", 1),
    ]


def test_a_client_has_one_look_in_all_charts(run_dir: Path) -> None:
    page = run_page(read_run(run_dir))
    looks: dict[str, set[tuple[str, str]]] = {
        line.name: {(line.color, line.dash)} for line in page.legend
    }
    for section in page.sections:
        for chart in section.charts:
            for trace in chart.figure.data:
                if trace.type == "scatter" and trace.name in looks:
                    looks[trace.name].add((trace.line.color, trace.line.dash))
        for sheet in section.sheets:
            for cell in (row[0] for row in sheet.rows if isinstance(row[0], Mark)):
                looks[cell.name].add((cell.color, cell.dash))
    assert all(len(found) == 1 for found in looks.values()), looks


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("metrics/mAP50-95(B)", "metrics/mAP50-95(M)"), "metrics/mAP50-95(M)"),
        (("metrics/mAP50-95(B)", "metrics/mAP50-95(P)"), "metrics/mAP50-95(P)"),
        (("metrics/accuracy_top1", "metrics/accuracy_top5"), "metrics/accuracy_top1"),
    ],
)
def test_the_task_decides_what_a_run_is_judged_by(
    run_dir: Path, columns: tuple[str, ...], expected: str
) -> None:
    without_metrics(run_dir)
    for name in ("results.csv", "clients.csv"):
        rows = [{**row, **dict.fromkeys(columns, "0.5")} for row in read_csv(run_dir / name)]
        write_table(run_dir / name, rows)
    report.draw_report(run_dir)
    run = read_run(run_dir)
    assert run.metric == expected
    assert run.best_score == 0.5


def test_clients_with_models_of_their_own_are_said_to_have_them(run_dir: Path) -> None:
    keep_columns(run_dir / "results.csv", lambda c: not c.startswith("server/"))
    rows = read_csv(run_dir / "cross_client.csv")
    rows = [{**row, "model": "personal"} for row in rows if row["model"] == "local"]
    write_table(run_dir / "cross_client.csv", rows)
    args = run_dir / "args.yaml"
    args.write_text(
        yaml.safe_dump({**yaml.safe_load(args.read_text()), "shared": {"batchnorm": "local"}})
    )
    assert "of each client's own model on its own val split" in headline(run_dir)["Federated"][1]
    grid = cross_client_grid(read_run(run_dir))
    assert grid is not None
    assert grid.rows == ["north, own", "south, own", "west, own"]


def test_best_local_is_of_a_model_that_was_scored_on_all_data(run_dir: Path) -> None:
    rows = [r for r in read_csv(run_dir / "cross_client.csv") if r["data"] != "(server)"]
    best = headline_of(run_dir, rows)
    west = [r for r in rows if r["owner"] != "west" or r["data"] == "west"]
    west = [{**r, "metrics/mAP50-95(B)": "0.9"} if r["owner"] == "west" else r for r in west]
    assert headline_of(run_dir, west) == best


def headline_of(run_dir: Path, matrix: list[dict[str, str]]) -> str:
    """The best local number with this matrix."""
    write_table(run_dir / "cross_client.csv", matrix)
    return headline(run_dir)["Best local"][0]


def test_what_is_no_picture_is_not_shown(run_dir: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xff\xd8\xff secret")
    (run_dir / "predictions_x.jpg").symlink_to(secret)
    (run_dir / "predictions_y.jpg").mkdir()
    (run_dir / "predictions_z.jpg").write_text("text")
    report.draw_report(run_dir)
    text = (run_dir / "report.html").read_text(encoding="utf-8")
    assert "images of x" not in text
    assert "images of y" not in text
    assert "images of z" not in text


def test_what_no_check_thought_of_is_one_line_too(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "run.json").write_text('{"clients": {"north": {"boxes": [1]}}}')
    assert report.main([str(run_dir)]) == 2
    assert f"error: {run_dir}: cannot be drawn (" in capsys.readouterr().err


def test_names_and_remarks_are_text_and_nothing_else(run_dir: Path) -> None:
    report.draw_report(run_dir)
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    text = parsed(run_dir / "report.html")
    assert "<img src=x" not in page
    assert "<script>document" not in page
    assert HOSTILE_CLASS in " ".join(text.parts)
    assert HOSTILE_NOTE in text.parts
    assert "default-src 'none'; img-src data:;" in page


def test_runs_are_compared_with_a_centralised_one(
    run_dir: Path, yolo_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Path(shutil.copytree(run_dir, tmp_path / "other" / "run"))
    settings = yaml.safe_load((other / "args.yaml").read_text())
    settings["strategy"]["name"] = "fedadam"
    settings["num_rounds"] = 9
    settings["datasets"][1]["data"] = "elsewhere/data.yaml"
    (other / "args.yaml").write_text(yaml.safe_dump(settings))
    output = tmp_path / "page.html"
    paths = [str(run_dir), str(other), str(yolo_dir)]
    assert report.main([*paths, "-o", str(output)]) == 0
    assert capsys.readouterr().out == f"{output}\n"
    shown = " | ".join(parsed(output).parts)
    assert "Centralised | 0.420 | mAP50-95 of" in shown
    assert "(yolo train) after epoch 4 of 4, its best; on its own val split" in shown
    page = comparison_page(read_runs([run_dir, other, yolo_dir]))
    rows = page.sections[0].sheets[0].rows
    assert [row[0].name for row in rows] == [
        f"{tmp_path.name}/run",
        "other/run",
        f"{tmp_path.name}/pooled",
    ]
    assert "strategy.name=fedavg" in rows[0][-1]
    assert "strategy.name=fedadam" in rows[1][-1]
    assert "datasets.south.data=elsewhere/data.yaml" in rows[1][-1]
    assert "datasets.north" not in rows[1][-1]
    assert "batch=5" in rows[0][-1]
    assert "batch=16" in rows[2][-1]
    assert "seed" not in rows[0][-1]
    assert rows[1][4].endswith(" of 4, ended before 9")
    RunDir(other).note_end("no better score than round 2's in the last 2 rounds")
    page = comparison_page(read_runs([run_dir, other, yolo_dir]))
    assert page.sections[0].sheets[0].rows[1][4].endswith(" of 4, ended by patience before 9")
    assert rows[2][1:7] == [
        "centralised",
        "mAP50-95, val split of pooled/data.yaml",
        "0.420",
        "4 of 4",
        "56.8 s",
        "–",
    ]
    curves = page.sections[1].charts[0].figure.data
    assert [list(trace.x) for trace in curves] == [[1, 2, 3, 4]] * 3


def test_a_column_that_only_clients_have_is_no_curve_of_a_run(
    run_dir: Path, yolo_dir: Path
) -> None:
    keep_columns(run_dir / "results.csv", lambda c: c != "train/box_loss")
    keep_columns(yolo_dir / "results.csv", lambda c: c != "train/box_loss")
    page = comparison_page(read_runs([run_dir, yolo_dir]))
    shown = [chart.title for chart in page.sections[1].charts]
    assert "cls loss" in shown
    assert "box loss" not in shown


def test_the_command_redraws_one_run_and_names_what_it_wrote(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report.main([str(run_dir)]) == 0
    names = [Path(line).name for line in capsys.readouterr().out.splitlines()]
    assert names == ["results.png", "clients.png", "cross_client.png", "report.html"]


def test_the_script_works_from_any_directory_and_starts_without_drawing_libraries(
    run_dir: Path, tmp_path: Path
) -> None:
    script = ROOT / "utils" / "report.py"
    command = [sys.executable, str(script), "nowhere"]
    found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: nowhere: no such directory")
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "import federated_yolo.reporting.draw\n"
        "sys.exit(bool({'matplotlib', 'plotly', 'jinja2', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def damage(name: str, text: str) -> Callable[[Path], object]:
    return lambda run_dir: (run_dir / name).write_text(text)


@pytest.mark.parametrize(
    ("break_it", "expected"),
    [
        (shutil.rmtree, "no such directory; expected the directory of a run"),
        (lambda p: (p / "results.csv").unlink(), "has no results.csv"),
        (damage("results.csv", "round,epoch\n"), "results.csv: no round was finished"),
        (damage("results.csv", ""), "results.csv: no round was finished"),
        (
            damage("results.csv", "a,b\n1,2\n"),
            "results.csv: row 1: found columns a, b, expected a number under 'round'",
        ),
        (
            damage("results.csv", "round,seconds\n1,2\n2,x\n"),
            "results.csv: row 2: column 'seconds': found 'x', expected a number",
        ),
        (damage("results.csv", "round,seconds\n1\n"), "row 1: has more or fewer cells than"),
        (damage("results.csv", "round,seconds\n1,2,3\n"), "row 1: has more or fewer cells than"),
        (
            damage("clients.csv", "round\n1\n"),
            "clients.csv: found columns round, expected also client",
        ),
        (
            damage("clients.csv", "client,round\nnorth,\n"),
            "clients.csv: row 1: no number under 'round'",
        ),
        (damage("run.json", "{"), "run.json: cannot be read"),
        (damage("run.json", '{"clients": 3}'), "run.json: 'clients': found int, expected dict"),
        (damage("run.json", '{"names": "a"}'), "run.json: 'names': found str, expected list"),
        (damage("args.yaml", "a: [1"), "args.yaml: cannot be read"),
        (damage("args.yaml", "text"), "args.yaml: found str, expected names and values"),
        (
            lambda p: (p / "test.csv").write_bytes(b"client\n\xff\n"),
            "test.csv: cannot be read ('utf-8' codec",
        ),
    ],
)
def test_wrong_input_ends_with_2_and_one_line(
    run_dir: Path,
    capsys: pytest.CaptureFixture[str],
    break_it: Callable[[Path], Any],
    expected: str,
) -> None:
    break_it(run_dir)
    assert report.main([str(run_dir)]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    (line,) = error.splitlines()
    assert line.startswith(f"error: {run_dir}")
    assert expected in line
    assert not (run_dir / "report.html").exists()


def test_all_problems_of_all_runs_come_together(
    run_dir: Path, yolo_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "run.json").write_text("[")
    (run_dir / "results.csv").write_text("round\n")
    (run_dir / "clients.csv").write_text("round\n1\n")
    (yolo_dir / "results.csv").unlink()
    assert report.main([str(run_dir), str(yolo_dir)]) == 2
    names = ("no round was finished", "run.json", "clients.csv", "has no results.csv")
    lines = capsys.readouterr().err.splitlines()
    assert all(name in line for name, line in zip(names, lines, strict=True))


def test_a_run_of_yolo_train_alone_keeps_its_own_pictures(
    yolo_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (yolo_dir / "results.png").write_bytes(b"its own")
    assert report.main([str(yolo_dir)]) == 2
    assert "a run of yolo train, which has pictures of its own" in capsys.readouterr().err
    assert (yolo_dir / "results.png").read_bytes() == b"its own"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "the following arguments are required: RUN_DIR; see --help"),
        (["{run}", "-o", "page.html"], "--output page.html: it is the page of a comparison"),
        (["{run}", "{run}"], "given twice"),
        (["{run}", "{yolo}", "-o", "{run}/no/page.html"], "expected a file in a directory that is"),
        (["{run}", "{yolo}", "-o", "{run}"], "expected a file in a directory that is"),
    ],
)
def test_wrong_arguments_end_with_2(
    run_dir: Path,
    yolo_dir: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    expected: str,
) -> None:
    assert report.main([a.format(run=run_dir, yolo=yolo_dir) for a in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert expected in line
