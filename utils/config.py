"""Settings: a YAML file and key=value overrides become one validated, immutable `Config`.

The names, defaults and meaning of every setting are here; configs/example.yaml explains them to
users. Train arguments are Ultralytics' own: their names and types are checked against the
installed version, and those which a federation decides itself are refused with the reason.
"""

import difflib
import io
import math
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
)
from yaml import YAMLError

from utils.files import read_yaml, read_yaml_text

# Train arguments that the federation sets: name -> which setting to use instead.
OWNED_TRAIN_ARGS = {
    "model": "use base_model",
    "data": "use datasets",
    "epochs": "use num_rounds and local_epochs; the schedule spans num_rounds * local_epochs",
    "task": "it comes from base_model",
    "mode": "a federation always trains",
    "seed": "use seed",
    "device": "use client_resources: each client trains on one GPU (num_gpus: 0 on the CPU), and "
    "those at work at once share out all GPUs there are",
    "project": "use save_dir",
    "name": "use name",
    "exist_ok": "every run gets a directory of its own",
    "save_dir": "use save_dir",
    "save": "every round is saved",
    "save_period": "every round is saved",
    "resume": "python federated.py resume=RUN_DIR goes on with a run that was stopped",
    "time": "use num_rounds",
    "patience": "a federation runs all its rounds; best.pt is the best of them",
    "val": "use evaluate.every",
    "split": "clients are evaluated on their val split",
    "plots": "report.html shows the run",
    "verbose": "use verbose",
    "cfg": "write the train arguments here",
    "profile": "export the model and profile that",
    "compile": "compiled models are not supported in a federation",
    "distill_model": "distillation is not supported in a federation",
    "quantize": "quantisation-aware training is not supported; export with quantize=... instead",
    "save_json": "not available in a federation",
}
# Arguments of predict, track and export, and Python objects that no YAML can hold.
NOT_TRAIN_ARGS = frozenset(
    "source vid_stride stream_buffer visualize retina_masks embed show save_frames save_txt "
    "save_conf save_crop show_labels show_conf show_boxes line_width format optimize dynamic "
    "simplify opset workspace dnn tracker augmentations".split()
)


def _is_layer(value: Any) -> bool:
    """Whether it names a layer by its number, or a part of one by its name."""
    return (type(value) is int and value >= 0) or (isinstance(value, str) and bool(value))


# Train arguments of which Ultralytics checks nothing, or only while it trains.
CHECKED_TRAIN_ARGS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "batch": (
        lambda x: type(x) is int and 1 <= x <= MAX_BATCH,
        "a whole number of images, from 1 to 65536; AutoBatch (batch=-1) would give every client "
        "another batch size",
    ),
    "imgsz": (
        lambda x: type(x) is int and 32 <= x <= 65536,
        "a whole number of pixels, at least 32",
    ),
    "workers": (
        lambda x: type(x) is int and 0 <= x <= MAX_WORKERS,
        "a whole number from 0 to 1024",
    ),
    "cache": (
        lambda x: x in (None, True, False, "ram"),
        "ram or false; 'disk' would write into the data folder",
    ),
    "optimizer": (
        lambda x: str(x).lower() in "auto sgd musgd adam adamax adamw nadam radam rmsprop".split(),
        "auto, SGD, MuSGD, Adam, Adamax, AdamW, NAdam, RAdam or RMSprop",
    ),
    "pretrained": (lambda x: isinstance(x, bool | str), "true, false or the path of a .pt"),
    "classes": (
        lambda x: x is None or all(type(i) is int for i in (x if isinstance(x, list) else [x])),
        "class indices, e.g. [0, 2]",
    ),
    "freeze": (
        lambda x: (
            x is None
            or (type(x) is int and x >= 0)
            or (isinstance(x, list) and all(_is_layer(layer) for layer in x))
        ),
        "a number of layers, or a list of layers and names, such as [0, 1, '22.cv2']",
    ),
    "auto_augment": (
        lambda x: x in (None, "", "randaugment", "autoaugment", "augmix"),
        "randaugment, autoaugment, augmix or null",
    ),
    "copy_paste_mode": (lambda x: x in ("flip", "mixup"), "flip or mixup"),
}
MAX_BATCH, MAX_WORKERS = 65536, 1024
MAX_ROUNDS, MAX_LOCAL_EPOCHS = 1_000_000, 10_000
DEFAULT_SAVE_DIR = "runs/federated"
DEFAULT_FRACTION = 0.65  # of topk, by benchmarks/traffic.py
LOGGER_NAMES = ("tensorboard", "wandb", "mlflow")  # utils/loggers.py has them
CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# Settings that are text, whatever YAML would make of it: 0123 is a name, not 83. `*`: of a list.
TEXTS = ("base_model", "save_dir", "name", "client", "evaluate.data", "ray.address")
TEXTS += ("datasets.*", "datasets.*.name", "datasets.*.data")
# Class names are what Ultralytics reads in a data.yaml: yes is 'True' there, and 01 is '1'.
CLASS_NAMES = ("names.*", "datasets.*.not_annotated.*")


