"""Settings: a YAML file and key=value overrides become one validated, immutable `Config`.

The name, default and meaning of every setting are here: the text below a setting is its meaning in
docs/settings.md. configs/example.yaml shows them in use. Train arguments are Ultralytics' own:
their names and types are checked against the installed version, and those that a federation
decides itself are refused with the reason.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import OmegaConf
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from federated_yolo.common.files import at_home

MAX_ROUNDS, MAX_LOCAL_EPOCHS, MAX_AVERAGES = 1_000_000, 10_000, 1000
DEFAULT_SAVE_DIR = "runs/federated"
DEFAULT_FRACTION = 0.65  # for topk, chosen by benchmarks/traffic.py
LOGGER_NAMES = ("tensorboard", "wandb", "mlflow")  # implemented in server/tracking.py
CLIENT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

PathText = Annotated[str, AfterValidator(at_home)]
# Numeric types that reject booleans.
PositiveInt = Annotated[int, Field(strict=True, ge=1)]
NonNegativeInt = Annotated[int, Field(strict=True, ge=0)]
ShownImages = Annotated[int, Field(strict=True, ge=0, le=16)]  # a grid of Ultralytics has 16


class FrozenModel(BaseModel, frozen=True):
    model_config = ConfigDict(
        extra="forbid", coerce_numbers_to_str=True, use_attribute_docstrings=True
    )


class ClientData(FrozenModel, frozen=True):
    """One client: a name and a data set."""

    name: str
    """A name that is usable as a folder name; for a SuperNode, the name in its --node-config."""
    data: PathText | None = None
    """Path of the client's data.yaml, of a classifier's folder, or of an annotation tool's export;
    null for a SuperNode, which knows where its data is."""
    not_annotated: tuple[str, ...] = ()
    """Classes that the data.yaml lists but nobody looked for in these images. They are left out of
    the client's classification loss, as are the federation's classes that it does not list."""
    show_images: ShownImages = 0
    """Number of images of the val split that others may see, in pictures of predictions."""


class StrategyConfig(BaseModel, frozen=True):
    """How updates are combined; keys other than these are options of the strategy."""

    model_config = ConfigDict(extra="allow", use_attribute_docstrings=True)
    name: str = "fedavg"
    """A name from docs/strategies."""
    weights: Literal["images", "equal"] = "images"
    """Weight of a client in means of models, losses and scores: its number of images, or the same
    for every client."""
    max_share: Annotated[float, Field(strict=True, ge=1e-6, le=1)] | None = None
    """The largest share of a mean that one client may have; null is no limit."""

    @property
    def options(self) -> dict[str, Any]:
        """Options of the strategy, by name."""
        return dict(self.model_extra or {})


class ClientResources(FrozenModel, frozen=True):
    """Resources that Ray reserves for one working client; fractions let clients share."""

    num_cpus: Annotated[float, Field(strict=True, gt=0)] = 1.0
    """CPUs of a client; also its number of PyTorch threads, rounded down, at least 1."""
    num_gpus: Annotated[float, Field(strict=True, ge=0)] | Literal["auto"] = "auto"
    """GPUs of a client, at most 1. `auto` lets as many clients share a GPU as fit, determined by a
    trial before round 1, and is 0 without a GPU."""


class RayConfig(FrozenModel, frozen=True):
    """The Ray cluster that runs the clients of a simulation."""

    address: Annotated[str, Field(pattern=r"^(auto|[^/\s]+:[0-9]{1,5})$")] | None = None
    """HOST:PORT of a running Ray cluster, or `auto` for the one of this machine; null starts Ray on
    this machine."""


class SharedConfig(FrozenModel, frozen=True):
    """Which arrays are federated.

    The others stay with each client, which then has a model of its own.
    """

    parts: Annotated[tuple[Literal["backbone", "neck", "head"], ...], Field(min_length=1)] = (
        "backbone",
        "neck",
        "head",
    )
    """Parts of the model that are shared, as the model's own YAML divides it."""
    batchnorm: Literal["average", "local", "frozen"] = "average"
    """`average` shares BatchNorm like all other layers; `local` keeps it with the client (FedBN, Li
    et al. 2021, arXiv 2102.07623); `frozen` averages its statistics and then fixes them (FixBN,
    Zhong et al. 2023, arXiv 2303.06530)."""
    freeze_after: NonNegativeInt | None = None
    """The round after which `batchnorm: frozen` fixes the statistics; null is half of the rounds,
    as in the paper."""

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

    Its length is the L2 norm of the change of the trainable arrays.
    """

    outliers: Literal["keep", "clip", "refuse"] = "keep"
    """`keep` uses an update that is too long unchanged, `clip` shortens it to the limit, `refuse`
    leaves its client out of the round."""
    times_median: Annotated[float, Field(strict=True, gt=1)] = 3.0
    """The limit, as a multiple of the median length of the round's updates."""


