"""Everything that can be checked before round 1, and what is decided once for all clients."""

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from ultralytics.utils import DEFAULT_CFG_DICT

from utils.arrays import Layout, layout_problems, negative_statistics
from utils.attempts import reason_of
from utils.client import client_class
from utils.cluster import Machine, inspected, with_cluster_gpus
from utils.config import (
    ClientData,
    ClientResources,
    Config,
    InputError,
    config_problems,
    nearest,
    train_problems,
)
from utils.data import (
    DataSummary,
    Fraction,
    check_dataset,
    class_names,
    class_problems,
    form_problems,
    in_label_space,
    label_space,
    model_data,
    read_data,
    selected_classes,
    without_unlabelled_test,
)
from utils.environment import num_cpus
from utils.gpu_share import CudaMemory, MemoryProbe, settings_of_try, with_gpu_share
from utils.loggers import logger_problems, loggers_of_settings
from utils.members import Members
from utils.model import (
    CLASSIFY_IMGSZ,
    Architecture,
    architecture_of,
    architecture_problems,
    build_model,
    class_change,
    freeze_problems,
    load_checkpoint_module,
    shared_names,
    task_of,
    to_arrays,
    train_args_of_base,
)
from utils.privacy import privacy_problems
from utils.run_dir import RunDir
from utils.strategies import strategy_problems
from utils.trainer import set_up, smallest_imgsz

MANY = 10**6
MIN_BATCH = 2  # of one client: BatchNorm has no variance in one image's smallest features
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
    from utils.demo_data import make_demo_data

    problems = _save_dir_problems(Path(config.save_dir))
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
    problems += strategy_problems(config.strategy, _most_per_round(config))
    problems += [] if config.has_sites else _min_clients_problems(config)
    problems += privacy_problems(config)
    problems += [] if config.loggers == "settings" else logger_problems(config.loggers)
    problems += _environment_problems() + _sharing_problems(config) + _codec_problems(config)
    problems += _client_problems(config)
    machines: list[Machine] = []
    if config.ray.address is None:
        problems += _resource_problems(config.client_resources)
    else:
        machines, cluster_problems = inspected(config)
        problems += cluster_problems
    problems += _save_dir_problems(Path(config.save_dir))
    task, base_problems = _task(config)
    problems += base_problems + (_classifier_problems(config) if task == "classify" else [])
    if task is not None:
        config, base_problems = _with_arguments_of_base(config, task)
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
        problems += _min_clients_problems(config)
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
    names, name_problems = _label_space(config, summaries, server_names)
    problems += (
        name_problems
        + _form_problems(config, summaries, server_summary)
        + _class_index_problems(config, names)
    )
    if not problems and resumed is None:
        problems += _class_problems(config, names, summaries, server_summary)
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
    config = _resolve(config, task, summaries, names)
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
    config = _with_whole_strides(config, model)
    problems = _single_image_problems(config, summaries, model)
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
    problems = _precision_problems(config)
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
    unknown = _unknown_class("evaluate.data", class_names(data), names)
    if unknown:
        raise InputError(unknown)
    data = in_label_space(data, names)
    if not has_test:
        data.pop("test", None)
    return data


def _environment_problems() -> list[str]:
    """Ultralytics takes these for a training over several processes, whichever set them."""
    found = [
        f"{n}={os.environ[n]}" for n in ("RANK", "LOCAL_RANK", "WORLD_SIZE") if n in os.environ
    ]
    if not found:
        return []
    return [
        f"{', '.join(found)} in the environment: left by torchrun or a scheduler, for training in "
        "several processes; a federation starts its own workers, on all GPUs: start it once, as "
        "python federated.py, with these variables unset"
    ]


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


def _most_per_round(config: Config) -> int:
    """How many clients a round can have, as far as is known before sites have come."""
    return MANY if config.has_sites else config.clients_per_round


def _min_clients_problems(config: Config) -> list[str]:
    if config.min_clients <= config.clients_per_round:
        return []
    return [
        f"min_clients: found {config.min_clients}, but {config.clients_per_round} of the "
        f"{len(config.clients)} clients train in a round; lower it, or raise fraction_train"
    ]


def _save_dir_problems(save_dir: Path) -> list[str]:
    folders = (save_dir.absolute(), *save_dir.absolute().parents)
    try:
        existing = next(folder for folder in folders if folder.exists())
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        return [f"save_dir {str(save_dir)!r}: {error}; choose another save_dir"]
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


def _with_arguments_of_base(config: Config, task: str) -> tuple[Config, list[str]]:
    """The config with what `yolo train` takes from the base model; and what is wrong with that."""
    found = train_args_of_base(config.base_model)
    if task == "classify":
        found.pop("single_cls", None)
    found = {k: v for k, v in found.items() if v is not None and k not in config.train}
    problems = [
        f"base_model '{config.base_model}': of its own arguments, {line}; set train.{name}"
        for name, value in found.items()
        for line in train_problems({name: value})
    ]
    return config.model_copy(update={"train": {**found, **config.train}}), problems


