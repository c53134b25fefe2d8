"""Encode arrays in few bytes: exactly (`pack`), or a difference approximately (`encode`).

It uses NumPy and zlib. The bytes contain no names or lengths: the reader takes these from the
layout, and raises ValueError for bytes that do not fit it exactly.
"""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from federated_yolo.common.arrays import Arrays, Layout
from federated_yolo.config.schema import CodecConfig

STEPS = 127  # from zero to the largest int8
# topk subtracts this from the size of each step count but zero: of the values that round to the
# same count, more are smaller than larger. 0.1 leaves out the least of a BCCD round's change
# (5.7 %; 6.0 % without it). It also makes the residual of each value that is sent smaller than the
# value, even for half a step (0.5 arrives as 0.9), so that error feedback ends.
OVERSHOOT = 0.1
MAX_SCALE = float(np.finfo(np.float32).max) / 128  # its product with any int8 is finite
MAX_HALF = float(np.finfo(np.float16).max)


def pack(arrays: Arrays) -> bytes:
    """Encode arrays exactly, deflated.

    Bytes of the same significance are grouped: exponents are alike, and a model that was in half
    precision has only zeros in the lower bytes.
    """
    return _deflate(b"".join(_shuffled(group) for group in _by_dtype(arrays)))


def unpack(data: bytes, layout: Layout) -> Arrays:
    """Return the arrays that `pack` encoded; they had this layout."""
    sizes = {name: _size(shape) for name, shape, _ in layout.entries}
    dtypes = {name: np.dtype(dtype) for name, _, dtype in layout.entries}
    body = _inflate(data, sum(sizes[name] * dtypes[name].itemsize for name in sizes))
    found: Arrays = {}
    for dtype in _ordered(dtypes.values()):
        names = [name for name in dtypes if dtypes[name] == dtype]
        length = sum(sizes[name] for name in names) * dtype.itemsize
        planes, body = body[:length], body[length:]
        found.update(_split(_unshuffled(planes, dtype), names, sizes))
    return {name: found[name].reshape(shape) for name, shape, _ in layout.entries}


def encode(difference: Arrays, codec: CodecConfig) -> bytes:
    """Encode a difference (finite float32 arrays) with a codec other than none."""
    return _deflate(_CODECS[codec.name].encode(difference, codec))


def decode(data: bytes, layout: Layout, codec: CodecConfig) -> Arrays:
    """Decode what `encode` returned for arrays of this layout: finite float32, equal anywhere."""
    sizes = {name: _size(shape) for name, shape, _ in layout.entries}
    values = _CODECS[codec.name].decode(data, list(sizes.values()))
    found = _split(values, list(sizes), sizes)
    return {name: found[name].reshape(shape) for name, shape, _ in layout.entries}


def halved(arrays: Arrays, names: Iterable[str]) -> Arrays:
    """Return the arrays with the named ones rounded to float16 precision, dtypes unchanged.

    An array with a value beyond float16's range is not rounded. Ultralytics' checkpoints are in
    float16, so only the weights of a freshly built model change.
    """
    small = {name for name in names if name in arrays and _holds(arrays[name])}
    return {
        name: array.astype(np.float16).astype(array.dtype) if name in small else array
        for name, array in arrays.items()
    }


def _holds(array: np.ndarray) -> bool:
    return bool(np.max(np.abs(array), initial=0.0) <= MAX_HALF)


@dataclass(frozen=True)
class _Codec:
    """Both directions of one codec.

    encode: Returns bytes that are not deflated yet. decode: Takes deflated bytes and the sizes of
    the arrays; returns all values in a row.
    """

    encode: Callable[[Arrays, CodecConfig], bytes]
    decode: Callable[[bytes, list[int]], np.ndarray]


def _encode_float16(difference: Arrays, _: CodecConfig) -> bytes:
    values = np.clip(_flat(difference), -MAX_HALF, MAX_HALF)
    return _shuffled(values.astype(np.float16))


def _decode_float16(data: bytes, sizes: list[int]) -> np.ndarray:
    values = _unshuffled(_inflate(data, 2 * sum(sizes)), np.dtype(np.float16))
    if not np.isfinite(values).all():
        raise ValueError("the encoded difference holds values that are NaN or infinite")
    return values.astype(np.float32)


def _encode_int8(difference: Arrays, _: CodecConfig) -> bytes:
    return _in_steps(difference, [_finest(array) for array in difference.values()])


def _encode_topk(difference: Arrays, codec: CodecConfig) -> bytes:
    """Encode matrices in steps so long that values that are not sent round to zero.

    Values that are sent then have the same precision as those left out, which loses the least per
    byte after deflating (Sullivan 1996, IEEE Trans. Inf. Theory 42(5), on uniform steps).
    """
    steps = [_step(array, codec.kept) for array in difference.values()]
    return _in_steps(difference, steps, _round_half_up)