class PrivacyConfig(FrozenModel, frozen=True):
    """Differential privacy of what clients send; see aggregation/privacy.py and docs/privacy.md."""

    mode: Literal["none", "central", "local"] = "none"
    """`central` adds noise on the server, which is trusted, to the mean of the updates; `local`
    adds it at each client to its own update."""
    clipping: Literal["fixed", "adaptive"] = "fixed"
    """`adaptive` moves the clipping norm, round by round, towards the median of update norms."""
    clipping_norm: Annotated[float, Field(strict=True, gt=0, lt=1e18)] | None = None
    """The L2 norm to which a longer update is shortened; with `adaptive`, the norm of the first
    round. Required unless the mode is none."""
    noise_multiplier: Annotated[float, Field(strict=True, gt=0, lt=1e18)] | None = None
    """Standard deviation of the noise, as a multiple of the clipping norm. Required unless the mode
    is none."""
    delta: Annotated[float, Field(strict=True, gt=0, lt=1)] = 1e-5
    """The delta for which epsilon is stated."""
    secure_aggregation: Annotated[bool, Field(strict=True)] = False
    """Not available: true is refused, with the reason."""


class CodecConfig(FrozenModel, frozen=True):
    """How arrays travel.

    A codec sends only the change of arrays. What rounding loses is added to the next round's change
    (Karimireddy et al. 2019, arXiv 1901.09847).
    """

    name: Literal["none", "float16", "int8", "topk"] = "none"
    """`none` sends arrays as they are. The others send the change of the trainable arrays: in half
    precision (`float16`), in 8 bits (`int8`), or only the values of each array that changed most
    (`topk`)."""
    fraction: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    """Only for `topk`: the share of each array's values that is sent; null means 0.65."""

    @property
    def kept(self) -> float:
        """The fraction in use: the setting, or its default."""
        return DEFAULT_FRACTION if self.fraction is None else self.fraction


class EvaluateConfig(FrozenModel, frozen=True):
    """Which scores are computed, and when. Clients always score on their own val splits."""

    data: PathText | None = None
    """A data set that the server holds, given like a client's; its val split scores each global
    model, and best.pt is chosen by this score."""
    every: NonNegativeInt = 1
    """Evaluate after every n-th round and after the last; 0 never evaluates."""
    cross_client: Annotated[bool, Field(strict=True)] = False
    """Score each client's model before it is averaged; after the last round, send the best one of
    each client to every client, which scores it on its val split."""
    show_images: ShownImages = 4
    """Number of images of `data` that are drawn with predictions of the first and last round."""

    def is_due(self, round_number: int, num_rounds: int) -> bool:
        """Whether this round is evaluated."""
        return bool(self.every) and (round_number % self.every == 0 or round_number == num_rounds)


class PersonaliseConfig(FrozenModel, frozen=True):
    """A training of each client for itself, after the last round.

    It starts from the best round's global model, and has a schedule of its own. A client keeps the
    result only if it scores higher than the global model on its val split.
    """

    epochs: Annotated[NonNegativeInt, Field(le=MAX_LOCAL_EPOCHS)] = 0
    """Epochs that each client trains for itself; 0 is none."""
    lr0: Annotated[float, Field(strict=True, gt=0, le=1)] | None = None
    """Its initial learning rate; null is that of the rounds, without the factor for a batch that is
    spread over clients."""


def name_client(value: Any) -> Any:
    """Accept a bare path; its client is named after the file, or its folder if it is data.yaml."""
    if not isinstance(value, str):
        return value
    path = Path(value)
    stem = path.parent.name if path.stem in {"data", "dataset"} else path.stem
    return {"name": stem or path.stem, "data": value}


