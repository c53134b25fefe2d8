"""Decides settings once for all clients: batch, optimiser, image size, paths."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from ultralytics.utils import DEFAULT_CFG_DICT

from federated_yolo.aggregation.strategies import entry_of
from federated_yolo.checks.setting_rules import absolute_client
from federated_yolo.config.schema import ClientData, Config, ResolvedConfig
from federated_yolo.config.train_arguments import train_problems
from federated_yolo.data.data_yaml import Fraction
from federated_yolo.server.tracking import loggers_of_settings
from federated_yolo.yolo.checkpoint import CLASSIFY_IMGSZ, LoadedBase, train_args_of_base

LR0_DIGITS = 6  # to which Ultralytics rounds the lr0 that it chooses
STEPS_PER_AVERAGE, MOST_AVERAGES = 4, 8
MAX_STEPS = 2000  # of the median client in a run
MAX_FACTOR = 4.0
MIN_BATCH = 2  # for one client: BatchNorm has no variance in one image's smallest features


def arguments_of_base(config: Config, base: LoadedBase) -> dict[str, Any]:
    """Return the train arguments that `yolo train` takes from the base model, unless configured."""
    found = train_args_of_base(base)
    if base.task == "classify":
        found.pop("single_cls", None)
    return {k: v for k, v in found.items() if v is not None and k not in config.train}


def base_argument_problems(config: Config, base: LoadedBase) -> list[str]:
    """Return the problems of those arguments of the base model that a config could not have."""
    return [
        f"base_model '{config.base_model}': of its own arguments, {line}; set train.{name}"
        for name, value in arguments_of_base(config, base).items()
        for line in train_problems({name: value})
    ]


def resolve(
    config: Config,
    clients: Sequence[ClientData],
    names: Sequence[str],
    train: Mapping[str, Any],
    *,
    new_clients: bool,
) -> ResolvedConfig:
    """Replace each setting that depends on this machine or on the data by its value.

    Paths become absolute, so that workers and a later run find them from any directory.
    `num_gpus: auto` becomes 1 here; `with_num_gpus` puts the value that is decided later.

    clients: Clients that take part. names: Class names of the federation. train: Train arguments
    from `resolve_train`. new_clients: Whether others may join.
    """
    is_here = config.client is not None and not config.has_sites
    gpus = config.client_resources.num_gpus
    return ResolvedConfig.model_validate(
        {
            **dict(config),
            "base_model": absolute(config.base_model),
            "datasets": [{**dict(data), "data": absolute(data.data or None)} for data in clients],
            "new_clients": new_clients,
            "names": tuple(names),
            "global_batch": None,  # train.batch has its share
            "save_dir": absolute(config.save_dir),
            "client": absolute_client(config.client or "") if is_here else config.client,
            "client_resources": {
                **dict(config.client_resources),
                "num_gpus": 1.0 if gpus == "auto" else gpus,
            },
            "train": dict(train),
            "evaluate": {**dict(config.evaluate), "data": absolute(config.evaluate.data)},
            "personalise": dict(config.personalise),
            "loggers": loggers_of_settings() if config.loggers == "settings" else config.loggers,
        }
    )


def resolve_train(
    config: Config, base: LoadedBase, num_clients: int, num_images: int, num_classes: int
) -> dict[str, Any]:
    """Decide train arguments once for all clients; by its own data, each would choose others.

    `batch`: unless it is given, a round's clients divide the global batch among them, so that they
    take about as many steps as one training on the pooled data. `nbs` becomes `batch` unless it is
    given: with Ultralytics' 64, a client with few images would take one optimiser step for several
    batches, and lose the gradients that are left at the end of a round.
    `optimizer=auto` follows Ultralytics' rule (`BaseTrainer.build_optimizer`, 8.4), applied to the
    images of all clients together; lr0 is multiplied by `_spread_factor`.

    num_clients: Clients of the federation. num_images: Train images of all clients together.
    num_classes: Classes of the federation; with `single_cls`, 1 is used instead.
    """
    resolved = {**arguments_of_base(config, base), **config.train}
    if resolved.get("single_cls"):
        num_classes = 1
    global_batch = _global_batch(config)
    batch: Any = resolved.get("batch")
    factor = 1.0
    if batch is None:
        batch = _batch_of_client(config, num_clients)
        factor = _spread_factor(config, batch)
    resolved["batch"] = batch
    resolved.setdefault("nbs", batch)
    if str(resolved.get("optimizer", "auto")).lower() == "auto":
        step = max(batch if factor == 1 else global_batch, resolved["nbs"])
        if math.ceil(num_images / step) * config.num_epochs > 10000:
            resolved.update(optimizer="MuSGD", lr0=0.01)
        else:
            lr0 = round(0.002 * 5 / (4 + num_classes), LR0_DIGITS)
            resolved.update(optimizer="AdamW", lr0=lr0 * factor, momentum=0.9)
        resolved["warmup_bias_lr"] = 0.0
    if base.task == "classify":  # trainer and validator have other defaults
        resolved.setdefault("imgsz", CLASSIFY_IMGSZ)
    if isinstance(resolved.get("pretrained"), str):
        resolved["pretrained"] = absolute(resolved["pretrained"])
    return resolved


def with_personal_lr0(config: Config, base: LoadedBase, train: Mapping[str, Any]) -> Config:
    """Decide `personalise.lr0` unless it is given: lr0 without the factor of `resolve_train`.

    That factor is for noise which averaging removes, and a client that trains alone is not
    averaged. (args.yaml states both rates, so that a resumed run has them too.)

    train: Train arguments from `resolve_train`.
    """
    if config.personalise.lr0 is not None:
        return config
    default: Any = DEFAULT_CFG_DICT["lr0"]
    lr0 = float(train.get("lr0", default))
    given = {**arguments_of_base(config, base), **config.train}
    is_auto = str(given.get("optimizer", "auto")).lower() == "auto"
    if is_auto and train["optimizer"] == "AdamW" and given.get("batch") is None:
        lr0 = round(lr0 / _spread_factor(config, train["batch"]), LR0_DIGITS)
    personalise = config.personalise.model_copy(update={"lr0": lr0})
    return config.model_copy(update={"personalise": personalise})


def _global_batch(config: Config) -> int:
    default: Any = DEFAULT_CFG_DICT["batch"]
    return config.global_batch or default


def _batch_of_client(config: Config, num_clients: int) -> int:
    """Return a client's share of the global batch."""
    return max(MIN_BATCH, round(_global_batch(config) / config.num_training(num_clients)))


