"""Checks clients' replies against what the server knows; a client whose reply is wrong fails."""

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from ultralytics.utils import DEFAULT_CFG_DICT

from federated_yolo.aggregation.aggregator import Update
from federated_yolo.common.arrays import (
    Arrays,
    Layout,
    distance,
    layout_problems,
    negative_statistics,
    select,
)
from federated_yolo.config.schema import ResolvedConfig
from federated_yolo.protocol.delta import Encoding
from federated_yolo.protocol.instructions import Instructions
from federated_yolo.protocol.records import EXAMPLES_KEY, MAX_ATTEMPTS, STEPS_KEY, UNCHANGED, views
from federated_yolo.server.global_model import GlobalModel
from federated_yolo.server.journal import RoundJournal
from federated_yolo.server.plausible import (
    MAX_IMAGES,
    Numbers,
    Size,
    Work,
    counted,
    counter_problems,
    fixed_problems,
    seconds_problem,
    size_problem,
    statistics_factors,
    statistics_problems,
)
from federated_yolo.server.registry import ClientRegistry, reason_in
from federated_yolo.server.transport import num_bytes
from federated_yolo.yolo.evaluator import class_metrics
from federated_yolo.yolo.slice_mixin import smallest_imgsz

RecordT = TypeVar("RecordT", ArrayRecord, ConfigRecord, MetricRecord)
ResultT = TypeVar("ResultT")

MAX_NUMBERS, MAX_NAME = 1000, 200  # of a client's losses and metrics, except those of classes
LARGEST_NUMBER = 1e30  # of a client's losses and metrics; means of larger ones would be infinite


@dataclass(frozen=True)
class Score:
    """A client's checked reply to an evaluate message.

    metrics: Overall metrics, with "fitness". per_class: As in `Evaluation`.
    """

    name: str
    num_examples: int
    metrics: dict[str, float]
    per_class: dict[str, float]