def _check_loggers(value: Any) -> Any:
    """Accept a bare name; raise one error for the whole, where a union reports each branch."""
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
    """All settings of a run.

    Paths are as the user wrote them, relative to the working directory.
    """

    base_model: PathText
    """The model from which training starts: an existing checkpoint (.pt), or a model YAML of
    Ultralytics (yolo11n.yaml), which starts from random weights. It decides the task."""
    datasets: (
        Literal["demo", "supernodes"]
        | Annotated[list[Annotated[ClientData, BeforeValidator(name_client)]], Field(min_length=1)]
    )
    """The clients. A client given as a bare path is named after its file, or after its folder if
    the file is data.yaml. `demo` makes small synthetic data sets; `supernodes` takes the SuperNodes
    that are connected when the run starts or connect later."""
    new_clients: Annotated[bool, Field(strict=True)] = False
    """Whether SuperNodes that `datasets` does not list may join."""
    names: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Class names of the federation, by index; null means the union of the clients' classes, in
    order of appearance."""
    val_fraction: Annotated[float, Field(strict=True, gt=0, lt=1)] | None = None
    """Share of the train images that becomes the val split of a data set without one, such as 0.2;
    null refuses such a data set. Near-duplicates stay on one side."""
    num_rounds: Annotated[PositiveInt, Field(le=MAX_ROUNDS)] = 10
    """Number of rounds of the run."""
    local_epochs: Annotated[PositiveInt, Field(le=MAX_LOCAL_EPOCHS)] = 1
    """Epochs that a client trains in a round. Learning-rate schedule and warm-up span all rounds
    together."""
    averages_per_round: Annotated[PositiveInt, Field(le=MAX_AVERAGES)] | Literal["auto"] = "auto"
    """How often the server averages the clients in a round; between two averages, each trains its
    epochs' share of the images. `auto` averages a short run every few steps, else once."""
    patience: NonNegativeInt | None = None
    """Rounds without a better score after which the run ends, as in Ultralytics; null or 0 runs all
    rounds. Only a round that is evaluated can end the run."""
    save_dir: PathText = DEFAULT_SAVE_DIR
    """The folder for all runs."""
    name: Annotated[str, Field(pattern=f"^{CLIENT_NAME.pattern}$")] = "train"
    """The run's folder in `save_dir`; if it already exists, name2, name3, ... is used."""
    seed: Annotated[NonNegativeInt, Field(lt=2**31)] = 0
    """Seed for new weights, for drawing clients and for each client's training."""
    strategy: Annotated[StrategyConfig, BeforeValidator(by_name)] = StrategyConfig()
    """How updates become the next global model; a bare name means a strategy without options."""
    codec: Annotated[CodecConfig, BeforeValidator(by_name)] = CodecConfig()
    """How arrays travel; a bare name means a codec without options."""
    shared: SharedConfig = SharedConfig()
    """Which arrays travel."""
    fraction_train: Annotated[float, Field(strict=True, gt=0, le=1)] = 1.0
    """Share of the clients that train in a round, drawn anew for each round from `seed`."""
    global_batch: PositiveInt | None = None
    """Images per step of all clients of a round together, divided equally among them; null means
    Ultralytics' 16. `train.batch` sets the number of each client instead."""
    client: PathText | None = None
    """FILE.py:CLASS, a subclass of YoloClient that does the clients' work; null is YoloClient."""
    local_optimizer: Literal["keep", "reset"] = "keep"
    """Whether a client's optimiser keeps its state between rounds."""
    server_ema: Annotated[float, Field(strict=True, ge=0, lt=1)] = 0.0
    """Decay per round of a moving average of the global models, which is evaluated and saved in
    their place; 0 means no average."""
    min_clients: PositiveInt = 1
    """Number of usable updates that a round needs. With fewer, the round is tried again, and
    finally the run stops."""
    round_timeout_s: Annotated[float, Field(strict=True, gt=0, le=366 * 86400)] | None = None
    """Seconds that a client may take for its work in a round; null means no limit."""
    update_norm: UpdateNormConfig = UpdateNormConfig()
    """What happens to updates that are much longer than the others."""
    max_statistics_factor: Annotated[float, Field(strict=True, gt=1)] = 1e6
    """The largest factor by which a client may change a BatchNorm variance in a round; also the
    largest squared shift of a BatchNorm mean, in variances. An update beyond it is refused;
    infinity accepts all."""
    privacy: PrivacyConfig = PrivacyConfig()
    """Differential privacy of the updates."""
    trust_checkpoint: Annotated[bool, Field(strict=True)] = False
    """Load base models with any content, which can run code that their authors wrote."""
    client_resources: ClientResources = ClientResources()
    """Resources of this machine that one client uses."""
    ray: RayConfig = RayConfig()
    """Where the clients of a simulation run."""
    train: Annotated[dict[str, Any], AfterValidator(_with_home)] = {}
    """Ultralytics' train arguments by name, the same for all clients."""
    evaluate: EvaluateConfig = EvaluateConfig()
    """Which scores are computed, and when."""
    personalise: PersonaliseConfig = PersonaliseConfig()
    """Whether each client makes a model of its own from the global one, after the last round."""
    loggers: Annotated[Literal["settings"] | tuple[str, ...], BeforeValidator(_check_loggers)] = ()
    """Tracking that shows the run live: tensorboard, wandb, mlflow; `settings` means those that
    `yolo settings` switches on."""
    verbose: bool = False
    """Show the log lines of Flower, Ray and Ultralytics."""

    @property
    def clients(self) -> list[ClientData]:
        """The clients; usable only after `datasets: demo` has been replaced by its clients."""
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
        """Epochs of the whole schedule; each round is a slice of it."""
        return self.num_rounds * self.local_epochs

    @property
    def clients_per_round(self) -> int:
        """Number of clients that train in a round, at least one."""
        return self.num_training(len(self.clients))

    def num_training(self, num_clients: int) -> int:
        """Return how many of `num_clients` clients train in a round, at least one."""
        return max(1, round(self.fraction_train * num_clients))

    def to_yaml(self) -> str:
        """Return YAML text from which this config can be loaded again."""
        dump = self.model_dump(mode="json")
        return OmegaConf.to_yaml(OmegaConf.create(_without_references(dump)))


