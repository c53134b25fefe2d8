"""Makes a server that can run from a checked federation, and writes the run's description."""

import json
import math
import platform
import uuid
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import ultralytics

from federated_yolo.aggregation.aggregator import Aggregation
from federated_yolo.aggregation.privacy import SPENT, ServerPrivacy
from federated_yolo.checks.federation import Federation, as_at_start, server_data
from federated_yolo.checks.stages import SERVER_CACHES
from federated_yolo.common.arrays import Layout
from federated_yolo.common.environment import num_cpus
from federated_yolo.common.errors import FederationError, InputError
from federated_yolo.config.schema import ClientData, ResolvedConfig
from federated_yolo.data.data_yaml import write_private_yaml
from federated_yolo.data.label_space import selected_classes
from federated_yolo.data.scan import move_caches
from federated_yolo.data.summary import form_of, form_problems
from federated_yolo.protocol.delta import Encoding
from federated_yolo.protocol.handshake import hello
from federated_yolo.protocol.instructions import Instructions
from federated_yolo.runtime.resume import take_up
from federated_yolo.server.broadcast import Broadcast
from federated_yolo.server.final_evaluation import withdraw
from federated_yolo.server.global_model import GlobalModel
from federated_yolo.server.messenger import Messenger
from federated_yolo.server.registry import ClientRegistry
from federated_yolo.server.replies import ReplyReader
from federated_yolo.server.results import Display, early_end, is_done
from federated_yolo.server.server import Server
from federated_yolo.server.tracking import LoggerError, Loggers, start_loggers
from federated_yolo.storage.archive import RoundMeta
from federated_yolo.storage.run_dir import CONFIG_FILE, DESCRIPTION_FILE, RunDir
from federated_yolo.yolo.class_branch import without_downloads
from federated_yolo.yolo.evaluator import Evaluator
from federated_yolo.yolo.model import class_row_names, parameter_names, shared_names, to_arrays


def make_server(federation: Federation, display: Display, run_dir: RunDir) -> Server:
    """Make the server whose `run(grid)` runs this federation, and its files in the run directory.

    In the directory of an earlier run it continues after the last complete round. Raises InputError
    if that is not possible, and FederationError if a logger cannot start.
    """
    config = federation.config
    for data in () if config.has_sites else config.clients:
        move_caches(federation.caches / data.name, run_dir.client_dir(data.name) / "caches")
    instructions = _instructions(federation, _run_id(run_dir))
    aggregation = Aggregation(
        config.strategy, parameter_names(federation.model), class_row_names(federation.model)
    )
    model = _global_model(federation, instructions, aggregation.parameters, run_dir)
    encoding = Encoding(model.layout, instructions.codec, aggregation.parameters)
    broadcast = Broadcast(encoding, model.arrays) if instructions.sends_deltas else None
    registry = _registry(federation, run_dir)
    evaluator = _server_evaluator(federation, run_dir)
    privacy = _privacy(config, model, run_dir)
    rounds = take_up(
        run_dir,
        config.base_model,
        instructions,
        model=model,
        registry=registry,
        aggregation=aggregation,
        broadcast=broadcast,
        privacy=privacy,
    )
    if not is_done(config, rounds):
        withdraw(run_dir)
    _describe_run(federation, run_dir, early_end(config, rounds))
    return Server(
        config,
        model,
        registry,
        aggregation,
        Messenger(registry, instructions, run_dir, broadcast),
        ReplyReader(config, instructions, model, registry, encoding, aggregation.parameters),
        run_dir,
        display,
        evaluator,
        privacy,
        rounds,
        _loggers(config, run_dir, display),
    )


def _global_model(
    federation: Federation,
    instructions: Instructions,
    parameters: frozenset[str],
    run_dir: RunDir,
) -> GlobalModel:
    config, has_codec = federation.config, instructions.codec.name != "none"
    return GlobalModel(
        federation.model,
        RoundMeta(0, federation.names, federation.task, Path(config.base_model).name),
        shared_names(federation.model, config.shared),
        run_dir,
        instructions.train,
        server_ema=config.server_ema,
        halved_names=parameters if has_codec else frozenset(),
    )


def _registry(federation: Federation, run_dir: RunDir) -> ClientRegistry:
    """Return the registry: of the sites that have joined, or of the clients on this machine."""
    config = federation.config
    registry = federation.registry or ClientRegistry(
        config.clients, hello(federation.task), is_open=False, has_sites=False
    )
    registry.names = tuple(config.names or ())
    registry.classes = selected_classes(config.train, registry.names)
    registry.at_start = as_at_start(federation.summaries, run_dir)
    return registry


def _privacy(config: ResolvedConfig, model: GlobalModel, run_dir: RunDir) -> ServerPrivacy | None:
    if config.privacy.mode == "none":
        return None
    return ServerPrivacy(config.privacy, model.trained_names, run_dir.server / SPENT)


def _loggers(config: ResolvedConfig, run_dir: RunDir, display: Display) -> Loggers | None:
    try:
        return start_loggers(config, run_dir, display.notice)
    except LoggerError as error:
        raise FederationError(str(error)) from error


def _describe_run(federation: Federation, run_dir: RunDir, ended: str) -> None:
    """Write the settings, and at the first start the description of the run.

    ended: Why the run has ended before its last round; empty if it has not.
    """
    run_dir.write_text(CONFIG_FILE, federation.config.to_yaml())
    if not (run_dir.path / DESCRIPTION_FILE).exists():  # a resumed run keeps that of its start
        run_dir.write_text(DESCRIPTION_FILE, json.dumps(describe(federation), indent=2))
    run_dir.note_end(ended)


def _run_id(run_dir: RunDir) -> str:
    """Return the run's unique id; it names the folder in which clients keep their state for it."""
    path = run_dir.server / "id"
    if not path.exists():
        run_dir.write_text("server/id", f"{run_dir.path.name}-{uuid.uuid4().hex[:12]}")
    return path.read_text()


def describe(federation: Federation) -> dict[str, Any]:
    """Describe a run before its first round, for its report: model, data counts, versions."""
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
            "ultralytics": ultralytics.__version__,  # its distribution can have another name
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
    """Count a client's images, and its boxes of each class; None for a class not annotated there.

    For a classifier, images are counted in place of boxes, and a class that is not listed has 0.
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


def _instructions(federation: Federation, run_id: str) -> Instructions:
    config = federation.config
    # Weights come from the server, with those of `pretrained` already in them. But if it is false,
    # a classifier's trainer draws new weights, which shifts all later random numbers.
    train = {k: v for k, v in config.train.items() if k != "pretrained" or v is False}
    architecture = federation.architecture
    return Instructions(
        run_id=run_id,
        start_id=uuid.uuid4().hex,
        architecture=without_downloads(architecture) if config.has_sites else architecture,
        task=federation.task,
        digest=Layout.of(to_arrays(federation.model)).digest,
        names=config.names,
        shared=config.shared,
        keep_optimizer=config.local_optimizer == "keep",
        train=train,
        num_rounds=config.num_rounds,
        local_epochs=config.local_epochs,
        averages_per_round=config.averages_per_round,
        seed=config.seed,
        num_clients=len(config.clients),
        device="0" if config.client_resources.num_gpus else "cpu",
        num_threads=max(1, math.floor(config.client_resources.num_cpus)),
        round_timeout_s=config.round_timeout_s,
        cross_client=config.evaluate.cross_client,
        client=config.client or "",
        privacy=config.privacy,
        sends_deltas=config.codec.name != "none" or (config.has_sites and not config.server_ema),
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
