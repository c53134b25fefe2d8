"""Label files of YOLO, lists of images and lists of class names, as annotation tools write them.

A label file has a line for each object: the index of its class, then fractions of the image.
"""

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from itertools import islice
from pathlib import Path
from typing import Any

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import image_lists, is_image_name, repeated_names
from federated_yolo.data.exports.content import Content, LeftOut, Picture
from federated_yolo.data.exports.files import (
    by_split,
    clean_name,
    head_of,
    limited,
    read_text,
    split_of,
    walk,
)

NO_IMAGE = "a label file of no image in a split"
NAME_FILES = ("classes.txt", "obj.names", "classes.names", "predefined_classes.txt")
MAX_NAMES = 10  # in a message
SAMPLE = 100  # lines of a list, or files, that a signature looks at


@dataclass
class Reading:
    """What is found while an export with label files is read.

    Attributes:
        path: The file or folder that messages name.
        root: Folder below which all is.
        names: Class names by index.
        names_from: The file that lists them.
        num_points: Whether labels have keypoints, and so any number of columns.
        problems: Lines by kind.
        pictures: Each image with its split, or None where nothing says it.
    """

    path: Path
    root: Path
    names: Sequence[str]
    names_from: Path
    has_keypoints: bool = False
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: list[str] = field(default_factory=list)
    pictures: list[tuple[str | None, Picture]] = field(default_factory=list)
    _taken: dict[Path, str] = field(default_factory=dict)
    _labels: dict[Path, Path] = field(default_factory=dict)

    def add(self, split: str | None, image: Path, label: Path, entry: str = "") -> None:
        """Add an image; label: where its label file is, if it has one."""
        entry = entry or inside(image, self.root)
        real = Path(os.path.realpath(image))
        if other := self._taken.get(real):
            self.problems["twice"].append(
                f"{self.path}: {other} and {entry} are the same image; remove one"
            )
            return
        self._taken[real] = entry
        twin = self._labels.setdefault(label, image)
        if twin != image and label.is_file():
            self.problems["twins"].append(
                f"{self.path}: {inside(twin, self.root)} and {inside(image, self.root)} have the "
                f"same label file {inside(label, self.root)}, which is of one of them; remove or "
                "rename the other"
            )
            return
        if label.is_file():
            self.problems["labels"] += islice(self._label_problems(label), 1)
            self.pictures.append((split, Picture(image, labels=label, entry=entry)))
        else:
            self.pictures.append((split, Picture(image, entry=entry)))

    def _label_problems(self, label: Path) -> Iterator[str]:
        """Say what a scan of the labels would not say so that a user knows what to do."""
        try:
            text = read_text(label)
        except InputError as error:
            yield from error.problems
            return
        num = len(self.names)
        for number, line in enumerate(text.splitlines(), 1):
            numbers = _numbers(line)
            if numbers and numbers[0] >= num:
                shown = ", ".join([*self.names[:MAX_NAMES], *(["..."] if num > MAX_NAMES else [])])
                yield (
                    f"{label}: line {number}: class {numbers[0]:g}, and {self.names_from} has "
                    f"{num} names [{shown}], which are counted from 0; add what is missing in "
                    "their order, or export again"
                )
            if len(numbers) == 6 and not self.has_keypoints:
                yield (
                    f"{label}: line {number}: 6 numbers, expected 5 of a box; a sixth is a track's "
                    "number or a confidence: export without it"
                )

    def count_unused(self, labels: Iterable[Path]) -> None:
        """Count the objects of label files that no image has."""
        used = {picture.labels for _, picture in self.pictures}
        for label in sorted(set(labels) - used):
            if looks_as_label(label):
                for line in read_text(label).splitlines():
                    if numbers := _numbers(line):
                        index = int(numbers[0])
                        known = 0 <= index < len(self.names)
                        self.left_out.add(NO_IMAGE, self.names[index] if known else str(index))

    def content(self, name: str, form: Mapping[str, Any] | None = None) -> Content:
        """What was found. Raises InputError where there are problems, or no images."""
        if not self.pictures and not any(self.problems.values()):
            self.problems["none"].append(f"{self.path}: {name} without images; export it with them")
        if problems := limited(self.problems):
            raise InputError(problems)
        return Content(
            format=name,
            root=self.root,
            names=tuple(self.names),
            splits=by_split(self.pictures),
            left_out=self.left_out.counts,
            notes=tuple(self.notes),
            form=form or {},
            file=self.path,
        )


def signature(matches: Callable[[Path], bool]) -> Callable[[Path], bool]:
    """A test of a folder or file that is false where something in it cannot be looked at."""

    @wraps(matches)
    def safely(path: Path) -> bool:
        try:
            return matches(path)
        # No permission, a name that no file can have, or JSON within JSON without end.
        except (OSError, ValueError, RecursionError):
            return False

    return safely


