"""Shows a run on the terminal: its start, a live line, a line per round, the end, problems.

If the output is not a terminal, there is no live line.
"""

import importlib.util
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text
from ultralytics.utils import DEFAULT_CFG_DICT

from federated_yolo.aggregation.privacy import epsilon
from federated_yolo.checks.exports import made_notes, made_table
from federated_yolo.checks.federation import Federation
from federated_yolo.common.command_line import (
    beside_python,
    called_as,
    inside,
    install_hint,
    show_problems,
)
from federated_yolo.common.errors import InputError
from federated_yolo.common.text import counted
from federated_yolo.common.torchvision_nms import OTHER_TORCHVISION, ensure_torchvision_nms
from federated_yolo.config.resume import words_said_again
from federated_yolo.config.schema import Config
from federated_yolo.protocol.clipping import noise_of_mean
from federated_yolo.reporting.draw import draw_report
from federated_yolo.reporting.personal_section import personal_summary
from federated_yolo.reporting.run_record import read_run
from federated_yolo.runtime.run_tables import (
    headline_table,
    is_loss_name,
    is_score_name,
    rounds_table,
    short_name,
)
from federated_yolo.server.results import (
    Display,
    RoundResult,
    RunResult,
    early_end,
    is_done,
    result_of,
)
from federated_yolo.storage.run_dir import CONFIG_FILE, PERSONAL, RESULTS, RunDir

SPEED_PERIOD_S = 7 * 86400.0  # Rich would forget steps that are older than half a minute


def show_run(
    console: Console,
    federation: Federation,
    run_dir: RunDir,
    work: Callable[[Federation, Display, RunDir], RunResult],
) -> RunResult:
    """Show a whole run: its start, its rounds while `work` runs them, its report and its end."""
    show_start(console, federation, run_dir)
    with TerminalDisplay(console, federation.config.num_rounds) as display:
        result = work(federation, display, run_dir)
    draw(run_dir)
    show_end(console, result, federation)
    return result


def show_start(console: Console, federation: Federation, run_dir: RunDir) -> None:
    """Show what is about to run: model, device, and the images and classes of each client."""
    config = federation.config
    _show_model(console, federation)
    if config.privacy.mode != "none":
        console.print(
            f"Differential privacy: {config.privacy.mode}, epsilon at most "
            f"{epsilon(config.privacy, config.num_rounds):.3g} at delta {config.privacy.delta:g} "
            "for a client that trains in all rounds; noise on each number of the mean: standard "
            f"deviation {noise_of_mean(config.privacy, config.clients_per_round):.3g} in a round",
            soft_wrap=True,
        )
    if federation.gpu_choice:
        console.print(federation.gpu_choice, soft_wrap=True, markup=False)
    for problem in federation.unusable:
        console.print(f"Left out until it is mended: {problem}", soft_wrap=True, markup=False)
    if federation.made:
        console.print(made_table(federation.made))
        console.print("\n".join(made_notes(federation.made)), soft_wrap=True, markup=False)
    console.print(_clients_table(federation))
    left_out = [name for name, s in federation.summaries.items() if s.test_is_unlabelled]
    if left_out:
        names = ", ".join(left_out)
        console.print(f"No test scores of {names}: no image of the test split has a label there")
    console.print(f"Run directory: {inside(run_dir.path)}", soft_wrap=True, markup=False)
    if rounds := [result_of(row) for row in run_dir.rows(RESULTS)]:
        console.print(where_it_is(federation.config, rounds), soft_wrap=True)


def where_it_is(config: Config, rounds: Sequence[RoundResult]) -> str:
    """Say whether a resumed run goes on after its rounds so far."""
    if reason := early_end(config, rounds):
        return (
            f"The run has ended after round {len(rounds)} of {config.num_rounds}: {reason} "
            f"(patience {config.patience}); a larger patience goes on"
        )
    if is_done(config, rounds):
        return "All rounds are complete"
    return f"Going on after round {len(rounds)}"


