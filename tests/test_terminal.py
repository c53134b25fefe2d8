"""What the terminal shows, whatever is in the names."""

import io
import shlex
from pathlib import Path

from helpers import make_dataset
from rich.console import Console

from utils import terminal
from utils.checks import checked
from utils.config import Config
from utils.run_dir import RunDir
from utils.server import RoundResult, RunResult


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
        result = RoundResult(1, 0.5, row)
        terminal.show_start(console, federation, run_dir)
        with terminal.TerminalDisplay(console, 1) as display:
            display.step(1, "train", ["north"])
            display.client_failed("north", "[/x] is wrong")
            display.round_done(result)
        terminal.show_end(console, RunResult(run_dir.path, [result], result), federation)
    shown = output.getvalue()
    model = shlex.quote(f"model={run_dir.weights}/best.pt")  # there is a space in it
    for text in ("[/red]", "[b]", "[/x] is wrong", f"yolo predict {model}"):
        assert text in shown
    assert f"Run directory: {run_dir.path}\n" in shown
