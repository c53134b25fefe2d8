"""Files of strangers: read only if they are ordinary files, and only as far as is sound.

A FIFO blocks whoever opens it, a device may never end, and a YAML of a few lines can stand for more
values than memory holds, since an alias repeats what it names.
"""

import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import yaml

MAX_YAML_BYTES = 4 << 20
MAX_YAML_VALUES = 250_000  # ImageNet's 21,841 class names with their indices are 43,682
KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class SpecialFileError(OSError):
    """The path names no ordinary file, but what can block or never end when it is read."""


def special_kind(path: str | Path) -> str | None:
    """What a path is, or leads to, if it is neither file nor folder; it is not opened.

    None also where nothing is there, or cannot be looked at: opening it will say so.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116 (called for each image; a Path costs as much)
    except (OSError, ValueError):
        return None
    return next((kind for is_kind, kind in KINDS if is_kind(mode)), None)


def refuse_special(path: str | Path) -> None:
    """Raise SpecialFileError for a FIFO, a socket or a device, without opening it."""
    kind = special_kind(path)
    if kind is not None:
        raise SpecialFileError(f"is {kind}, expected an ordinary file")


def special_files(paths: Iterable[str]) -> Iterator[str]:
    """One line for each of these files that is a FIFO, a socket or a device."""
    for path in paths:
        kind = special_kind(path)
        if kind is not None:
            yield f"{path}: is {kind}, expected an ordinary file; remove it"


def read_yaml_text(path: Path) -> str:
    """The text of a YAML file that is ordinary, short enough and stands for few enough values.

    Raises OSError (SpecialFileError), UnicodeDecodeError and yaml.YAMLError.
    """
    return _read_sound_yaml(path)[0]


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, with values of the simple kinds only. Raises as `read_yaml_text`."""
    _, node = _read_sound_yaml(path)
    if node is None:
        return None
    loader = yaml.SafeLoader("")
    try:
        return loader.construct_document(node)
    except yaml.YAMLError:
        raise
    except Exception as error:  # constructors of numbers, dates, ... raise errors of any kind
        raise yaml.YAMLError(f"a value that cannot be read ({type(error).__name__})") from error
    finally:
        loader.dispose()


def _read_sound_yaml(path: Path) -> tuple[str, yaml.Node | None]:
    refuse_special(path)
    with path.open("rb") as file:
        content = file.read(MAX_YAML_BYTES + 1)
    if len(content) > MAX_YAML_BYTES:
        raise yaml.YAMLError(f"more than {MAX_YAML_BYTES >> 20} MiB, expected a YAML of less")
    text = content.decode("utf-8")
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        if node is not None and _num_values(node) > MAX_YAML_VALUES:
            raise yaml.YAMLError(
                f"its aliases stand for more than {MAX_YAML_VALUES} values, expected fewer"
            )
    except RecursionError as error:
        raise yaml.YAMLError("nested too deeply") from error
    return text, node


def _num_values(root: yaml.Node) -> int:
    """How many values a YAML stands for once each alias is what it names; too many for a cycle."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if id(node) in counts:
            return counts[id(node)]
        counts[id(node)] = MAX_YAML_VALUES + 1  # while it is counted: met again, it holds itself
        children: Iterable[yaml.Node] = ()
        if isinstance(node, yaml.MappingNode):
            children = (part for pair in node.value for part in pair)
        elif isinstance(node, yaml.SequenceNode):
            children = node.value
        counts[id(node)] = 1 + sum(map(count, children))
        return counts[id(node)]

    return count(root)


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a binary file and rename it to `path` once it is safely on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename in this folder outlive a power failure, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def at_home(path: str) -> str:
    """A path with `~` replaced by the home folder; Path's own way raises for one without a home."""
    return os.path.expanduser(path)  # noqa: PTH111
