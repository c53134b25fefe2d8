"""Reads and writes named arrays in an .npz, with a description and a checksum, without pickles."""

import json
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from federated_yolo.common.arrays import Arrays, checksum
from federated_yolo.common.files import SpecialFileError, refuse_special, write_atomically

META_KEY = "__federation__"
FORMAT = 1
MAX_DESCRIPTION_BYTES = 64 << 20  # as UTF-32, NumPy's text


@dataclass(frozen=True)
class RoundMeta:
    """Description stored in a `roundN.npz`.

    round: Number of the round; 0 is the initial model. names: Class names by index. task:
    Ultralytics' task. base_model: File name (not path) of the base checkpoint or YAML.
    """

    round: int
    names: tuple[str, ...]
    task: str
    base_model: str


def save_arrays(path: Path, arrays: Mapping[str, np.ndarray], meta: RoundMeta) -> None:
    """Write named arrays and their description as an uncompressed .npz without pickles."""
    header = {"format": FORMAT, "checksum": checksum(arrays), **asdict(meta)}
    entries: dict[str, Any] = {META_KEY: np.array(json.dumps(header)), **arrays}
    write_atomically(path, lambda file: np.savez(file, **entries))


def load_arrays(path: Path, *, may_be_packed: bool = False) -> tuple[Arrays, RoundMeta | None]:
    """Read an .npz: named arrays and their description, None for an archive of another program.

    may_be_packed: Whether to accept deflated arrays, whose few bytes can expand to gigabytes; only
    for a caller that has checked `load_headers` before. This project never deflates its own arrays.
    Raises ValueError that names the file if it is damaged or its checksum does not match.
    """
    with _opened(path) as (archive, file):
        headers, _ = _read_headers(archive)
        if not may_be_packed:
            _refuse_packed(archive, path.stat().st_size)
        file.seek(0)
        with np.load(file, allow_pickle=False) as loaded:
            arrays = {name: loaded[name] for name in headers if name != META_KEY}
            text = str(loaded[META_KEY]) if META_KEY in headers else None
    meta, expected = _description(path, text)
    if meta is not None and checksum(arrays) != expected:
        raise ValueError(f"{path}: the arrays do not match their checksum; use another round")
    return arrays, meta


def load_headers(path: Path) -> tuple[Arrays, RoundMeta | None]:
    """Return the result of `load_arrays` from headers alone: all values are 0 and take no memory.

    Deflated arrays are accepted, and checksums are not checked.
    Raises ValueError that names the file if it is damaged.
    """
    with _opened(path) as (archive, _):
        headers, text = _read_headers(archive)
        arrays = {
            name: np.broadcast_to(np.zeros((), dtype), shape)
            for name, (shape, dtype) in headers.items()
            if name != META_KEY
        }
    return arrays, _description(path, text)[0]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[zipfile.ZipFile, BinaryIO]]:
    """Open an .npz as an archive and as a file; any error meanwhile becomes a ValueError."""
    try:
        refuse_special(path)
        # Opened here, because NumPy leaves a damaged archive open.
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            yield archive, file
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such file; expected an .npz of a round") from error
    except SpecialFileError as error:
        raise ValueError(f"{path}: {error}; expected an .npz of a round") from error
    except Exception as error:  # damage to a zip surfaces as errors of zlib, tokenize, NumPy, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"{path}: not a readable .npz ({reason}); use another round") from error


def _read_headers(
    archive: zipfile.ZipFile,
) -> tuple[dict[str, tuple[tuple[int, ...], np.dtype]], str | None]:
    """Return the shape and dtype of each array, and the description's text; read no array.

    Raises ValueError for an entry that is not an array, holds pickles, or has another size than
    its header states.
    """
    headers: dict[str, tuple[tuple[int, ...], np.dtype]] = {}
    text = None
    for info in archive.infolist():
        name = info.filename.removesuffix(".npy")
        with archive.open(info) as member:
            try:
                version = np.lib.format.read_magic(member)
            except ValueError as error:
                raise ValueError(
                    "holds files that are no arrays; expected an .npz of a round"
                ) from error
            if version not in _HEADER_READERS:
                raise ValueError(f"'{name}' is of the unknown format {version}")
            shape, _, dtype = _HEADER_READERS[version](member)
            if dtype.hasobject:
                raise ValueError(f"'{name}' holds Python objects, which are not loaded")
            size = math.prod(shape) * dtype.itemsize
            if member.tell() + size != info.file_size or min(shape, default=0) < 0:
                raise ValueError(f"'{name}' says {size} bytes in its header, but has another size")
            if name == META_KEY and dtype.kind == "U" and size <= MAX_DESCRIPTION_BYTES:
                text = str(np.frombuffer(member.read(size), dtype).reshape(shape))
        headers[name] = (shape, dtype)
    return headers, text


_HEADER_READERS: dict[tuple[int, int], Callable[[Any], Any]] = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def _refuse_packed(archive: zipfile.ZipFile, file_size: int) -> None:
    """Raise ValueError if arrays are compressed, or take more bytes than the file."""
    infos = archive.infolist()
    packed = next((i for i in infos if i.compress_type != zipfile.ZIP_STORED), None)
    if packed is not None or sum(info.file_size for info in infos) > file_size:
        raise ValueError("its arrays are packed, which those of a run never are")


def _description(path: Path, text: str | None) -> tuple[RoundMeta | None, str]:
    """Return the description in an archive and the checksum in it; None without a description."""
    if text is None:
        return None, ""
    try:
        header = json.loads(text)
        expected = header.pop("checksum")
        found_format = header.pop("format")
        meta = RoundMeta(**{**header, "names": tuple(header["names"])})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: damaged description ({error}); use another round") from error
    if found_format != FORMAT:
        raise ValueError(f"{path}: format {found_format}, this version reads {FORMAT}")
    return meta, expected
