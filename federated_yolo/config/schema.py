"""Settings: a YAML file and key=value overrides become one validated, immutable `Config`.

The names, defaults and meaning of every setting are here; configs/example.yaml explains them to
users. Train arguments are Ultralytics' own: their names and types are checked against the
installed version, and those which a federation decides itself are refused with the reason.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from federated_yolo.common.files import at_home

MAX_ROUNDS, MAX_LOCAL_EPOCHS = 1_000_000, 10_000
DEFAULT_SAVE_DIR = "runs/federated"
DEFAULT_FRACTION = 0.65  # of topk, by benchmarks/traffic.py
LOGGER_NAMES = ("tensorboard", "wandb", "mlflow")  # server/tracking.py has them
CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

PathText = Annotated[str, AfterValidator(at_home)]
# Numbers, of which true and false are none.
PositiveInt = Annotated[int, Field(strict=True, ge=1)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
ShownImages = Annotated[int, Field(strict=True, ge=0, le=16)]  # what Ultralytics draws on a grid


class FrozenModel(BaseModel, frozen=True):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)


class ClientData(FrozenModel, frozen=True):
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


class StrategyConfig(BaseModel, frozen=True):
    """Name of a strategy in aggregation/strategies.py; what else stands here are its options.

    weights: by what clients count in the mean of their models, and of their losses and scores: by
    their images, or all the same. max_share: of one client in such a mean; None is no limit.
    """

    model_config = ConfigDict(extra="allow")
    name: str = "fedavg"
    weights: Literal["images", "equal"] = "images"
    max_share: Annotated[float, Field(strict=True, ge=1e-6, le=1)] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Options of the strategy, by name."""
        return dict(self.model_extra or {})


class ClientResources(FrozenModel, frozen=True):
    """What Ray reserves for one client at work; fractions let clients share.

    num_cpus: also the number of PyTorch threads, rounded down, at least 1.
    num_gpus: "auto" shares a GPU among as many clients as fit and is 0 where there is none.
    """

    num_cpus: Annotated[float, Field(strict=True, gt=0)] = 1.0
    num_gpus: Annotated[float, Field(strict=True, ge=0)] | Literal["auto"] = "auto"


class RayConfig(FrozenModel, frozen=True):
    """address: of a running Ray cluster, HOST:PORT, or "auto" for that of this machine.

    None starts a Ray of its own, on this machine.
    """

    address: Annotated[str, Field(pattern=r"^(auto|[^/\s]+:[0-9]{1,5})$")] | None = None


class SharedConfig(FrozenModel, frozen=True):
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


class UpdateNormConfig(FrozenModel, frozen=True):
    """What to do with a client's update that is far longer than those of the others.

    Its length is the L2 norm of the change of the trainable arrays; an outlier's is more than
    `times_median` times the median of the round's. "keep" takes it as it is, "clip" shortens it to
    that length, "refuse" leaves the client out of the round.
    """

    outliers: Literal["keep", "clip", "refuse"] = "keep"
    times_median: Annotated[float, Field(strict=True, gt=1)] = 3.0


class PrivacyConfig(FrozenModel, frozen=True):
    """Differential privacy of what clients send; see aggregation/privacy.py and docs/privacy.md.

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


class CodecConfig(FrozenModel, frozen=True):
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


class EvaluateConfig(FrozenModel, frozen=True):
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


def name_client(value: Any) -> Any:
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


def by_name(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


class Config(FrozenModel, frozen=True):
    """All settings of a run. Paths are as the user wrote them, relative to the working directory.

    datasets: "demo" stands for the generated data set of data/demo_data.py, "supernodes" for the
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
        | Annotated[list[Annotated[ClientData, BeforeValidator(name_client)]], Field(min_length=1)]
    )
    new_clients: Annotated[bool, Field(strict=True)] = False
    names: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    num_rounds: Annotated[PositiveInt, Field(le=MAX_ROUNDS)] = 10
    local_epochs: Annotated[PositiveInt, Field(le=MAX_LOCAL_EPOCHS)] = 1
    save_dir: PathText = DEFAULT_SAVE_DIR
    name: Annotated[str, Field(pattern=f"^{CLIENT_NAME.pattern}$")] = "train"
    seed: Annotated[NonNegativeInt, Field(lt=2**31)] = 0
    strategy: Annotated[StrategyConfig, BeforeValidator(by_name)] = StrategyConfig()
    codec: Annotated[CodecConfig, BeforeValidator(by_name)] = CodecConfig()
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
        return self.num_training(len(self.clients))

    def num_training(self, num_clients: int) -> int:
        """How many of so many clients train in a round, at least one."""
        return max(1, round(self.fraction_train * num_clients))

    def to_yaml(self) -> str:
        """YAML that gives this config again."""
        dump = self.model_dump(mode="json")
        return OmegaConf.to_yaml(OmegaConf.create(_without_references(dump)))


class ResolvedResources(ClientResources, frozen=True):
    """num_gpus: the share of a GPU that one client has; 0 is the CPU, and stands for sites too."""

    num_gpus: Annotated[float, Field(strict=True, ge=0)] = 0.0


class ResolvedConfig(Config, frozen=True):
    """A config that has passed every check, with all that was left to the machine and the data.

    checks/resolve.py makes it. Its YAML is a config that gives the same run again. Paths are
    absolute, `train` says `batch`, `nbs`, `optimizer`, and how large images are where it is not the
    default; `global_batch` is shared out among the clients in it.
    """

    datasets: list[ClientData]
    # It has no default, which Pyright would have for it.
    names: Annotated[tuple[str, ...], Field(min_length=1)]  # pyright: ignore[reportGeneralTypeIssues]
    global_batch: None = None
    client_resources: ResolvedResources = ResolvedResources()
    loggers: tuple[str, ...] = ()

    def with_num_gpus(self, num_gpus: float) -> "ResolvedConfig":
        """The same with another share of a GPU for each client."""
        resources = self.client_resources.model_copy(update={"num_gpus": num_gpus})
        return self.model_copy(update={"client_resources": resources})


def _without_references(value: Any) -> Any:
    """Escape what OmegaConf would take for a reference to another setting, e.g. in class names."""
    if isinstance(value, dict):
        return {key: _without_references(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_references(entry) for entry in value]
    # Backslashes before one are taken for escapes, too.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
