"""What was made of an export; it lies beside the data set that was made."""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from federated_yolo.common.errors import InputError

MADE = "made.json"  # in the folder of what was made


@dataclass(frozen=True)
class Made:
    """What was made of an export.

    Attributes:
        source: The folder or file that the user named.
        format: Name of its format.
        task: Ultralytics' task of the labels; "" where label files were taken as they are.
        why: Why it is this task.
        images: Number of images by split.
        objects: Number of objects by split and class.
        left_out: Number of objects that were left out, by reason and class.
        notes: What else a user should know.
    """

    source: str
    format: str
    task: str = ""
    why: str = ""
    images: dict[str, int] = field(default_factory=dict)
    objects: dict[str, dict[str, int]] = field(default_factory=dict)
    left_out: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def num_objects(self) -> dict[str, int]:
        """Number of objects of each class, in all splits together."""
        totals: Counter[str] = Counter()
        for counts in self.objects.values():
            totals.update(counts)
        return dict(totals)


def read_made(folder: Path) -> Made:
    """Read what `convert.prepare` has noted of a folder that it has made."""
    values = json.loads((folder / MADE).read_text(encoding="utf-8"))
    return Made(**{**values, "notes": tuple(values["notes"])})


def made_of(data: Path) -> Made | None:
    """What a data.yaml or folder was made of; None for a user's own."""
    folder = data if data.is_dir() else data.parent
    return read_made(folder) if (folder / MADE).is_file() else None


def named(data: Path) -> Path:
    """The data set as its user has named it, for messages."""
    made = made_of(data)
    return Path(made.source) if made else data


@contextmanager
def naming_originals(data: Path) -> Iterator[None]:
    """Problems of a data set name the user's files, not links to them that were made."""
    try:
        yield
    except InputError as error:
        if (made := made_of(data)) is None:
            raise
        folder = data if data.is_dir() else data.parent
        lines = [original_of(line, folder) for line in error.problems]
        raise InputError(line.replace(str(data), made.source) for line in lines) from error


def original_of(text: str, folder: Path) -> str:
    """Return a message in which links below `folder` are named as the files that they lead to."""
    start = f"{folder.absolute()}{os.sep}"
    place = text.find(start)
    while place >= 0:
        ends = [i for i, c in enumerate(text) if i > place and c in ":,;'\")] "] + [len(text)]
        links = (end for end in ends if Path(text[place:end]).is_symlink())
        if (end := next(links, None)) is not None:
            text = f"{text[:place]}{Path(text[place:end]).readlink()}{text[end:]}"
        place = text.find(start, place + 1)
    return text