def _classifier_problems(config: Config) -> list[str]:
    """Settings that mean something for boxes only."""
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


def _sharing_problems(config: Config) -> list[str]:
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


def _client_problems(config: Config) -> list[str]:
    if config.client is None:
        return []
    if config.has_sites and Path(config.client).is_absolute():
        return [
            f"client: found {config.client}, which is on this machine only; put the file below "
            "utils/, which travels to the SuperNodes, and name it as utils/FILE.py:CLASS"
        ]
    try:
        client_class(config.client if config.has_sites else _absolute_client(config.client))
    except InputError as error:
        return error.problems
    return []


def _absolute_client(client: str) -> str:
    """FILE.py:CLASS from any directory, if the file is there; else as it is in the project."""
    return str(Path(client).absolute()) if Path(client.rpartition(":")[0]).exists() else client


def _codec_problems(config: Config) -> list[str]:
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


def _label_space(
    config: Config, summaries: dict[str, DataSummary], server_names: tuple[str, ...] | None
) -> tuple[tuple[str, ...], list[str]]:
    """Class names of the federation, and what in the data sets does not fit them."""
    own = {name: summary.names for name, summary in summaries.items()}
    problems: list[str] = []
    names = tuple(config.names or ())
    if not names:
        try:
            names = label_space(own)
        except InputError as error:
            return (), error.problems
    elif len(set(names)) < len(names):
        problems.append(f"names: found a class twice in [{', '.join(names)}]; name each once")
    wanted = [
        (f"datasets[{i}] '{d.name}'", own.get(d.name, ())) for i, d in enumerate(config.clients)
    ]
    if config.names or len(own) == len(config.clients):  # else the classes are not known yet
        wanted.append(("evaluate.data", server_names or ()))
    for where, found in wanted:
        problems += _unknown_class(where, found, names)
    for i, data in enumerate(config.clients):
        for name in data.not_annotated:
            if data.name in own and name not in own[data.name]:
                problems.append(
                    f"datasets[{i}] '{data.name}': not_annotated: '{name}' is not one of its "
                    f"classes [{', '.join(own[data.name])}]{nearest(name, own[data.name])}"
                )
    return names, problems


def _unknown_class(where: str, found: Sequence[str], names: Sequence[str]) -> list[str]:
    """Say which class of a data set, the first of them, the federation does not have."""
    unknown = [name for name in found if name not in names]
    return [
        f"{where}: class '{name}' is not one of the federation's [{', '.join(names)}]"
        f"{nearest(name, names)}; add it under names, or correct it"
        for name in unknown[:1]
    ]


def _form_problems(
    config: Config, summaries: dict[str, DataSummary], server_summary: DataSummary | None
) -> list[str]:
    """What differs in channels and keypoints, which must be the same everywhere."""
    found = [
        (f"datasets[{i}] '{data.name}'", summaries[data.name])
        for i, data in enumerate(config.clients)
        if data.name in summaries
    ]
    if server_summary is not None:
        found.append(("evaluate.data", server_summary))
    # With all before it: what the first one leaves out, others can say.
    return [
        f"{where}: {problem}"
        for i, (where, summary) in enumerate(found)
        for problem in form_problems(summary, dict(found[:i]))
    ]


def _class_index_problems(config: Config, names: tuple[str, ...]) -> list[str]:
    classes = config.train.get("classes")
    indices = classes if isinstance(classes, list) else [] if classes is None else [classes]
    wrong = [index for index in indices if not 0 <= index < len(names)]
    if not names or (not wrong and classes != []):
        return []
    return [f"train.classes: found {classes}, expected indices of [{', '.join(names)}] from 0"]


def _class_problems(
    config: Config,
    names: tuple[str, ...],
    summaries: dict[str, DataSummary],
    server_summary: DataSummary | None,
) -> list[str]:
    """Which data sets have nothing to be scored by, once `train.classes` has left out the rest."""
    classes = selected_classes(config.train, names)
    problems = [
        f"datasets[{index}] '{data.name}': {problem}"
        for index, data in enumerate(config.clients)
        if data.name in summaries
        for problem in class_problems(summaries[data.name], classes)
    ]
    if server_summary is not None:
        found = class_problems(server_summary, classes, ("val",))
        problems += [f"evaluate.data: {problem}" for problem in found]
    return problems


