"""From a checked config to a finished run on this machine, under Flower's simulation."""

import json
import math
import platform
import threading
import traceback
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import ultralytics
from flwr.serverapp import Grid, ServerApp

from utils import client as client_module
from utils.arrays import Layout
from utils.attempts import MAX_ATTEMPTS
from utils.checks import SERVER_CACHES, Federation, as_at_start, server_data
from utils.client import Instructions
from utils.cluster import cpus_of_worker, joined
from utils.config import ClientData, Config, InputError
from utils.data import (
    form_of,
    form_problems,
    move_caches,
    selected_classes,
    write_private_yaml,
)
from utils.environment import num_cpus, quiet_stdout, set_verbosity
from utils.evaluation import Evaluator
from utils.final_evaluation import finish, is_finished
from utils.greeting import hello
from utils.loggers import LoggerError, start_loggers
from utils.members import Members
from utils.model import class_row_names, parameter_names, to_arrays, without_downloads
from utils.run_dir import CONFIG_FILE, DESCRIPTION_FILE, RoundMeta, RunDir
from utils.server import Display, FederationError, RunResult, Server
from utils.strategies import Aggregation


def make_server(federation: Federation, display: Display, run_dir: RunDir) -> Server:
    """A server whose `run(grid)` runs this federation, and what it needs in the run directory.

    In the directory of an earlier run it goes on after the last complete round. Raises InputError
    when that is not possible, and FederationError when a logger cannot start.
    """
    config = federation.config
    for data in () if config.has_sites else config.clients:
        move_caches(federation.caches / data.name, run_dir.client_dir(data.name) / "caches")
    server = Server(
        config,
        _instructions(federation, _run_id(run_dir)),
        federation.model,
        RoundMeta(0, federation.names, federation.task, Path(config.base_model).name),
        Aggregation(
            config.strategy, parameter_names(federation.model), class_row_names(federation.model)
        ),
        run_dir,
        display,
        federation.members or _listed(federation),
        _server_evaluator(federation, run_dir),
    )
    server.summaries = as_at_start(federation.summaries, run_dir)
    server.members.names = tuple(config.names or ())
    server.members.classes = selected_classes(config.train, server.members.names)
    server.restore()
    run_dir.write_text(CONFIG_FILE, config.to_yaml())
    if not (run_dir.path / DESCRIPTION_FILE).exists():  # of the start, also when it is resumed
        run_dir.write_text(DESCRIPTION_FILE, json.dumps(describe(federation), indent=2))
    try:
        server.loggers = start_loggers(config, run_dir, display.notice)
    except LoggerError as error:
        raise FederationError(str(error)) from error
    return server


def _listed(federation: Federation) -> Members:
    """The clients whose data is on this machine."""
    return Members(
        federation.config.clients, hello(federation.task), is_open=False, has_sites=False
    )


def _run_id(run_dir: RunDir) -> str:
    """A name for the run that no other one has; clients keep what they have for it below this."""
    path = run_dir.server / "id"
    if not path.exists():
        run_dir.write_text("server/id", f"{run_dir.path.name}-{uuid.uuid4().hex[:12]}")
    return path.read_text()


def describe(federation: Federation) -> dict[str, Any]:
    """What a report says about a run before its first round: model, data counts, versions."""
    config = federation.config
    packages = ("flwr", "ray", "torch", "numpy")
    return {
        "name": config.name,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": federation.task,
        "base_model": Path(config.base_model).name,
        "num_parameters": sum(p.numel() for p in federation.model.parameters()),
        "names": list(federation.names),
        "device": "cuda" if config.client_resources.num_gpus else "cpu",
        "versions": {
            "ultralytics": ultralytics.__version__,  # its distribution has more than one name
            **{name: version(name) for name in packages},
            "python": platform.python_version(),
        },
        "clients": {
            data.name: _counts(data, federation)
            for data in config.clients
            if data.name in federation.summaries
        },
    }


def _counts(data: ClientData, federation: Federation) -> dict[str, Any]:
    """Images of a client, and its boxes of each class; None where it does not annotate one.

    A classifier's images take the place of boxes, and are of no other class than their own.
    """
    summary = federation.summaries[data.name]
    absent = 0 if federation.task == "classify" else None
    boxes: dict[str, int | None] = dict(zip(summary.names, summary.class_counts, strict=True))
    boxes.update(dict.fromkeys(data.not_annotated))
    if federation.config.train.get("single_cls"):
        boxes = dict.fromkeys(federation.names, sum(summary.class_counts))
    return {
        "train_images": summary.num_train,
        "val_images": summary.num_val,
        "test_images": summary.num_test,
        "boxes": {name: boxes.get(name, absent) for name in federation.names},
    }


def simulate(federation: Federation, display: Display, run_dir: RunDir) -> RunResult:
    """Run the federation on this machine under Flower's simulation.

    Raises FederationError (utils/server.py) when it cannot go on, and what is done stays usable.
    """
    server = make_server(federation, display, run_dir)
    try:
        if server.is_done and is_finished(server):  # by the run that this one resumes
            return server.result
        return _run_simulation(server, federation.config, run_dir)
    finally:
        server.stop()  # it runs in a thread of Flower's, which would wait for replies for ever
        server.finish_loggers()


