"""Rules that settings must obey, given the machine, the base model and the data."""

import importlib.util
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils import DEFAULT_CFG_DICT

from federated_yolo.aggregation.privacy import BATCHNORM_PROTECTED, STRATEGIES_OF_THE_MEAN
from federated_yolo.client.custom_class import client_class
from federated_yolo.common.command_line import called_as, install_hint
from federated_yolo.common.environment import num_cpus
from federated_yolo.common.errors import InputError, nearest
from federated_yolo.config.schema import (
    ClientData,
    ClientResources,
    Config,
    PrivacyConfig,
    ResolvedConfig,
)
from federated_yolo.data.label_space import class_problems, label_space, selected_classes
from federated_yolo.data.summary import DataSummary, form_problems
from federated_yolo.yolo.slice_mixin import smallest_imgsz

MANY = 10**6


def environment_problems() -> list[str]:
    """Return a problem if variables are set that make Ultralytics train in several processes."""
    found = [
        f"{n}={os.environ[n]}" for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if n in os.environ
    ]
    if not found:
        return []
    return [
        f"{', '.join(found)} in the environment: left by torchrun or a scheduler, for training in "
        "several processes; a federation starts its own workers, on all GPUs: start it once, as "
        f"{called_as()}, with these variables unset"
    ]


def resource_problems(resources: ClientResources) -> list[str]:
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


def most_per_round(config: Config) -> int:
    """Return the most clients that a round can have; MANY for sites, which are not known yet."""
    return MANY if config.has_sites else config.clients_per_round


def min_clients_problems(config: Config, num_clients: int) -> list[str]:
    if config.min_clients <= config.num_training(num_clients):
        return []
    return [
        f"min_clients: found {config.min_clients}, but {config.num_training(num_clients)} of the "
        f"{num_clients} clients train in a round; lower it, or raise fraction_train"
    ]


def save_dir_problems(save_dir: Path) -> list[str]:
    folders = (save_dir.absolute(), *save_dir.absolute().parents)
    try:
        existing = next(folder for folder in folders if folder.exists())
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return [f"save_dir {str(save_dir)!r}: {error}; choose another save_dir"]
    if existing.is_dir() and os.access(existing, os.W_OK | os.X_OK):
        return []
    reason = "not writable" if existing.is_dir() else "not a directory"
    return [f"save_dir '{save_dir}': {existing} is {reason}; choose another save_dir"]


def classifier_problems(config: Config) -> list[str]:
    """Return the problems of settings that have a meaning for boxes only."""
    problems = [
        f"datasets[{i}] '{data.name}': not_annotated: an image of one class says that it is of no "
        "other, so a classifier has nothing to leave out; remove it"
        for i, data in enumerate([] if config.datasets == "demo" else config.clients)
        if data.not_annotated
    ]
    if config.train.get("single_cls"):
        problems.append("train.single_cls: a classifier of one class learns nothing; remove it")
    if isinstance(config.train.get("scale"), list):
        problems.append(
            f"train.scale: found {config.train['scale']}, expected one number: a classifier's "
            "images are cut to between 1 - scale and all of their area"
        )
    if config.train.get("classes") is not None:
        problems.append(
            "train.classes: Ultralytics takes all classes of a classifier's data; remove it, and "
            "the folders of the others"
        )
    return problems


def sharing_problems(config: Config) -> list[str]:
    shared = config.shared
    problems = []
    if shared.is_partial and config.evaluate.data is not None:
        problems.append(
            "evaluate.data: the server has no whole model to evaluate with shared.parts "
            f"[{', '.join(shared.parts)}] and shared.batchnorm {shared.batchnorm}; remove it "
            "(clients are evaluated on their own val splits), or share all"
        )
    if shared.is_partial:
        problems += [
            f"datasets[{i}] '{data.name}': show_images: pictures show a global model, and with "
            "shared.parts or shared.batchnorm as set there is none; set it to 0, or share all"
            for i, data in enumerate(config.clients)
            if data.show_images
        ]
    if config.evaluate.cross_client and not config.evaluate.every:
        problems.append(
            "evaluate.cross_client: has no effect with evaluate.every 0, which never evaluates; "
            "set every to 1, or remove it"
        )
    if config.patience and not config.evaluate.every:
        problems.append(
            f"patience: found {config.patience}, but with evaluate.every 0 no round has a score; "
            "set every to 1, or patience to null"
        )
    if config.averages_per_round not in ("auto", 1) and config.privacy.mode != "none":
        problems.append(
            f"averages_per_round: found {config.averages_per_round}, but privacy counts one mean "
            "in a round; set it to 1 or auto, or privacy.mode to none"
        )
    if shared.is_partial and not config.evaluate.every:
        problems.append(
            "evaluate.every: 0 would leave no model, since clients write theirs when they are "
            "evaluated; use 1, or share all"
        )
    if shared.freeze_after is not None and shared.batchnorm != "frozen":
        problems.append(
            f"shared.freeze_after: has no effect with shared.batchnorm {shared.batchnorm}; "
            "set batchnorm to frozen, or remove it"
        )
    return problems