def _decode_int8(data: bytes, sizes: list[int]) -> np.ndarray:
    scales, steps = _read_steps(data, sizes)
    return steps * scales


def _decode_topk(data: bytes, sizes: list[int]) -> np.ndarray:
    scales, steps = _read_steps(data, sizes)
    return (steps - np.float32(OVERSHOOT) * np.sign(steps, dtype=np.float32)) * scales


def _read_steps(data: bytes, sizes: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return each value's step length, float32, and number of steps, int8, in a row."""
    body = _inflate(data, 4 * len(sizes) + sum(sizes))
    scales = np.frombuffer(body, np.float32, len(sizes))
    if not ((scales >= 0) & (scales <= MAX_SCALE)).all():  # NaN is neither
        raise ValueError("the encoded difference has a scale that is negative, huge or NaN")
    return np.repeat(scales, sizes), np.frombuffer(body, np.int8, offset=4 * len(sizes))


_CODECS = {
    "float16": _Codec(_encode_float16, _decode_float16),
    "int8": _Codec(_encode_int8, _decode_int8),
    "topk": _Codec(_encode_topk, _decode_topk),
}


def _finest(array: np.ndarray) -> float:
    """Return the shortest step with which an int8 reaches all values."""
    return float(np.max(np.abs(array), initial=0.0)) / STEPS


def _step(array: np.ndarray, fraction: float) -> float:
    """Return the step of an array: twice the smallest magnitude to send; for vectors the finest.

    Weights and biases of BatchNorm (vectors) are few, and each affects a whole channel.
    """
    count = int(np.ceil(fraction * array.size))
    if array.ndim < 2 or not count:
        return _finest(array)
    smallest = np.partition(np.abs(array).ravel(), -count)[-count]
    return max(2 * float(smallest), _finest(array))


def _round_half_up(values: np.ndarray) -> np.ndarray:
    """Round to the nearest whole number, halves away from zero: half a step is still sent."""
    return np.trunc(values + np.copysign(np.float32(0.5), values))


def _in_steps(
    difference: Arrays, steps: list[float], rounded: Callable[[np.ndarray], np.ndarray] = np.rint
) -> bytes:
    """Return as bytes each array's step, (arrays,) float32, then all values in steps, int8."""
    scales = np.minimum(steps, MAX_SCALE).astype(np.float32)
    with np.errstate(over="ignore"):  # an infinite quotient is clipped to the most steps
        values = [
            np.clip(rounded(array.ravel() / scale), -STEPS, STEPS)
            if scale
            else np.zeros(array.size)
            for array, scale in zip(difference.values(), scales, strict=True)
        ]
    return scales.tobytes() + np.concatenate(values).astype(np.int8).tobytes()


def _deflate(body: bytes) -> bytes:
    # The data's only redundancies are runs of zeros (frozen arrays) and frequent bytes.
    compressor = zlib.compressobj(strategy=zlib.Z_RLE)
    return compressor.compress(body) + compressor.flush()


def _inflate(data: bytes, size: int) -> bytes:
    """Inflate to exactly this many bytes; more are never made."""
    inflater = zlib.decompressobj()
    try:
        body = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"the encoded arrays are damaged: {error}") from error
    if len(body) != size:
        raise ValueError(f"the encoded arrays have {len(body)} bytes or more, expected {size}")
    if not inflater.eof or inflater.unused_data:
        raise ValueError("the encoded arrays are cut off, or something follows them")
    return body


def _shuffled(values: np.ndarray) -> bytes:
    """Return the lowest byte of every value, then the next byte of every value, and so on."""
    return values.view(np.uint8).reshape(-1, values.itemsize).T.tobytes()


def _unshuffled(planes: bytes, dtype: np.dtype) -> np.ndarray:
    rows = np.frombuffer(planes, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(rows.T).view(dtype).ravel()


def _ordered(dtypes: Iterable[np.dtype]) -> list[np.dtype]:
    return sorted(set(dtypes), key=lambda dtype: dtype.name)


def _by_dtype(arrays: Arrays) -> list[np.ndarray]:
    dtypes = _ordered(array.dtype for array in arrays.values())
    return [_flat({n: a for n, a in arrays.items() if a.dtype == dtype}) for dtype in dtypes]


def _flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays.values()])


def _size(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _split(values: np.ndarray, names: list[str], sizes: dict[str, int]) -> Arrays:
    ends = np.cumsum([sizes[name] for name in names])[:-1]
    return dict(zip(names, np.split(values, ends), strict=True))
