"""Files of an export, found and read: images by the names that it gives, XML, JSON, CSV."""

import os
import re
import reprlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, ParseError

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring
from pydantic import TypeAdapter, ValidationError

from federated_yolo.common.errors import InputError
from federated_yolo.common.files import refuse_special, special_files, special_kind
from federated_yolo.data.data_yaml import is_image_name
from federated_yolo.data.exports.content import Picture, first_problems, split_in
from federated_yolo.data.exports.sizes import image_size

MAX_SNIFFED = 50  # files of one kind that a signature looks for at most
MAX_DEPTH = 4  # folders below an export in which a signature looks
HEAD_BYTES = 1 << 16
MAX_SNIFFED_BYTES = 16 << 20


_walked: ContextVar[dict[tuple[Path, int | None], list[Path]] | None] = ContextVar(
    "walked", default=None
)


@contextmanager
def walking_once() -> Iterator[None]:
    """Let `walk` list each folder once: every format looks at the same files."""
    token = _walked.set({})
    try:
        yield
    finally:
        _walked.reset(token)


def walk(root: Path, depth: int | None = None) -> Iterable[Path]:
    """Return all files below a folder in the order of their names, without hidden ones.

    Args:
        root: The folder; links to folders are followed, but not in circles.
        depth: How many folders deep; None for any.
    """
    known = _walked.get()
    if known is None:
        return _walk(root, depth)
    if (root, depth) not in known:
        known[root, depth] = list(_walk(root, depth))
    return known[root, depth]


def _walk(root: Path, depth: int | None) -> Iterator[Path]:
    seen: set[str] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        real = os.path.realpath(folder)
        below = len(Path(folder).relative_to(root).parts)
        if real in seen or (depth is not None and below >= depth):
            folders.clear()
        else:
            folders[:] = sorted(f for f in folders if not f.startswith((".", "__MACOSX")))
        if real not in seen:
            yield from (Path(folder, name) for name in sorted(names) if not name.startswith("."))
        seen.add(real)


def sniffed(path: Path, *endings: str, limit: int = MAX_SNIFFED) -> list[Path]:
    """The path, if it is a file of such an ending, or the first such files of a folder.

    An Ultralytics data set, which has a data.yaml, has none.
    """
    if path.is_file():
        return [path] if path.suffix.lower() in endings else []
    if not path.is_dir() or (path / "data.yaml").is_file():
        return []
    files = (p for p in walk(path, MAX_DEPTH) if p.suffix.lower() in endings)
    return list(islice(files, limit))


def head_of(path: Path, size: int = HEAD_BYTES) -> str:
    """The beginning of a text file; nothing for one that cannot be read."""
    try:
        if special_kind(path):
            return ""
        with path.open("rb") as file:
            return file.read(size).decode("utf-8-sig", errors="replace")
    except (OSError, ValueError):
        return ""


def looks_so(path: Path, *patterns: str) -> bool:
    """Whether the beginning of a text file has all of these regular expressions.

    JSON is not parsed for that: files can be long, and a damaged one is told when it is read.
    """
    text = head_of(path, MAX_SNIFFED_BYTES)
    return all(re.search(pattern, text) for pattern in patterns)


def files_of(path: Path, ending: str) -> list[Path]:
    """The path, if it is a file, or all files of an ending in lower case below a folder."""
    return [path] if path.is_file() else [p for p in walk(path) if p.suffix.lower() == ending]


def read_text(path: Path) -> str:
    """The text of a file, without a BOM. Raises InputError."""
    try:
        refuse_special(path)
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; expected a readable file") from error
    except ValueError as error:
        raise InputError(f"{path}: not UTF-8 text: {error}; save it as UTF-8") from error


def read_json(path: Path, adapter: TypeAdapter[Any], what: str) -> Any:
    """A JSON file in the form of the adapter. Raises InputError with its misfits.

    Args:
        path: The file.
        adapter: Says what is expected.
        what: Name of the format, for messages.
    """
    try:
        return adapter.validate_json(read_text(path))
    except ValidationError as error:
        lines = list(dict.fromkeys(misfits(error, what)))
        raise InputError(f"{path}: {line}" for line in first_problems(lines)) from error


def misfits(error: ValidationError, what: str) -> Iterator[str]:
    """Yield one line for each place that is not as expected. what: Name of the format."""
    for problem in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in problem["loc"])
        text = problem["msg"].replace("Input should be ", "expected ")
        if problem["type"] == "json_invalid":
            yield f"not readable as {what}: {text}; export it again"
            continue
        if problem["type"] != "missing":
            text = f"found {reprlib.repr(problem['input'])}; {text}"
        yield f"{place}: {text}; correct it, or export again"


def read_xml(path: Path) -> Element:
    """Return the root of an XML file. Raises InputError."""
    try:
        refuse_special(path)
        return fromstring(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}; expected a readable file") from error
    except (ParseError, ValueError, LookupError, DefusedXmlException) as error:
        raise InputError(
            f"{path}: not readable as XML: {' '.join(str(error).split())}; export it again"
        ) from error