def _run_simulation(server: Server, config: Config, run_dir: RunDir) -> RunResult:
    """Run Flower's simulation in a thread of its own, so that an interrupt does not unwind it.

    In the main thread, Ctrl-C would make Flower shut Ray down below its own threads, which wait for
    replies in Ray's native code; now and then that ended the process with a segmentation fault
    (flwr 1.41, ray 2.55) before it had said how to go on.
    """
    outcome: Future[RunResult] = Future()

    def run() -> None:
        try:
            outcome.set_result(_simulated(server, config, run_dir))
        except BaseException as error:  # raised again by the caller
            outcome.set_exception(error)

    set_verbosity(verbose=config.verbose)
    with quiet_stdout(verbose=config.verbose):
        threading.Thread(target=run, name="simulation", daemon=True).start()
        return outcome.result()


def _simulated(server: Server, config: Config, run_dir: RunDir) -> RunResult:
    results: list[RunResult] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _: Any) -> None:
        result = server.run(grid)
        finish(server, grid)
        results.append(result)

    # unstable: flwr.simulation.run_simulation
    # The one place that knows how a simulation is started: Flower deprecates `run_simulation` in
    # favour of `flwr run`, which wants a package of its own and a daemon.
    from flwr.simulation import run_simulation

    try:
        with _backend(config, run_dir) as backend:
            run_simulation(app, client_module.app, len(config.clients), backend_config=backend)
    except (FederationError, OSError):
        raise
    except Exception as error:  # whatever Flower and Ray raise, the run can be resumed
        path = run_dir.write_text("server/error.txt", traceback.format_exc())
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise FederationError(f"the simulation failed: {reason}; see {path}") from error
    if not results:
        raise RuntimeError("Flower's simulation ended without a result; try verbose=true")
    return results[0]


def _instructions(federation: Federation, run_id: str) -> Instructions:
    config = federation.config
    # Weights come from the server, and so does what `pretrained` has put into them. If it is false,
    # a classifier's trainer draws its weights anew, and with them the random numbers that follow.
    train = {k: v for k, v in config.train.items() if k != "pretrained" or v is False}
    architecture = federation.architecture
    return Instructions(
        run_id=run_id,
        start_id=uuid.uuid4().hex,
        architecture=without_downloads(architecture) if config.has_sites else architecture,
        task=federation.task,
        digest=Layout.of(to_arrays(federation.model)).digest,
        names=tuple(config.names or ()),
        shared=config.shared,
        keep_optimizer=config.local_optimizer == "keep",
        train=train,
        num_rounds=config.num_rounds,
        local_epochs=config.local_epochs,
        seed=config.seed,
        num_clients=len(config.clients),
        device="0" if config.client_resources.num_gpus else "cpu",
        num_threads=max(1, math.floor(config.client_resources.num_cpus)),
        round_timeout_s=config.round_timeout_s,
        cross_client=config.evaluate.cross_client,
        client=config.client or "",
        privacy=config.privacy,
        incremental=config.codec.name != "none" or (config.has_sites and not config.server_ema),
        codec=config.codec,
    )


def _server_evaluator(federation: Federation, run_dir: RunDir) -> Evaluator | None:
    data = federation.server_data
    if data is None:
        return None
    move_caches(federation.caches / SERVER_CACHES, run_dir.server / "caches")
    write_private_yaml(data, run_dir.server)
    config, form = federation.config, form_of(data)

    def read_again() -> dict[str, Any]:
        now = server_data(config, federation.task, has_test="test" in data)
        problems = form_problems(form_of(now), {"its data at the start": form})
        if problems:
            raise InputError(f"evaluate.data: {problem}" for problem in problems)
        return now

    return Evaluator(
        data,
        federation.task,
        config.train,
        run_dir.server,
        "0" if torch.cuda.is_available() else "cpu",
        num_cpus(),
        read_again,
    )


@contextmanager
def _backend(config: Config, run_dir: RunDir) -> Iterator[Any]:
    """Flower's backend config; while it is used, the connection to a Ray cluster."""
    if config.ray.address is None:
        yield _local_backend(config)
        return
    with joined(config, run_dir.server) as machines:
        cpus = config.client_resources.num_cpus
        yield {
            "client_resources": _worker(config, cpus_of_worker(machines, cpus, len(config.clients)))
        }


def _local_backend(config: Config) -> Any:
    """What Ray may use of this machine, and what each worker takes of it."""
    resources = config.client_resources
    # Flower starts as many workers as fit, each with its own PyTorch, whether or not there are
    # clients for them; so Ray is told of no more CPUs than all clients together can use.
    cpus = min(num_cpus(), math.ceil(resources.num_cpus * len(config.clients)))
    return {
        "init_args": {
            "address": "local",  # else Ray joins a cluster that happens to run on this machine
            "num_cpus": cpus,
            "num_gpus": torch.cuda.device_count() if resources.num_gpus else 0,
            "include_dashboard": False,
            "log_to_driver": config.verbose,
            "logging_level": "info" if config.verbose else "critical",
        },
        "client_resources": _worker(config, max(resources.num_cpus, cpus / len(config.clients))),
    }


def _worker(config: Config, cpus: float) -> dict[str, float]:
    return {
        "num_cpus": cpus,
        "num_gpus": float(config.client_resources.num_gpus),
        # A worker that dies comes back and is given its message again (see utils/attempts.py); by
        # default it would fail that one and every later one.
        "max_restarts": -1,
        "max_task_retries": MAX_ATTEMPTS,
    }