def at_home(path: str) -> str:
    """A path with `~` replaced by the home folder; Path's own way raises for one without a home."""
    return os.path.expanduser(path)  # noqa: PTH111


PathText = Annotated[str, AfterValidator(at_home)]
# Numbers, of which true and false are none.
PositiveInt = Annotated[int, Field(strict=True, ge=1)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
ShownImages = Annotated[int, Field(strict=True, ge=0, le=16)]  # what Ultralytics draws on a grid


class InputError(ValueError):
    """Something the user can fix. `problems` has one line for each: where, found, expected."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)


class ClientData(_Frozen):
    """One client: a name, safe as a folder name, and the path of its `data.yaml`.

    data: of a classifier a folder, as Ultralytics' `data=`; None for a client that is a SuperNode
    of this name, which knows where its data is.
    not_annotated: classes that its data.yaml lists but nobody looked for in its images. They, and
    the federation's classes that it does not list, are left out of its classification loss.
    show_images: how many images of its val split may be seen by others, in pictures of predictions.
    """

    name: str
    data: PathText | None = None
    not_annotated: tuple[str, ...] = ()
    show_images: ShownImages = 0


class StrategyConfig(BaseModel):
    """Name of a strategy in utils/strategies.py; what else stands here are its options.

    weights: by what clients count in the mean of their models, and of their losses and scores: by
    their images, or all the same. max_share: of one client in such a mean; None is no limit.
    """

    model_config = ConfigDict(frozen=True, extra="allow")
    name: str = "fedavg"
    weights: Literal["images", "equal"] = "images"
    max_share: Annotated[float, Field(strict=True, ge=1e-6, le=1)] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options of the strategy, by name."""
        return dict(self.model_extra or {})


class ClientResources(_Frozen):
    """What Ray reserves for one client at work; fractions let clients share.

    num_cpus: also the number of PyTorch threads, rounded down, at least 1.
    num_gpus: "auto" shares a GPU among as many clients as fit and is 0 where there is none.
    """

    num_cpus: Annotated[float, Field(strict=True, gt=0)] = 1.0
    num_gpus: Annotated[float, Field(strict=True, ge=0)] | Literal["auto"] = "auto"


class RayConfig(_Frozen):
    """address: of a running Ray cluster, HOST:PORT, or "auto" for that of this machine.

    None starts a Ray of its own, on this machine.
    """

    address: Annotated[str, Field(pattern=r"^(auto|[^/\s]+:[0-9]{1,5})$")] | None = None


class SharedConfig(_Frozen):
    """Which arrays are federated; the others stay with each client, which has a model of its own.

    parts: of the model, by its own YAML. batchnorm: "average" shares them like all others; "local"
    keeps them with the client (FedBN, Li et al. 2021, arXiv 2102.07623); "frozen" averages, and
    fixes their statistics after round `freeze_after` (FixBN, Zhong et al. 2023, arXiv 2303.06530).
    freeze_after: None is half of the rounds, as in the paper.
    """

    parts: Annotated[tuple[Literal["backbone", "neck", "head"], ...], Field(min_length=1)] = (
        "backbone",
        "neck",
        "head",
    )
    batchnorm: Literal["average", "local", "frozen"] = "average"
    freeze_after: NonNegativeInt | None = None

    @property
    def is_partial(self) -> bool:
        """Whether some arrays stay with the clients, so that each has a model of its own."""
        return self.batchnorm == "local" or len(set(self.parts)) < 3

    def batchnorm_is_frozen(self, round_number: int, num_rounds: int) -> bool:
        """Whether BatchNorm statistics stay as they are in this round."""
        after = num_rounds // 2 if self.freeze_after is None else self.freeze_after
        return self.batchnorm == "frozen" and round_number > after


class UpdateNormConfig(_Frozen):
    """What to do with a client's update that is far longer than those of the others.

    Its length is the L2 norm of the change of the trainable arrays; an outlier's is more than
    `times_median` times the median of the round's. "keep" takes it as it is, "clip" shortens it to
    that length, "refuse" leaves the client out of the round.
    """

    outliers: Literal["keep", "clip", "refuse"] = "keep"
    times_median: Annotated[float, Field(strict=True, gt=1)] = 3.0


class PrivacyConfig(_Frozen):
    """Differential privacy of what clients send; see utils/privacy.py and docs/privacy.md.

    mode: "central" adds noise to the mean of the updates on the server, which is trusted; "local"
    to each update at its client. clipping_norm: to which L2 norm an update is shortened; where
    clipping is "adaptive", that of the first round. noise_multiplier: standard deviation of the
    noise by the clipping norm. delta: for which epsilon is stated.
    secure_aggregation: refused, with the reason.
    """

    mode: Literal["none", "central", "local"] = "none"
    clipping: Literal["fixed", "adaptive"] = "fixed"
    clipping_norm: Annotated[float, Field(strict=True, gt=0, lt=1e18)] | None = None
    noise_multiplier: Annotated[float, Field(strict=True, gt=0, lt=1e18)] | None = None
    delta: Annotated[float, Field(strict=True, gt=0, lt=1)] = 1e-5
    secure_aggregation: Annotated[bool, Field(strict=True)] = False


class CodecConfig(_Frozen):
    """How arrays travel: "none" sends them as they are, the others what has changed in them.

    The change of the trainable arrays is rounded to half precision ("float16"), to 8 bits ("int8"),
    or is the `fraction` of each array's values that have changed most, in a few bits ("topk"). What
    is left out is added to the next round's (Karimireddy et al. 2019, arXiv 1901.09847).
    fraction: None is DEFAULT_FRACTION.
    """

    name: Literal["none", "float16", "int8", "topk"] = "none"
    fraction: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None

    @property
    def kept(self) -> float:
        """The fraction, with its default."""
        return DEFAULT_FRACTION if self.fraction is None else self.fraction


class EvaluateConfig(_Frozen):
    """data: of a client's kind, but held by the server; its val split scores each global model.

    every: evaluate after every n-th round and after the last; 0 never evaluates.
    cross_client: clients keep their best model straight after their own epochs, and after the last
    round each of these models is sent to every client and scored on its val split.
    show_images: how many images of `data` are drawn with the first and last round's predictions.
    """

    data: PathText | None = None
    every: NonNegativeInt = 1
    cross_client: Annotated[bool, Field(strict=True)] = False
    show_images: ShownImages = 4

    def is_due(self, round_number: int, num_rounds: int) -> bool:
        """Whether this round is evaluated."""
        return bool(self.every) and (round_number % self.every == 0 or round_number == num_rounds)


def _name_client(value: Any) -> Any:
    """Accept a bare path; its client is named after the file, or its folder for data.yaml."""
    if not isinstance(value, str):
        return value
    path = Path(value)
    stem = path.parent.name if path.stem in {"data", "dataset"} else path.stem
    return {"name": stem or path.stem, "data": value}


def _check_loggers(value: Any) -> Any:
    """Accept a bare name; one message about the whole, where a union would report each branch."""
    names = [value] if isinstance(value, str) and value != "settings" else value
    known = names == "settings" or (
        isinstance(names, list | tuple) and all(name in LOGGER_NAMES for name in names)
    )
    if not known:
        raise ValueError(f"not one of settings, {', '.join(LOGGER_NAMES)}")
    return names


def _with_home(train: dict[str, Any]) -> dict[str, Any]:
    pretrained = train.get("pretrained")
    is_path = isinstance(pretrained, str)
    return {**train, "pretrained": at_home(pretrained)} if is_path else train


def _by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Config(_Frozen):
    """All settings of a run. Paths are as the user wrote them, relative to the working directory.

    datasets: "demo" stands for the generated data set of utils/demo_data.py, "supernodes" for the
    SuperNodes that are there when the run starts, or come later (`new_clients`).
    new_clients: whether SuperNodes may join that `datasets` does not list.
    names: class names of the federation by index; None is the union of the clients', in order of
    appearance. global_batch: images per step of a round's clients together, shared out equally;
    None is Ultralytics' 16. `train.batch` says instead what each client takes.
    fraction_train: share of the clients that train in a round, drawn anew from `seed`.
    client: FILE.py:CLASS, a subclass of YoloClient that does the clients' work; None is YoloClient.
    local_optimizer: whether a client's optimiser keeps its state between rounds.
    server_ema: decay per round of an average of the global models; 0 is none.
    min_clients: usable updates without which a round is tried again, and in the end the run stops.
    round_timeout_s: seconds that a client may take for its work in a round; None is no limit.
    max_statistics_factor: by which a variance of BatchNorm may change in a client's round, or, in
    variances, the square of a mean's shift. An update beyond is refused; infinity takes all.
    trust_checkpoint: load base models with any content, which can run code of whoever made them.
    loggers: that follow the run live; "settings" stands for those that the user's own Ultralytics
    settings switch on.
    train: Ultralytics train arguments by name.
    """

    base_model: PathText
    datasets: (
        Literal["demo", "supernodes"]
        | Annotated[list[Annotated[ClientData, BeforeValidator(_name_client)]], Field(min_length=1)]
    )
    new_clients: Annotated[bool, Field(strict=True)] = False
    names: Annotated[list[str], Field(min_length=1)] | None = None
    num_rounds: Annotated[PositiveInt, Field(le=MAX_ROUNDS)] = 10
    local_epochs: Annotated[PositiveInt, Field(le=MAX_LOCAL_EPOCHS)] = 1
    save_dir: PathText = DEFAULT_SAVE_DIR
    name: Annotated[str, Field(pattern=f"^{CLIENT_NAME.pattern}$")] = "train"
    seed: Annotated[NonNegativeInt, Field(lt=2**31)] = 0
    strategy: Annotated[StrategyConfig, BeforeValidator(_by_name)] = StrategyConfig()
    codec: Annotated[CodecConfig, BeforeValidator(_by_name)] = CodecConfig()
    shared: SharedConfig = SharedConfig()
    fraction_train: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    global_batch: PositiveInt | None = None
    client: PathText | None = None
    local_optimizer: Literal["keep", "reset"] = "keep"
    server_ema: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    min_clients: PositiveInt = 1
    round_timeout_s: Annotated[float, Field(strict=True, gt=0, le=366 * 86400)] | None = None
    update_norm: UpdateNormConfig = UpdateNormConfig()
    max_statistics_factor: Annotated[float, Field(strict=True, gt=1)] = 1e6
    privacy: PrivacyConfig = PrivacyConfig()
    trust_checkpoint: Annotated[bool, Field(strict=True)] = False
    client_resources: ClientResources = ClientResources()
    ray: RayConfig = RayConfig()
    train: Annotated[dict[str, Any], AfterValidator(_with_home)] = {}
    evaluate: EvaluateConfig = EvaluateConfig()
    loggers: Annotated[Literal["settings"] | tuple[str, ...], BeforeValidator(_check_loggers)] = ()
    verbose: bool = False

    @property
    def clients(self) -> list[ClientData]:
        """The clients; only after `datasets: demo` was replaced by them."""
        assert self.datasets != "demo"
        return [] if isinstance(self.datasets, str) else self.datasets

    @property
    def has_sites(self) -> bool:
        """Whether the clients are SuperNodes that name their own data."""
        if isinstance(self.datasets, str):
            return self.datasets == "supernodes"
        return any(data.data is None for data in self.datasets)

    @property
    def num_epochs(self) -> int:
        """Epochs of the whole schedule, of which each round is a slice."""
        return self.num_rounds * self.local_epochs

    @property
    def clients_per_round(self) -> int:
        """How many clients train in a round, at least one."""
        return max(1, round(self.fraction_train * len(self.clients)))

    def to_yaml(self) -> str:
        """YAML that gives this config again."""
        dump = self.model_dump(mode="json")
        return OmegaConf.to_yaml(OmegaConf.create(_without_references(dump)))


# What a resumed run may be given anew: the weights do not depend on it, but that another number of
# threads rounds differently.
RESUME_SETTINGS = (
    "client",
    "client_resources",
    "loggers",
    "max_statistics_factor",
    "min_clients",
    "ray",
    "round_timeout_s",
    "trust_checkpoint",
    "verbose",
)
REFERENCE = re.compile(r"(?<!\\)(?:\\\\)*(\$\{[^}\n]{0,40})")  # of OmegaConf
NETWORK_LOGGERS = ("wandb", "mlflow")


def resume_problems(overrides: Sequence[str]) -> list[str]:
    """Say which overrides would make a resumed run another run."""
    return [
        f"'{override}': a resumed run keeps its settings, except {', '.join(RESUME_SETTINGS)}; "
        "leave it out, or start a new run from weights/last.pt as base_model"
        for override in overrides
        if override.partition("=")[0].partition(".")[0].strip() not in RESUME_SETTINGS
    ]


def said_again(settings: Mapping[str, Any]) -> dict[str, str]:
    """What a resumed run needs to be told anew: settings that run code or connect to elsewhere.

    A run directory can be somebody else's, and its args.yaml is data.
    Returns the word of a command line by the setting, for those that are in use.
    """
    client, loggers = settings.get("client"), settings.get("loggers")
    ray = settings.get("ray")
    address = ray.get("address") if isinstance(ray, Mapping) else ray
    found = {}
    if settings.get("trust_checkpoint") not in (None, False):
        found["trust_checkpoint"] = "trust_checkpoint=true"
    if client is not None:
        found["client"] = f"client={client}"
    if address is not None:
        found["ray.address"] = f"ray.address={address}"
    names = [loggers] if isinstance(loggers, str) else loggers or ()
    if any(name in (*NETWORK_LOGGERS, "settings") for name in names):
        found["loggers"] = f"loggers=[{','.join(map(str, names))}]"
    return found


def words_said_again(path: Path) -> list[str]:
    """The words of `said_again` for a run's args.yaml."""
    return list(said_again(_read(path, ())[0]).values())


def trust_problems(path: Path, overrides: Sequence[str]) -> list[str]:
    """Say what a run's args.yaml has of `said_again` and the command line does not say.

    path: of the args.yaml.
    """
    try:
        reference = next(_references(read_yaml(path)), None)
    except (OSError, ValueError, YAMLError):  # `_read` says what is wrong with it
        reference = None
    if reference:  # it can stand for more than memory holds
        return [
            f"{path}: found the reference {reference}, which no run writes; put there what it "
            "stands for"
        ]
    settings, problems = _read(path, ())
    given = {override.partition("=")[0].strip() for override in overrides}
    return problems + [
        f"{path}: {setting}: found {word.partition('=')[2]}, which would {WHAT_IT_DOES[setting]}; "
        f"of a run that is resumed only the command line decides that: add {shlex.quote(word)} if "
        f"you trust whoever made it, or {setting}={WITHOUT.get(setting, 'null')}"
        for setting, word in said_again(settings).items()
        if not {setting, setting.partition(".")[0]} & given
    ]


WHAT_IT_DOES = {
    "trust_checkpoint": "run what code its base model and checkpoints hold",
    "client": "run that file",
    "ray.address": "hand the work to the machines there",
    "loggers": "send its numbers there",
}
WITHOUT = {"trust_checkpoint": "false", "loggers": "[]"}


def _references(value: Any) -> Iterator[str]:
    """What OmegaConf would replace by another setting."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _references(key)
            yield from _references(entry)
    elif isinstance(value, list):
        for entry in value:
            yield from _references(entry)
    elif isinstance(value, str):
        yield from REFERENCE.findall(value)


def trusts_checkpoint(path: Path, overrides: Sequence[str] = ()) -> bool:
    """Whether `trust_checkpoint` is on; known before Ultralytics is imported, unlike the rest."""
    return _read(path, overrides)[0].get("trust_checkpoint") is True


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply `key=value` overrides (dots reach nested keys) and validate.

    `${vars.x}` in the file stands for an entry of its free-form mapping `vars`.

    Raises InputError with every problem found.
    """
    settings, problems = _read(path, overrides)
    if problems:
        raise InputError(problems)
    if "datasets" not in settings and {"val", "names"} <= set(settings):
        raise InputError(
            f"{path}: this is a data set (a data.yaml), expected a config that names it under "
            "'datasets'; copy configs/example.yaml and adapt it"
        )
    settings.pop("vars", None)
    config = None
    try:
        config = Config.model_validate(settings)
    except ValidationError as error:
        problems = _explain(path, error.errors())
    problems += [f"{path}: {line}" for line in _setting_problems(settings)]
    if config is not None:
        problems += [f"{path}: {line}" for line in _site_problems(config)]
    if problems or config is None:
        raise InputError(problems)
    return config


def config_problems(config: Config) -> list[str]:
    """Say what `load_config` would refuse, of a config that may have been made in another way."""
    return _setting_problems(config.model_dump()) + _site_problems(config)


def _setting_problems(settings: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with settings that are of the right types."""
    problems = []
    train = settings.get("train")
    if isinstance(train, dict):
        problems += train_problems(train)
        if train.get("batch") is not None and settings.get("global_batch") is not None:
            problems.append(
                "train.batch and global_batch: found both; give global_batch for all "
                "clients of a round together, or train.batch for each of them"
            )
    return problems + client_name_problems(settings.get("datasets"))


def train_problems(train: dict[str, Any]) -> list[str]:
    """Say which train arguments are unknown, not the user's to set, or of a wrong type."""
    from ultralytics.cfg import check_cfg
    from ultralytics.utils import DEFAULT_CFG_DICT

    known = [k for k in DEFAULT_CFG_DICT if k not in OWNED_TRAIN_ARGS and k not in NOT_TRAIN_ARGS]
    is_auto = str(train.get("optimizer", "auto")).lower() == "auto"
    problems = []
    for key, value in train.items():
        if key in OWNED_TRAIN_ARGS:
            problems.append(f"train.{key}: set by the federation; {OWNED_TRAIN_ARGS[key]}")
        elif key in NOT_TRAIN_ARGS:
            problems.append(f"train.{key}: not a train argument; remove it")
        elif key not in known:
            near = nearest(key, [*known, *OWNED_TRAIN_ARGS])
            problems.append(f"train.{key}: unknown Ultralytics argument{near}")
        elif key in CHECKED_TRAIN_ARGS and not CHECKED_TRAIN_ARGS[key][0](value):
            expected = CHECKED_TRAIN_ARGS[key][1]
            problems.append(f"train.{key}: found {value!r}, expected {expected}")
        elif isinstance(value, float) and not math.isfinite(value):
            problems.append(f"train.{key}: found {value}, expected a finite number")
        else:
            try:
                check_cfg({key: value})
            except (TypeError, ValueError) as error:
                problems.append(f"train.{key}: {str(error).splitlines()[0]}")
                continue
            if is_auto and key in ("lr0", "momentum"):
                problems.append(
                    f"train.{key}: has no effect with optimizer auto, which chooses it; set "
                    "train.optimizer too (AdamW, SGD, ...), or remove it"
                )
    return problems


def client_name_problems(datasets: Any) -> list[str]:
    """Say which client names cannot be folder names or stand twice (also in another case).

    datasets: the setting as read; entries that are no clients at all are reported elsewhere.
    """
    problems = []
    first: dict[str, int] = {}
    for index, entry in enumerate(datasets if isinstance(datasets, list) else []):
        client = _name_client(entry)
        if not (isinstance(client, dict) and isinstance(client.get("name"), str | int | float)):
            continue
        name = str(client["name"])
        where = f"datasets[{index}] '{name}'"
        if not CLIENT_NAME.fullmatch(name):
            problems.append(
                f"{where}: not usable as a folder name; give it a name of letters, digits, '.', "
                f"'_' and '-', e.g. {{name: client_{index}, data: {client.get('data')}}}"
            )
        other = first.setdefault(name.casefold(), index)
        if other != index:
            problems.append(
                f"{where}: the same name as datasets[{other}]; give each client its own, e.g. "
                f"{{name: {name}_{index}, data: {client.get('data')}}}"
            )
    return problems


def _site_problems(config: Config) -> list[str]:
    """Say what cannot be of clients that are SuperNodes, or only of such."""
    problems = []
    if not config.has_sites:
        if config.new_clients:
            problems.append("new_clients: only SuperNodes can join a run; remove it")
        return problems
    if config.ray.address is not None:
        problems.append("ray.address: for simulations; SuperNodes use no Ray; remove it")
    for index, data in enumerate(config.clients):
        where = f"datasets[{index}] '{data.name}'"
        if data.data is not None:
            problems.append(
                f"{where}: has a data.yaml, and others have none; give every client one (a "
                "simulation), or none (SuperNodes, which know where their data is)"
            )
        elif data.show_images or data.not_annotated:
            problems.append(
                f"{where}: show_images and not_annotated are the SuperNode's to say, in its "
                "--node-config; remove them"
            )
    return problems


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no word is near."""
    matches = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""


def _read(path: Path, overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    try:
        source = read_yaml_text(path)
        loaded = OmegaConf.load(io.StringIO(source))
        # The same as it is written, and with class names as Ultralytics reads them.
        texts = OmegaConf.create(yaml.load(source, _AsWritten) or {})
        names = OmegaConf.create(yaml.load(source, _AsClassNames) or {})
    except FileNotFoundError:
        return {}, [f"{path}: no such file; copy configs/example.yaml and adapt it"]
    except (
        Exception
    ) as error:  # YAML's constructors of numbers, dates, ... raise errors of any kind
        return {}, [f"{path}: not a readable YAML file: {_one_line(error)}"]
    if not isinstance(loaded, DictConfig):
        return {}, [f"{path}: found a list, expected 'key: value' lines as in configs/example.yaml"]
    assert isinstance(texts, DictConfig)
    assert isinstance(names, DictConfig)
    problems = []
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key.strip(" ."):
            problems.append(f"'{override}': expected key=value, e.g. num_rounds=5")
            continue
        if not value.strip():
            problems.append(f"'{override}': no value; write {key}=null for the default")
            continue
        try:
            for tree, found in zip((loaded, texts, names), _values_of(value), strict=True):
                _name_sections(tree)
                OmegaConf.update(tree, key, found)
        except (YAMLError, OmegaConfBaseException, IndexError, TypeError, ValueError) as error:
            problems.append(f"'{override}': not usable with {path}: {_one_line(error)}")
    if problems:
        return {}, problems
    try:
        settings, texts, names = (
            _with_text_keys(OmegaConf.to_container(tree, resolve=True))
            for tree in (loaded, texts, names)
        )
        for pattern in TEXTS:
            settings = _with_texts(settings, texts, pattern.split("."))
        # Text too, but for true and false.
        settings = _with_texts(settings, texts, ["train", "pretrained"], kept=(NoneType, bool))
        for pattern in CLASS_NAMES:
            settings = _with_texts(settings, names, pattern.split("."), kept=())
    except InterpolationKeyError as error:
        return {}, [f"{path}: {_one_line(error)}; add it below 'vars', or give it as vars.NAME=..."]
    except OmegaConfBaseException as error:
        return {}, [f"{path}: {_one_line(error)}"]
    # A section of which every line is commented out is None and has its defaults.
    return {key: value for key, value in settings.items() if value is not None}, []


class _AsWritten(yaml.SafeLoader):
    """Takes all values as text; of YAML's own meanings only `<<` is left."""

    yaml_implicit_resolvers = {"<": yaml.SafeLoader.yaml_implicit_resolvers["<"]}  # noqa: RUF012


class _AsClassNames(yaml.SafeLoader):
    """Takes all values as Ultralytics takes class names: as Python writes what YAML 1.1 reads."""

    def construct_object(self, node: Any, deep: bool = False) -> Any:
        """Called by PyYAML for each value and key."""
        if not isinstance(node, yaml.ScalarNode):
            return super().construct_object(node, deep)
        try:
            return str(super().construct_object(node, deep))
        except ValueError:  # such as a day that no month has
            return node.value


def _values_of(text: str) -> tuple[Any, Any, Any]:
    """A value of the command line: as YAML, as text, and as class names. Raises YAMLError.

    What is in no brackets or quotes is text as it stands there, with `#` and `: ` in it.
    """
    text = text.strip()
    is_text = text[0] not in "[{'\""
    found: Any = text
    try:
        read = OmegaConf.from_dotlist([f"value={text}"])
        found = OmegaConf.to_container(read, resolve=False)["value"]  # pyright: ignore
    except YAMLError:
        if not is_text:
            raise
    if is_text:
        return found if isinstance(found, int | float | None) else text, text, text
    return found, yaml.load(text, _AsWritten), yaml.load(text, _AsClassNames)


def _with_texts(
    value: Any, texts: Any, pattern: Sequence[str], *, kept: tuple[type, ...] = (NoneType,)
) -> Any:
    """Put texts where the pattern leads; kept: types of values that stay."""
    if not pattern:
        is_kept = not isinstance(texts, str) or isinstance(value, kept)
        return value if is_kept else texts
    key, *rest = pattern
    if key == "*":
        if not isinstance(value, list) or not isinstance(texts, list):
            return value
        pairs = zip(value, texts, strict=True)
        return [_with_texts(v, t, rest, kept=kept) for v, t in pairs]
    if not isinstance(value, dict) or not isinstance(texts, dict) or key not in value:
        return value
    return {**value, key: _with_texts(value[key], texts[key], rest, kept=kept)}


def _name_sections(settings: DictConfig) -> None:
    """Write `strategy: NAME` as `strategy: {name: NAME}`, so that overrides add options to it."""
    unresolved = OmegaConf.to_container(settings, resolve=False)
    assert isinstance(unresolved, dict)
    for section in ("strategy", "codec"):
        if isinstance(unresolved.get(section), str):
            settings[section] = _by_name(unresolved[section])


def _with_text_keys(value: Any) -> Any:
    """YAML also has numbers for keys, which are no setting's name."""
    if isinstance(value, dict):
        return {str(key): _with_text_keys(entry) for key, entry in value.items()}
    return value


def _without_references(value: Any) -> Any:
    """Escape what OmegaConf would take for a reference to another setting, e.g. in class names."""
    if isinstance(value, dict):
        return {key: _without_references(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_references(entry) for entry in value]
    # Backslashes before one are taken for escapes, too.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value


# unstable: omegaconf._utils says 'full_key: $FULL_KEY'
def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()).split(" full_key:")[0]


def _explain(path: Path, errors: Iterable[Any]) -> list[str]:
    """One line for each setting that Pydantic refused."""
    lines: dict[str, str] = {}
    for error in errors:
        first, *rest = error["loc"]
        parts = [first, *(part for part in rest if not _is_branch(part))]
        where = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts).lstrip(".")
        if error["type"] == "extra_forbidden":
            section = _SECTIONS.get(str(parts[0]), Config) if len(parts) > 1 else Config
            text = f"unknown setting{_nearest_setting(str(parts[-1]), section)}"
        elif error["type"] == "missing":
            text = "missing; see configs/example.yaml"
        else:
            message = error["msg"].removeprefix("Input should be ").split(", unable")[0]
            name = next(part for part in reversed(parts) if not isinstance(part, int))
            last = "dataset" if name == "datasets" and name != parts[-1] else str(name)
            expected = _EXPECTED.get(where, _EXPECTED.get(last, message))
            text = f"found {error['input']!r}, expected {expected}"
        lines.setdefault(where, f"{path}: {where}: {text}")  # a union reports every branch
    if any(where.startswith("datasets[") for where in lines):
        lines.pop("datasets", None)  # the branch 'demo' was not meant
    return list(lines.values())


def _nearest_setting(name: str, section: type[_Frozen]) -> str:
    """What may have been meant; at the top level also one of Ultralytics' train arguments."""
    from ultralytics.utils import DEFAULT_CFG_DICT

    if section is Config:
        if name in OWNED_TRAIN_ARGS:
            return f"; {OWNED_TRAIN_ARGS[name]}"
        if name in DEFAULT_CFG_DICT and name not in NOT_TRAIN_ARGS:
            return f"; did you mean 'train.{name}'?"
    return nearest(name, section.model_fields)


def _is_branch(part: Any) -> bool:
    """Whether this part of an error's path is Pydantic's name for a branch of a union."""
    return isinstance(part, str) and any(mark in part for mark in "[(-")


_EXPECTED = {
    "dataset": "the path of a data.yaml (of a folder to classify), or {name: ..., data: ...}",
    "datasets": "'demo', 'supernodes' or a list of data.yaml paths, one for each client",
    "not_annotated": "a list of class names",
    "show_images": "a whole number of images, from 0 to 16",
    "cross_client": "true or false",
    "names": "a list of class names",
    "shared": "'parts: ...' and 'batchnorm: ...' lines",
    "parts": "a list of 'backbone', 'neck' and 'head'",
    "fraction_train": "a number greater than 0 and at most 1",
    "server_ema": "a number from 0 (none) to less than 1",
    "num_gpus": "a number of at least 0 (a fraction shares a GPU) or 'auto'",
    "num_cpus": "a number greater than 0",
    "round_timeout_s": "seconds, more than 0 and at most a year, or null for no limit",
    "update_norm": "'outliers: ...' and 'times_median: ...' lines",
    "times_median": "a number greater than 1",
    "weights": "images or equal",
    "max_share": "a number from 0.000001 to 1, e.g. 0.4, or null for no limit",
    "max_statistics_factor": "a number greater than 1, or .inf for no limit",
    "privacy": "'mode: ...', 'clipping_norm: ...', ... lines, as in configs/example.yaml",
    "clipping_norm": "a number greater than 0",
    "noise_multiplier": "a number greater than 0",
    "delta": "a number greater than 0 and less than 1, e.g. 0.00001",
    "secure_aggregation": "true or false",
    "name": "letters, digits, '.', '_' and '-'",
    "train": "Ultralytics train arguments, one 'key: value' line each",
    "client_resources": "'num_cpus: ...' and 'num_gpus: ...' lines",
    "ray": "an 'address: ...' line",
    "address": "HOST:PORT of a Ray cluster, 'auto' for this machine's, or null for none",
    "evaluate": "'data: ...', 'every: ...', ... lines, as in configs/example.yaml",
    "strategy": "a name, or 'name: ...' and its options",
    "codec": "none, float16, int8 or topk, or 'name: topk' and 'fraction: ...' lines",
    "codec.name": "none, float16, int8 or topk",
    "codec.fraction": "a number greater than 0 and at most 1",
    "loggers": "a list of tensorboard, wandb and mlflow ([] for none), or 'settings'",
}
_SECTIONS = {
    "codec": CodecConfig,
    "client_resources": ClientResources,
    "ray": RayConfig,
    "evaluate": EvaluateConfig,
    "datasets": ClientData,
    "shared": SharedConfig,
    "update_norm": UpdateNormConfig,
    "privacy": PrivacyConfig,
}
