"""Checks everything that can be checked before round 1, and decides what all clients share."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from federated_yolo.checks.exports import prepare_data
from federated_yolo.checks.gpu_sharing import CudaMemory, MemoryProbe
from federated_yolo.checks.resolve import (
    resolve,
    resolve_train,
    with_averages,
    with_personal_lr0,
    with_whole_strides,
)
from federated_yolo.checks.setting_rules import (
    precision_problems,
    save_dir_problems,
    unknown_class_problem,
)
from federated_yolo.checks.stages import (
    Meet,
    check_data,
    check_label_space,
    check_model,
    check_settings,
    check_training,
    decide_num_gpus,
    meet_sites,
    scored,
)
from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import ClientData, Config, ResolvedConfig
from federated_yolo.data.data_yaml import class_names, read_data
from federated_yolo.data.exports.made import Made
from federated_yolo.data.label_space import in_label_space, selected_classes
from federated_yolo.data.summary import DataSummary, model_data
from federated_yolo.server.registry import ClientRegistry
from federated_yolo.storage.run_dir import RunDir
from federated_yolo.yolo.class_branch import Architecture


@dataclass(frozen=True)
class Federation:
    """A config that has passed every check, with the results of the checks.

    Attributes:
        config: All settings, each with its final value.
        task: Ultralytics' task, such as "detect".
        names: The classes by index; only "item" with `train.single_cls`.
        summaries: Summary of each client's data set, by name of the client.
        server_data: Content of the data.yaml of `evaluate.data`, without a test split that has no
            labels; None if `evaluate.data` is not set.
        model: The global model before round 1, float32 on the CPU.
        architecture: Description from which clients build that model.
        caches: Folder of label caches, with one folder per client.
        registry: The sites that have joined, if the clients are SuperNodes.
        gpu_choice: Sentence on how `num_gpus: auto` was decided; empty if nothing was tried.
        unusable: Problems with the data of a resumed run that do not stop it.
        class_change: Sentence on how the base model's classes were adapted; empty if they fit.
        made: What was made of each export that the config names, by client, or "(server)".
    """

    config: ResolvedConfig
    task: str
    names: tuple[str, ...]
    summaries: dict[str, DataSummary]
    server_data: dict[str, Any] | None
    model: torch.nn.Module
    architecture: Architecture
    caches: Path
    registry: ClientRegistry | None = None
    gpu_choice: str = ""
    unusable: tuple[str, ...] = ()
    class_change: str = ""
    made: Mapping[str, Made] = field(default_factory=dict)


def with_demo_data(config: Config) -> Config:
    """Make the demo's data and put it in place of `datasets: demo`; return other configs as is."""
    if config.datasets != "demo":
        return config
    from federated_yolo.data.demo_data import make_demo_data

    problems = save_dir_problems(Path(config.save_dir))
    if problems:
        raise InputError(problems)
    try:
        demo = make_demo_data(Path(config.save_dir) / "demo_data", seed=0)
    except OSError as error:
        raise InputError(f"save_dir '{config.save_dir}': {error}; choose another one") from error
    clients = [ClientData(name=name, data=str(path)) for name, path in demo.clients.items()]
    evaluate = config.evaluate
    if evaluate.data is None:
        evaluate = evaluate.model_copy(update={"data": str(demo.held_out)})
    return config.model_copy(update={"datasets": clients, "evaluate": evaluate})


@contextmanager
def checked(
    config: Config,
    meet: Meet | None = None,
    probe: MemoryProbe | None = None,
    resumed: RunDir | None = None,
) -> Iterator[Federation]:
    """Check everything that can be checked before round 1; delete temporary files at the end.

    meet: Function that waits for the sites, if the clients are SuperNodes; called after all other
    settings have passed.
    probe: Probe of the memory on which clients train; None for the GPU's.
    resumed: Run directory of the run to resume. Images that are now missing do not stop it, as
    they would not while it runs: they are reported, and image counts are those of its start.
    Raises InputError with all problems at once.
    """
    with tempfile.TemporaryDirectory(prefix="federated-yolo-check-") as folder:
        yield check(config, Path(folder), meet, probe, resumed)


def check(
    config: Config,
    caches: Path,
    meet: Meet | None = None,
    probe: MemoryProbe | None = None,
    resumed: RunDir | None = None,
) -> Federation:
    """Do the checks of `checked`, with label caches in a folder of the caller, which keeps them.

    Settings -> sites -> data -> label space -> resolved settings -> model -> resources.
    """
    settings = check_settings(config)
    sites = meet_sites(config, settings, meet)
    prepared, is_resumed = prepare_data(config, settings.task), resumed is not None
    config = prepared.config
    data = check_data(prepared, settings.task, sites, caches, is_resumed=is_resumed)
    names = check_label_space(config, settings, data, is_resumed=is_resumed)
    summaries, server_summary = scored(data, selected_classes(config.train, names))
    counted = summaries if resumed is None else as_at_start(summaries, resumed)
    base = settings.base_from_anywhere
    config = with_averages(config, images := [summary.num_train for summary in counted.values()])
    train = resolve_train(config, base, len(data.clients), sum(images), len(names))
    built = check_model(config, base, settings.weights, train, model_data(counted.values(), names))
    train = with_whole_strides(train, built.model)
    is_open = config.new_clients if sites is None else sites.is_open
    config = with_personal_lr0(config, base, train)
    resolved = resolve(config, data.clients, names, train, new_clients=is_open)
    check_training(resolved, built, counted, caches if resumed is None else None)
    gpu_choice = ""
    if config.client_resources.num_gpus == "auto":
        memory = probe or CudaMemory()
        choice = decide_num_gpus(resolved, settings.machines, built, counted, caches, memory)
        resolved, gpu_choice = resolved.with_num_gpus(choice[0]), choice[1]
    if problems := precision_problems(resolved):
        raise InputError(problems)
    return Federation(
        config=resolved,
        task=built.task,
        names=built.names,
        summaries=summaries,
        server_data=_held_out(resolved, built.task, server_summary),
        model=built.model,
        architecture=built.architecture,
        caches=caches,
        registry=sites,
        gpu_choice=gpu_choice,
        unusable=data.unusable,
        class_change=built.class_change,
        made=prepared.made,
    )


def _held_out(
    config: ResolvedConfig, task: str, summary: DataSummary | None
) -> dict[str, Any] | None:
    if config.evaluate.data is None:
        return None
    return server_data(config, task, has_test=bool(summary and summary.num_test))


def as_at_start(summaries: Mapping[str, DataSummary], run_dir: RunDir) -> dict[str, DataSummary]:
    """Return the summaries with the image counts that they had when the run was started.

    These counts limit each client's weight, whether or not the run was stopped in between.
    """
    started = run_dir.images_at_start()
    return {
        name: replace(summary, **started[name]) if name in started else summary
        for name, summary in summaries.items()
    }


def server_data(config: ResolvedConfig, task: str, *, has_test: bool) -> dict[str, Any]:
    """Read `evaluate.data` as it is now, with the federation's classes.

    has_test: Whether its test split is usable.
    Raises InputError for a class that the federation does not have.
    """
    data = read_data(Path(config.evaluate.data or ""), task, where="evaluate.data")
    unknown = unknown_class_problem("evaluate.data", class_names(data), config.names)
    if unknown:
        raise InputError(unknown)
    data = in_label_space(data, config.names)
    if not has_test:
        data.pop("test", None)
    return data
