"""The steps of `check`, one function each; federation.py calls them in their order.

If the next step can run without a step's result, the step adds its problems to the result's
`problems`, so that all are reported together; the other steps raise InputError.
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

SERVER_CACHES = ".server"  # folder beside the clients' folders; no client can have this name

Meet = Callable[[Config, str], ClientRegistry]


@dataclass(frozen=True)
class CheckedSettings:
    """Results of checking the settings and the base model, before any data is read.

    base: Base model; None if it cannot be used. weights: Model whose weights training starts from.
    machines: Machines of the Ray cluster, if one is used. problems: All problems so far.
    """

    base: LoadedBase | None
    weights: torch.nn.Module | None
    machines: tuple[Machine, ...]
    problems: tuple[str, ...]

    @property
    def task(self) -> str:
        """The task for which labels are read; detect if the base model cannot be used."""
        return self.base.task if self.base else "detect"

    @property
    def base_from_anywhere(self) -> LoadedBase:
        """The base model with an absolute name; use it only if there are no problems."""
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
    """Load the base model and the weights that training starts from; return problems if not."""
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
    """Wait for clients that are SuperNodes; return None if the clients are on this machine.

    Raises InputError with all problems so far: sites are asked only after all else has passed.
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
    """Summaries of the data sets, and their problems.

    clients: Clients that take part. summaries: Summaries by client, for data that could be read.
    server: Summary of `evaluate.data`. problems: Problems that stop the run. unusable: Problems
    that do not stop a resumed run.
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
    """Read the image headers and labels on this machine; sites have read theirs themselves.

    task: Task for which labels are read. caches: Label caches, one folder per data set.
    """
    config = prepared.config
    problems: list[str] = []
    unusable: list[str] = []

    def read(path: str, folder: str, where: str, splits: tuple[str, ...]) -> DataSummary | None:
        if found := prepared.problems.get(SERVER if folder == SERVER_CACHES else folder):
            problems.extend(found)
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
    """Return the federation's class names. Raises InputError with all problems found so far."""
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
    """Return the summaries without those test splits that have no label of these classes.

    classes: Classes from `selected_classes`.
    """
    summaries = {n: without_unlabelled_test(s, classes) for n, s in data.summaries.items()}
    return summaries, data.server and without_unlabelled_test(data.server, classes)


@dataclass(frozen=True)
class CheckedModel:
    """The global model before round 1, and the architecture from which clients build it.

    names: Classes by index; only "item" with single_cls. class_change: The same as in `Federation`.
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
    """Build the global model, and check that it can be federated. Raises InputError if not.

    weights: Model from `weights_of`. train: Train arguments from `resolve_train`. form: Data
    description from `model_data`.
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
    """Check that the model can be trained with these settings. Raises InputError if not.

    caches: Label caches, with which a training is set up on this machine; None to skip that.
    """
    problems = single_image_problems(config, summaries, built.model)
    problems += freeze_problems(built.model, config.train.get("freeze"))
    if problems:
        raise InputError(problems)
    if caches is not None and not config.has_sites:
        _try_set_up(config, built, caches)


def _try_set_up(config: ResolvedConfig, built: CheckedModel, caches: Path) -> None:
    """Let Ultralytics set up the first client's training and read a batch, on the CPU.

    Ultralytics refuses many unusable train arguments only at this point. Raises InputError.
    """
    data = config.clients[0]
    settings = settings_of_try(config, built.task, built.architecture, data, caches, "cpu")
    # Both depend on more than the arguments (the device, free memory), and one takes long.
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
    """Return the value of `num_gpus: auto`, and how it was decided if something was tried.

    machines: Machines of the config's Ray cluster. Raises InputError if a client fits on no GPU.
    """
    if config.ray.address is not None:
        return cluster_gpus(machines), ""
    return gpu_share(config, built.task, built.architecture, summaries, caches, probe)
