"""Which tool a data set comes from, by what is in the folder or file that a user names."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from federated_yolo.data.exports.content import Content


@dataclass(frozen=True)
class Format:
    """A format of exports.

    Attributes:
        name: As users know it.
        matches: Whether a folder or file is of this format. Never raises.
        read: Reads it; raises InputError with all problems. None for a format that is not read.
        advice: What to do with one that is not read.
    """

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Content] | None = None
    advice: str = ""


def formats() -> tuple[Format, ...]:
    """All formats, those with the more special signature first."""
    return ()


def recognise(path: Path) -> Format | None:
    """The format of a folder or file; None for an Ultralytics data set, or nothing known."""
    return next((known for known in formats() if known.matches(path)), None)