def client_class_problems(config: Config) -> list[str]:
    if config.client is None:
        return []
    if config.has_sites and Path(config.client).is_absolute():
        return [
            f"client: found {config.client}, which is on this machine only; put the file below "
            "utils/, which travels to the SuperNodes, and name it as utils/FILE.py:CLASS"
        ]
    try:
        client_class(config.client if config.has_sites else absolute_client(config.client))
    except InputError as error:
        return error.problems
    return []


def absolute_client(client: str) -> str:
    """Return FILE.py:CLASS with an absolute path if the file exists, else unchanged."""
    return str(Path(client).absolute()) if Path(client.rpartition(":")[0]).exists() else client


def codec_problems(config: Config) -> list[str]:
    codec = config.codec
    problems = []
    if codec.fraction is not None and codec.name != "topk":
        problems.append(
            f"codec.fraction: has no effect with codec {codec.name}; set codec.name to topk, or "
            "remove it"
        )
    if codec.name != "none" and config.server_ema:
        problems.append(
            f"server_ema: the average would have to travel whole in each round that is evaluated, "
            f"and codec {codec.name} sends what has changed; set server_ema to 0 or codec to none"
        )
    return problems


def label_space_of(
    config: Config,
    clients: Sequence[ClientData],
    summaries: Mapping[str, DataSummary],
    server_names: tuple[str, ...] | None,
) -> tuple[tuple[str, ...], list[str]]:
    """Return the class names of the federation, and the problems of data sets that differ."""
    own = {name: summary.names for name, summary in summaries.items()}
    problems: list[str] = []
    names = config.names or ()
    if not names:
        try:
            names = label_space(own)
        except InputError as error:
            return (), error.problems
    elif len(set(names)) < len(names):
        problems.append(f"names: found a class twice in [{', '.join(names)}]; name each once")
    wanted = [(f"datasets[{i}] '{d.name}'", own.get(d.name, ())) for i, d in enumerate(clients)]
    if config.names or len(own) == len(clients):  # else the classes are not known yet
        wanted.append(("evaluate.data", server_names or ()))
    for where, found in wanted:
        problems += unknown_class_problem(where, found, names)
    for i, data in enumerate(clients):
        for name in data.not_annotated:
            if data.name in own and name not in own[data.name]:
                problems.append(
                    f"datasets[{i}] '{data.name}': not_annotated: '{name}' is not one of its "
                    f"classes [{', '.join(own[data.name])}]{nearest(name, own[data.name])}"
                )
    return names, problems