class ReplyReader:
    """Reads replies, and fails the clients whose reply cannot be used.

    Holds the names of numbers that each client has used, so that tables stay small.
    parameters: Names of the trainable arrays; `update_norm` is the norm of their change.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        instructions: Instructions,
        model: GlobalModel,
        registry: ClientRegistry,
        encoding: Encoding,
        parameters: frozenset[str],
    ) -> None:
        self.config = config
        self.instructions = instructions
        self.model = model
        self.registry = registry
        self.encoding = encoding
        self.parameters = parameters
        task, names = model.meta.task, model.meta.names
        self.work = work_of(config, instructions, model.model)
        self.bounds = Numbers.of(task, names, class_metrics(task), config.train)
        self.number_names: dict[str, set[str]] = defaultdict(set)  # in replies so far, by client

    def update(self, reply: Message, journal: RoundJournal) -> Update | None:
        """Return the update in a reply to a train message; None if it cannot be used."""
        return self.read(reply, lambda name, reply: self._update(name, reply, journal), journal)

    def score(self, reply: Message, journal: RoundJournal) -> Score | None:
        """Return the score in a reply to an evaluate message; None if it cannot be used."""
        return self.read(reply, lambda name, reply: self._score(name, reply, journal), journal)

    def read(
        self, reply: Message, parse: Callable[[str, Message], ResultT], journal: RoundJournal
    ) -> ResultT | None:
        """Return what a reply holds; if it cannot be used, fail its client and return None.

        parse: Function of the client's name and the reply, which raises ValueError, TypeError,
        KeyError or OverflowError for a reply that cannot be used.
        """
        name = self.registry.names_by_node[reply.metadata.src_node_id]  # as `exchange` ensures
        try:
            if reply.has_error():
                raise ValueError(reason_in(reply))
            self._check_size(reply)
            result = parse(name, reply)
            client = record_of(reply, "client", ConfigRecord)
            attempt = client["attempt"]
            if attempt not in range(1, MAX_ATTEMPTS + 1):
                raise ValueError(f"attempt: found {attempt!r}, expected 1 to {MAX_ATTEMPTS}")
            if attempt != 1:
                journal.note(name, "its worker died at work; it did the work again in another one")
            if client.get("note"):
                journal.note(name, str(client["note"]))
            return result
        except KeyError as error:
            journal.fail(name, f"its reply has no {error}")
        except (ValueError, TypeError, OverflowError) as error:
            journal.fail(name, str(error))
        return None

    def _update(self, name: str, reply: Message, journal: RoundJournal) -> Update:
        numbers = numbers_of(reply)
        num_images = positive_integer(numbers.pop(EXAMPLES_KEY), EXAMPLES_KEY, MAX_IMAGES)
        num_steps = positive_integer(numbers.pop(STEPS_KEY), STEPS_KEY)
        seconds = numbers.pop("seconds")
        self._check_numbers(name, numbers, seconds, journal)
        known = self._known_images(name, num_images, ("train",), journal)
        # A user's class may report another number of images, to change its weight.
        trained = num_images if self.work.is_plain else max(num_images, known)
        refuse_problems([self.work.step_problem(trained, num_steps)])
        local = {k: v for k, v in numbers.items() if k.startswith("local/")}
        losses = {k: v for k, v in numbers.items() if k not in local}
        arrays = checked_arrays(self._rebuilt(reply), self.model.layout, "arrays were")
        factor = self._check_work(arrays, self.work.num_batches(trained)[1])
        num_examples, num_steps = counted(num_images, num_steps, known)
        start = self.model.arrays
        norm = distance(arrays, start, [name for name in start if name in self.parameters])
        return Update(name, arrays, num_examples, num_steps, losses, seconds, norm, local, factor)

    def _score(self, name: str, reply: Message, journal: RoundJournal) -> Score:
        numbers = numbers_of(reply)
        num_images = positive_integer(numbers.pop(EXAMPLES_KEY), EXAMPLES_KEY, MAX_IMAGES)
        loss, seconds = numbers.pop("loss"), numbers.pop("seconds")
        self._check_numbers(name, numbers, seconds, journal)
        fitness = numbers["fitness"]  # every score must have it
        if not self.config.client and abs(loss - (1 - fitness)) > 1e-6:
            raise ValueError(f"loss: found {loss:g}, expected 1 - fitness = {1 - fitness:g}")
        per_class = {k: v for k, v in numbers.items() if k.startswith("class/")}
        metrics = {k: v for k, v in numbers.items() if k not in per_class}
        known = self._known_images(name, num_images, ("val", "test"), journal)
        return Score(name, min(num_images, known), metrics, per_class)

    def _check_size(self, reply: Message) -> None:
        """Refuse a reply that is too large, before anything in it is unpacked or copied."""
        num_numbers = MAX_NUMBERS + len(self.bounds.names) * len(self.bounds.class_metrics)
        refuse_problems([size_problem(size_of(reply), self.model.whole_layout, num_numbers)])

    def _check_numbers(
        self, name: str, numbers: Mapping[str, float], seconds: float, journal: RoundJournal
    ) -> None:
        """Refuse impossible losses, metrics and times, and names that a client must not use."""
        refuse_problems([seconds_problem(seconds, time.monotonic() - journal.asked_at)])
        self._check_names(name, [key for key in numbers if not key.startswith("class/")])
        refuse_problems(self.bounds.problems(numbers))

    def _check_work(self, arrays: Arrays, num_batches: int) -> float:
        """Refuse arrays that so many batches of training cannot have made from the global ones.

        Returns the largest factor by which BatchNorm's statistics have changed.
        """
        start = self.model.arrays
        factors = statistics_factors(arrays, start)
        problems = statistics_problems(factors, self.config.max_statistics_factor)
        if self.work.is_plain:
            problems += fixed_problems(arrays, start, self.model.fixed_names)
            problems += counter_problems(arrays, start, num_batches)
        refuse_problems(problems, "its arrays were refused: ")
        return max(factors.values(), default=1.0)

    def _check_names(self, name: str, numbers: Collection[str]) -> None:
        """Keep a client's numbers out of the server's own columns, and the tables small."""
        refuse_own_names(numbers)
        so_far = self.number_names[name] | set(numbers)
        if len(so_far) > MAX_NUMBERS:
            raise ValueError(
                f"found {len(so_far)} names of numbers in its replies, expected at most "
                f"{MAX_NUMBERS} in a run"
            )
        self.number_names[name] = so_far

    def _known_images(
        self, name: str, found: int, splits: tuple[str, ...], journal: RoundJournal
    ) -> int:
        """Return how many images a client had at its start, which limits its weight in means.

        Its data may have grown since, but it may also report images that it does not have.
        """
        summary = self.registry.at_start.get(name)
        known = max(getattr(summary, f"num_{split}") for split in splits) if summary else found
        if found > known:
            journal.note(
                name, f"it has {found} images now; it counts with the {known} of its start"
            )
        return known

    def _rebuilt(self, reply: Message) -> Arrays:
        """Return all arrays of an update; the client has sent only those that it changed."""
        start = self.model.arrays
        if self.instructions.sends_deltas:
            return self.encoding.rebuilt(views(record_of(reply, "encoded", ArrayRecord)), start)
        unchanged: Any = record_of(reply, "client", ConfigRecord).get(UNCHANGED, [])
        arrays = {name: start[name] for name in unchanged}
        return arrays | views(record_of(reply, "arrays", ArrayRecord))


def checked_arrays(arrays: Arrays, layout: Layout, what: str) -> Arrays:
    """Return a client's arrays, in order. Raises ValueError if this model cannot take them."""
    problems = layout_problems(arrays, layout) + negative_statistics(arrays)
    if problems:
        raise ValueError(f"its {what} refused: " + "; ".join(problems[:3]))
    return select(arrays, layout.names)


