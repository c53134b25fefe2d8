"""From a config to a finished run on this machine: check everything, then simulate."""

import math
import os
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.serverapp import Grid, ServerApp

from utils import client as client_module
from utils.arrays import Layout
from utils.client import Instructions
from utils.config import ClientData, ClientResources, Config, InputError
from utils.data import (
    DataSummary,
    check_dataset,
    move_caches,
    read_data_yaml,
    write_private_yaml,
)
from utils.environment import silence_libraries
from utils.evaluation import Evaluator
from utils.model import build_model, load_checkpoint_module, task_of, to_arrays
from utils.run_dir import RoundMeta, RunDir
from utils.server import Display, RunResult, Server
from utils.strategies import build_strategy

SERVER_FOLDER = "server"  # beside clients/, for the server's own label caches
SERVER_CACHES = ".server"  # while checking, beside the clients' folders; no client's name


@dataclass(frozen=True)
class Federation:
    """A config that has passed every check, with what the checks found.

    config: nothing in it is "auto" or "demo" any more. summaries: by client.
    model: the global model before round 1. caches: label caches, a folder for each client.
    """

    config: Config
    task: str
    names: tuple[str, ...]
    summaries: dict[str, DataSummary]
    server_data: dict[str, Any] | None
    model: torch.nn.Module
    caches: Path


def with_demo_data(config: Config) -> Config:
    """Make the demo's data and put it where the config says `datasets: demo`."""
    if config.datasets != "demo":
        return config
    from utils.demo_data import make_demo_data

    demo = make_demo_data(Path(config.save_dir) / "demo_data", seed=0)
    clients = [ClientData(name=name, data=str(path)) for name, path in demo.clients.items()]
    evaluate = config.evaluate
    if evaluate.data is None:
        evaluate = evaluate.model_copy(update={"data": str(demo.held_out)})
    return config.model_copy(update={"datasets": clients, "evaluate": evaluate})


@contextmanager
def checked(config: Config) -> Iterator[Federation]:
    """Check everything that can be checked before round 1, and nothing is left behind.

    Raises InputError with all problems at once.
    """
    with tempfile.TemporaryDirectory(prefix="federated-yolo-check-") as folder:
        yield _check(config, Path(folder))


def _check(config: Config, caches: Path) -> Federation:
    problems = _strategy_problems(config) + _resource_problems(config.client_resources)
    problems += _save_dir_problems(Path(config.save_dir))
    task, base_problems = _task(config)
    problems += base_problems
    summaries: dict[str, DataSummary] = {}
    # Labels are read as the task reads them; a base model that cannot say is taken as detect.
    for index, data in enumerate(config.clients):
        where = f"datasets[{index}] '{data.name}'"
        try:
            summaries[data.name] = check_dataset(
                Path(data.data),
                task or "detect",
                caches / data.name,
                where=where,
                splits=("train", "val"),
            )
        except InputError as error:
            problems += error.problems
    server_names = None
    if config.evaluate.data is not None:
        path = Path(config.evaluate.data)
        try:
            server_names = check_dataset(
                path,
                task or "detect",
                caches / SERVER_CACHES,
                where="evaluate.data",
                splits=("val",),
            ).names
        except InputError as error:
            problems += error.problems
    problems += _class_name_problems(config, summaries, server_names)
    if problems or task is None:
        raise InputError(problems)
    first = read_data_yaml(Path(config.clients[0].data), where="datasets[0]")
    config = _resolve(config, summaries, len(first["names"]))
    try:
        model: Any = build_model(config.base_model, task, first, config.train, config.seed)
    except (ValueError, TypeError, KeyError, RuntimeError, IndexError) as error:
        raise InputError(f"base_model '{config.base_model}': cannot be built: {error}") from error
    server_data = (
        read_data_yaml(Path(config.evaluate.data), where="evaluate.data")
        if config.evaluate.data
        else None
    )
    names = tuple(model.names.values())
    return Federation(config, task, names, summaries, server_data, model, caches)


