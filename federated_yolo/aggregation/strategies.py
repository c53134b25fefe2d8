"""The registry of strategies, built on Flower's own classes, and the checks of their options.

A strategy turns checked updates into the next global arrays. It gets only the arrays that it should
combine. Server optimisers get the trainable parameters; buffers (BatchNorm's statistics and
counters, which an optimiser would turn into nonsense) are averaged with the weights of the models.
Robust strategies get all arrays, since a hostile update may be in any of them.

Means are running means (aggregation/mean.py): an update is added and need not be kept, and a server
optimiser gets the mean as if it were one client's update. The other strategies need all updates.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy
from flwr.serverapp.strategy.multikrum import select_multikrum
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from federated_yolo.aggregation.mean import limited
from federated_yolo.common.errors import InputError, nearest
from federated_yolo.config.schema import StrategyConfig
from federated_yolo.protocol.records import LOSS_KEY

Options = dict[str, Any]

MAX_NODES, MAX_NUMBER = 10**6, 1e18  # far above sensible values; NaN and infinity are not below


class FedAvgM(flower.FedAvgM):
    """Flower's FedAvgM, except that a round starts from the arrays that the clients start from.

    Flower's own continues from its unrounded result of the round before, which a resumed run lacks.
    """

    def configure_train(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        """Forget the arrays of the round before, so that Flower's class uses the given ones."""
        self.current_arrays = None
        return super().configure_train(*args, **kwargs)


def _nearest_updates(
    contents: list[RecordDict], parameters: frozenset[str], num_malicious: int, number: int
) -> list[RecordDict]:
    """Return the updates that Multi-Krum chooses by distances over trainable parameters alone.

    Counters and running variances are larger by orders of magnitude and would decide the choice.
    """
    trainable = []
    for index, content in enumerate(contents):
        arrays = content.array_records["arrays"]
        record = ArrayRecord({n: array for n, array in arrays.items() if n in parameters})
        trainable.append(RecordDict({"arrays": record, "index": ConfigRecord({"index": index})}))
    chosen = select_multikrum(trainable, num_malicious, number)
    return [contents[int(str(c.config_records["index"]["index"]))] for c in chosen]


