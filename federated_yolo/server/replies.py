"""A client's reply is checked against what the server knows, or its client fails."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from ultralytics.utils import DEFAULT_CFG_DICT

from federated_yolo.common.arrays import (
    Arrays,
    Layout,
    layout_problems,
    negative_statistics,
    select,
)
from federated_yolo.config.schema import Config
from federated_yolo.protocol.instructions import Instructions
from federated_yolo.server.plausible import Size, Work
from federated_yolo.server.transport import num_bytes
from federated_yolo.yolo.slice_mixin import smallest_imgsz

RecordT = TypeVar("RecordT", ArrayRecord, ConfigRecord, MetricRecord)

MAX_NUMBERS, MAX_NAME = 1000, 200  # of a client's losses and metrics, but for those of classes
LARGEST_NUMBER = 1e30  # of a client's losses and metrics; means of more would be infinite


@dataclass(frozen=True)
class Score:
    """A client's checked reply to an evaluate message.

    metrics: with "fitness". per_class: as of `Evaluation`.
    """

    name: str
    num_examples: int
    metrics: dict[str, float]
    per_class: dict[str, float]


def checked_arrays(arrays: Arrays, layout: Layout, what: str) -> Arrays:
    """A client's arrays, in order. Raises ValueError for those that this model cannot take."""
    problems = layout_problems(arrays, layout) + negative_statistics(arrays)
    if problems:
        raise ValueError(f"its {what} refused: " + "; ".join(problems[:3]))
    return select(arrays, layout.names)


def size_of(reply: Message) -> Size:
    """How much there is to a reply; nothing is unpacked."""
    records = list(reply.content.values())
    others = [record for record in records if not isinstance(record, ArrayRecord)]
    return Size(
        num_records=len(records),
        num_entries=sum(len(record) for record in records),
        array_bytes=num_bytes(reply),
        other_bytes=sum(_length(v) + len(k) for record in others for k, v in record.items()),
    )


def _length(value: Any) -> int:
    """Bytes or characters of a number, a text, bytes, or a list of such."""
    if isinstance(value, list):
        return sum(map(_length, value))
    return len(value) if isinstance(value, str | bytes) else 8


def record_of(reply: Message, name: str, kind: type[RecordT]) -> RecordT:
    """A record of a reply. Raises KeyError where there is none of this name and kind.

    Flower 1.41's `array_records` and the like leave a cycle of references, so that the arrays of
    each reply would stay in memory until Python's garbage collection comes by.
    """
    record = reply.content[name]
    if not isinstance(record, kind):
        raise KeyError(name)
    return record


def numbers_of(reply: Message) -> dict[str, float]:
    """The numbers of a reply, which must be finite."""
    record = record_of(reply, "metrics", MetricRecord)
    numbers = {name: float(value) for name, value in record.items() if not isinstance(value, list)}
    if not all(abs(value) <= LARGEST_NUMBER for value in numbers.values()):  # NaN is not
        wrong = {n: v for n, v in numbers.items() if not abs(v) <= LARGEST_NUMBER}
        raise ValueError(f"its numbers are not finite, or huge: {wrong}")
    return numbers


def refuse_own_names(numbers: Collection[str]) -> None:
    """Raise ValueError for names of the server's own columns, and those that no table can have.

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


def positive_integer(
    value: float, name: str, largest: int = 2**53
) -> int:  # above, a float skips numbers
    if not 0 < value <= largest or value != int(value):
        more = "" if value <= largest else f", at most {largest}"
        raise ValueError(f"{name}: found {value}, expected a positive whole number{more}")
    return int(value)


def refuse_problems(problems: Iterable[str], start: str = "") -> None:
    """Raise ValueError with the first of these, where there are any."""
    found = [problem for problem in problems if problem]
    if found:
        raise ValueError(start + "; ".join(found[:3]))


def work_of(config: Config, instructions: Instructions, model: Any) -> Work:
    train, stride = instructions.train, max(int(model.stride.max()), 32)
    imgsz: Any = train.get("imgsz", DEFAULT_CFG_DICT["imgsz"])
    multi_scale: Any = train.get("multi_scale", DEFAULT_CFG_DICT["multi_scale"])
    is_mixed = train.get("amp", True) not in (False, "bf16")
    on_gpu = config.has_sites or instructions.device != "cpu"  # of a site it is not known
    return Work(
        batch=int(train["batch"]),
        nbs=int(train["nbs"]),
        local_epochs=config.local_epochs,
        drops_single=smallest_imgsz(imgsz, multi_scale, stride) < 2 * stride,
        is_plain=not config.client,
        may_skip_steps=is_mixed and on_gpu,
    )
