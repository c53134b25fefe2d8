"""What is decided once for all clients: batch, optimiser, image size, paths."""

import math
from pathlib import Path
from typing import Any

from ultralytics.utils import DEFAULT_CFG_DICT

from federated_yolo.checks.setting_rules import absolute_client
from federated_yolo.config.schema import ClientData, Config
from federated_yolo.config.train_arguments import train_problems
from federated_yolo.data.data_yaml import Fraction
from federated_yolo.data.summary import DataSummary
from federated_yolo.server.tracking import loggers_of_settings
from federated_yolo.yolo.checkpoint import CLASSIFY_IMGSZ, train_args_of_base

MIN_BATCH = 2  # of one client: BatchNorm has no variance in one image's smallest features


def with_arguments_of_base(config: Config, task: str) -> tuple[Config, list[str]]:
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


def resolve_settings(
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
            else absolute_client(config.client),
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


def with_whole_strides(config: Config, model: Any) -> Config:
    """Round imgsz up to whole strides, as Ultralytics' trainer does and its validator does not."""
    stride = max(int(model.stride.max()), 32)
    imgsz: Any = config.train.get("imgsz", DEFAULT_CFG_DICT["imgsz"])
    whole = math.ceil(imgsz / stride) * stride
    if whole == imgsz:
        return config
    return config.model_copy(update={"train": {**config.train, "imgsz": whole}})


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
