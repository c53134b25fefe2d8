"""Which tool a data set comes from, by what is in the folder or file that a user names."""

from pathlib import Path

from federated_yolo.data.exports.content import Format

MAX_ENTRIES = 6  # in a message


def formats() -> tuple[Format, ...]:
    """All formats, those with the more special signature first."""
    return ()


def recognise(path: Path) -> Format | None:
    """The format of a folder or file; None for an Ultralytics data set, or nothing known."""
    return next((known for known in formats() if known.matches(path)), None)


def unknown_folder(path: Path) -> str:
    """Say what was found in a folder that is of no known format, and what is expected."""
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    shown = ", ".join(entries[:MAX_ENTRIES]) + (", ..." if entries[MAX_ENTRIES:] else "")
    names = ", ".join(dict.fromkeys(known.name for known in formats() if known.read))
    return (
        f"a folder that is not known as a data set; found {shown or 'nothing'}; expected a "
        f"data.yaml, train/CLASS/*.jpg, or an export of an annotation tool ({names}) as it was "
        "unpacked (docs/formats.md)"
    )
