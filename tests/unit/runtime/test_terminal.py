"""What the terminal shows, whatever is in the names."""

import io
import shlex
import sys
from pathlib import Path

import pytest
from recipes import make_dataset
from rich.console import Console
from rich.text import Text

from federated_yolo.checks.federation import checked
from federated_yolo.config.schema import Config
from federated_yolo.runtime import terminal
from federated_yolo.runtime.run_tables import rounds_table
from federated_yolo.server.results import RoundResult, RunResult
from federated_yolo.storage.run_dir import RunDir


def test_names_and_paths_with_brackets_are_shown_as_they_are(tmp_path: Path) -> None:
    folder = tmp_path / "out [/x] [bold]y"
    data = make_dataset(tmp_path / "data", num_train=2, names=("'[/red]'", "'[b]'"))
    config = Config.model_validate(
        {
            "base_model": "yolov8n.yaml",
            "datasets": [{"name": "north", "data": str(data)}],
            "save_dir": str(folder),
        }
    )
    output = io.StringIO()
    console = Console(file=output, width=200)
    row = {"round": 1, "seconds": 1.0, "metrics/mAP50(B)": 0.5}
    with checked(config) as federation:
        run_dir = RunDir.create(folder, "run")
        (run_dir.weights / "best.pt").touch()
        run_dir.append_rows("results.csv", [row])
        result = RoundResult(1, 0.5, row)
        terminal.show_start(console, federation, run_dir)
        with terminal.TerminalDisplay(console, 1) as display:
            display.step(1, "train", ["north"])
            display.client_failed("north", "[/x] is wrong")
            display.round_done(result)
        terminal.show_end(console, RunResult(run_dir.path, [result], result), federation)
    shown = output.getvalue()
    model = shlex.quote(f"model={run_dir.weights}/best.pt")  # there is a space in it
    for text in ("[/red]", "[b]", "[/x] is wrong", f"yolo export {model}"):
        assert text in shown
    assert f"Run directory: {run_dir.path}\n" in shown


@pytest.mark.parametrize(
    ("patience", "num_rounds", "expected"),
    [
        (1, 9, "The run has ended after round 2 of 9: no better score than round 1's in the last"),
        (2, 9, "Going on after round 2"),
        (1, 2, "All rounds are complete"),
    ],
)
def test_a_resumed_run_says_whether_it_goes_on(
    patience: int, num_rounds: int, expected: str
) -> None:
    config = Config(base_model="m.pt", datasets="demo", num_rounds=num_rounds, patience=patience)
    rounds = [RoundResult(1, 0.5, {}), RoundResult(2, 0.4, {})]
    assert terminal.where_it_is(config, rounds).startswith(expected)


def test_a_terminal_shows_the_rounds_as_a_bar_and_who_is_at_work() -> None:
    output = io.StringIO()
    console = Console(file=output, width=100, force_terminal=True)
    with terminal.TerminalDisplay(console, 4) as display:
        display.step(3, "train", ["north", "south"])  # of a resumed run
        display.client_done("north", "loss 1.23")
        display._live.refresh()
        shown = Text.from_ansi(output.getvalue()).plain
        assert "round 3/4  train  1/2  north (loss 1.23)  south …" in shown
        assert "2/4" in shown  # rounds that are done
        display.round_done(RoundResult(3, None, {"round": 3, "seconds": 1.0}))
        display._live.refresh()
        assert "3/4" in Text.from_ansi(output.getvalue()).plain


def test_elsewhere_a_round_is_a_line() -> None:
    output = io.StringIO()
    with terminal.TerminalDisplay(Console(file=output, width=100), 4) as display:
        display.step(1, "train", ["north"])
        display.client_done("north", "loss 1.23")
        display.round_done(RoundResult(1, None, {"round": 1, "seconds": 1.0}))
    assert output.getvalue() == "round 1/4  1.0 s\n"


@pytest.mark.parametrize(
    ("script", "program"),
    [
        ("/anywhere/bin/federated-yolo", "federated-yolo"),
        ("../clone/federated.py", "python ../clone/federated.py"),
        ("/x/federated_yolo/__main__.py", "python -m federated_yolo"),
    ],
)
def test_a_run_that_ended_early_goes_on_with_what_was_called(
    script: str,
    program: str,
    run_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setattr(sys, "executable", "/elsewhere/python")  # as in an environment that is on
    monkeypatch.chdir(run_dir.parent)
    terminal.show_what_is_done(RunDir.reopen(run_dir), over_network=False)
    assert capsys.readouterr().err.splitlines()[-1] == f"go on with it: {program} resume=run"


@pytest.mark.parametrize(("width", "columns"), [(160, 8), (100, 8), (60, 4)])
def test_a_narrow_table_of_rounds_has_whole_numbers_of_what_matters_most(
    width: int, columns: int
) -> None:
    """Of a segmentation: losses, and mAP50 and mAP50-95 of boxes and masks, also on the server."""
    losses = {f"train/{name}_loss": 1.25 for name in ("box", "seg", "cls", "dfl")}
    scores = {f"metrics/{m}({part})": 0.125 for part in "BM" for m in ("mAP50", "mAP50-95")}
    on_server = {f"server/{name}": 0.875 for name in scores}
    result = RoundResult(1, 0.5, {**losses, **scores, **on_server, "seconds": 2.0})
    output = io.StringIO()
    console = Console(file=output, width=width)
    console.print(rounds_table([result], result, console))
    text = output.getvalue()
    assert "…" not in text
    assert text.count("0.125") + text.count("0.875") == columns
    assert ("1.250" in text) == (width == 160)
    assert "masks" in text
