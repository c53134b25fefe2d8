"""Named arrays of a model: their layout, checks, casts and checksums. NumPy only.

Arrays travel as `dict[str, np.ndarray]`, named as in the model's `state_dict`; a `Layout` lists
the expected names, shapes and dtypes. An array is never identified by its position.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Arrays = dict[str, np.ndarray]
CHUNK = 1 << 16  # values processed at once: 512 KiB in float64, which fit in one core's cache


@dataclass(frozen=True)
class Layout:
    """Names, shapes and dtypes of a model's arrays, in the order of its `state_dict`.

    entries: One `(name, shape, dtype name)` for each array.
    """

    entries: tuple[tuple[str, tuple[int, ...], str], ...]

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Layout":
        """Return the layout of these arrays."""
        return cls(tuple((name, a.shape, a.dtype.name) for name, a in arrays.items()))

    @property
    def names(self) -> list[str]:
        """Array names, in order."""
        return [name for name, _, _ in self.entries]

    @cached_property
    def num_bytes(self) -> int:
        """Size of the values of all arrays together, in bytes."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for _, shape, dtype in self.entries)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the entries, hexadecimal: equal for equal layouts on any machine."""
        return hashlib.sha256(json.dumps(self.entries).encode()).hexdigest()


def layout_problems(arrays: Mapping[str, np.ndarray], layout: Layout) -> list[str]:
    """Describe where `arrays` do not fit the layout; an empty list if they fit.

    Besides names, shapes and dtypes, values must be finite: one NaN would stay in the global
    model for good. Shapes are compared exactly, since NumPy would broadcast a 0-d array silently.
    """
    problems = []
    expected = {name: (shape, dtype) for name, shape, dtype in layout.entries}
    for text, names in (
        ("missing", [n for n in expected if n not in arrays]),
        ("not in the model", [n for n in arrays if n not in expected]),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            problems.append(f"{len(names)} arrays {text}: {', '.join(names[:3])}{more}")
    for name, (shape, dtype) in expected.items():
        if name not in arrays:
            continue
        array = arrays[name]
        if array.shape != shape:
            problems.append(f"{name}: shape {array.shape}, expected {shape}")
        elif array.dtype.name != dtype:
            problems.append(f"{name}: dtype {array.dtype.name}, expected {dtype}")
        elif array.dtype.kind == "f" and not np.isfinite(array).all():
            bad = int(array.size - np.count_nonzero(np.isfinite(array)))
            problems.append(f"{name}: {bad} of {array.size} values are NaN or infinite")
    return problems


def negative_statistics(arrays: Mapping[str, np.ndarray]) -> list[str]:
    """Describe BatchNorm variances and counters below 0; such a variance would cause NaNs."""
    return [
        f"{name}: has negative values"
        for name, array in arrays.items()
        if name.endswith(("running_var", "num_batches_tracked")) and (array < 0).any()
    ]


def select(arrays: Mapping[str, np.ndarray], names: Iterable[str]) -> Arrays:
    """Return the arrays of these names, in the order of the names."""
    return {name: arrays[name] for name in names}


def changed_names(new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray]) -> list[str]:
    """Return the names of arrays whose bytes differ; 0.0 and -0.0 count as different."""
    return [name for name, array in new.items() if array.tobytes() != old[name].tobytes()]


def to_double(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Copy arrays to float64, the precision used for aggregation.

    Averaging in float32 makes the mean of three equal models differ from the model.
    """
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def distance(
    arrays: Mapping[str, np.ndarray], origin: Mapping[str, np.ndarray], names: Iterable[str]
) -> float:
    """Return the L2 norm of the difference over all named arrays together, in float64."""
    total = 0.0
    for name in names:
        new, old = arrays[name].reshape(-1), origin[name].reshape(-1)
        for start in range(0, new.size, CHUNK):
            part = slice(start, start + CHUNK)
            difference = np.subtract(new[part], old[part], dtype=np.float64)
            # BLAS would distribute such short sums over threads, which costs more than it saves.
            total += np.square(difference, out=difference).sum()
    return float(np.sqrt(total))


def add_scaled(total: np.ndarray, array: np.ndarray, weight: float) -> None:
    """Add weight * array to `total` in place, in float64 and without a copy of the array.

    total: Contiguous float64 array. Products are exact for float32 values and whole weights below
    2^29.
    """
    assert total.shape == array.shape  # NumPy would broadcast
    sums, values = total.reshape(-1), array.reshape(-1)
    buffer = np.empty(min(CHUNK, sums.size))
    for start in range(0, sums.size, CHUNK):
        part = sums[start : start + CHUNK]
        scaled = buffer[: part.size]
        scaled[:] = values[start : start + CHUNK]
        scaled *= weight
        part += scaled


class Shortened(Mapping[str, np.ndarray]):
    """Mapping of origin + factor * (arrays - origin); each array is computed when it is read.

    The arithmetic is in float64; the result has the array's own dtype.
    """

    def __init__(
        self, arrays: Mapping[str, np.ndarray], origin: Mapping[str, np.ndarray], factor: float
    ) -> None:
        self.arrays = arrays
        self.origin = origin
        self.factor = factor

    def __getitem__(self, name: str) -> np.ndarray:
        array, old = self.arrays[name], self.origin[name].astype(np.float64)
        return cast(old + self.factor * (array.astype(np.float64) - old), array.dtype.name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.arrays)

    def __len__(self) -> int:
        return len(self.arrays)


def cast(array: np.ndarray, dtype: str) -> np.ndarray:
    """Cast to this dtype; round to the nearest integer, never truncate."""
    if np.dtype(dtype).kind in "iu" and array.dtype.kind == "f":
        array = np.rint(array)
    return np.asarray(array, dtype)  # rint makes 0-d arrays scalars


def cast_to(arrays: Mapping[str, np.ndarray], layout: Layout) -> Arrays:
    """Cast aggregated arrays back to the dtypes of the layout, in its order.

    The integer arrays are BatchNorm's batch counters.
    """
    return {name: cast(np.asarray(arrays[name]), dtype) for name, _, dtype in layout.entries}


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """Return the SHA-256 digest over names, dtypes, shapes and values, hexadecimal."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name}:{array.dtype.name}:{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
