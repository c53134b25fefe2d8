"""Encode new arrays as a delta: the changes of old arrays that both sides have.

A delta consists of a few named arrays, which are sent like any others:

    changed      (arrays,) bool, in the order of the layout: which arrays are new
    packed       (bytes,) uint8: the new arrays, exactly
    difference   (bytes,) uint8: the change of the parameters, encoded; only with a codec

An array that is neither in `packed` nor a parameter with a difference is unchanged. If all arrays
are in `packed`, no old arrays are needed: whole models are sent in this way.
"""

import logging
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from federated_yolo.common.arrays import Arrays, Layout, changed_names, select
from federated_yolo.config.schema import CodecConfig
from federated_yolo.protocol.codec import decode, encode, pack, unpack

logger = logging.getLogger(__name__)
LARGEST = float(np.finfo(np.float32).max)


class LackingArraysError(Exception):
    """A delta needs old arrays that this client does not have."""


@dataclass(frozen=True)
class Encoding:
    """The facts about a transfer that both sides know beforehand.

    layout: Layout of the arrays that are sent. parameters: Names of trainable arrays, float32,
    whose differences the codec encodes. Other arrays, and with codec none all, are sent exactly.
    """

    layout: Layout
    codec: CodecConfig
    parameters: frozenset[str]

    def whole(self, arrays: Arrays) -> Arrays:
        """Return a delta that needs no old arrays."""
        return {
            "changed": np.ones(len(arrays), bool),
            "packed": _as_array(pack(select(arrays, self.layout.names))),
        }

    def delta(self, new: Arrays, old: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
        """Return the delta from old to (about) new arrays, and the rest of the change.

        residual: The rest that was left out before. It is added to the change, so that all of it
        arrives in the end: error feedback (Seide et al. 2014; Karimireddy et al. 2019, arXiv
        1901.09847).
        """
        encoded = self.encoded
        approximate = set(encoded.names)
        exact = select(new, [name for name in self.layout.names if name not in approximate])
        changed = changed_names(exact, old)
        delta = {
            "changed": np.isin(self.layout.names, changed),
            "packed": _as_array(pack(select(new, changed))),
        }
        if not encoded.entries:
            return delta, {}
        difference = {n: _difference(new[n], old[n], residual.get(n)) for n in encoded.names}
        data = encode(difference, self.codec)
        arriving = decode(data, encoded, self.codec)
        delta["difference"] = _as_array(data)
        return delta, {name: difference[name] - arriving[name] for name in difference}

    def rebuilt(self, delta: Arrays, old: Arrays | None) -> Arrays:
        """Return the new arrays that a delta encodes, bit for bit the same on any machine.

        Raises ValueError or KeyError if the delta is damaged or needs old arrays that are missing.
        It does not check whether values make sense; `layout_problems` does.
        """
        changed = delta["changed"]
        if changed.dtype != bool or changed.shape != (len(self.layout.entries),):
            raise ValueError(
                f"'changed' of the encoded arrays: found {changed.dtype.name} {changed.shape}, "
                f"expected bool ({len(self.layout.entries)},)"
            )
        entries = zip(self.layout.entries, changed, strict=True)
        new_layout = Layout(tuple(entry for entry, is_new in entries if is_new))
        result = unpack(_as_bytes(delta["packed"]), new_layout)
        if old is None:
            if not changed.all():
                raise ValueError("the encoded arrays build on others that are not there")
            return result
        result = {**old, **result}
        if "difference" in delta:
            if not self.encoded.entries:
                raise ValueError("the encoded arrays have a difference, and no codec is set")
            data = _as_bytes(delta["difference"])
            with np.errstate(over="ignore"):  # `layout_problems` finds infinite sums
                for name, array in decode(data, self.encoded, self.codec).items():
                    result[name] = old[name] + array
        return select(result, self.layout.names)

    @cached_property
    def encoded(self) -> Layout:
        """Layout of the parameters whose differences the codec encodes; empty with codec none."""
        if self.codec.name == "none":
            return Layout(())
        return Layout(tuple(entry for entry in self.layout.entries if entry[0] in self.parameters))


def _difference(new: np.ndarray, old: np.ndarray, residual: np.ndarray | None) -> np.ndarray:
    change = new.astype(np.float64) - old
    if residual is not None:
        change += residual
    return np.clip(change, -LARGEST, LARGEST).astype(np.float32)


def _as_array(data: bytes) -> np.ndarray:
    return np.frombuffer(data, np.uint8)


def _as_bytes(array: np.ndarray) -> bytes:
    if array.dtype != np.uint8 or array.ndim != 1:
        raise ValueError(
            f"encoded arrays: found {array.dtype.name} {array.shape}, expected uint8 (bytes,)"
        )
    return array.tobytes()
