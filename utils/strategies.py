"""Strategies by name, over Flower's own classes, and what the server does beside them.

A strategy turns checked updates into the next global arrays. It sees only the arrays it should
combine: server optimisers get the trainable parameters, and buffers (BatchNorm's statistics and
counters, of which an optimiser would make nonsense) are means weighted as those of the models;
robust strategies get everything, since a hostile update may lie in any array.

Means are running ones (utils/mean.py): an update is added and need not be kept, and a server
optimiser gets the mean as if it were one client's update. The other strategies need all updates.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import FedAvg, Strategy

# unstable: flwr.serverapp.strategy.multikrum.select_multikrum
# unstable: flwr.serverapp.strategy.strategy_utils.aggregate_arrayrecords
from flwr.serverapp.strategy.multikrum import select_multikrum
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from utils.arrays import Arrays, select, to_double
from utils.client import from_record, to_record
from utils.config import InputError, StrategyConfig, nearest
from utils.mean import RunningMean, Share, limited

Options = dict[str, Any]
EXAMPLES_KEY = "num-examples"  # Flower's name for an update's weight
LOSS_KEY = "train_loss"  # sum of an update's losses, which q-FedAvg weighs clients by
STEPS_KEY = "num-steps"
MAX_NODES, MAX_NUMBER = 10**6, 1e18  # far beyond any sense; NaN and infinity are not below either


class FedAvgM(flower.FedAvgM):
    """Flower's, starting each round from the arrays that the clients start from.

    Flower's own goes on from its unrounded result of the round before, which a resumed run lacks.
    """

    def configure_train(self, *args: Any, **kwargs: Any) -> Iterable[Message]:
        """Forget the arrays of the round before; Flower's then takes those given."""
        self.current_arrays = None
        return super().configure_train(*args, **kwargs)


def _nearest_updates(
    contents: list[RecordDict], parameters: frozenset[str], num_malicious: int, number: int
) -> list[RecordDict]:
    """Multi-Krum's choice by distances over trainable parameters alone.

    Counters and running variances are larger by orders of magnitude and would decide alone.
    """
    trainable = []
    for index, content in enumerate(contents):
        arrays = content.array_records["arrays"]
        record = ArrayRecord({n: array for n, array in arrays.items() if n in parameters})
        trainable.append(RecordDict({"arrays": record, "index": ConfigRecord({"index": index})}))
    chosen = select_multikrum(trainable, num_malicious, number)
    return [contents[int(str(c.config_records["index"]["index"]))] for c in chosen]


