"""The run directory: rounds as .npz, the resolved config, CSV rows, private client folders.

Every file is written to a temporary file in its folder, flushed and renamed into place, so that
a reader (or a run that was killed) sees the whole old file or the whole new one.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.arrays import Arrays, Layout, checksum
from utils.config import InputError

META_KEY = "__federation__"
FORMAT = 1


@dataclass(frozen=True)
class RoundMeta:
    """What a `roundN.npz` says about itself.

    round: 0 is the initial model. names: class names by index. task: Ultralytics' task.
    base_model: file name (not path) of the base checkpoint or YAML.
    """

    round: int
    names: tuple[str, ...]
    task: str
    base_model: str


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call `write` with a binary file and rename it to `path` once it is safely on disk."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], meta: RoundMeta) -> None:
    """Write named arrays and their description as an uncompressed .npz without pickles."""
    header = {"format": FORMAT, "checksum": checksum(arrays), **asdict(meta)}
    entries: dict[str, Any] = {META_KEY: np.array(json.dumps(header)), **arrays}
    write_atomically(path, lambda file: np.savez(file, **entries))


def load_arrays(path: Path) -> tuple[Arrays, RoundMeta | None]:
    """Read an .npz: named arrays and their description, None for an archive of another program.

    Raises ValueError, naming the file, when it is damaged or its checksum does not fit.
    """
    try:
        # Opened here, because NumPy leaves a damaged archive open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name != META_KEY}
            text = str(archive[META_KEY]) if META_KEY in archive.files else None
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; expected an .npz of a round") from error
    except Exception as error:  # damage to a zip surfaces as errors of zlib, tokenize, NumPy, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a readable .npz ({reason}); use another round") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError(f"{path}: holds files that are no arrays; expected an .npz of a round")
    if text is None:
        return arrays, None
    try:
        header = json.loads(text)
        expected = header.pop("checksum")
        found_format = header.pop("format")
        meta = RoundMeta(**{**header, "names": tuple(header["names"])})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: damaged description ({error}); use another round") from error
    if found_format != FORMAT:
        raise ValueError(f"{path}: format {found_format}, this version reads {FORMAT}")
    if checksum(arrays) != expected:
        raise ValueError(f"{path}: the arrays do not match their checksum; use another round")
    return arrays, meta


class RunDir:
    """Paths and files of one run. Holds its CSV rows, so that columns may appear late."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / "weights"
        self.clients = path / "clients"
        self._rows: dict[str, list[dict[str, object]]] = {}

    @classmethod
    def create(cls, save_dir: Path, name: str) -> "RunDir":
        """Make `save_dir/name`, or name2, name3, ... if that is taken, as Ultralytics does.

        `mkdir` decides, so two runs that start together get two directories.
        Raises InputError where nothing can be made.
        """
        try:
            save_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"save_dir '{save_dir}': cannot be made: {error.strerror}; choose another save_dir"
            ) from error
        number = 1
        while True:
            run_dir = cls(save_dir.resolve() / (name if number == 1 else f"{name}{number}"))
            try:
                run_dir.path.mkdir()
            except FileExistsError:
                number += 1
                continue
            run_dir.weights.mkdir()
            run_dir.clients.mkdir()
            return run_dir

    def client_dir(self, name: str) -> Path:
        """Private folder of one client."""
        return self.clients / name

    def round_path(self, round_number: int) -> Path:
        """Path of the global arrays after this round; 0 is the initial model."""
        return self.weights / f"round{round_number}.npz"

    def save_round(self, arrays: Arrays, meta: RoundMeta) -> Path:
        """Write the global arrays of `meta.round` and return the path."""
        path = self.round_path(meta.round)
        save_arrays(path, arrays, meta)
        return path

    def load_round(self, round_number: int, layout: Layout) -> Arrays:
        """Read the global arrays of a round of this run, in the order of the layout."""
        arrays, _ = load_arrays(self.round_path(round_number))
        return {name: arrays[name] for name in layout.names}

    def rounds(self) -> list[int]:
        """Numbers of the rounds on disk, ascending."""
        matches = (re.fullmatch(r"round(\d+)\.npz", p.name) for p in self.weights.iterdir())
        return sorted(int(m.group(1)) for m in matches if m)

    def write_text(self, name: str, text: str) -> Path:
        """Write a small text file and return its path."""
        path = self.path / name
        write_atomically(path, lambda file: file.write(text.encode()))
        return path

    def append_rows(self, name: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Append rows to a CSV: one header, missing values empty, columns in order of arrival."""
        table = self._rows.setdefault(name, [])
        table.extend(dict(row) for row in rows)
        columns = list(dict.fromkeys(column for row in table for column in row))

        def write(file: BinaryIO) -> None:
            import io

            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(table)
            text.detach()

        write_atomically(self.path / name, write)


def read_csv(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV of this project; empty strings are missing values."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