def _resolve(
    config: Config, task: str, summaries: dict[str, DataSummary], names: tuple[str, ...]
) -> Config:
    """Replace what is left to this machine or to the data by what it comes to.

    Paths become absolute, so that workers and a later run find them from any directory.
    """
    num_images = sum(summary.num_train for summary in summaries.values())
    num_classes = 1 if config.train.get("single_cls") else len(names)
    train = resolve_train(config, num_images, num_classes)
    if task == "classify":  # trainer and validator have other defaults
        train.setdefault("imgsz", CLASSIFY_IMGSZ)
    if isinstance(train.get("pretrained"), str):
        train["pretrained"] = _absolute(train["pretrained"])
    evaluate = config.evaluate
    if evaluate.data is not None:
        evaluate = evaluate.model_copy(update={"data": _absolute(evaluate.data)})
    return config.model_copy(
        update={
            "base_model": _absolute(config.base_model),
            "datasets": [_with_absolute_path(data) for data in config.clients],
            "names": list(names),
            "global_batch": None,  # train.batch has its share
            "save_dir": _absolute(config.save_dir),
            "client": config.client
            if config.client is None or config.has_sites
            else _absolute_client(config.client),
            "train": train,
            "evaluate": evaluate,
            "loggers": loggers_of_settings() if config.loggers == "settings" else config.loggers,
        }
    )


def resolve_train(config: Config, num_images: int, num_classes: int) -> dict[str, Any]:
    """Decide once for all clients what each would decide by its own data.

    `batch`: unless it is given, a round's clients share out the global batch, so that they take
    about as many steps as one training on the pooled data. `nbs` becomes `batch` unless it is
    given: Ultralytics' 64 would let a client with few images take one optimiser step for several
    batches, and drop what is left at the end of a round.
    `optimizer=auto` follows Ultralytics' rule (`BaseTrainer.build_optimizer`, 8.4), by the images
    of all clients together. AdamW divides by the noise of its gradients, which is
    sqrt(global_batch / batch) times that of the global batch, and averaging takes the noise out
    again: so lr0 is multiplied by that (the square-root rule of Malladi et al. 2022, arXiv
    2205.10287, for a batch that is spread over clients).
    """
    resolved = dict(config.train)
    default: Any = DEFAULT_CFG_DICT["batch"]
    global_batch = config.global_batch or default
    batch: Any = resolved.get("batch")
    noise = 1.0
    if batch is None:
        batch = max(MIN_BATCH, round(global_batch / config.clients_per_round))
        noise = math.sqrt(max(1.0, global_batch / batch))
    resolved["batch"] = batch
    resolved.setdefault("nbs", batch)
    if str(resolved.get("optimizer", "auto")).lower() == "auto":
        step = max(batch if noise == 1 else global_batch, resolved["nbs"])
        if math.ceil(num_images / step) * config.num_epochs > 10000:
            resolved.update(optimizer="MuSGD", lr0=0.01)
        else:
            lr0 = round(0.002 * 5 / (4 + num_classes), 6)
            resolved.update(optimizer="AdamW", lr0=lr0 * noise, momentum=0.9)
        resolved["warmup_bias_lr"] = 0.0
    return resolved


def _with_whole_strides(config: Config, model: Any) -> Config:
    """Round imgsz up to whole strides, as Ultralytics' trainer does and its validator does not."""
    stride = max(int(model.stride.max()), 32)
    imgsz: Any = config.train.get("imgsz", DEFAULT_CFG_DICT["imgsz"])
    whole = math.ceil(imgsz / stride) * stride
    if whole == imgsz:
        return config
    return config.model_copy(update={"train": {**config.train, "imgsz": whole}})


def _single_image_problems(
    config: Config, summaries: dict[str, DataSummary], model: Any
) -> list[str]:
    """Say where all batches are of one image, and images too small for BatchNorm to train so."""
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


def _precision_problems(config: Config) -> list[str]:
    """Ultralytics trains in bfloat16 on GPUs alone. Sites know theirs themselves."""
    is_on_cpu = not config.has_sites and not config.client_resources.num_gpus
    if not is_on_cpu or str(config.train.get("amp")).lower() != "bf16":
        return []
    return [
        "train.amp: found bf16, which needs a GPU, and clients train on the CPU; remove it, or "
        "give client_resources.num_gpus where there is one"
    ]


def fraction_of(config: Config) -> Fraction:
    """The share of the images of each split that is used."""
    fraction: Any = config.train.get("fraction", DEFAULT_CFG_DICT["fraction"])
    return fraction


def _with_absolute_path(data: ClientData) -> ClientData:
    return data.model_copy(update={"data": _absolute(data.data)}) if data.data else data


def _absolute(path: str) -> str:
    """The path from any directory; a model name that comes with Ultralytics stays."""
    is_name = Path(path).suffix in {".yaml", ".yml"} and not Path(path).exists()
    return path if is_name else str(Path(path).absolute())
