"""Live loggers: TensorBoard, Weights & Biases and MLflow, one run for a federation.

Rounds are the steps. All logged numbers are also in results.csv and clients.csv, so a logger that
missed rounds gets them later. Apart from settings, nothing else is sent: no weights, no images, no
source code. Each logger has its own package, an optional extra, which is imported only if needed.
"""

import importlib.util
import json
import logging
import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from federated_yolo.common.command_line import install_hint
from federated_yolo.common.environment import user_settings
from federated_yolo.config.schema import Config
from federated_yolo.storage.run_dir import RESULTS, RunDir

STATE_FILE = "server/loggers.json"
# Ultralytics' defaults, for loggers that its settings file does not mention.
SETTINGS_DEFAULTS = {"tensorboard": False, "wandb": False, "mlflow": True}
NO_NUMBERS = ("round", "client", "note")  # the round is the step
MLFLOW_MAX_METRICS, MLFLOW_MAX_PARAMS = 1000, 100  # in one request


class LoggerError(RuntimeError):
    """A logger of the config cannot start."""


@dataclass
class State:
    """What a resumed run must know about a logger, which sets id and place itself.

    id: Id of the logger's run, empty for a new one. place: Address of that run. round: Last round
    that was logged.
    """

    id: str = ""
    place: str = ""
    round: int = 0


class Logger(Protocol):
    """One way to follow a run. where: Command or address for a user to look at it."""

    where: str

    def log(self, round_number: int, numbers: Mapping[str, float]) -> None:
        """Log the numbers of a round, each under its name; return when they are stored."""
        ...

    def finish(self, best: Mapping[str, float], *, is_done: bool) -> None:
        """End the run, with the best round as its summary."""
        ...


class TensorBoardLogger:
    """Event files in the run directory, as Ultralytics writes them; their numbers are float32."""

    # unstable: torch.utils.tensorboard.SummaryWriter._get_file_writer
    def __init__(self, config: Config, run_dir: Path, state: State) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # Later rounds that a killed run wrote do not count: they are logged again.
        self._writer = SummaryWriter(str(run_dir), purge_step=state.round + 1)
        self.where = f"tensorboard --logdir {run_dir}"
        if not state.id:
            # `SummaryWriter.add_hparams` would make a second run of them, in a folder of its own.
            experiment, session_start, _ = hparams(flat(config), {})
            for summary in (experiment, session_start):
                self._writer._get_file_writer().add_summary(summary)
            state.id = run_dir.name

    def log(self, round_number: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._writer.add_scalar(name, value, round_number)
        self._writer.flush()

    def finish(self, best: Mapping[str, float], *, is_done: bool) -> None:
        self._writer.close()


class WandbLogger:
    """A run of Weights & Biases; its environment variables apply (WANDB_MODE, ...)."""

    def __init__(self, config: Config, run_dir: Path, state: State) -> None:
        wandb: Any = import_module("wandb")
        is_new = not state.id
        state.id = state.id or f"{run_dir.name[:64]}-{uuid.uuid4().hex[:8]}"
        settings = wandb.Settings(
            silent=not config.verbose,
            show_info=False,  # with it wandb would ask for a key in the middle of the live line
            console="off",  # else wandb would send all that the terminal shows
            disable_git=True,
            disable_code=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_save_requirements=False,
        )
        wandb.setup(settings)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or _project_name(run_dir),
            name=os.environ.get("WANDB_NAME") or run_dir.name,
            dir=str(run_dir),
            id=state.id,
            resume="allow",
            reinit="create_new",  # does not touch a run of the surrounding program
            config=flat(config) if is_new else None,
            settings=settings,
        )
        self.where = f"wandb sync {self._run.settings.sync_dir}"
        if not self._run.offline:
            self.where = str(self._run.url)

    def log(self, round_number: int, numbers: Mapping[str, float]) -> None:
        self._run.log(dict(numbers), step=round_number, commit=True)

    def finish(self, best: Mapping[str, float], *, is_done: bool) -> None:
        self._run.summary.update(dict(best))
        self._run.finish(exit_code=0 if is_done else 1)