def make_server(federation: Federation, display: Display, run_dir: RunDir) -> Server:
    """A server whose `run(grid)` runs this federation, and what it needs in the run directory."""
    config = federation.config
    run_dir.write_text("args.yaml", config.to_yaml())
    for data in config.clients:
        move_caches(federation.caches / data.name, run_dir.client_dir(data.name) / "caches")
    return Server(
        config,
        _instructions(federation, run_dir),
        federation.model,
        RoundMeta(0, federation.names, federation.task, Path(config.base_model).name),
        build_strategy(config.strategy, len(config.clients)),
        run_dir,
        display,
        _server_evaluator(federation, run_dir),
    )


def simulate(federation: Federation, display: Display, run_dir: RunDir) -> RunResult:
    """Run the federation on this machine under Flower's simulation.

    Raises FederationError (utils/server.py) when it cannot go on, and what is done stays usable.
    """
    config = federation.config
    server = make_server(federation, display, run_dir)
    results: list[RunResult] = []
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _: Any) -> None:
        results.append(server.run(grid))

    if not config.verbose:
        silence_libraries()
    # The one place that knows how a simulation is started: Flower deprecates `run_simulation` in
    # favour of `flwr run`, which wants a package of its own and a daemon.
    from flwr.simulation import run_simulation

    try:
        run_simulation(app, client_module.app, len(config.clients), backend_config=_backend(config))
    finally:
        server.stop()  # it runs in a thread of Flower's, which would wait for replies for ever
    if not results:
        raise RuntimeError("Flower's simulation ended without a result; try verbose=true")
    return results[0]


def _instructions(federation: Federation, run_dir: RunDir) -> Instructions:
    config = federation.config
    return Instructions(
        run_id=uuid.uuid4().hex,
        base_model=config.base_model,
        task=federation.task,
        digest=Layout.of(to_arrays(federation.model)).digest,
        train=config.train,
        num_rounds=config.num_rounds,
        local_epochs=config.local_epochs,
        seed=config.seed,
        device="0" if config.client_resources.num_gpus else "cpu",
        num_threads=max(1, math.floor(config.client_resources.num_cpus)),
        clients=[(data.name, data.data) for data in config.clients],
        private_root=str(run_dir.clients),
    )


def _server_evaluator(federation: Federation, run_dir: RunDir) -> Evaluator | None:
    if federation.server_data is None:
        return None
    folder = run_dir.path / SERVER_FOLDER
    move_caches(federation.caches / SERVER_CACHES, folder / "caches")
    write_private_yaml(federation.server_data, folder)
    return Evaluator(
        federation.server_data,
        federation.task,
        federation.config.train,
        folder,
        "0" if torch.cuda.is_available() else "cpu",
        num_cpus(),
    )


def _backend(config: Config) -> Any:
    """Flower's backend config: what Ray may use, and what each client takes of it."""
    resources = config.client_resources
    gpus = float(resources.num_gpus)
    # Flower starts as many workers as fit, each with its own PyTorch, whether or not there are
    # clients for them; so Ray is told of no more CPUs than all clients together can use.
    cpus = min(num_cpus(), math.ceil(resources.num_cpus * len(config.clients)))
    return {
        "init_args": {
            "num_cpus": cpus,
            "num_gpus": torch.cuda.device_count() if gpus else 0,
            "include_dashboard": False,
            "log_to_driver": config.verbose,
            "logging_level": "info" if config.verbose else "critical",
        },
        # A killed worker comes back; by default it would fail every later message.
        "client_resources": {"num_cpus": resources.num_cpus, "num_gpus": gpus, "max_restarts": -1},
    }


def num_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _strategy_problems(config: Config) -> list[str]:
    try:
        build_strategy(config.strategy, len(config.clients))
    except InputError as error:
        return error.problems
    return []


def _resource_problems(resources: ClientResources) -> list[str]:
    problems = []
    if resources.num_cpus > num_cpus():
        problems.append(
            f"client_resources.num_cpus: found {resources.num_cpus:g}, this machine has "
            f"{num_cpus()}; lower it"
        )
    gpus = torch.cuda.device_count()
    if resources.num_gpus != "auto":
        if resources.num_gpus > gpus:
            problems.append(
                f"client_resources.num_gpus: found {resources.num_gpus:g}, this machine has "
                f"{gpus}; lower it, or use auto (which trains on the CPU where there is no GPU)"
            )
        elif resources.num_gpus > 1:
            problems.append(
                f"client_resources.num_gpus: found {resources.num_gpus:g}, but a client trains on "
                "one GPU; use 1, or a fraction to share it"
            )
    return problems


