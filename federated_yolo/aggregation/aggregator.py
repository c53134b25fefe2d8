"""Combines the updates of a round into new global arrays."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

from federated_yolo.aggregation.mean import RunningMean, Share, limited
from federated_yolo.aggregation.strategies import Options, clients_for_share, entry_of, options_of
from federated_yolo.common.arrays import Arrays, select, to_double
from federated_yolo.config.schema import StrategyConfig
from federated_yolo.protocol.records import EXAMPLES_KEY, LOSS_KEY, from_record, to_record


@dataclass(frozen=True)
class Update:
    """A client's checked reply to a train message.

    arrays: Arrays of the shared layout, float32 and integers; empty once they are in the mean.
    num_steps: Steps of the client's optimiser. losses: Mean losses, by Ultralytics' names.
    norm: L2 norm of the change of the trainable arrays. local: "local/..." scores of these arrays
    on the client's val split, if they were requested. statistics_factor: Largest factor by which
    BatchNorm's statistics have changed; 1 means no change.
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
    """Average each class's rows only over the clients that annotate that class.

    The rows of the other clients do not change, and would pull the mean back to where it started.
    They are replaced by the mean of the annotating clients, weighted by images, so that a mean
    over all clients gives that same value. If no client of the round annotates the class, its
    rows stay as in `origin`.

    absent: Indices of the classes that a client does not annotate, by its name. class_rows: Names
    of arrays of shape (classes, ...). origin: Global arrays that the clients started from. robust:
    Whether to take the median instead, which a hostile client cannot move at will; the mean would
    bring its values into the other clients' rows, past a robust strategy.
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
    """Combines updates by the config's strategy. Holds Flower's strategy, and so its momenta.

    parameters: Names of the trainable arrays. class_rows: As for `abstain`.
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
        self.min_clients = max(self.entry.min_clients(options), clients_for_share(config))
        if config.max_share is not None and self.entry.needs_parameters:
            extra["max_share"] = config.max_share  # among the updates that it chooses
        # The server decides which clients take part in a round, not Flower's sampling.
        nodes = dict.fromkeys(("min_train_nodes", "min_evaluate_nodes", "min_available_nodes"), 1)
        self.strategy = self.entry.build(**nodes, **options, **extra)

    def configure(
        self, round_number: int, arrays: Arrays, config: ConfigRecord, nodes: Iterable[int]
    ) -> list[Message]:
        """Return the strategy's train message for each node, with all of `arrays`.

        The strategy itself gets, and may remember, only the arrays that it will combine.
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
        """Whether all updates of a round must have arrived before any can be added."""
        return self.entry.needs_all or self.config.max_share is not None

    def weights(self, num_examples: Sequence[int]) -> list[float]:
        """Return the weights of clients with so many images in a mean, each within `max_share`."""
        is_equal = self.config.weights == "equal"
        return limited([1 if is_equal else n for n in num_examples], self.config.max_share)

    def add(self, update: Update, absent: Sequence[int], weight: float | None = None) -> None:
        """Add an update to the running mean; only for strategies that take a mean.

        absent: Indices of the classes that the client does not annotate. weight: The update's
        weight, if it depends on the other updates. The sums depend on the order of updates.
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
        """Combine updates in float64; return None if they are too few for the strategy.

        updates: Updates in a fixed order, also those already added. absent: As for `abstain`.
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
            # Removed from the large sums one by one while Flower's copies are made.
            seen = {name: Array(arrays.pop(name)) for name in self._seen(arrays)}
            combined = self._aggregate(round_number, [_as_message(ArrayRecord(seen), 1, 0.0)])
            arrays.update(combined or {})
        return arrays

    def _combine(
        self, round_number: int, updates: list[Update], absent: Mapping[str, Sequence[int]]
    ) -> Arrays | None:
        """Let the strategy combine all updates at once; return None if they are too few."""
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
        """Whether the strategy has a state that it carries from round to round."""
        return bool(self.entry.state)

    def state(self) -> Arrays:
        """Return the state for the next round: "ATTRIBUTE/ARRAY" -> array, float64."""
        result: Arrays = {}
        for attribute in self.entry.state:
            value = getattr(self.strategy, attribute)
            # FedAvgM has a list, in the order of the arrays that it sees.
            named = dict(enumerate(value)) if isinstance(value, list) else value or {}
            result.update({f"{attribute}/{name}": array for name, array in named.items()})
        return result

    def restore(self, state: Arrays) -> None:
        """Continue from an earlier `state`."""
        for attribute in self.entry.state:
            prefix = f"{attribute}/"
            named = {n.removeprefix(prefix): a for n, a in state.items() if n.startswith(prefix)}
            is_list = all(name.isdigit() for name in named)
            value = list(named.values()) if is_list else named
            setattr(self.strategy, attribute, value or None)

    def _message_of(self, update: Update, arrays: Arrays) -> Message:
        """Return arrays of a checked update as a message, in float64."""
        weight = 1 if self.config.weights == "equal" else update.num_examples
        return _as_message(to_record(to_double(arrays)), weight, update.loss)

    def _seen(self, arrays: Mapping[str, np.ndarray]) -> Arrays:
        if self.entry.sees_buffers:
            return dict(arrays)
        return select(arrays, [name for name in arrays if name in self.parameters])


@dataclass(frozen=True)
class _Nodes:
    """The part of Flower's Grid that a strategy uses: the ids of the nodes."""

    node_ids: list[int]

    def get_node_ids(self) -> list[int]:
        """Ids of the nodes that take part in a round."""
        return self.node_ids


def _as_message(arrays: ArrayRecord, num_examples: int, loss: float) -> Message:
    """Return an update in the form that Flower's strategies aggregate."""
    numbers = MetricRecord({EXAMPLES_KEY: num_examples, LOSS_KEY: loss})
    content = RecordDict({"arrays": arrays, "metrics": numbers})
    return Message(content, dst_node_id=0, message_type="train")