def _spread_factor(config: Config, batch: int) -> float:
    """Return the factor of AdamW's lr0 for a global batch that is spread over clients.

    AdamW divides by the noise of its gradients, which is sqrt(global_batch / batch) times that of
    the global batch, and averaging removes the noise again: so lr0 is multiplied by that factor
    (the square-root rule of Malladi et al. 2022, arXiv 2205.10287). If clients are averaged every
    few steps, their mean moves as far in a pass as pooled training in a client's small batches does
    with the factor global_batch / batch; it was measured up to MAX_FACTOR.
    """
    spread = max(1.0, _global_batch(config) / batch)
    averages = config.averages_per_round
    is_often = averages != "auto" and averages > 1
    return min(spread, MAX_FACTOR) if is_often else math.sqrt(spread)


def with_averages(config: Config, images: Sequence[int]) -> Config:
    """Decide how often a round averages the clients, if that is `auto`.

    Few images are few steps, and clients that drift apart in them waste these. So a short run
    averages about every STEPS_PER_AVERAGE steps of the median client, up to MOST_AVERAGES times a
    round, and never more often than the smallest client has batches. All else averages once: a run
    of more than MAX_STEPS steps, for which this was not measured; sites, a codec and local_epochs
    above 1, whose messages are dear; strategies that do not take a plain mean; and a batch, a
    class, an average or privacy of the user's own, which count by the round.

    images: Train images of each client.
    """
    if config.averages_per_round != "auto":
        return config
    batch = _batch_of_client(config, len(images))
    batches = [math.ceil(num / batch) for num in images]
    strategy = entry_of(config.strategy)
    averages = 1
    if (
        len(images) > 1
        and statistics.median(batches) * config.num_rounds <= MAX_STEPS
        and config.train.get("batch") is None
        and config.local_epochs == 1
        and config.codec.name == "none"
        and config.privacy.mode == "none"
        and not (config.has_sites or config.client or config.server_ema)
        and not (strategy.state or strategy.needs_all)
    ):
        wanted = round(statistics.median(batches) / STEPS_PER_AVERAGE)
        averages = max(1, min(wanted, MOST_AVERAGES, *batches))
    return config.model_copy(update={"averages_per_round": averages})


def with_whole_strides(train: Mapping[str, Any], model: Any) -> dict[str, Any]:
    """Round imgsz up to whole strides, as Ultralytics' trainer does and its validator does not.

    train: Train arguments from `resolve_train`. model: Model that is trained.
    """
    stride = max(int(model.stride.max()), 32)
    imgsz: Any = train.get("imgsz", DEFAULT_CFG_DICT["imgsz"])
    whole = math.ceil(imgsz / stride) * stride
    return dict(train) if whole == imgsz else {**train, "imgsz": whole}


def fraction_of(config: Config) -> Fraction:
    """Return the share of each split's images that is used."""
    fraction: Any = config.train.get("fraction", DEFAULT_CFG_DICT["fraction"])
    return fraction


@overload
def absolute(path: str) -> str: ...


@overload
def absolute(path: None) -> None: ...


def absolute(path: str | None) -> str | None:
    """Return the absolute path; the name of a model YAML of Ultralytics stays as it is."""
    if path is None:
        return None
    is_name = Path(path).suffix in {".yaml", ".yml"} and not Path(path).exists()
    return path if is_name else str(Path(path).absolute())
