"""Everything that can be checked before round 1, and what is decided once for all clients."""

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from federated_yolo.aggregation.strategies import strategy_problems
from federated_yolo.checks.cluster import Machine, inspected, with_cluster_gpus
from federated_yolo.checks.gpu_sharing import (
    CudaMemory,
    MemoryProbe,
    settings_of_try,
    with_gpu_share,
)
from federated_yolo.checks.resolve import (
    fraction_of,
    resolve_settings,
    with_arguments_of_base,
    with_whole_strides,
)
from federated_yolo.checks.setting_rules import (
    class_index_problems,
    classifier_problems,
    client_class_problems,
    codec_problems,
    environment_problems,
    form_problems_of,
    label_space_of,
    min_clients_problems,
    most_per_round,
    precision_problems,
    privacy_problems,
    resource_problems,
    save_dir_problems,
    selected_class_problems,
    sharing_problems,
    single_image_problems,
    unknown_class_problem,
)
from federated_yolo.common.arrays import Layout, layout_problems, negative_statistics
from federated_yolo.common.errors import InputError
from federated_yolo.common.text import reason_of
from federated_yolo.config.rules import config_problems
from federated_yolo.config.schema import ClientData, Config
from federated_yolo.data.data_yaml import class_names, read_data
from federated_yolo.data.label_space import in_label_space, selected_classes
from federated_yolo.data.scan import check_dataset
from federated_yolo.data.summary import DataSummary, model_data, without_unlabelled_test
from federated_yolo.server.registry import Members
from federated_yolo.server.tracking import logger_problems
from federated_yolo.storage.run_dir import RunDir
from federated_yolo.yolo.checkpoint import load_checkpoint_module, task_of
from federated_yolo.yolo.class_branch import Architecture, architecture_of, class_change
from federated_yolo.yolo.model import (
    architecture_problems,
    build_model,
    freeze_problems,
    shared_names,
    to_arrays,
)
from federated_yolo.yolo.trainer import set_up

SERVER_CACHES = ".server"  # while checking, beside the clients' folders; no client's name

Meet = Callable[[Config, str], Members]


@dataclass(frozen=True)
class Federation:
    """A config that has passed every check, with what the checks found.

    config: nothing in it is "auto" or "demo" any more. server_data: without a test split that has
    no labels. names: classes by index; one, "item", with single_cls. summaries: by client.
    model: the global model before round 1, of this architecture. caches: label caches, a folder for
    each client. members: the sites that are there, if the clients are SuperNodes.
    gpu_choice: how `num_gpus: auto` was decided, where something was tried. unusable: what cannot
    be used now of the data of a run that is resumed. class_change: what became of the base model's
    classes, where it has others.
    """

    config: Config
    task: str
    names: tuple[str, ...]
    summaries: dict[str, DataSummary]
    server_data: dict[str, Any] | None
    model: torch.nn.Module
    architecture: Architecture
    caches: Path
    members: Members | None = None
    gpu_choice: str = ""
    unusable: tuple[str, ...] = ()
    class_change: str = ""