def _show_model(console: Console, federation: Federation) -> None:
    """Show the model, the device, and the settings with which each client trains."""
    config = federation.config
    resources = config.client_resources
    device = f"On {resources.num_gpus:g} GPU" if resources.num_gpus else "On the CPU"
    if not resources.num_gpus and not torch.cuda.is_available():
        device = "No GPU found: on the CPU"
    base_model = escape(Path(config.base_model).name)
    averages = config.averages_per_round
    often = f" (averaged {averages} times)" if averages > 1 else ""
    console.print(
        f"[bold]{base_model}[/]: {counted(len(config.clients), 'client')}, "
        f"{counted(config.num_rounds, 'round')} of {counted(config.local_epochs, 'epoch')}"
        f"{often}, {federation.task}, {config.strategy.name}"
    )
    if federation.class_change:
        console.print(f"{base_model}: {federation.class_change}", soft_wrap=True)
    train = config.train
    console.print(
        f"{device}, CPUs for each client: {resources.num_cpus:g}, imgsz "
        f"{train.get('imgsz', DEFAULT_CFG_DICT['imgsz'])}, batch {train['batch']} each, "
        f"{train['optimizer']} lr0 {train.get('lr0', DEFAULT_CFG_DICT['lr0']):.4g}",
        soft_wrap=True,
    )