def size_of(reply: Message) -> Size:
    """Return the size of a reply, without unpacking anything."""
    records = list(reply.content.values())
    others = [record for record in records if not isinstance(record, ArrayRecord)]
    return Size(
        num_records=len(records),
        num_entries=sum(len(record) for record in records),
        array_bytes=num_bytes(reply),
        other_bytes=sum(_length(v) + len(k) for record in others for k, v in record.items()),
    )


def _length(value: Any) -> int:
    """Return the bytes or characters of a number, a text, bytes, or a list of such."""
    if isinstance(value, list):
        return sum(map(_length, value))
    return len(value) if isinstance(value, str | bytes) else 8


def record_of(reply: Message, name: str, kind: type[RecordT]) -> RecordT:
    """Return a record of a reply. Raises KeyError if there is none of this name and kind.

    Flower 1.41's `array_records` and the like leave a reference cycle, so that the arrays of each
    reply would stay in memory until Python's next garbage collection.
    """
    record = reply.content[name]
    if not isinstance(record, kind):
        raise KeyError(name)
    return record


def numbers_of(reply: Message) -> dict[str, float]:
    """Return the numbers of a reply. Raises ValueError if one is not finite, or huge."""
    record = record_of(reply, "metrics", MetricRecord)
    numbers = {name: float(value) for name, value in record.items() if not isinstance(value, list)}
    if not all(abs(value) <= LARGEST_NUMBER for value in numbers.values()):  # false for NaN
        wrong = {n: v for n, v in numbers.items() if not abs(v) <= LARGEST_NUMBER}
        raise ValueError(f"its numbers are not finite, or huge: {wrong}")
    return numbers


def refuse_own_names(numbers: Collection[str]) -> None:
    """Raise ValueError for names of the server's own columns, and for names unfit for a table.

    A field that is too long would make results.csv unreadable (`csv.field_size_limit`).
    """
    for name in numbers:
        if not name.isprintable() or len(name) > MAX_NAME:
            raise ValueError(
                f"its number '{name[:50]}' has a name of {len(name)} characters, expected at most "
                f"{MAX_NAME}, all printable"
            )
        if name.startswith("server/") or ("/" not in name and name != "fitness"):
            raise ValueError(
                f"its number '{name}' is named as the server's own are; call it 'my/{name}'"
            )


def positive_integer(value: float, name: str, largest: int = 2**53) -> int:
    """Return a whole number of at least 1. Raises ValueError for any other value.

    largest: Upper limit; the default is the largest up to which a float holds all whole numbers.
    """
    if not 0 < value <= largest or value != int(value):
        more = "" if value <= largest else f", at most {largest}"
        raise ValueError(f"{name}: found {value}, expected a positive whole number{more}")
    return int(value)


def refuse_problems(problems: Iterable[str], start: str = "") -> None:
    """Raise ValueError with the first three of these problems, if there are any."""
    found = [problem for problem in problems if problem]
    if found:
        raise ValueError(start + "; ".join(found[:3]))


def work_of(config: ResolvedConfig, instructions: Instructions, model: Any) -> Work:
    train, stride = instructions.train, max(int(model.stride.max()), 32)
    imgsz: Any = train.get("imgsz", DEFAULT_CFG_DICT["imgsz"])
    multi_scale: Any = train.get("multi_scale", DEFAULT_CFG_DICT["multi_scale"])
    is_mixed = train.get("amp", True) not in (False, "bf16")
    on_gpu = config.has_sites or instructions.device != "cpu"  # not known for sites
    return Work(
        batch=int(train["batch"]),
        nbs=int(train["nbs"]),
        local_epochs=config.local_epochs,
        averages_per_round=config.averages_per_round,
        drops_single=smallest_imgsz(imgsz, multi_scale, stride) < 2 * stride,
        is_plain=not config.client,
        may_skip_steps=is_mixed and on_gpu,
    )
