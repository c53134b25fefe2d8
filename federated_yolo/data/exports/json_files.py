"""JSON files of annotation tools, read with their place in messages."""

import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from federated_yolo.common.errors import InputError
from federated_yolo.common.files import refuse_special, special_kind
from federated_yolo.data.exports.content import first_problems

T = TypeVar("T")
EDGE_BYTES = 1 << 16  # of the beginning and of the end of a file, by which it is recognised


def read_json(path: Path, kind: type[T], what: str) -> T:
    """Read a JSON file, which may begin with a byte order mark, as a dataclass.

    Args:
        path: The file.
        kind: The dataclass.
        what: What it should be, for messages: "a COCO annotation file".

    Raises:
        InputError: With one line for each place of the file that does not fit, a few of them.
    """
    try:
        refuse_special(path)
        return TypeAdapter(kind).validate_json(path.read_text(encoding="utf-8-sig"))
    except ValidationError as error:
        refuse({path: misfits(error)})
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not {what}: {error}") from error


def misfits(error: ValidationError) -> Iterator[str]:
    """One line for each place of a file that is not as its format has it."""
    seen = set()
    for problem in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in problem["loc"] if part not in ("int", "str"))
        text = problem["msg"].replace("Input should be ", "expected ")
        if problem["type"] not in ("json_invalid", "missing"):
            text = f"found {reprlib.repr(problem['input'])}; {text}"
        if place not in seen:  # an id can be of two types, and may fit neither
            yield f"{place}: {text}" if place else text
        seen.add(place)


def refuse(problems: Mapping[Path, Iterable[str]]) -> None:
    """Raise InputError where there are problems: a few of each file, which is named before them."""
    lines = []
    for path, found in problems.items():
        lines += [f"{path}: {problem}" for problem in first_problems(list(found))]
    if lines:
        raise InputError(lines)


def edges_of(path: Path) -> str:
    """The beginning and the end of an ordinary file as text; "" where it cannot be read."""
    try:
        if special_kind(path) is not None:
            return ""
        with path.open("rb") as file:
            head = file.read(EDGE_BYTES)
            file.seek(max(path.stat().st_size - EDGE_BYTES, len(head)))
            tail = file.read(EDGE_BYTES)
    except (OSError, ValueError):
        return ""
    return (head + tail).decode("utf-8-sig", errors="replace")


def has_list(text: str, key: str) -> bool:
    """Whether a key with a list is in a piece of JSON."""
    return re.search(rf'"{re.escape(key)}"\s*:\s*\[', text) is not None


def is_number(value: Any) -> bool:
    """Whether a value of JSON is a finite number."""
    return isinstance(value, int | float) and abs(value) < float("inf")