def _clients_table(federation: Federation) -> Table:
    """Make the table of each client's images, and its labels of each class."""
    config = federation.config
    table = Table(title="Clients", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    table.add_column("client")
    names = config.names
    for name in ("train images", "val images", *names):
        table.add_column(escape(name), justify="right")
    absent = "0" if federation.task == "classify" else "–"
    has_gaps = False
    for data in config.clients:
        summary = federation.summaries.get(data.name)
        if summary is None:  # a site that has not joined yet
            continue
        boxes = dict(zip(summary.names, map(str, summary.class_counts), strict=True))
        boxes.update(dict.fromkeys(data.not_annotated, "–"))
        counts = (summary.num_train, summary.num_val)
        cells = [boxes.get(name, absent) for name in names]
        has_gaps |= "–" in cells
        table.add_row(data.name, *map(str, counts), *cells)
    if has_gaps:
        table.caption = "– not annotated there: says nothing about that class"
        table.caption_justify = "left"
    return table


def show_end(console: Console, result: RunResult, federation: Federation) -> None:
    """Show the rounds, the headline, the files written, and the commands to use them."""
    console.print(rounds_table(result.rounds, result.best, console))
    is_private = federation.config.privacy.mode != "none"
    if is_private or (result.best and result.best.score):  # with all scores 0, no round is best
        console.print(headline_table(read_run(result.run_dir)))
    run_dir = inside(result.run_dir)
    weights = run_dir / "weights"
    last = result.rounds[-1].round
    name = "best.pt" if result.best and result.best.score else "last.pt"
    is_personal = not (result.run_dir / "weights" / name).exists()
    model = f"{run_dir}/clients/NAME/best.pt" if is_personal else f"{weights}/{name}"
    whose = "each client's model" if is_personal else "the model"
    files = {
        model: f"{whose}: YOLO(...), yolo predict, yolo val, yolo export",
        f"{weights}/round{last}.npz": "global weights of each round",
        f"{run_dir}/results.csv": "losses and metrics by round; clients.csv: by client",
    }
    if (result.run_dir / "test.csv").exists():
        models = "each client's last model" if is_personal else "best.pt and last.pt"
        files[f"{run_dir}/test.csv"] = f"scores of {models} on the test splits"
    if (result.run_dir / PERSONAL).exists():
        files[f"{run_dir}/{PERSONAL}"] = personal_summary(read_run(result.run_dir))
    files[f"{run_dir}/report.html"] = "all of it to look at, in a browser"
    width = max(map(len, files))
    for path, meaning in files.items():
        line = Text.assemble(f"  {path:<{width}}  ", (meaning, "dim"))
        console.print(line, soft_wrap=True)
    console.print("Next:")
    imgsz = federation.config.train.get("imgsz", 640)
    yolo, argument = beside_python("yolo"), shlex.quote(f"model={model}")
    commands = [f"{yolo} export {argument} imgsz={imgsz} format=onnx"]
    if ensure_torchvision_nms():
        commands.insert(0, f"{yolo} predict {argument} imgsz={imgsz} source=IMAGES")
    for command in commands:
        console.print(f"  {command}", style="cyan", soft_wrap=True, markup=False)
    if importlib.util.find_spec("onnx") is None:
        line = Text(f"  format=onnx needs {install_hint('onnx')} first", "dim")
        console.print(line, soft_wrap=True)
    if not ensure_torchvision_nms():
        console.print(
            f"  [dim]{OTHER_TORCHVISION}[/]",
            soft_wrap=True,
        )


def show_what_is_done(run_dir: RunDir | None, *, over_network: bool) -> None:
    """Draw what a run that ended early has left, and show how to resume it."""
    if run_dir is None:
        return
    done = run_dir.last_round()
    if done:
        draw(run_dir)
    found = f"{counted(done, 'finished round')}" if done else "no round was finished"
    print(f"{found}: {inside(run_dir.path)}", file=sys.stderr)
    words = (f"resume={inside(run_dir.path)}", *words_said_again(run_dir.path / CONFIG_FILE))
    resume = " ".join(map(shlex.quote, words))
    program, *script = called_as().split(" ", 1)
    command = " ".join([beside_python(program), *script, resume])
    if over_network:
        arguments = shlex.quote(f'arguments="{resume}"')
        command = f"flwr run . --run-config {arguments}"
    print(f"go on with it: {command}", file=sys.stderr)


def draw(run_dir: RunDir) -> None:
    """Draw the report; no other file depends on it, so a failure is only shown."""
    try:
        draw_report(run_dir.path)
    except InputError as error:
        show_problems(error.problems)
    except OSError as error:  # a full disk
        show_problems([f"report.html: {error.strerror or error}"])
    except Exception as error:  # from a drawing library: the run itself is good
        show_problems([f"report.html: cannot be drawn ({type(error).__name__}: {error})"])


class TerminalDisplay:
    """Shows rounds on a console. Holds a progress bar and the clients' answers in this step."""

    def __init__(self, console: Console, num_rounds: int) -> None:
        self.console = console
        self.num_rounds = num_rounds
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA", style="cyan"),
            TimeRemainingColumn(),
            console=console,
            speed_estimate_period=SPEED_PERIOD_S,
        )
        self._task = self._bar.add_task("rounds", start=False, total=num_rounds)
        self._step = "starting the clients"
        self._round = 0
        self._pending: list[str] = []
        self._answers: dict[str, str] = {}
        self._live = Live(
            get_renderable=lambda: Group(self._line(), self._bar),
            console=console,
            refresh_per_second=4,
            transient=True,
        )

    def __enter__(self) -> "TerminalDisplay":
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def step(self, round_number: int, step: str, clients: list[str]) -> None:
        """Show that a step of a round starts."""
        if not self._round:  # a resumed run begins in the middle
            self._bar.start_task(self._task)
            self._bar.update(self._task, completed=round_number - 1)
        self._round, self._step = round_number, step
        self._pending, self._answers = list(clients), {}

    def client_done(self, name: str, text: str) -> None:
        """Show that a client has answered."""
        self._answers[name] = text

    def client_failed(self, name: str, reason: str) -> None:
        """Print a line that stays: a client is left out of this step, and why."""
        self._answers[name] = "failed"
        where = f"round {self._round}/{self.num_rounds}"
        what = "is left out" if self._step == "train" else f"has failed ({self._step})"
        text = Text.assemble((f"{where}: client '{name}' {what}: ", "bold red"), reason)
        self.console.print(text, soft_wrap=True)

    def notice(self, text: str) -> None:
        """Print a text that stays on the terminal."""
        self.console.print(Text(text, "yellow"), soft_wrap=True)

    def round_done(self, result: RoundResult) -> None:
        """Print the line of a round that has been saved."""
        self._bar.update(self._task, completed=result.round)
        row = result.row
        parts = [f"round {result.round}/{self.num_rounds}"]
        parts += [f"{short_name(k)} {v:.3f}" for k, v in row.items() if is_loss_name(k, v)]
        parts += [f"{short_name(k)} {v:.3f}" for k, v in row.items() if is_score_name(k, v)]
        parts.append(f"{row['seconds']:.1f} s")
        self.console.print("  ".join(parts), soft_wrap=True, markup=False)

    def _line(self) -> Text:
        if not self._pending:
            return Text(self._step)
        line = Text.assemble(
            (f"round {self._round}/{self.num_rounds}", "bold"),
            f"  {self._step}  {len(self._answers)}/{len(self._pending)}",
        )
        for name in self._pending:
            answer = self._answers.get(name)
            line.append(f"  {name} ")
            line.append(f"({answer})" if answer else "…", "green" if answer else "dim")
        line.truncate(self.console.width, overflow="ellipsis")
        return line