def _save_dir_problems(save_dir: Path) -> list[str]:
    existing = next(p for p in (save_dir.absolute(), *save_dir.absolute().parents) if p.exists())
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return []
    reason = "not writable" if existing.is_dir() else "not a directory"
    return [f"save_dir '{save_dir}': {existing} is {reason}; choose another save_dir"]


def _task(config: Config) -> tuple[str | None, list[str]]:
    problems: list[str] = []
    task = None
    try:
        task = task_of(config.base_model)
    except InputError as error:
        problems += error.problems
    pretrained = config.train.get("pretrained")
    if isinstance(pretrained, str):
        try:
            load_checkpoint_module(pretrained, where=f"train.pretrained '{pretrained}'")
        except InputError as error:
            problems += error.problems
    return task, problems


def _class_name_problems(
    config: Config, summaries: dict[str, DataSummary], server_names: tuple[str, ...] | None
) -> list[str]:
    """Class names must agree in words and order: index 0 must mean the same everywhere."""
    found = [
        (f"datasets[{i}] '{data.name}' ({data.data})", summaries[data.name].names)
        for i, data in enumerate(config.clients)
        if data.name in summaries
    ]
    if server_names is not None:
        found.append((f"evaluate.data ({config.evaluate.data})", server_names))
    problems = []
    for where, names in found[1:]:
        first_where, first = found[0]
        if names == first:
            continue
        same = "the same classes in another order" if sorted(names) == sorted(first) else "classes"
        problems.append(
            f"{where}: {same} [{', '.join(names)}]; {first_where} has [{', '.join(first)}]; "
            "give all data sets the same names in the same order"
        )
    return problems


def _resolve(config: Config, summaries: dict[str, DataSummary], num_classes: int) -> Config:
    """Replace what is left to this machine or to the data by what it comes to.

    Paths become absolute, so that workers and a later run find them from any directory.
    """
    num_images = sum(summary.num_train for summary in summaries.values())
    train = resolve_train(config.train, num_images, num_classes, config.num_epochs)
    resources = config.client_resources
    if resources.num_gpus == "auto":
        gpus = 1.0 if torch.cuda.device_count() else 0.0
        resources = resources.model_copy(update={"num_gpus": gpus})
    if isinstance(train.get("pretrained"), str):
        train["pretrained"] = _absolute(train["pretrained"])
    evaluate = config.evaluate
    if evaluate.data is not None:
        evaluate = evaluate.model_copy(update={"data": _absolute(evaluate.data)})
    return config.model_copy(
        update={
            "base_model": _absolute(config.base_model),
            "datasets": [d.model_copy(update={"data": _absolute(d.data)}) for d in config.clients],
            "save_dir": _absolute(config.save_dir),
            "train": train,
            "client_resources": resources,
            "evaluate": evaluate,
        }
    )


def resolve_train(
    train: dict[str, Any], num_images: int, num_classes: int, num_epochs: int
) -> dict[str, Any]:
    """Decide once for all clients what each would decide by its own data.

    `nbs` becomes the batch size unless it is given: Ultralytics' 64 would let a client with few
    images take one optimiser step for several batches, and drop what is left at the end of a round.
    `optimizer=auto` follows Ultralytics' rule (`BaseTrainer.build_optimizer`, 8.4), by the images
    of all clients together.
    """
    from ultralytics.utils import DEFAULT_CFG_DICT

    resolved = dict(train)
    batch: Any = resolved.setdefault("batch", DEFAULT_CFG_DICT["batch"])
    nbs: Any = resolved.setdefault("nbs", batch)
    if str(resolved.get("optimizer", "auto")).lower() == "auto":
        iterations = math.ceil(num_images / max(batch, nbs)) * num_epochs
        if iterations > 10000:
            resolved.update(optimizer="MuSGD", lr0=0.01)
        else:
            lr0 = round(0.002 * 5 / (4 + num_classes), 6)
            resolved.update(optimizer="AdamW", lr0=lr0, momentum=0.9)
        resolved["warmup_bias_lr"] = 0.0
    return resolved


def _absolute(path: str) -> str:
    """The path from any directory; a model name that comes with Ultralytics stays."""
    is_name = Path(path).suffix in {".yaml", ".yml"} and not Path(path).exists()
    return path if is_name else str(Path(path).absolute())
