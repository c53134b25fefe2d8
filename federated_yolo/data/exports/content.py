"""What an export holds, whichever tool wrote it."""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MAX_LINES = 5  # of the same kind of problem

Point = tuple[float, float]


@dataclass(frozen=True)
class Object:
    """An object of an image. Coordinates are in pixels of the image as a viewer shows it.

    Attributes:
        name: Class name.
        box: Left, top, right and bottom; None where the export gives none.
        outline: Polygons that together are the object, each of at least three points.
        corners: The four corners of a rotated box, in order around it.
        keypoints: x, y and visibility (0 not labelled, 1 hidden, 2 visible) of each keypoint.
    """

    name: str
    box: tuple[float, float, float, float] | None = None
    outline: tuple[tuple[Point, ...], ...] = ()
    corners: tuple[Point, ...] = ()
    keypoints: tuple[tuple[float, float, float], ...] = ()

    @property
    def bounds(self) -> tuple[float, float, float, float] | None:
        """The box, or else the smallest one around outline or corners."""
        if self.box is not None:
            return self.box
        points = [p for part in self.outline for p in part] or list(self.corners)
        if not points:
            return None
        xs, ys = zip(*points, strict=True)
        return min(xs), min(ys), max(xs), max(ys)


@dataclass(frozen=True)
class Picture:
    """An image of an export.

    Attributes:
        path: The image file.
        objects: Its objects, empty for a background image.
        size: Width and height that the export gives for it, in pixels; None where it gives none.
        labels: Its label file, if it has one in Ultralytics' own format already.
        entry: Where the export describes it, for messages: "images.12" or "a.xml".
    """

    path: Path
    objects: tuple[Object, ...] = ()
    size: tuple[float, float] | None = None
    labels: Path | None = None
    entry: str = ""


@dataclass(frozen=True)
class Content:
    """All of an export.

    Attributes:
        format: Name of the format, as users know it: "COCO", "labelme".
        root: Folder below which its images are.
        names: Class names in the order of their indices.
        splits: The images of each split: "train", "val" and "test".
        left_out: How many objects of each class were left out, by reason: `{reason: {class: n}}`.
        notes: What else a user should know, a sentence each.
        form: What else the data.yaml has to say, such as `kpt_shape`.
        file: The file or folder that messages name.
        task: Ultralytics' task, where the format is for one alone: "classify", whose images each
            have one object that is nothing but a class name.
    """

    format: str
    root: Path
    names: tuple[str, ...]
    splits: Mapping[str, Sequence[Picture]]
    left_out: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    form: Mapping[str, Any] = field(default_factory=dict)
    file: Path = Path()
    task: str | None = None

    @property
    def pictures(self) -> Iterator[Picture]:
        """The images of all splits."""
        for pictures in self.splits.values():
            yield from pictures


@dataclass(frozen=True)
class Format:
    """A format of exports.

    Attributes:
        name: As users know it.
        matches: Whether a folder or file is of this format. Never raises.
        read: Reads it; raises InputError with all problems. None for a format that is not read.
        advice: What to do with one that is not read: "export it as ...".
    """

    name: str
    matches: Callable[[Path], bool]
    read: Callable[[Path], Content] | None = None
    advice: str = ""


class LeftOut:
    """Counts objects that a reader leaves out, by reason and class."""

    def __init__(self) -> None:
        self.counts: dict[str, Counter[str]] = {}

    def add(self, reason: str, name: str) -> None:
        """Count one object of this class."""
        self.counts.setdefault(reason, Counter())[name] += 1


def first_problems(problems: Sequence[str], limit: int = MAX_LINES) -> list[str]:
    """The first of these, and how many more there are."""
    more = len(problems) - limit
    return [*problems[:limit], *([f"... and {more} more problems"] if more > 0 else [])]


SPLIT_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}


def split_in(name: str) -> str | None:
    """The split that the name of a file or folder says, such as "instances_Train2017"; or None."""
    words = re.findall(r"[a-z]+", name.lower())
    found = [split for split, known in SPLIT_WORDS.items() if set(known) & set(words)]
    return found[0] if len(found) == 1 else None