def with_demo_data(config: Config) -> Config:
    """Make the demo's data and put it where the config says `datasets: demo`."""
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
    """Check everything that can be checked before round 1, and nothing is left behind.

    meet: waits for the sites, where the clients are SuperNodes; called once all else is right.
    probe: of the memory of what clients train on; None is the GPU's.
    resumed: of a run to go on with. Images that have gone since are no reason to stop it, as they
    would be none while it runs: what cannot be used is told, and counts are those of its start.
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
    """The same, with label caches in a folder of the caller's, where they stay in any case."""
    probe = probe or CudaMemory()
    problems = config_problems(config)
    problems += strategy_problems(config.strategy, most_per_round(config))
    problems += [] if config.has_sites else min_clients_problems(config)
    problems += privacy_problems(config)
    problems += [] if config.loggers == "settings" else logger_problems(config.loggers)
    problems += environment_problems() + sharing_problems(config) + codec_problems(config)
    problems += client_class_problems(config)
    machines: list[Machine] = []
    if config.ray.address is None:
        problems += resource_problems(config.client_resources)
    else:
        machines, cluster_problems = inspected(config)
        problems += cluster_problems
    problems += save_dir_problems(Path(config.save_dir))
    task, base_problems = _task(config)
    problems += base_problems + (classifier_problems(config) if task == "classify" else [])
    if task is not None:
        config, base_problems = with_arguments_of_base(config, task)
        problems += base_problems
    members = None
    if config.has_sites:
        if meet is None:
            problems.append(
                "datasets: these are SuperNodes; start the run with flwr run (docs/deployment.md)"
            )
        if problems or meet is None or task is None:
            raise InputError(problems)
        members = meet(config, task)
        config = config.model_copy(
            update={
                "datasets": members.clients,
                "new_clients": members.is_open,
            }
        )
        problems += strategy_problems(config.strategy, config.clients_per_round)
        problems += min_clients_problems(config)
    summaries = members.summaries if members else {}
    unusable: list[str] | None = None if resumed is None else []
    # Labels are read as the task reads them; a base model that cannot say is taken as detect.
    for index, data in enumerate([] if members else config.clients):
        where = f"datasets[{index}] '{data.name}'"
        try:
            summaries[data.name] = check_dataset(
                Path(data.data or ""),
                task or "detect",
                caches / data.name,
                where=where,
                splits=("train", "val"),
                forgiven=unusable,
                fraction=fraction_of(config),
            )
        except InputError as error:
            problems += error.problems
    server_names = server_summary = None
    if config.evaluate.data is not None:
        path = Path(config.evaluate.data)
        try:
            server_summary = check_dataset(
                path,
                task or "detect",
                caches / SERVER_CACHES,
                where="evaluate.data",
                splits=("val",),
                forgiven=unusable,
                fraction=fraction_of(config),
            )
            server_names = server_summary.names
        except InputError as error:
            problems += error.problems
    names, name_problems = label_space_of(config, summaries, server_names)
    problems += (
        name_problems
        + form_problems_of(config, summaries, server_summary)
        + class_index_problems(config, names)
    )
    if not problems and resumed is None:
        problems += selected_class_problems(config, names, summaries, server_summary)
    if problems or task is None:
        raise InputError(problems)
    classes = selected_classes(config.train, names)
    summaries = {n: without_unlabelled_test(s, classes) for n, s in summaries.items()}
    if server_summary is not None:
        server_summary = without_unlabelled_test(server_summary, classes)
    now = summaries
    if resumed is not None:
        summaries = as_at_start(summaries, resumed)
    form = model_data(summaries.values(), names)
    config = resolve_settings(config, task, summaries, names)
    try:
        model: Any = build_model(config.base_model, task, form, config.train, config.seed)
    except Exception as error:  # a model YAML of any shape meets Ultralytics' code here
        raise InputError(f"base_model '{config.base_model}': cannot be built: {error}") from error
    arrays = to_arrays(model)
    problems = layout_problems(arrays, Layout.of(arrays)) + negative_statistics(arrays)
    if problems:
        raise InputError(f"base_model '{config.base_model}': {problem}" for problem in problems[:3])
    if not shared_names(model, config.shared):
        raise InputError(
            f"shared.parts: [{', '.join(config.shared.parts)}] of this model has no arrays to "
            "share; add a part"
        )
    architecture = architecture_of(model, config.base_model, config.train)
    problems = architecture_problems(architecture, model, task, form, config.train)
    if problems:
        raise InputError(
            f"base_model '{config.base_model}': cannot be federated: {problem}; train from another "
            "base model or train.pretrained"
            for problem in problems[:1]
        )
    config = with_whole_strides(config, model)
    problems = single_image_problems(config, summaries, model)
    problems += freeze_problems(model, config.train.get("freeze"))
    if problems:
        raise InputError(problems)
    if not config.has_sites and resumed is None:
        _try_set_up(config, task, architecture, caches)
    gpu_choice = ""
    if config.ray.address is not None:
        config = with_cluster_gpus(config, machines)
    elif config.client_resources.num_gpus == "auto":
        config, gpu_choice = with_gpu_share(config, task, architecture, summaries, caches, probe)
    problems = precision_problems(config)
    if problems:
        raise InputError(problems)
    held_out = None
    if config.evaluate.data is not None:
        has_test = bool(server_summary and server_summary.num_test)
        held_out = server_data(config, task, has_test=has_test)
    names = tuple(model.names[index] for index in range(len(model.names)))
    return Federation(
        config,
        task,
        names,
        now,
        held_out,
        model,
        architecture,
        caches,
        members,
        gpu_choice,
        tuple(unusable or ()),
        class_change(config.base_model, config.train, names),
    )


def as_at_start(summaries: Mapping[str, DataSummary], run_dir: RunDir) -> dict[str, DataSummary]:
    """What the data sets hold, with the numbers of images that they had when the run was started.

    These are the most that each counts with, whether or not the run was stopped in between.
    """
    started = run_dir.images_at_start()
    return {
        name: replace(summary, **started[name]) if name in started else summary
        for name, summary in summaries.items()
    }


def server_data(config: Config, task: str, *, has_test: bool) -> dict[str, Any]:
    """`evaluate.data` as it is now, with the federation's classes.

    config: of which the names are resolved. has_test: whether its test split is of use.
    Raises InputError for a class that the federation does not have.
    """
    names = tuple(config.names or ())
    data = read_data(Path(config.evaluate.data or ""), task, where="evaluate.data")
    unknown = unknown_class_problem("evaluate.data", class_names(data), names)
    if unknown:
        raise InputError(unknown)
    data = in_label_space(data, names)
    if not has_test:
        data.pop("test", None)
    return data


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


def _try_set_up(config: Config, task: str, architecture: Architecture, caches: Path) -> None:
    """Let Ultralytics set up the first client's training and read a batch, on the CPU.

    Of many train arguments it only says then that they are not usable. Raises InputError.
    """
    data = config.clients[0]
    settings = settings_of_try(config, task, architecture, data, caches, "cpu")
    # Neither is a matter of the arguments alone, and one takes long.
    settings = replace(settings, train={**config.train, "amp": False, "cache": False})
    try:
        set_up(settings)
    except Exception as error:  # Ultralytics raises errors of any kind
        raise InputError(
            f"train: training cannot be set up with these arguments for datasets[0] '{data.name}': "
            f"{reason_of(error)}; correct them"
        ) from error
