"""Arrays as few bytes: exactly (`pack`), or approximately as a difference (`encode`). NumPy, zlib.

Nothing in the bytes says how long anything is or what it is called: the reader knows from the
layout, and refuses with a ValueError whatever does not fit it exactly.
"""

import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from utils.arrays import Arrays, Layout
from utils.config import CodecConfig

# Steps from zero to the largest magnitude of an array. For the few values of topk more would cost
# bytes and gain nothing: of a BCCD round's change, a fifth of the values leaves out 33.1 % of its
# squared length with 127 steps and 33.9 % with 7, in 482 and 214 kB.
INT8_STEPS, TOPK_STEPS = 127, 7
MAX_SCALE = float(np.finfo(np.float32).max) / 128  # times any int8, it is still finite
MAX_HALF = float(np.finfo(np.float16).max)


def pack(arrays: Arrays) -> bytes:
    """Exactly these arrays, deflated.

    Bytes of equal weight come together: exponents are alike, and a model that was in half precision
    has nothing but zeros in the lower halves.
    """
    return _deflate(b"".join(_shuffled(group) for group in _by_dtype(arrays)))


def unpack(data: bytes, layout: Layout) -> Arrays:
    """The arrays of `pack`, which had this layout."""
    sizes = {name: _size(shape) for name, shape, _ in layout.entries}
    dtypes = {name: np.dtype(dtype) for name, _, dtype in layout.entries}
    body = _inflate(data, sum(sizes[name] * dtypes[name].itemsize for name in sizes), exact=True)
    found: Arrays = {}
    for dtype in _ordered(dtypes.values()):
        names = [name for name in dtypes if dtypes[name] == dtype]
        length = sum(sizes[name] for name in names) * dtype.itemsize
        planes, body = body[:length], body[length:]
        found.update(_split(_unshuffled(planes, dtype), names, sizes))
    return {name: found[name].reshape(shape) for name, shape, _ in layout.entries}


def encode(difference: Arrays, codec: CodecConfig) -> bytes:
    """A difference of float32 arrays, finite, in the few bytes of a codec other than none."""
    return _deflate(_CODECS[codec.name].encode(difference, codec))


def decode(data: bytes, layout: Layout, codec: CodecConfig) -> Arrays:
    """What an `encode` of arrays of this layout comes to: float32, finite, anywhere the same."""
    sizes = {name: _size(shape) for name, shape, _ in layout.entries}
    values = _CODECS[codec.name].decode(data, list(sizes.values()))
    found = _split(values, list(sizes), sizes)
    return {name: found[name].reshape(shape) for name, shape, _ in layout.entries}


@dataclass(frozen=True)
class _Codec:
    """encode: to bytes that are still to be deflated. decode: of the deflated bytes, given the
    sizes of the arrays, to all values in a row."""

    encode: Callable[[Arrays, CodecConfig], bytes]
    decode: Callable[[bytes, list[int]], np.ndarray]


def _encode_float16(difference: Arrays, _: CodecConfig) -> bytes:
    values = np.clip(_flat(difference), -MAX_HALF, MAX_HALF)
    return _shuffled(values.astype(np.float16))


def _decode_float16(data: bytes, sizes: list[int]) -> np.ndarray:
    values = _unshuffled(_inflate(data, 2 * sum(sizes), exact=True), np.dtype(np.float16))
    if not np.isfinite(values).all():
        raise ValueError("the encoded difference holds values that are NaN or infinite")
    return values.astype(np.float32)


def _encode_int8(difference: Arrays, _: CodecConfig) -> bytes:
    scales, steps = _quantised(difference, INT8_STEPS)
    return scales.tobytes() + steps.tobytes()


def _decode_int8(data: bytes, sizes: list[int]) -> np.ndarray:
    body = _inflate(data, 4 * len(sizes) + sum(sizes), exact=True)
    scales = _scales(body, len(sizes))
    return np.frombuffer(body, np.int8, offset=4 * len(sizes)) * np.repeat(scales, sizes)