def unknown_class_problem(where: str, found: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return a problem for the first class of a data set that the federation does not have."""
    unknown = [name for name in found if name not in names]
    return [
        f"{where}: class '{name}' is not one of the federation's [{', '.join(names)}]"
        f"{nearest(name, names)}; add it under names, or correct it"
        for name in unknown[:1]
    ]


def form_problems_of(
    clients: Sequence[ClientData],
    summaries: Mapping[str, DataSummary],
    server_summary: DataSummary | None,
) -> list[str]:
    """Return the differences in channels and keypoints, which must be the same everywhere."""
    found = [
        (f"datasets[{i}] '{data.name}'", summaries[data.name])
        for i, data in enumerate(clients)
        if data.name in summaries
    ]
    if server_summary is not None:
        found.append(("evaluate.data", server_summary))
    # Each is compared with all before it: a later one can state what the first leaves out.
    return [
        f"{where}: {problem}"
        for i, (where, summary) in enumerate(found)
        for problem in form_problems(summary, dict(found[:i]))
    ]


def class_index_problems(config: Config, names: tuple[str, ...]) -> list[str]:
    classes = config.train.get("classes")
    indices = classes if isinstance(classes, list) else [] if classes is None else [classes]
    wrong = [index for index in indices if not 0 <= index < len(names)]
    if not names or (not wrong and classes != []):
        return []
    return [f"train.classes: found {classes}, expected indices of [{', '.join(names)}] from 0"]


def selected_class_problems(
    config: Config,
    clients: Sequence[ClientData],
    names: tuple[str, ...],
    summaries: Mapping[str, DataSummary],
    server_summary: DataSummary | None,
) -> list[str]:
    """Return a problem for each data set that has no label of the selected classes to score."""
    classes = selected_classes(config.train, names)
    problems = [
        f"datasets[{index}] '{data.name}': {problem}"
        for index, data in enumerate(clients)
        if data.name in summaries
        for problem in class_problems(summaries[data.name], classes)
    ]
    if server_summary is not None:
        found = class_problems(server_summary, classes, ("val",))
        problems += [f"evaluate.data: {problem}" for problem in found]
    return problems


def single_image_problems(
    config: ResolvedConfig, summaries: Mapping[str, DataSummary], model: Any
) -> list[str]:
    """Return problems where all batches have one image, and images are too small for BatchNorm."""
    stride = max(int(model.stride.max()), 32)
    imgsz: Any = config.train.get("imgsz", DEFAULT_CFG_DICT["imgsz"])
    smallest = smallest_imgsz(imgsz, float(config.train.get("multi_scale", 0.0)), stride)
    if smallest >= 2 * stride:
        return []
    why = f"at imgsz {smallest} BatchNorm has a single value per channel in a batch of one image"
    larger = f"train.imgsz and multi_scale that keep every size at least {2 * stride}"
    if config.train["batch"] == 1:
        return [f"train.batch: found 1, but {why}; give at least 2, or {larger}"]
    return [
        f"datasets[{index}] '{data.name}': found 1 train image, but {why}; give it at least 2, "
        f"or {larger}"
        for index, data in enumerate(config.clients)
        if data.name in summaries and summaries[data.name].num_train == 1
    ]


def precision_problems(config: ResolvedConfig) -> list[str]:
    """Return a problem if bfloat16, which needs a GPU, is set for the CPU; sites check theirs."""
    is_on_cpu = not config.has_sites and not config.client_resources.num_gpus
    if not is_on_cpu or str(config.train.get("amp")).lower() != "bf16":
        return []
    return [
        "train.amp: found bf16, which needs a GPU, and clients train on the CPU; remove it, or "
        "give client_resources.num_gpus where there is one"
    ]


def privacy_problems(config: Config) -> list[str]:
    """Return the settings that keep a config's privacy from holding or from working."""
    privacy = config.privacy
    problems = []
    if privacy.secure_aggregation:
        problems.append(
            "privacy.secure_aggregation: found true, which is not supported: Flower 1.41 has it "
            "(SecAgg+) for legacy strategies only, cuts weights off at a fixed range, and no "
            "update could be checked (docs/privacy.md); set it to false, and use privacy.mode "
            "local against a server that is not trusted"
        )
    if privacy.mode == "none":
        return problems + [
            f"privacy.{name}: has no effect with privacy.mode none; set mode to central or local, "
            "or remove it"
            for name in ("clipping_norm", "noise_multiplier")
            if getattr(privacy, name) is not None
        ]
    problems += _setting_problems(privacy, len(config.clients))
    problems += _leak_problems(config)
    if privacy.mode == "central":
        problems += _aggregation_problems(config)
    if importlib.util.find_spec("dp_accounting") is None:
        problems.append(
            f"privacy.mode: {privacy.mode} needs dp-accounting to state epsilon, and it is not "
            f"installed; {install_hint('dp')}"
        )
    return problems


def _setting_problems(privacy: PrivacyConfig, num_clients: int) -> list[str]:
    problems = []
    if privacy.clipping_norm is None:
        problems.append(
            f"privacy.clipping_norm: missing, and privacy.mode {privacy.mode} needs it; start from "
            "the middle of update_norm in the clients.csv of a run on data that is not private"
        )
    if privacy.noise_multiplier is None:
        problems.append(
            f"privacy.noise_multiplier: missing, and privacy.mode {privacy.mode} needs it; more is "
            "more private: epsilon is shown before round 1, and 1 is seldom enough"
        )
    if privacy.delta * num_clients >= 1:
        problems.append(
            f"privacy.delta: found {privacy.delta:g}, expected less than 1 / {num_clients} "
            "(clients), or giving one client's data away would count as private"
        )
    if privacy.mode == "local" and privacy.clipping == "adaptive":
        problems.append(
            "privacy.clipping: adaptive needs the server to know whose updates are clipped, which "
            "privacy.mode local hides; use fixed"
        )
    return problems


def _leak_problems(config: Config) -> list[str]:
    """Return the settings by which unprotected data would leave a client."""
    shared, problems = config.shared, []
    is_frozen = shared.batchnorm == "frozen" and shared.freeze_after == 0
    if shared.batchnorm != "local" and not is_frozen:
        after = "" if shared.batchnorm == "average" else " until they are frozen"
        problems.append(
            f"shared.batchnorm: {shared.batchnorm} sends means and variances of what clients see "
            f"without noise{after}; with privacy.mode {config.privacy.mode} set it to "
            f"{BATCHNORM_PROTECTED}"
        )
    if config.evaluate.cross_client:
        problems.append(
            "evaluate.cross_client: sends clients' own models to all others, which privacy.mode "
            f"{config.privacy.mode} is to prevent; set it to false"
        )
    return problems


def _aggregation_problems(config: Config) -> list[str]:
    """Return the settings by which an update affects more than its clipped share of the mean."""
    problems = []
    if config.strategy.name not in STRATEGIES_OF_THE_MEAN:
        problems.append(
            f"strategy.name: {config.strategy.name} needs each update, and privacy.mode central "
            f"gives away only their noisy mean; use {', '.join(STRATEGIES_OF_THE_MEAN)}"
        )
    if config.update_norm.outliers != "keep":
        problems.append(
            f"update_norm.outliers: {config.update_norm.outliers} goes by the other clients' "
            "updates, which the noise of privacy.mode central does not hide; use keep: "
            "privacy.clipping_norm limits each update"
        )
    return problems
