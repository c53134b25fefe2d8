"""The steps of `check`, one function each; federation.py calls them in their order.

A step that the next one can do without adds what is wrong to its result's `problems`, so that all
of it is told together; the others raise InputError.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from federated_yolo.aggregation.strategies import strategy_problems
from federated_yolo.checks.cluster import Machine, cluster_gpus, inspected
from federated_yolo.checks.exports import PreparedData
from federated_yolo.checks.gpu_sharing import (
    MemoryProbe,
    gpu_share,
    settings_of_try,
)
from federated_yolo.checks.resolve import (
    absolute,
    base_argument_problems,
    fraction_of,
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
    privacy_problems,
    resource_problems,
    save_dir_problems,
    selected_class_problems,
    sharing_problems,
    single_image_problems,
)
from federated_yolo.common.arrays import Layout, layout_problems, negative_statistics
from federated_yolo.common.errors import InputError
from federated_yolo.common.text import reason_of
from federated_yolo.config.rules import config_problems
from federated_yolo.config.schema import ClientData, Config, ResolvedConfig
from federated_yolo.data.scan import check_dataset
from federated_yolo.data.summary import DataSummary, without_unlabelled_test
from federated_yolo.server.registry import ClientRegistry
from federated_yolo.server.tracking import logger_problems
from federated_yolo.storage.run_dir import SERVER
from federated_yolo.yolo.checkpoint import LoadedBase, load_base, weights_of
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

Meet = Callable[[Config, str], ClientRegistry]


@dataclass(frozen=True)
class CheckedSettings:
    """What the settings and the base model say before any data is read.

    base: None where it cannot be used. weights: of the model whose weights training starts from.
    machines: of the Ray cluster, if there is one. problems: all that is wrong so far.
    """

    base: LoadedBase | None
    weights: torch.nn.Module | None
    machines: tuple[Machine, ...]
    problems: tuple[str, ...]

    @property
    def task(self) -> str:
        """As which labels are read; a base model that cannot say is taken as detect."""
        return self.base.task if self.base else "detect"

    @property
    def base_from_anywhere(self) -> LoadedBase:
        """The base model, named so that it is found from any directory; there are no problems."""
        assert self.base is not None
        return replace(self.base, name=absolute(self.base.name))


def check_settings(config: Config) -> CheckedSettings:
    """Check settings, strategy, machine and base model."""
    problems = config_problems(config)
    problems += strategy_problems(config.strategy, most_per_round(config))
    problems += [] if config.has_sites else min_clients_problems(config, len(config.clients))
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
    base, weights, base_problems = _load_weights(config)
    problems += base_problems
    if base is not None:
        problems += classifier_problems(config) if base.task == "classify" else []
        problems += base_argument_problems(config, base)
    return CheckedSettings(base, weights, tuple(machines), tuple(problems))


def _load_weights(
    config: Config,
) -> tuple[LoadedBase | None, torch.nn.Module | None, list[str]]:
    """The base model and the weights that training starts from, as far as they can be read."""
    problems: list[str] = []
    base = weights = None
    try:
        base = load_base(config.base_model)
    except InputError as error:
        problems += error.problems
    pretrained = config.train.get("pretrained", True)
    try:
        weights = weights_of(base, pretrained)
    except InputError as error:
        problems += error.problems
    return base, weights, problems


def meet_sites(
    config: Config, settings: CheckedSettings, meet: Meet | None
) -> ClientRegistry | None:
    """Wait for the clients that are SuperNodes; None for those whose data is on this machine.

    Raises InputError with all problems so far: sites are asked only once all else is right.
    """
    if not config.has_sites:
        return None
    problems = list(settings.problems)
    if meet is None:
        problems.append(
            "datasets: these are SuperNodes; start the run with flwr run (docs/deployment.md)"
        )
    if problems or meet is None:
        raise InputError(problems)
    return meet(config, settings.task)


@dataclass(frozen=True)
class CheckedData:
    """What the data sets hold.

    clients: those that take part. summaries: by client, of those that could be read. server: of
    `evaluate.data`. problems: what is wrong with them. unusable: what is, but does not stop a run
    that is resumed.
    """

    clients: Sequence[ClientData]
    summaries: dict[str, DataSummary]
    server: DataSummary | None
    problems: tuple[str, ...]
    unusable: tuple[str, ...]


def check_data(
    prepared: PreparedData,
    task: str,
    sites: ClientRegistry | None,
    caches: Path,
    *,
    is_resumed: bool,
) -> CheckedData:
    """Read all images' headers and labels of this machine; sites have done so themselves.

    task: as which labels are read. caches: label caches, a folder for each data set.
    """
    config = prepared.config
    problems: list[str] = []
    unusable: list[str] = []

    def read(path: str, folder: str, where: str, splits: tuple[str, ...]) -> DataSummary | None:
        name = SERVER if folder == SERVER_CACHES else folder
        if name in prepared.problems:
            problems.extend(prepared.problems[name])
            return None
        try:
            return check_dataset(
                Path(path),
                task,
                caches / folder,
                where=where,
                splits=splits,
                forgiven=unusable if is_resumed else None,
                fraction=fraction_of(config),
            )
        except InputError as error:
            problems.extend(error.problems)
            return None

    summaries: dict[str, DataSummary] = {}
    if sites is not None:
        clients, summaries = sites.clients, sites.summaries
        problems += strategy_problems(config.strategy, config.num_training(len(clients)))
        problems += min_clients_problems(config, len(clients))
    else:
        clients = config.clients
        for index, data in enumerate(clients):
            where = f"datasets[{index}] '{data.name}'"
            summary = read(data.data or "", data.name, where, ("train", "val"))
            if summary is not None:
                summaries[data.name] = summary
    server = None
    if config.evaluate.data is not None:
        server = read(config.evaluate.data, SERVER_CACHES, "evaluate.data", ("val",))
    return CheckedData(clients, summaries, server, tuple(problems), tuple(unusable))


def check_label_space(
    config: Config, settings: CheckedSettings, data: CheckedData, *, is_resumed: bool
) -> tuple[str, ...]:
    """Class names of the federation. Raises InputError with all problems of settings and data."""
    server_names = data.server.names if data.server else None
    names, problems = label_space_of(config, data.clients, data.summaries, server_names)
    problems = [
        *settings.problems,
        *data.problems,
        *problems,
        *form_problems_of(data.clients, data.summaries, data.server),
        *class_index_problems(config, names),
    ]
    if not problems and not is_resumed:
        problems = selected_class_problems(config, data.clients, names, data.summaries, data.server)
    if problems:
        raise InputError(problems)
    return names


def scored(
    data: CheckedData, classes: Sequence[str] | None
) -> tuple[dict[str, DataSummary], DataSummary | None]:
    """What clients and server hold, without test splits that have no label of these classes.

    classes: as of `selected_classes`.
    """
    summaries = {n: without_unlabelled_test(s, classes) for n, s in data.summaries.items()}
    return summaries, data.server and without_unlabelled_test(data.server, classes)


@dataclass(frozen=True)
class CheckedModel:
    """The global model before round 1, and what clients build it from.

    names: classes by index; one, "item", with single_cls. class_change: as of `Federation`.
    """

    model: Any
    task: str
    architecture: Architecture
    names: tuple[str, ...]
    class_change: str


def check_model(
    config: Config,
    base: LoadedBase,
    weights: torch.nn.Module | None,
    train: Mapping[str, Any],
    form: Mapping[str, Any],
) -> CheckedModel:
    """Build the global model, and see whether it can be federated. Raises InputError.

    weights: as of `weights_of`. train: as of `resolve_train`. form: as of `model_data`.
    """
    where = f"base_model '{base.name}'"
    try:
        model: Any = build_model(base, base.task, form, train, config.seed)
    except Exception as error:  # a model YAML of any shape meets Ultralytics' code here
        raise InputError(f"{where}: cannot be built: {error}") from error
    arrays = to_arrays(model)
    problems = layout_problems(arrays, Layout.of(arrays)) + negative_statistics(arrays)
    if problems:
        raise InputError(f"{where}: {problem}" for problem in problems[:3])
    if not shared_names(model, config.shared):
        raise InputError(
            f"shared.parts: [{', '.join(config.shared.parts)}] of this model has no arrays to "
            "share; add a part"
        )
    architecture = architecture_of(model, weights)
    problems = architecture_problems(architecture, model, base.task, form, train)
    if problems:
        raise InputError(
            f"{where}: cannot be federated: {problem}; train from another base model or "
            "train.pretrained"
            for problem in problems[:1]
        )
    names = tuple(model.names[index] for index in range(len(model.names)))
    change = class_change(weights, train, names)
    return CheckedModel(model, base.task, architecture, names, change)


def check_training(
    config: ResolvedConfig,
    built: CheckedModel,
    summaries: Mapping[str, DataSummary],
    caches: Path | None,
) -> None:
    """Check what the model cannot be trained with. Raises InputError.

    caches: label caches, with which a training is set up on this machine; None is not to.
    """
    problems = single_image_problems(config, summaries, built.model)
    problems += freeze_problems(built.model, config.train.get("freeze"))
    if problems:
        raise InputError(problems)
    if caches is not None and not config.has_sites:
        _try_set_up(config, built, caches)


def _try_set_up(config: ResolvedConfig, built: CheckedModel, caches: Path) -> None:
    """Let Ultralytics set up the first client's training and read a batch, on the CPU.

    Of many train arguments it only says then that they are not usable. Raises InputError.
    """
    data = config.clients[0]
    settings = settings_of_try(config, built.task, built.architecture, data, caches, "cpu")
    # Neither is a matter of the arguments alone, and one takes long.
    settings = replace(settings, train={**config.train, "amp": False, "cache": False})
    try:
        set_up(settings)
    except Exception as error:  # Ultralytics raises errors of any kind
        raise InputError(
            f"train: training cannot be set up with these arguments for datasets[0] '{data.name}': "
            f"{reason_of(error)}; correct them"
        ) from error


def decide_num_gpus(
    config: ResolvedConfig,
    machines: Sequence[Machine],
    built: CheckedModel,
    summaries: Mapping[str, DataSummary],
    caches: Path,
    probe: MemoryProbe,
) -> tuple[float, str]:
    """What `num_gpus: auto` comes to, and how it was decided, where something was tried.

    machines: of the config's Ray cluster. Raises InputError where a client fits on no GPU.
    """
    if config.ray.address is not None:
        return cluster_gpus(machines), ""
    return gpu_share(config, built.task, built.architecture, summaries, caches, probe)
