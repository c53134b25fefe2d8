"""Which tool a data set comes from, by what is in the folder or file that a user names."""

from pathlib import Path

from federated_yolo.data.exports.content import Format


def formats() -> tuple[Format, ...]:
    """All formats, those with the more special signature first."""
    return ()


def recognise(path: Path) -> Format | None:
    """The format of a folder or file; None for an Ultralytics data set, or nothing known."""
    return next((known for known in formats() if known.matches(path)), None)