class MlflowLogger:
    """A run of MLflow, at MLFLOW_TRACKING_URI or at MLflow's own default.

    The environment variables of Ultralytics' callback apply: also MLFLOW_EXPERIMENT_NAME and
    MLFLOW_RUN. MLflow's names cannot have parentheses, so these are left out, as in that callback.
    """

    def __init__(self, config: Config, run_dir: Path, state: State) -> None:
        mlflow: Any = import_module("mlflow")
        self._entities: Any = import_module("mlflow.entities")
        # MLflow imports polars, after which (2.1) Ctrl-C waits until a joined thread has ended.
        if hasattr(signal, "siginterrupt"):
            signal.siginterrupt(signal.SIGINT, True)
        if not config.verbose:  # MLflow logs each database table that it creates
            logging.getLogger("mlflow").setLevel(logging.WARNING)
        uri = os.environ.get("MLFLOW_TRACKING_URI") or state.place or mlflow.get_tracking_uri()
        state.place = _without_password(uri)
        self._client = mlflow.MlflowClient(uri)
        if state.id:
            self._client.update_run(state.id, status="RUNNING")
            # A killed run may have logged a round that the state file does not have.
            history = self._client.get_metric_history(state.id, "epoch")
            state.round = max([state.round, *(metric.step for metric in history)])
        else:
            self._create_run(config, run_dir, state)
        self._id = state.id
        self.where = f"run {state.id} at {state.place}"

    def _create_run(self, config: Config, run_dir: Path, state: State) -> None:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or _project_name(run_dir)
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            experiment_id = self._client.create_experiment(name)
        else:
            experiment_id = experiment.experiment_id
        run = self._client.create_run(
            experiment_id, run_name=os.environ.get("MLFLOW_RUN") or run_dir.name
        )
        state.id = run.info.run_id
        params = [self._entities.Param(key, str(value)) for key, value in flat(config).items()]
        for start in range(0, len(params), MLFLOW_MAX_PARAMS):
            self._client.log_batch(state.id, params=params[start : start + MLFLOW_MAX_PARAMS])

    def log(self, round_number: int, numbers: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(re.sub("[()]", "", name), value, now, round_number)
            for name, value in numbers.items()
        ]
        metrics.reverse()  # "epoch", which marks a round as logged, is in the last request
        for start in range(0, len(metrics), MLFLOW_MAX_METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + MLFLOW_MAX_METRICS])

    def finish(self, best: Mapping[str, float], *, is_done: bool) -> None:
        for name, value in best.items():
            self._client.set_tag(self._id, name, f"{value:g}")
        self._client.set_terminated(self._id, status="FINISHED" if is_done else "FAILED")


LOGGERS: dict[str, Callable[[Config, Path, State], Logger]] = {
    "tensorboard": TensorBoardLogger,
    "wandb": WandbLogger,
    "mlflow": MlflowLogger,
}


class Loggers:
    """The loggers of a run. One that fails is dropped with a notice; the run continues."""

    def __init__(self, run_dir: RunDir, notice: Callable[[str], None]) -> None:
        self._run_dir = run_dir
        self._notice = notice
        self._running: dict[str, Logger] = {}
        self._states = _read_states(run_dir)
        self._lock = threading.Lock()  # `finish` is called from another thread than the rounds

    def start(self, name: str, config: Config) -> None:
        """Start a logger, or continue its run. Raises LoggerError."""
        state = self._states.setdefault(name, State())
        try:
            logger = LOGGERS[name](config, self._run_dir.path, state)
        except Exception as error:  # whatever its package raises
            raise LoggerError(
                f"loggers: '{name}' cannot start: {_one_line(error)}; repair that and resume the "
                "run, or resume it without the logger (loggers=[])"
            ) from error
        self._running[name] = logger
        self._write_states()
        self._notice(f"{name}: {logger.where}")

    def log(self) -> None:
        """Give every logger the complete rounds that it does not have yet."""
        with self._lock:
            for name in list(self._running):
                state = self._states[name]
                for round_number, numbers in numbers_of_rounds(self._run_dir, state.round):
                    if not self._try(name, partial(self._running[name].log, round_number, numbers)):
                        break
                    state.round = round_number
            if self._running:
                self._write_states()

    def finish(self, best: Mapping[str, float], *, is_done: bool) -> None:
        """End the runs of all loggers; nothing is logged afterwards."""
        with self._lock:
            for name, logger in list(self._running.items()):
                self._try(name, partial(logger.finish, best, is_done=is_done))
            self._running.clear()

    def _try(self, name: str, work: Callable[[], None]) -> bool:
        try:
            work()
        except Exception as error:  # the network may be gone: no reason to end a federation
            del self._running[name]
            self._notice(
                f"{name}: not logged any more: {_one_line(error)}; a resumed run goes on with it"
            )
            return False
        return True

    def _write_states(self) -> None:
        states = {name: asdict(state) for name, state in self._states.items()}
        self._run_dir.write_text(STATE_FILE, json.dumps(states, indent=2))


