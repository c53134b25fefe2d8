"""New arrays as what changed in old ones that both sides have, and what a client keeps for that.

A delta is itself a few named arrays, which travel as any others:

    changed      (arrays,) bool, in the order of the layout: which arrays are new
    packed       (bytes,) uint8: those, exactly
    difference   (bytes,) uint8: the change of the parameters, encoded; only with a codec

What is neither in `packed` nor a parameter with a difference has stayed the same. Where all is
changed, nothing is built upon: that is how whole models travel.
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
    """A delta builds on arrays that this client does not have."""


@dataclass(frozen=True)
class Encoding:
    """What both sides of a transfer know beforehand.

    layout: of the arrays that travel. parameters: names of trainable arrays, float32; their
    differences are encoded by the codec. All else, and all of it with codec none, is exact.
    """

    layout: Layout
    codec: CodecConfig
    parameters: frozenset[str]

    def whole(self, arrays: Arrays) -> Arrays:
        """A delta that builds on nothing."""
        return {
            "changed": np.ones(len(arrays), bool),
            "packed": _as_array(pack(select(arrays, self.layout.names))),
        }

    def delta(self, new: Arrays, old: Arrays, residual: Arrays) -> tuple[Arrays, Arrays]:
        """What leads from old to (about) new arrays, and what of the change it leaves out.

        residual: left out before, and now added to the change: error feedback (Seide et al. 2014;
        Karimireddy et al. 2019, arXiv 1901.09847), by which all of it arrives in the end.
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
        """The arrays that a delta leads to, to the bit the same on any machine.

        Raises ValueError, or KeyError, for one that is damaged or builds on arrays that are not
        there. Whether values make sense, `layout_problems` has to say.
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
            with np.errstate(over="ignore"):  # infinite sums are found as such
                for name, array in decode(data, self.encoded, self.codec).items():
                    result[name] = old[name] + array
        return select(result, self.layout.names)

    @cached_property
    def encoded(self) -> Layout:
        """Of the parameters, whose differences the codec encodes; empty without one."""
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