def _encode_topk(difference: Arrays, codec: CodecConfig) -> bytes:
    scales, steps = _quantised(difference, TOPK_STEPS)
    is_sent = np.concatenate([_largest(array, codec.kept) for array in difference.values()])
    is_sent &= steps != 0
    return scales.tobytes() + np.packbits(is_sent).tobytes() + steps[is_sent].tobytes()


def _decode_topk(data: bytes, sizes: list[int]) -> np.ndarray:
    size, start = sum(sizes), 4 * len(sizes)
    body = _inflate(data, start + (size + 7) // 8 + size, exact=False)
    end = start + (size + 7) // 8
    if len(body) < end:
        raise ValueError(f"the encoded difference has {len(body)} bytes, expected at least {end}")
    scales = _scales(body, len(sizes))
    bits = np.unpackbits(np.frombuffer(body[start:end], np.uint8)).astype(bool)
    steps = np.frombuffer(body, np.int8, offset=end)
    if bits[size:].any() or len(steps) != np.count_nonzero(bits):
        raise ValueError(
            f"the encoded difference marks {np.count_nonzero(bits)} of {size} positions and has "
            f"{len(steps)} values"
        )
    values = np.zeros(size, np.float32)
    values[bits[:size]] = steps * np.repeat(scales, sizes)[bits[:size]]
    return values


_CODECS = {
    "float16": _Codec(_encode_float16, _decode_float16),
    "int8": _Codec(_encode_int8, _decode_int8),
    "topk": _Codec(_encode_topk, _decode_topk),
}


def _largest(array: np.ndarray, fraction: float) -> np.ndarray:
    """Which values are the largest in magnitude, (size,) bool; of vectors all.

    Weights and biases of BatchNorm are few, and each concerns a whole channel.
    """
    chosen = np.ones(array.size, bool)
    count = int(np.ceil(fraction * array.size))
    if array.ndim > 1 and count < array.size:
        chosen[np.argpartition(np.abs(array).ravel(), -count)[:-count]] = False
    return chosen


def _quantised(difference: Arrays, num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """A step's length for each array, (arrays,) float32, and all values in steps, int8."""
    largest = [float(np.max(np.abs(array), initial=0.0)) for array in difference.values()]
    scales = np.minimum(np.array(largest) / num_steps, MAX_SCALE).astype(np.float32)
    steps = [
        np.clip(np.rint(array.ravel() / scale), -num_steps, num_steps)
        if scale
        else np.zeros(array.size)
        for array, scale in zip(difference.values(), scales, strict=True)
    ]
    return scales, np.concatenate(steps).astype(np.int8)


def _scales(body: bytes, count: int) -> np.ndarray:
    scales = np.frombuffer(body, np.float32, count)
    if not ((scales >= 0) & (scales <= MAX_SCALE)).all():  # NaN is neither
        raise ValueError("the encoded difference has a scale that is negative, huge or NaN")
    return scales


def _deflate(body: bytes) -> bytes:
    # Runs of zeros (what is frozen) and frequent bytes are all there is to find.
    compressor = zlib.compressobj(strategy=zlib.Z_RLE)
    return compressor.compress(body) + compressor.flush()


def _inflate(data: bytes, size: int, *, exact: bool) -> bytes:
    """Inflate to this size, or if not `exact` to this at most; more is never even made."""
    inflater = zlib.decompressobj()
    try:
        body = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise ValueError(f"the encoded arrays are damaged: {error}") from error
    if len(body) > size or (exact and len(body) < size):
        raise ValueError(f"the encoded arrays have {len(body)} bytes or more, expected {size}")
    if not inflater.eof or inflater.unused_data:
        raise ValueError("the encoded arrays are cut off, or something follows them")
    return body


def _shuffled(values: np.ndarray) -> bytes:
    """First the lowest byte of every value, then the next."""
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