def inside(path: Path, root: Path) -> str:
    """A path as seen from the root, for messages."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def images_in(folder: Path) -> Iterator[Path]:
    """All images below a folder that Ultralytics would find."""
    return (path for path in walk(folder) if is_image_name(path.name))


def label_of(image: Path, root: Path) -> Path:
    """The label file of an image: in `labels` for the last `images` below the root, else beside.

    Ultralytics' own function would take an `images` above the root, too.
    """
    parts = list(image.relative_to(root).parts if image.is_relative_to(root) else image.parts)
    folders = parts[:-1]
    if "images" in folders:
        last = len(folders) - 1 - folders[::-1].index("images")
        parts[last] = "labels"
        image = root.joinpath(*parts)
    return image.with_suffix(".txt")


def _numbers(line: str) -> list[float]:
    """The numbers of a label line; none where it has other words."""
    try:
        return [float(word) for word in line.split()]
    except ValueError:
        return []


def looks_as_label(path: Path) -> bool:
    """Whether the first line of a text file is a class index and at least a box."""
    line = next((line for line in head_of(path).splitlines() if line.strip()), "")
    numbers = _numbers(line)
    return len(numbers) >= 5 and bool(re.fullmatch(r"\d+(\.0+)?", line.split()[0]))


def has_labels(folders: Iterable[Path]) -> bool:
    """Whether one of the first files of these folders is a label file."""
    return any(
        looks_as_label(path)
        for folder in folders
        for path in islice((p for p in walk(folder, 3) if p.suffix == ".txt"), SAMPLE)
    )


def labels_in(folders: Iterable[Path]) -> Iterator[Path]:
    """All text files below these folders but for those that list names."""
    for folder in folders:
        texts = (p for p in walk(folder) if p.suffix.lower() == ".txt")
        yield from (p for p in texts if p.name not in NAME_FILES)


def read_names(path: Path) -> tuple[str, ...]:
    """Class names of a file with one in each line. Raises InputError."""
    lines = [line.strip() for line in read_text(path).rstrip().splitlines()]
    problems = [
        f"{path}: line {number} is blank, so that all names after it would have another index; "
        "remove it"
        for number, line in enumerate(lines, 1)
        if not line
    ]
    names = dict(enumerate(line for line in lines if line))
    problems += [f"{path}: {problem}" for problem in repeated_names(names)]
    if not names:
        problems.append(f"{path}: no names; write one class name a line, in the order of indices")
    if problems:
        raise InputError(problems)
    return tuple(names.values())


def same_names(files: Sequence[Path]) -> tuple[str, ...]:
    """Class names of several files, which have to be the same. Raises InputError."""
    names = read_names(files[0])
    problems = [
        f"{other}: its names [{', '.join(found)}] differ from those of {files[0]} "
        f"[{', '.join(names)}], so that an index means two classes; give both the same list, and "
        "correct the labels"
        for other in files[1:]
        if (found := read_names(other)) != names
    ]
    if problems:
        raise InputError(problems)
    return names


def list_lines(path: Path) -> list[tuple[int, str]]:
    """The lines of a list of images that are not blank, with their numbers."""
    return [(number, line.strip()) for _, lines in image_lists([path]) for number, line in lines]


def ends_of(name: str) -> Iterator[tuple[str, ...]]:
    """The parts of a path as another machine or folder has it, then with fewer at its beginning.

    Nothing of it leads up or to the root of a file system.
    """
    for text in dict.fromkeys([name.strip(), clean_name(name)]):
        parts = Path(os.path.normpath(text)).parts
        parts = tuple(p for p in parts if p not in ("/", "..", ".") and not re.match(r"^\w:$", p))
        yield from (parts[start:] for start in range(len(parts)))


def below(
    name: str,
    root: Path,
    is_there: Callable[[Path], bool] = Path.is_file,
    is_enough: Callable[[tuple[str, ...]], bool] = bool,
) -> Path | None:
    """What a path leads to below the root: the longest end of it that is there.

    Args:
        name: The path.
        root: A folder.
        is_there: Whether a file or folder is what is looked for.
        is_enough: Whether an end of the path says enough.
    """
    for end in ends_of(name):
        found = root.joinpath(*end)
        try:
            if is_enough(end) and is_there(found):
                return found
        except (OSError, ValueError):  # a name that no file can have
            return None
    return None


def by_folder(reading: Reading, folder: Path, label: Callable[[Path], Path]) -> None:
    """Add all images below a folder, in the splits that the names of folders say."""
    for image in images_in(folder):
        reading.add(split_of(image.parent, reading.root), image, label(image))