def start_loggers(config: Config, run_dir: RunDir, notice: Callable[[str], None]) -> Loggers:
    """Start the config's loggers and log the rounds so far. Raises LoggerError."""
    assert not isinstance(config.loggers, str)  # the checks have resolved "settings"
    loggers = Loggers(run_dir, notice)
    try:
        for name in dict.fromkeys(config.loggers):
            loggers.start(name, config)
    except LoggerError:
        loggers.finish({}, is_done=False)
        raise
    loggers.log()
    return loggers


def is_installed(name: str) -> bool:
    """Whether the package of a logger is installed.

    A folder with the package's name (wandb creates one) does not count.
    """
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def logger_problems(names: tuple[str, ...]) -> list[str]:
    """Return a line for each missing package."""
    return [
        f"loggers: '{name}' needs the package {name}; {install_hint(name)}, or leave it out"
        for name in names
        if not is_installed(name)
    ]


def loggers_of_settings() -> tuple[str, ...]:
    """Return the installed loggers that the user's Ultralytics settings switch on."""
    settings = {**SETTINGS_DEFAULTS, **user_settings()}
    return tuple(name for name in LOGGERS if settings[name] is True and is_installed(name))


def numbers_of_rounds(run_dir: RunDir, after: int) -> Iterator[tuple[int, dict[str, float]]]:
    """Yield each complete round after this one, with the numbers of its rows in the CSVs.

    Numbers of a client are named `clients/NAME/...`.
    """
    for row in run_dir.rows(RESULTS):
        round_number = int(row["round"])
        if round_number <= after:
            continue
        numbers = _numbers(row)
        for client in run_dir.rows("clients.csv"):
            if int(client["round"]) == round_number:
                found = _numbers(client)
                numbers.update({f"clients/{client['client']}/{k}": v for k, v in found.items()})
        yield round_number, numbers


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the numbers of a CSV row; missing ones, None or empty, are left out."""
    found = {name: _number(value) for name, value in row.items() if name not in NO_NUMBERS}
    return {name: value for name, value in found.items() if value is not None}


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError):  # missing, or a text
        return None


def flat(config: Config) -> dict[str, str | int | float | bool]:
    """Return settings by dotted names, as on the command line: `train.imgsz`, `datasets.0.name`."""
    found: dict[str, str | int | float | bool] = {}

    def add(name: str, value: Any) -> None:
        if isinstance(value, dict | list):
            entries = value.items() if isinstance(value, dict) else enumerate(value)
            for key, entry in entries:
                add(f"{name}.{key}" if name else str(key), entry)
        else:
            found[name] = "null" if value is None else value

    add("", config.model_dump(mode="json"))
    return found


def _project_name(run_dir: Path) -> str:
    """Return the name of the runs' folder, without what W&B forbids in a project's name."""
    return re.sub(r"[/\\#?%:]", "-", run_dir.parent.name)[-128:] or "federated"


def _read_states(run_dir: RunDir) -> dict[str, State]:
    path = run_dir.path / STATE_FILE
    if not path.exists():
        return {}
    try:
        return {name: State(**entry) for name, entry in json.loads(path.read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise LoggerError(
            f"{path}: damaged ({error}); delete it, and the loggers start new runs"
        ) from error


def _without_password(text: str) -> str:
    """Return a text without user and password in addresses like https://user:password@host."""
    return re.sub(r"://[^/@\s]*@", "://", text)


def _one_line(error: Exception) -> str:
    return _without_password(" ".join(str(error).split()))[:300] or type(error).__name__