class ImageFiles:
    """The images below a folder, found by names that an export gives.

    Names come from other machines: with backslashes, folders that are not here, another ending,
    or letters that are composed otherwise. An image outside of the folder is never found. Raises
    InputError where one is no ordinary file.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = [p for p in walk(root) if is_image_name(p.name)]
        if odd := list(special_files(map(str, self.paths))):
            raise InputError(first_problems(odd))
        self._by_place = {_plain(p.relative_to(root).as_posix()): p for p in self.paths}
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        self._by_place_stem: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            self._by_name[_plain(path.name)].append(path)
            self._by_stem[_plain(path.stem)].append(path)
            place = path.relative_to(root).with_suffix("").as_posix()
            self._by_place_stem[_plain(place)].append(path)

    def at(self, name: str, folders: Sequence[Path]) -> Path | None:
        """The image of this name in the first of the folders that has it."""
        for place in self._places(name, folders):
            if found := self._by_place.get(place):
                return found
        return None

    def of_stem(self, stem: str, folders: Sequence[Path]) -> list[Path]:
        """The images of this name with any ending, in the first of the folders that has some."""
        for place in self._places(stem, folders):
            if found := self._by_place_stem.get(place):
                return found
        return []

    def anywhere(self, name: str, near: Path) -> list[Path]:
        """The images of this name in any folder but those of another split than `near`."""
        parts = PurePosixPath(_plain(clean_name(name))).parts
        found = self._fitting(self._by_name.get(parts[-1], []), near) if parts else []
        # Of several, those that lie in folders of the same names.
        for number in range(len(parts), 1, -1):
            tail = "/".join(parts[-number:])
            if same := [p for p in found if _plain(p.as_posix()).endswith(f"/{tail}")]:
                return same
        return found

    def stem_anywhere(self, stem: str, near: Path) -> list[Path]:
        """The images of this name with any ending, as of `anywhere`."""
        return self._fitting(self._by_stem.get(_plain(stem), []), near)

    def find(self, name: str, folders: Sequence[Path]) -> Path:
        """The image of a name, in one of these folders or else the only one in any.

        Raises ValueError, for there is none or several.
        """
        if found := self.at(name, folders):
            return found
        others = self.anywhere(name, folders[0])
        if len(others) == 1:
            return others[0]
        if others:
            where = some([p.relative_to(self.root).as_posix() for p in others])
            raise ValueError(
                f"{len(others)} images are called '{Path(clean_name(name)).name}' ({where}); "
                "name the folder too"
            )
        raise ValueError(f"no image '{name}' below {self.root}; put it there, or remove the entry")

    def _fitting(self, paths: Iterable[Path], near: Path) -> list[Path]:
        """Without those in folders of another split than a place is in."""
        split = split_of(near, self.root)
        kinds = ((p, split_of(p.parent, self.root)) for p in paths)
        return [p for p, other in kinds if not (split and other and split != other)]

    def _places(self, name: str, folders: Iterable[Path]) -> Iterator[str]:
        """Where a name is below the root, seen from each folder."""
        top = os.path.normpath(self.root.absolute())
        for folder in folders:
            place = os.path.normpath(folder.absolute() / clean_name(name).lstrip("/"))
            if place.startswith(f"{top.rstrip(os.sep)}{os.sep}"):
                yield _plain(Path(place).relative_to(top).as_posix())


def clean_name(name: str) -> str:
    """A file name with slashes, without blanks around it."""
    return name.strip().replace("\\", "/")


def _plain(name: str) -> str:
    """Letters composed in one way, since macOS takes them apart."""
    return unicodedata.normalize("NFC", name)


def split_of(folder: Path, root: Path) -> str | None:
    """The split that the names of the folders between say, the outermost first."""
    found = (split_in(part) for part in folder.relative_to(root).parts)
    return next((split for split in found if split), None)


def by_split(pictures: Iterable[tuple[str | None, Picture]]) -> dict[str, list[Picture]]:
    """Images by split, in the order train, val, test; train for those without one."""
    found: dict[str, list[Picture]] = {"train": [], "val": [], "test": []}
    for split, picture in pictures:
        found[split or "train"].append(picture)
    return {split: listed for split, listed in found.items() if listed}


def twice(pictures: Iterable[Picture], file: Path) -> Iterator[str]:
    """Say which images two entries describe: one of them has another's objects."""
    first: dict[Path, Picture] = {}
    for picture in pictures:
        other = first.setdefault(picture.path, picture)
        if other is not picture:
            yield (
                f"{file}: {other.entry} and {picture.entry} are both of the image {picture.path}; "
                "correct or remove one"
            )


def beyond(pictures: Iterable[Picture], file: Path) -> Iterator[str]:
    """Say which images' objects are outside of them, of those whose size is not given."""
    for picture in pictures:
        size = None if picture.size or not picture.objects else image_size(picture.path)
        if size is None:
            continue
        bounds = [box for o in picture.objects if (box := o.bounds)]
        right, bottom = (max((b[axis] for b in bounds), default=0) for axis in (2, 3))
        left, top = (min((b[axis] for b in bounds), default=0) for axis in (0, 1))
        if any(
            e > s + max(2, s / 100) or e0 < -max(2, s / 100)
            for e0, e, s in zip((left, top), (right, bottom), size, strict=True)
        ):
            yield (
                f"{file}: {picture.entry}: {picture.path.name} is {size[0]} x {size[1]} pixels, "
                f"and its objects reach from {left:g} x {top:g} to {right:g} x {bottom:g}; put "
                "back the image that was annotated, or export again"
            )


def limited(problems: Mapping[str, Sequence[str]]) -> list[str]:
    """The first problems of each kind, and how many more there are."""
    return [line for lines in problems.values() for line in first_problems(lines)]


def names_of(counts: Counter[str] | Iterable[str], listed: Sequence[str] = ()) -> tuple[str, ...]:
    """Class names: as listed, then others that objects have, sorted."""
    return (*dict.fromkeys(listed), *sorted(set(counts) - set(listed)))


def some(things: Sequence[str | Path]) -> str:
    """The first few of these, for a message."""
    first = ", ".join(str(thing) for thing in things[:3])
    return f"{first}, ..." if len(things) > 3 else first
