"""Safe reading of files that somebody else wrote (ordinary, of limited size), and safe writing.

Opening a FIFO blocks, a device may never end, and a YAML file of a few lines can expand to more
values than memory holds, since an alias repeats the value that it names.
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
    """The path leads to a FIFO, socket or device, which could block or never end when read."""


def special_kind(path: str | Path) -> str | None:
    """Return the kind of a FIFO, socket or device at a path (links are followed), else None.

    Nothing is opened. None also if nothing exists there or it cannot be examined: opening it will
    raise the error.
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
    """Yield one line for each of these files that is a FIFO, a socket or a device."""
    for path in paths:
        kind = special_kind(path)
        if kind is not None:
            yield f"{path}: is {kind}, expected an ordinary file; remove it"


def read_yaml_text(path: Path) -> str:
    """Return the text of a YAML file that is ordinary and within the limits on bytes and values.

    Raises OSError (SpecialFileError), UnicodeDecodeError and yaml.YAMLError.
    """
    return _read_sound_yaml(path)[0]


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file, of YAML's simple types only.

    Raises the errors of `read_yaml_text`.
    """
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
    """Count the values of a YAML with every alias expanded; a cycle counts as too many."""
    counts: dict[int, int] = {}

    def count(node: yaml.Node) -> int:
        if id(node) in counts:
            return counts[id(node)]
        counts[id(node)] = MAX_YAML_VALUES + 1  # while counting: a node met again contains itself
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
    """Make a rename in this folder survive a power failure, if the system supports it."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def at_home(path: str) -> str:
    """Replace `~` by the home folder, if there is one (Path.expanduser raises if not)."""
    return os.path.expanduser(path)  # noqa: PTH111
