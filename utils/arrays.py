"""Named arrays of a model: their layout, checks, casts and checksums. NumPy only.

Arrays travel as `dict[str, np.ndarray]`, named as in the model's `state_dict`; a `Layout` says
which names, shapes and dtypes there must be. Nothing is ever found by position.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Layout:
    """Names, shapes and dtypes of a model's arrays, in the order of its `state_dict`.

    entries: one `(name, shape, dtype name)` for each array.
    """

    entries: tuple[tuple[str, tuple[int, ...], str], ...]

    @classmethod
    def of(cls, arrays: Mapping[str, np.ndarray]) -> "Layout":
        """Layout of these arrays."""
        return cls(tuple((name, a.shape, a.dtype.name) for name, a in arrays.items()))

    @property
    def names(self) -> list[str]:
        """Array names, in order."""
        return [name for name, _, _ in self.entries]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the entries, hexadecimal: equal for equal layouts on any machine."""
        return hashlib.sha256(json.dumps(self.entries).encode()).hexdigest()


def layout_problems(arrays: Mapping[str, np.ndarray], layout: Layout) -> list[str]:
    """Say what keeps `arrays` from being a model of this layout; an empty list if nothing does.

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
    """Say which BatchNorm variances and counters are negative; a variance would make NaNs."""
    return [
        f"{name}: has negative values"
        for name, array in arrays.items()
        if name.endswith(("running_var", "num_batches_tracked")) and (array < 0).any()
    ]


def select(arrays: Mapping[str, np.ndarray], names: Iterable[str]) -> Arrays:
    """The arrays of these names, in the order of the names."""
    return {name: arrays[name] for name in names}


def changed_names(new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the arrays that are not the same to the bit: 0.0 and -0.0 are not."""
    return [name for name, array in new.items() if array.tobytes() != old[name].tobytes()]


def to_double(arrays: Mapping[str, np.ndarray]) -> Arrays:
    """Copy to float64, the precision to aggregate in.

    Averaging in float32 makes the mean of three equal models differ from the model.
    """
    return {name: array.astype(np.float64) for name, array in arrays.items()}


def distance(
    arrays: Mapping[str, np.ndarray], origin: Mapping[str, np.ndarray], names: Iterable[str]
) -> float:
    """L2 norm of the difference over the arrays of these names together, in float64."""
    differences = (arrays[n].astype(np.float64) - origin[n] for n in names)
    return float(np.sqrt(sum(np.vdot(d, d) for d in differences)))


def shortened(
    arrays: Mapping[str, np.ndarray], origin: Mapping[str, np.ndarray], factor: float
) -> Arrays:
    """origin + factor * (arrays - origin), in float64."""
    new, old = to_double(arrays), to_double(origin)
    return {name: old[name] + factor * (new[name] - old[name]) for name in new}


def cast_to(arrays: Mapping[str, np.ndarray], layout: Layout) -> Arrays:
    """Cast aggregated arrays back to the dtypes of the layout, in its order.

    Integers (BatchNorm's batch counters) are rounded to the nearest, never truncated.
    """
    result: Arrays = {}
    for name, _, dtype in layout.entries:
        array = np.asarray(arrays[name])
        if np.dtype(dtype).kind in "iu" and array.dtype.kind == "f":
            array = np.rint(array)
        result[name] = np.asarray(array, dtype)  # rint makes 0-d arrays scalars
    return result


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over names, dtypes, shapes and values, hexadecimal."""
    digest = hashlib.sha256()
    for name, array in arrays.items():
        digest.update(f"{name}:{array.dtype.name}:{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
