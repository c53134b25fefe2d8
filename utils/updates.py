"""A round's updates on their way into the mean: in a fixed order, and not in memory.

Sums in float64 depend on their order in the last bits, and results must not depend on who answers
first, or fails and answers later. So updates are added in the order of the clients' names; one that
comes before its turn waits on disk.
"""

import errno
import math
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord

from utils.arrays import Arrays
from utils.strategies import Update


class _Place(NamedTuple):
    """Where the values of an array stand in a file, and what they are."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    checksum: int


class StoredArrays(Mapping[str, np.ndarray]):
    """Named arrays in a file of raw values, each read when it is asked for.

    For the process that wrote it: all but the values is kept in memory, so that nothing in the file
    is trusted. Raises OSError when values are missing or are not those that were written.
    """

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays."""
        self.path = path
        self._places: dict[str, _Place] = {}
        with path.open("wb") as file:
            for name, array in arrays.items():
                values = np.ascontiguousarray(array)  # makes 0-d arrays 1-d
                place = _Place(file.tell(), array.shape, array.dtype, zlib.crc32(values.data))
                self._places[name] = place
                file.write(values.data)

    def __getitem__(self, name: str) -> np.ndarray:
        place = self._places[name]
        size = math.prod(place.shape)
        with self.path.open("rb") as file:
            file.seek(place.offset)
            array = np.fromfile(file, place.dtype, size)
        if array.size != size or zlib.crc32(array.data) != place.checksum:
            raise OSError(
                errno.EIO,
                f"{name}: damaged while it waited on disk; check the disk, then resume the run, "
                "which does the round again",
                str(self.path),
            )
        return array.reshape(place.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Inbox:
    """Takes in a round's updates. Holds their numbers, by client, and whose turn it is.

    updates: their arrays are empty once they are added; until then they are on disk.
    """

    def __init__(self, folder: Path) -> None:
        """Let updates wait in this folder, which is there only while they do."""
        self.folder = folder
        self.updates: dict[str, Update] = {}
        self._turns: list[str] = []
        self._add: Callable[[Update], None] | None = None

    def start(self, names: Iterable[str], add: Callable[[Update], None] | None) -> None:
        """Begin a round. names: of the clients that take part. add: None lets all updates wait."""
        self.updates = {}
        self._turns = sorted(names)
        self._add = add

    def put(self, update: Update) -> None:
        """Add an update, and those that waited for it; or let it wait. Raises OSError."""
        if self._add is None or self._turns[:1] != [update.name]:
            self.folder.mkdir(exist_ok=True)
            stored = StoredArrays(self._path(update.name), update.arrays)
            self.updates[update.name] = replace(update, arrays=stored)
            return
        self._take(update)
        while self._turns and self._turns[0] in self.updates:
            waiting = self.updates[self._turns[0]]
            self._take(waiting)
            self._path(waiting.name).unlink()

    def close(self) -> None:
        """End the round: remove what has waited, and let go of the server."""
        self._add = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take(self, update: Update) -> None:
        assert self._add is not None
        self._add(update)
        self.updates[update.name] = replace(update, arrays={})
        del self._turns[0]

    def _path(self, name: str) -> Path:
        # Named as all temporary files of a run directory, which are removed when it is reopened.
        return self.folder / f".{name}.tmp"


def views(record: ArrayRecord) -> Arrays:
    """The arrays of a record as read-only views of its bytes, which are not copied.

    Flower's `Array.numpy` makes a copy. Raises ValueError for anything but the .npy of one array.
    """
    return {name: _view(name, array) for name, array in record.items()}


def _view(name: str, array: Array) -> np.ndarray:
    try:
        if array.stype != "numpy.ndarray" or array.data[:8] != b"\x93NUMPY\1\0":
            raise ValueError("expected the NumPy format, version 1.0")
        offset = 10 + int.from_bytes(array.data[8:10], "little")
        shape, fortran, dtype = _header(array.data[8:offset])
    except Exception as error:  # a header is parsed as Python, with errors of its tokenizer
        raise ValueError(f"{name}: not a readable array ({error})") from error
    num_bytes = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0:
        raise ValueError(f"{name}: dtype {dtype} of shape {shape}, expected numbers")
    if offset + num_bytes != len(array.data):
        raise ValueError(f"{name}: {len(array.data) - offset} bytes, expected {num_bytes}")
    flat = np.frombuffer(array.data, dtype, math.prod(shape), offset)
    return flat.reshape(shape, order="F" if fortran else "C")


@lru_cache(maxsize=1024)  # a model's arrays have few, and parsing takes longer than adding
def _header(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    return np.lib.format.read_array_header_1_0(BytesIO(header))