class MultiKrum(flower.MultiKrum):
    """Flower's MultiKrum, with distances over trainable parameters only."""

    def __init__(
        self, parameters: frozenset[str], max_share: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.parameters = parameters
        self.max_share = max_share

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the weighted mean of the chosen updates."""
        contents = [reply.content for reply in replies]
        chosen = _nearest_updates(
            contents, self.parameters, self.num_malicious_nodes, self.num_nodes_to_select
        )
        records = [content.metric_records["metrics"] for content in chosen]
        weights = [float(str(record[self.weighted_by_key])) for record in records]
        for record, weight in zip(records, limited(weights, self.max_share), strict=True):
            record[self.weighted_by_key] = weight
        return aggregate_arrayrecords(chosen, self.weighted_by_key), None


def _bulyan(parameters: frozenset[str], **kwargs: Any) -> Strategy:
    def choose(contents: list[RecordDict], num_malicious: int, number: int) -> list[RecordDict]:
        return _nearest_updates(contents, parameters, num_malicious, number)

    return flower.Bulyan(selection_rule=choose, **kwargs)


# unstable: flwr.serverapp.strategy.FedAvgM says 'self.momentum_vector'
# unstable: flwr.serverapp.strategy.fedopt.FedOpt says 'self.m_t'
# unstable: flwr.serverapp.strategy.fedopt.FedOpt says 'self.v_t'
@dataclass(frozen=True)
class Entry:
    """A strategy that a config can name.

    build: Function that makes it from `options` and Flower's min_*_nodes. paper: Its source.
    options: Its options with their defaults. sees_buffers: Whether it gets all arrays, and not only
    the trainable parameters. needs_parameters: Whether build also takes the names of the trainable
    arrays. needs_all: Whether it combines all updates at once, so that they must be in memory
    together; else it takes their mean, to which they are added one by one. per_step: Whether the
    mean of the trainable arrays is FedNova's. num_weighed: Number of updates, given the options, in
    a mean that uses the clients' weights; 0 for none, None for all. state: Attributes of Flower's
    class that it carries from round to round, None or float64 arrays. min_clients: Least number of
    updates in a round, given the options.
    """

    build: Callable[..., Strategy]
    paper: str
    options: Options = field(default_factory=dict)
    sees_buffers: bool = False
    needs_parameters: bool = False
    needs_all: bool = False
    per_step: bool = False
    num_weighed: Callable[[Options], int | None] = lambda options: None
    state: tuple[str, ...] = ()
    min_clients: Callable[[Options], int] = lambda options: 1


def _krum_clients(options: Options) -> int:
    return 2 * options["num_malicious_nodes"] + 3


def _none(_: Options) -> int:
    return 0


STRATEGIES: dict[str, Entry] = {
    "fedavg": Entry(FedAvg, "McMahan et al. 2017, arXiv 1602.05629"),
    "fedavgm": Entry(
        FedAvgM,
        "Hsu et al. 2019, arXiv 1909.06335",
        {"server_learning_rate": 1.0, "server_momentum": 0.5},
        state=("momentum_vector",),
    ),
    "fedadam": Entry(
        flower.FedAdam,
        "Reddi et al. 2021, arXiv 2003.00295",
        {"eta": 0.003, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001},
        state=("m_t", "v_t"),
    ),
    "fedyogi": Entry(
        flower.FedYogi,
        "Reddi et al. 2021, arXiv 2003.00295",
        {"eta": 0.003, "beta_1": 0.9, "beta_2": 0.99, "tau": 0.001},
        state=("m_t", "v_t"),
    ),
    "fedadagrad": Entry(
        flower.FedAdagrad,
        "Reddi et al. 2021, arXiv 2003.00295",
        {"eta": 0.003, "tau": 0.001},
        state=("m_t", "v_t"),
    ),
    "fedprox": Entry(flower.FedProx, "Li et al. 2020, arXiv 1812.06127", {"proximal_mu": 0.01}),
    "fednova": Entry(FedAvg, "Wang et al. 2020, arXiv 2007.07481", per_step=True),
    "qfedavg": Entry(
        lambda **kwargs: flower.QFedAvg(train_loss_key=LOSS_KEY, **kwargs),
        "Li et al. 2020, arXiv 1905.10497",
        {"q": 0.1, "client_learning_rate": 1.0},
        needs_all=True,
        num_weighed=_none,
    ),
    "fedmedian": Entry(
        flower.FedMedian,
        "Yin et al. 2018, arXiv 1803.01498",
        sees_buffers=True,
        needs_all=True,
        num_weighed=_none,
        min_clients=lambda options: 3,
    ),
    "fedtrimmedavg": Entry(
        flower.FedTrimmedAvg,
        "Yin et al. 2018, arXiv 1803.01498",
        {"beta": 0.2},
        sees_buffers=True,
        needs_all=True,
        num_weighed=_none,
        # With fewer clients nothing would be trimmed.
        min_clients=lambda options: math.ceil(1 / options["beta"]),
    ),
    "krum": Entry(
        lambda **kwargs: MultiKrum(num_nodes_to_select=1, **kwargs),
        "Blanchard et al. 2017, arXiv 1703.02757",
        {"num_malicious_nodes": 0},
        sees_buffers=True,
        needs_all=True,
        needs_parameters=True,
        num_weighed=_none,
        min_clients=_krum_clients,
    ),
    "multikrum": Entry(
        MultiKrum,
        "Blanchard et al. 2017, arXiv 1703.02757",
        {"num_malicious_nodes": 0, "num_nodes_to_select": 2},
        sees_buffers=True,
        needs_all=True,
        needs_parameters=True,
        num_weighed=lambda options: options["num_nodes_to_select"],
        min_clients=lambda options: max(_krum_clients(options), options["num_nodes_to_select"]),
    ),
    "bulyan": Entry(
        _bulyan,
        "El Mhamdi et al. 2018, arXiv 1802.07927",
        {"num_malicious_nodes": 0},
        sees_buffers=True,
        needs_all=True,
        needs_parameters=True,
        num_weighed=_none,
        min_clients=lambda options: 4 * options["num_malicious_nodes"] + 3,
    ),
}
# Conditions on options that need more than a number of at least 0.
RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "beta": (lambda x: 0.001 <= x < 0.5, "at least 0.001 and less than 0.5"),
    "beta_1": (lambda x: 0 <= x < 1, "at least 0 and less than 1"),
    "beta_2": (lambda x: 0 <= x < 1, "at least 0 and less than 1"),
    "server_momentum": (lambda x: 0 <= x < 1, "at least 0 and less than 1"),
    "num_malicious_nodes": (
        lambda x: type(x) is int and 0 <= x < MAX_NODES,
        "that is whole and at least 0",
    ),
    "num_nodes_to_select": (
        lambda x: type(x) is int and 1 <= x < MAX_NODES,
        "that is whole and at least 1",
    ),
    "client_learning_rate": (lambda x: x > 0, "greater than 0"),
    "server_learning_rate": (lambda x: x > 0, "greater than 0"),
    "eta": (lambda x: x > 0, "greater than 0"),
    "tau": (lambda x: x > 0, "greater than 0"),
}


def entry_of(config: StrategyConfig) -> Entry:
    """Return the registry's entry for a config; raises InputError for an unknown name."""
    if config.name not in STRATEGIES:
        raise InputError(
            f"strategy.name: found '{config.name}', expected one of {', '.join(STRATEGIES)}"
            f"{nearest(config.name, STRATEGIES)}"
        )
    return STRATEGIES[config.name]


def options_of(config: StrategyConfig) -> Options:
    """Return all options of a config's strategy. Raises InputError for unknown or invalid ones."""
    known = entry_of(config).options
    problems = []
    for name, value in config.options.items():
        possible, expected = RANGES.get(name, (lambda x: x >= 0, "at least 0"))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if name not in known:
            options = f"its options are {', '.join(known)}" if known else "it has no options"
            near = nearest(name, [*known, *StrategyConfig.model_fields])
            problems.append(f"strategy.{name}: unknown option of {config.name}; {options}{near}")
        elif not (is_number and abs(value) < MAX_NUMBER and possible(value)):
            problems.append(f"strategy.{name}: found {value!r}, expected a number {expected}")
    problems += [] if problems else _weight_problems(config)
    if problems:
        raise InputError(problems)
    return {**known, **config.options}


def clients_for_share(config: StrategyConfig) -> int:
    """Return how many clients a mean needs so that none has more than `max_share` of it."""
    return 1 if config.max_share is None else math.ceil(1 / config.max_share - 1e-9)


def _weight_problems(config: StrategyConfig) -> list[str]:
    """Return a line for each weight setting that a strategy would ignore or cannot meet."""
    entry = entry_of(config)
    number = entry.num_weighed({**entry.options, **config.options})
    given = {"weights": config.weights != "images", "max_share": config.max_share is not None}
    if number == 0:
        return [
            f"strategy.{name}: has no effect with {config.name}, which does not weigh clients by "
            "their images; remove it"
            for name, is_given in given.items()
            if is_given
        ]
    needed = clients_for_share(config)
    if number is not None and number < needed:
        return [
            f"strategy.max_share: found {config.max_share:g}, which {needed} clients can keep; "
            f"{config.name} takes the mean of {number} (num_nodes_to_select)"
        ]
    return []


def strategy_problems(config: StrategyConfig, clients_per_round: int) -> list[str]:
    """Return why a config's strategy cannot work with so many clients in a round, if so."""
    try:
        options = options_of(config)
    except InputError as error:
        return error.problems
    share = clients_for_share(config)
    if clients_per_round < share:
        return [
            f"strategy.max_share: found {config.max_share:g}, expected at least "
            f"{1 / clients_per_round:.4g}: one of {clients_per_round} clients in a round has that "
            "share at least; raise it, or add clients"
        ]
    needed = entry_of(config).min_clients(options)
    if clients_per_round >= needed:
        return []
    settings = ", ".join(f"{name}={value:g}" for name, value in options.items())
    with_settings = f" with {settings}" if settings else ""
    return [
        f"strategy.name: {config.name}{with_settings} needs {needed} clients in a round, found "
        f"{clients_per_round}; add clients, or use fedavg"
    ]
