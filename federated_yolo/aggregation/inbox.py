"""Adds updates to the running mean in order of client names; early arrivals wait on disk.

Sums in float64 depend on their order in the last bits, and results must not depend on which
client answers first, or fails and answers later.
"""

import errno
import math
import shutil
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from federated_yolo.aggregation.aggregator import Update


class _Position(NamedTuple):
    """Position, form and checksum of an array's values in a file."""

    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype
    checksum: int


class StoredArrays(Mapping[str, np.ndarray]):
    """Named arrays in a file of raw values; each is read when it is accessed.

    Only the process that wrote the file can read it: names, shapes, dtypes and checksums stay in
    memory, so that nothing in the file is trusted. Access raises OSError if values are missing or
    differ from the written ones.
    """

    def __init__(self, path: Path, arrays: Mapping[str, np.ndarray]) -> None:
        """Write the arrays."""
        self.path = path
        self._positions: dict[str, _Position] = {}
        with path.open("wb") as file:
            for name, array in arrays.items():
                values = np.ascontiguousarray(array)  # makes 0-d arrays 1-d
                position = _Position(file.tell(), array.shape, array.dtype, zlib.crc32(values.data))
                self._positions[name] = position
                file.write(values.data)

    def __getitem__(self, name: str) -> np.ndarray:
        position = self._positions[name]
        size = math.prod(position.shape)
        with self.path.open("rb") as file:
            file.seek(position.offset)
            array = np.fromfile(file, position.dtype, size)
        if array.size != size or zlib.crc32(array.data) != position.checksum:
            raise OSError(
                errno.EIO,
                f"{name}: damaged while it waited on disk; check the disk, then resume the run, "
                "which does the round again",
                str(self.path),
            )
        return array.reshape(position.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._positions)

    def __len__(self) -> int:
        return len(self._positions)


class Inbox:
    """Receives a round's updates. Holds them by client, and the clients that have not had a turn.

    updates: Updates by client; their arrays are on disk until they are added, and empty then.
    """

    def __init__(self, folder: Path) -> None:
        """Let updates wait in this folder, which exists only if some had to wait in the round."""
        self.folder = folder
        self.updates: dict[str, Update] = {}
        self._turns: list[str] = []
        self._add: Callable[[Update], None] | None = None

    def start(self, names: Iterable[str], add: Callable[[Update], None] | None) -> None:
        """Begin a round.

        names: Names of the clients that take part. add: Function that adds an update to the mean;
        None lets all updates wait.
        """
        self.updates = {}
        self._turns = sorted(names)
        self._add = add

    def put(self, update: Update) -> None:
        """Add an update and those that waited for it, or let it wait. Raises OSError."""
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
        """End the round: delete waiting updates, and release the reference to the server."""
        self._add = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def _take(self, update: Update) -> None:
        assert self._add is not None
        self._add(update)
        self.updates[update.name] = replace(update, arrays={})
        del self._turns[0]

    def _path(self, name: str) -> Path:
        # Named like all temporary files of a run directory, which are removed when it is reopened.
        return self.folder / f".{name}.tmp"