class ResolvedResources(ClientResources, frozen=True):
    """Resources with a final `num_gpus`: the share of a GPU per client; 0 for the CPU and sites."""

    num_gpus: Annotated[float, Field(strict=True, ge=0)] = 0.0


class ResolvedPersonalise(PersonaliseConfig, frozen=True):
    """A client's training for itself, with a final `lr0`."""

    lr0: Annotated[float, Field(strict=True, gt=0, le=1)] = 0.01  # Ultralytics' own


class ResolvedConfig(Config, frozen=True):
    """A config that has passed every check, with settings that depend on machine and data resolved.

    checks/resolve.py makes it. Its YAML is a config that gives the same run again. Paths are
    absolute; `train` has `batch`, `nbs`, `optimizer`, and the image size if it is not the default;
    `global_batch` is null, since `train.batch` is each client's part of it; `personalise.lr0` is a
    number.
    """

    datasets: list[ClientData]
    # No default here; Pyright objects, since the field of the base class has one.
    names: Annotated[tuple[str, ...], Field(min_length=1)]  # pyright: ignore[reportGeneralTypeIssues]
    global_batch: None = None
    averages_per_round: Annotated[PositiveInt, Field(le=MAX_AVERAGES)] = 1
    client_resources: ResolvedResources = ResolvedResources()
    personalise: ResolvedPersonalise = ResolvedPersonalise()
    loggers: tuple[str, ...] = ()

    def with_num_gpus(self, num_gpus: float) -> "ResolvedConfig":
        """Return a copy with another share of a GPU for each client."""
        resources = self.client_resources.model_copy(update={"num_gpus": num_gpus})
        return self.model_copy(update={"client_resources": resources})


def _without_references(value: Any) -> Any:
    """Escape text that OmegaConf would read as a reference to a setting, e.g. in class names."""
    if isinstance(value, dict):
        return {key: _without_references(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_without_references(entry) for entry in value]
    # OmegaConf also reads backslashes before a reference as escapes.
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
