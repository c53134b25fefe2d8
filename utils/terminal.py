"""What the terminal shows of a run: its start, a live line, a line per round, the end, problems.

Where the output is no terminal there is no live line.
"""

import importlib.util
import shlex
import shutil
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

from utils.checks import Federation
from utils.command import show_problems
from utils.config import InputError, words_said_again
from utils.environment import OTHER_TORCHVISION, ensure_torchvision_nms
from utils.privacy import epsilon, noise_of_mean
from utils.report import draw_report
from utils.run_dir import CONFIG_FILE, RunDir
from utils.run_numbers import counted
from utils.run_page import headline
from utils.run_record import Run, read_run
from utils.server import Display, RoundResult, RunResult

SPEED_PERIOD_S = 7 * 86400.0  # Rich would forget what took longer than half a minute


def show_run(
    console: Console,
    federation: Federation,
    run_dir: RunDir,
    work: Callable[[Federation, Display, RunDir], RunResult],
) -> RunResult:
    """Show all of a run: its start, its rounds while `work` does them, its report and its end."""
    show_start(console, federation, run_dir)
    with TerminalDisplay(console, federation.config.num_rounds) as display:
        result = work(federation, display, run_dir)
    draw(run_dir)
    show_end(console, result, federation)
    return result


def show_start(console: Console, federation: Federation, run_dir: RunDir) -> None:
    """Say what is about to run: model, device, and the images and classes of each client."""
    config = federation.config
    resources = config.client_resources
    device = f"On {resources.num_gpus:g} GPU" if resources.num_gpus else "On the CPU"
    if not resources.num_gpus and not torch.cuda.is_available():
        device = "No GPU found: on the CPU"
    base_model = escape(Path(config.base_model).name)
    console.print(
        f"[bold]{base_model}[/]: {counted(len(config.clients), 'client')}, "
        f"{counted(config.num_rounds, 'round')} of {counted(config.local_epochs, 'epoch')}, "
        f"{federation.task}, {config.strategy.name}"
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
    table = Table(title="Clients", title_justify="left", header_style="bold", box=SIMPLE_HEAD)
    table.add_column("client")
    names = tuple(config.names or ())
    for name in ("train images", "val images", *names):
        table.add_column(escape(name), justify="right")
    absent = "0" if federation.task == "classify" else "–"
    has_gaps = False
    for data in config.clients:
        summary = federation.summaries.get(data.name)
        if summary is None:  # a site that has not come yet
            continue
        boxes = dict(zip(summary.names, map(str, summary.class_counts), strict=True))
        boxes.update(dict.fromkeys(data.not_annotated, "–"))
        counts = (summary.num_train, summary.num_val)
        cells = [boxes.get(name, absent) for name in names]
        has_gaps |= "–" in cells
        table.add_row(data.name, *map(str, counts), *cells)
    left_out = [name for name, s in federation.summaries.items() if s.test_is_unlabelled]
    if has_gaps:
        table.caption = "– not annotated there: says nothing about that class"
        table.caption_justify = "left"
    console.print(table)
    if left_out:
        names = ", ".join(left_out)
        console.print(f"No test scores of {names}: no image of the test split has a label there")
    console.print(f"Run directory: {_shown(run_dir.path)}", soft_wrap=True, markup=False)
    done = run_dir.last_round()
    if done:
        is_complete = done >= config.num_rounds
        console.print("All rounds are complete" if is_complete else f"Going on after round {done}")


def show_end(console: Console, result: RunResult, federation: Federation) -> None:
    """Show the rounds, the headline, what was written, and what to do with it."""
    console.print(rounds_table(result.rounds, result.best, console))
    is_private = federation.config.privacy.mode != "none"
    if is_private or (result.best and result.best.score):  # of zeros, none is the best
        console.print(headline_table(read_run(result.run_dir)))
    run_dir = _shown(result.run_dir)
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
    files[f"{run_dir}/report.html"] = "all of it to look at, in a browser"
    width = max(map(len, files))
    for path, meaning in files.items():
        line = Text.assemble(f"  {path:<{width}}  ", (meaning, "dim"))
        console.print(line, soft_wrap=True)
    console.print("Next:")
    imgsz = federation.config.train.get("imgsz", 640)
    yolo, argument = _beside_python("yolo"), shlex.quote(f"model={model}")
    commands = [f"{yolo} export {argument} imgsz={imgsz} format=onnx"]
    if ensure_torchvision_nms():
        commands.insert(0, f"{yolo} predict {argument} imgsz={imgsz} source=IMAGES")
    for command in commands:
        console.print(f"  {command}", style="cyan", soft_wrap=True, markup=False)
    if importlib.util.find_spec("onnx") is None:
        console.print('  [dim]format=onnx needs pip install -e ".\\[onnx]" first[/]')
    if not ensure_torchvision_nms():
        console.print(
            f"  [dim]{OTHER_TORCHVISION}[/]",
            soft_wrap=True,
        )


def _beside_python(name: str) -> str:
    """A command, or where it is when the environment of this Python is not activated."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if (found and Path(found) == beside) or not beside.exists():
        return name
    return shlex.quote(str(_shown(beside)))


def show_what_is_done(run_dir: RunDir | None, *, over_network: bool) -> None:
    """Say what a run that ended early has left, and draw it."""
    if run_dir is None:
        return
    done = run_dir.last_round()
    if done:
        draw(run_dir)
    found = f"{counted(done, 'finished round')}" if done else "no round was finished"
    print(f"{found}: {_shown(run_dir.path)}", file=sys.stderr)
    words = (f"resume={_shown(run_dir.path)}", *words_said_again(run_dir.path / CONFIG_FILE))
    resume = " ".join(map(shlex.quote, words))
    command = f"{_beside_python('python')} federated.py {resume}"
    if over_network:
        arguments = shlex.quote(f'arguments="{resume}"')
        command = f"flwr run . --run-config {arguments}"
    print(f"go on with it: {command}", file=sys.stderr)


def draw(run_dir: RunDir) -> None:
    """Draw the report; what is on disk does not depend on it, so a failure is only shown."""
    try:
        draw_report(run_dir.path)
    except InputError as error:
        show_problems(error.problems)
    except OSError as error:  # a full disk
        show_problems([f"report.html: {error.strerror or error}"])
    except Exception as error:  # of a drawing library: the run itself is good
        show_problems([f"report.html: cannot be drawn ({type(error).__name__}: {error})"])


def _shown(path: Path) -> Path:
    """A path as short as it can be from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


class TerminalDisplay:
    """Shows the rounds on a console. Holds a progress bar and the answers of the current step."""

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
        """A step of a round starts."""
        if not self._round:  # a resumed run begins in the middle
            self._bar.start_task(self._task)
            self._bar.update(self._task, completed=round_number - 1)
        self._round, self._step = round_number, step
        self._pending, self._answers = list(clients), {}

    def client_done(self, name: str, text: str) -> None:
        """A client has answered."""
        self._answers[name] = text

    def client_failed(self, name: str, reason: str) -> None:
        """A client is left out of this step: say so, for good."""
        self._answers[name] = "failed"
        where = f"round {self._round}/{self.num_rounds}"
        what = "is left out" if self._step == "train" else f"has failed ({self._step})"
        text = Text.assemble((f"{where}: client '{name}' {what}: ", "bold red"), reason)
        self.console.print(text, soft_wrap=True)

    def notice(self, text: str) -> None:
        """Say something for good."""
        self.console.print(Text(text, "yellow"), soft_wrap=True)

    def round_done(self, result: RoundResult) -> None:
        """A round is on disk: print its line."""
        self._bar.update(self._task, completed=result.round)
        if result.round == self.num_rounds:
            self._step, self._pending = "stopping the clients", []
        row = result.row
        parts = [f"round {result.round}/{self.num_rounds}"]
        parts += [f"{short_name(k)} {v:.3f}" for k, v in row.items() if _is_loss(k, v)]
        parts += [f"{short_name(k)} {v:.3f}" for k, v in row.items() if _is_score(k, v)]
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


def headline_table(run: Run) -> Table:
    """What the run is judged by, each number with what exactly it is."""
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
    """The rounds as a table for the end of a run; the best one is marked.

    Where the console is too narrow, losses are left out, and then all but the strictest scores.
    """
    columns = dict.fromkeys(name for r in rounds for name in r.row)
    scores = [name for name in columns if _is_judged(name)]
    strict = [name for name in scores if not name.split("(")[0].endswith("mAP50")]
    losses = [name for name in columns if name.startswith("train/")]
    tables = [_rounds_table(rounds, best, names) for names in (losses + scores, scores, strict)]
    # By the console's own options no table is wider than it.
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


def _is_loss(name: str, value: object) -> bool:
    return name.startswith("train/") and isinstance(value, float)


def _is_judged(name: str) -> bool:
    """Whether a task is judged by this column; others, such as precision, stay in results.csv."""
    return name.removeprefix("server/").startswith(("metrics/mAP", "metrics/accuracy"))


def _is_score(name: str, value: object) -> bool:
    return _is_judged(name) and isinstance(value, float)


def _cell(value: object) -> str:
    if not isinstance(value, float):
        return ""
    return f"{value:.3f}" if value < 1e4 else f"{value:.3g}"