class MultiKrum(flower.MultiKrum):
    """Flower's, with distances over trainable parameters."""

    def __init__(
        self, parameters: frozenset[str], max_share: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.parameters = parameters
        self.max_share = max_share

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Weighted mean of the chosen updates."""
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

    build: makes it from `options`, and Flower's min_*_nodes. options: with their defaults.
    sees_buffers: gets all arrays and not the trainable parameters alone.
    needs_parameters: build also takes the names of the trainable arrays.
    needs_all: combines all updates at once, so that they have to be in memory together; else it
    takes their mean, to which they are added one by one.
    per_step: the mean of the trainable arrays is FedNova's. num_weighed: how many updates, by the
    options, are in a mean that clients' weights decide on; 0 for none, None for all.
    state: attributes of Flower's class that it carries from round to round, None or float64 arrays.
    min_clients: how many updates a round needs at least, by the options. paper: where it is from.
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
        # With fewer nothing would be trimmed.
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
# What an option must be, where a number of at least 0 is not enough.
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


@dataclass(frozen=True)
class Update:
    """A client's checked reply to a train message.

    arrays: float32 and integers, of the shared layout; empty once they are in the mean. losses: by
    Ultralytics' name.
    num_steps: of the client's optimiser. norm: L2 of the change of the trainable arrays.
    local: "local/..." scores of these arrays on the client's val split, if it was asked for them.
    statistics_factor: by which BatchNorm's statistics have moved at most; 1 is not at all.
    """

    name: str
    arrays: Mapping[str, np.ndarray]
    num_examples: int
    num_steps: int
    losses: dict[str, float]
    seconds: float
    norm: float
    local: dict[str, float] = field(default_factory=dict)
    statistics_factor: float = 1.0

    @property
    def loss(self) -> float:
        """Sum of Ultralytics' losses, without numbers that a user's client adds; at least 0."""
        return max(0.0, sum(v for name, v in self.losses.items() if name.startswith("train/")))


def abstain(
    updates: list[Update],
    absent: Mapping[str, Sequence[int]],
    class_rows: Iterable[str],
    origin: Arrays,
    *,
    robust: bool = False,
) -> list[Update]:
    """Make each class's own rows the affair of the clients that annotate it.

    The other clients' rows do not move, and would hold back what those learn. They become the mean
    of theirs, weighted by images, so that every mean over all clients is theirs; where no client
    of the round annotates the class, its rows stay as in `origin`.

    absent: indices of the classes that a client does not annotate, by its name. class_rows: names
    of arrays of shape (classes, ...). robust: takes the median instead, which a hostile client
    cannot move at will, so that a robust strategy is not fed its values through the others.
    """
    if not any(absent.get(update.name) for update in updates):
        return updates
    filled = {update.name: dict(update.arrays) for update in updates}
    for name in class_rows:
        stack = to_double({update.name: update.arrays[name] for update in updates})
        for index in range(len(origin[name])):
            annotating = [u for u in updates if index not in absent.get(u.name, ())]
            if len(annotating) == len(updates):
                continue
            value = origin[name][index].astype(np.float64)
            if annotating:
                rows = [stack[update.name][index] for update in annotating]
                weights = [update.num_examples for update in annotating]
                value = np.median(rows, 0) if robust else np.average(rows, 0, weights)
            for client, array in stack.items():
                if index in absent.get(client, ()):
                    array[index] = value
        for client, array in stack.items():
            filled[client][name] = array
    return [replace(update, arrays=filled[update.name]) for update in updates]


class Aggregation:
    """How a config combines updates. Holds the Flower strategy, and with it the momenta.

    parameters: names of the trainable arrays. class_rows: of `abstain`.
    """

    def __init__(
        self,
        config: StrategyConfig,
        parameters: frozenset[str] = frozenset(),
        class_rows: Sequence[str] = (),
    ) -> None:
        """Raise InputError for an unknown name or option."""
        self.entry = entry_of(config)
        self.parameters = parameters
        self.class_rows = class_rows
        self.origin: Arrays = {}
        self._mean: RunningMean | None = None  # of the round's updates so far
        options = options_of(config)
        extra: Options = {"parameters": parameters} if self.entry.needs_parameters else {}
        self.config = config
        self.min_clients = max(self.entry.min_clients(options), _clients_for_share(config))
        if config.max_share is not None and self.entry.needs_parameters:
            extra["max_share"] = config.max_share  # of those that it chooses
        # Who takes part in a round is decided by the server, not by Flower's sampling.
        nodes = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 1)
        self.strategy = self.entry.build(**nodes, **options, **extra)

    def configure(
        self, round_number: int, arrays: Arrays, config: ConfigRecord, nodes: Iterable[int]
    ) -> list[Message]:
        """A train message with all of `arrays` for each node, as the strategy words it.

        The strategy remembers of the arrays what it is going to combine.
        """
        self.origin = arrays
        looks_at_them = self.entry.needs_all or self.has_state
        seen = to_record(to_double(self._seen(arrays)) if looks_at_them else {})
        grid: Any = _Nodes(list(nodes))
        messages = list(self.strategy.configure_train(round_number, seen, config, grid))
        everything = to_record(arrays)
        for message in messages:
            message.content["arrays"] = everything
        return messages

    @property
    def needs_all(self) -> bool:
        """Whether a round's updates have to be there before any can be added."""
        return self.entry.needs_all or self.config.max_share is not None

    def weights(self, num_examples: Sequence[int]) -> list[float]:
        """What clients with so many images count for in a mean, each within `max_share`."""
        is_equal = self.config.weights == "equal"
        return limited([1 if is_equal else n for n in num_examples], self.config.max_share)

    def add(self, update: Update, absent: Sequence[int], weight: float | None = None) -> None:
        """Add an update to the mean, of a strategy that takes one. absent: of `abstain`.

        weight: where it depends on the others'. Sums depend on the order of updates.
        """
        if self._mean is None:
            per_step = self.parameters if self.entry.per_step else ()
            self._mean = RunningMean(self.origin, self.class_rows, per_step)
        if weight is None:
            assert self.config.max_share is None
            (weight,) = self.weights([update.num_examples])
        share = Share(weight, update.num_steps, frozenset(absent))
        self._mean.add(update.arrays, share)

    def aggregate(
        self,
        round_number: int,
        updates: Iterable[Update],
        absent: Mapping[str, Sequence[int]] | None = None,
    ) -> Arrays | None:
        """Combine updates in float64; None when the strategy wants more of them.

        updates: in a fixed order, with those that were added before. absent: of `abstain`.
        """
        updates = list(updates)
        if self.entry.needs_all:
            return self._combine(round_number, updates, absent or {})
        weights = self.weights([update.num_examples for update in updates])
        for update, weight in zip(updates, weights, strict=True):
            if update.arrays:
                self.add(update, (absent or {}).get(update.name, ()), weight)
        assert self._mean is not None
        arrays, self._mean = self._mean.result(), None
        if self.has_state:
            # Taken out of the sums, which are large, while Flower's form of them is made.
            seen = {name: Array(arrays.pop(name)) for name in self._seen(arrays)}
            combined = self._aggregate(round_number, [_as_message(ArrayRecord(seen), 1, 0.0)])
            arrays.update(combined or {})
        return arrays

    def _combine(
        self, round_number: int, updates: list[Update], absent: Mapping[str, Sequence[int]]
    ) -> Arrays | None:
        """Let the strategy have all updates at once."""
        rows = [name for name in self.class_rows if name in self.origin]
        robust = self.entry.sees_buffers
        updates = abstain(updates, absent, rows, self.origin, robust=robust)
        arrays = self._aggregate(
            round_number,
            [self._message_of(update, self._seen(update.arrays)) for update in updates],
        )
        if arrays is None:
            return None
        unseen = [name for name in updates[0].arrays if name not in arrays]
        if unseen:
            replies = [
                self._message_of(update, select(update.arrays, unseen)) for update in updates
            ]
            buffers = aggregate_arrayrecords([reply.content for reply in replies], EXAMPLES_KEY)
            arrays.update(from_record(buffers))
        return arrays

    def _aggregate(self, round_number: int, replies: list[Message]) -> Arrays | None:
        combined, _ = self.strategy.aggregate_train(round_number, replies)
        return None if combined is None else from_record(combined)

    @property
    def has_state(self) -> bool:
        """Whether the strategy carries anything from round to round."""
        return bool(self.entry.state)

    def state(self) -> Arrays:
        """What the strategy carries to the next round, float64; "ATTRIBUTE/ARRAY" -> array."""
        result: Arrays = {}
        for attribute in self.entry.state:
            value = getattr(self.strategy, attribute)
            # FedAvgM has a list, in the order of the arrays that it sees.
            named = dict(enumerate(value)) if isinstance(value, list) else value or {}
            result.update({f"{attribute}/{name}": array for name, array in named.items()})
        return result

    def restore(self, state: Arrays) -> None:
        """Go on from a `state` of before."""
        for attribute in self.entry.state:
            prefix = f"{attribute}/"
            named = {n.removeprefix(prefix): a for n, a in state.items() if n.startswith(prefix)}
            is_list = all(name.isdigit() for name in named)
            value = list(named.values()) if is_list else named
            setattr(self.strategy, attribute, value or None)

    def _message_of(self, update: Update, arrays: Arrays) -> Message:
        """Arrays of a checked update as a message, in float64."""
        weight = 1 if self.config.weights == "equal" else update.num_examples
        return _as_message(to_record(to_double(arrays)), weight, update.loss)

    def _seen(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        if self.entry.sees_buffers:
            return dict(arrays)
        return select(arrays, [name for name in arrays if name in self.parameters])


@dataclass(frozen=True)
class _Nodes:
    """The part of Flower's Grid that a strategy asks: who is there."""

    node_ids: list[int]

    def get_node_ids(self) -> list[int]:
        """Ids of the nodes that take part in a round."""
        return self.node_ids


def _as_message(arrays: ArrayRecord, num_examples: int, loss: float) -> Message:
    """The form of an update that Flower's strategies aggregate."""
    numbers = MetricRecord({EXAMPLES_KEY: num_examples, LOSS_KEY: loss})
    content = RecordDict({"arrays": arrays, "metrics": numbers})
    return Message(content, dst_node_id=0, message_type="train")


def entry_of(config: StrategyConfig) -> Entry:
    """The registry's entry for a config; raises InputError for an unknown name."""
    if config.name not in STRATEGIES:
        raise InputError(
            f"strategy.name: found '{config.name}', expected one of {', '.join(STRATEGIES)}"
            f"{nearest(config.name, STRATEGIES)}"
        )
    return STRATEGIES[config.name]


def options_of(config: StrategyConfig) -> Options:
    """All options of a config's strategy; raises InputError for unknown or impossible ones."""
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


def _clients_for_share(config: StrategyConfig) -> int:
    """How many clients it takes that none has more than its share of a mean."""
    return 1 if config.max_share is None else math.ceil(1 / config.max_share - 1e-9)


def _weight_problems(config: StrategyConfig) -> list[str]:
    """Say which settings of weights a strategy would ignore, or cannot meet."""
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
    needed = _clients_for_share(config)
    if number is not None and number < needed:
        return [
            f"strategy.max_share: found {config.max_share:g}, which {needed} clients can keep; "
            f"{config.name} takes the mean of {number} (num_nodes_to_select)"
        ]
    return []


def strategy_problems(config: StrategyConfig, clients_per_round: int) -> list[str]:
    """Say what keeps a config's strategy from working with so many clients in a round."""
    try:
        options = options_of(config)
    except InputError as error:
        return error.problems
    share = _clients_for_share(config)
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
