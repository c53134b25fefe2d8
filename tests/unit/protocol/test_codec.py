"""Encodings of arrays, on numbers that can be checked by hand, and on hostile bytes."""

import tracemalloc
import zlib

import numpy as np
import pytest

from federated_yolo.common.arrays import Arrays, Layout
from federated_yolo.config.schema import CodecConfig
from federated_yolo.protocol.codec import decode, encode, halved, pack, unpack

CODECS = [
    CodecConfig(name="float16"),
    CodecConfig(name="int8"),
    CodecConfig(name="topk", fraction=0.1),
]
NAMES = [codec.name for codec in CODECS]


def difference(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.normal(0, 1e-3, (8, 5, 3, 3)).astype(np.float32),
        "bias": rng.normal(0, 1e-2, 8).astype(np.float32),
        "frozen": np.zeros((4, 4), np.float32),
    }


def through(arrays: Arrays, codec: CodecConfig) -> Arrays:
    return decode(encode(arrays, codec), Layout.of(arrays), codec)


def test_packed_arrays_come_back_to_the_bit_with_shapes_and_dtypes() -> None:
    arrays: Arrays = {
        "weight": np.array([[-0.0, np.nan, np.inf], [1e-45, 1.1, -3e38]], np.float32),
        "counter": np.array(2**40 + 1, np.int64),
        "more": np.array([1.5], np.float32),
        "empty": np.zeros((0, 3), np.float32),
        "flags": np.array([True, False]),
    }
    found = unpack(pack(arrays), Layout.of(arrays))
    assert Layout.of(found) == Layout.of(arrays)
    assert {n: a.tobytes() for n, a in found.items()} == {n: a.tobytes() for n, a in arrays.items()}


def test_packing_halves_what_has_been_in_half_precision() -> None:
    weights = np.random.default_rng(0).normal(0, 0.1, 10**5).astype(np.float16).astype(np.float32)
    assert len(pack({"weights": weights})) < 0.55 * weights.nbytes


def test_float16_rounds_each_value_to_half_precision_and_stays_finite() -> None:
    values = np.array([1.0, 1 / 3, -2.5, 1e-9, 1e6], np.float32)
    found = through({"a": values}, CodecConfig(name="float16"))["a"]
    assert found.tolist() == [1.0, float(np.float16(1 / 3)), -2.5, 0.0, 65504.0]


def test_int8_rounds_to_127_steps_of_each_array() -> None:
    arrays = {
        "a": np.array([[127.0, -3.4], [0.6, 0.0]], np.float32),
        "b": np.array([0.0127, 0.00055], np.float32),
    }
    found = through(arrays, CodecConfig(name="int8"))
    assert found["a"].tolist() == [[127.0, -3.0], [1.0, 0.0]]
    np.testing.assert_allclose(found["b"], [0.0127, 0.0006], atol=1e-9)  # 5.5 steps: to even


def test_topk_sends_the_largest_of_a_matrix_in_steps_of_twice_the_smallest_sent() -> None:
    """Six of ten values are sent; the smallest, 3.3, makes a step of 6.6. Less 0.1 steps each."""
    arrays = {
        "matrix": np.array([[7.0, -0.9, 0.0, 3.4, -20.0], [7.0, -0.9, 0.0, 3.3, -20.0]]),
        "vector": np.array([1.27, -0.2, 0.004]),
    }
    arrays = {name: array.astype(np.float32) for name, array in arrays.items()}
    found = through(arrays, CodecConfig(name="topk", fraction=0.6))
    np.testing.assert_allclose(
        found["matrix"][0], [0.9 * 6.6, 0.0, 0.0, 0.9 * 6.6, -2.9 * 6.6], rtol=1e-6
    )
    np.testing.assert_allclose(found["matrix"][1, 3], 0.9 * 6.6, rtol=1e-6)  # just half a step
    np.testing.assert_allclose(found["vector"], [1.269, -0.199, 0.0], atol=1e-6)


def test_topk_sends_values_that_are_all_of_one_size() -> None:
    matrix = np.array([[0.5, -0.5], [0.5, 0.0]], np.float32)
    found = through({"a": matrix}, CodecConfig(name="topk", fraction=0.75))["a"]
    np.testing.assert_allclose(found, 1.8 * matrix, rtol=1e-6)


def test_topk_reaches_the_largest_value_where_few_are_sent() -> None:
    """Twice the smallest sent would be a step of 2, and the largest 500 of them: no int8."""
    matrix = np.array([[1000.0, 1.0], [0.1, 0.0]], np.float32)
    found = through({"a": matrix}, CodecConfig(name="topk", fraction=0.5))["a"]
    np.testing.assert_allclose(found, [[126.9 / 127 * 1000, 0.0], [0.0, 0.0]], rtol=1e-6)


def test_topk_with_more_zeros_than_it_leaves_out_sends_the_rest_finely() -> None:
    matrix = np.array([[0.0, 0.0], [12.7, -0.3]], np.float32)
    found = through({"a": matrix}, CodecConfig(name="topk", fraction=0.75))["a"]
    np.testing.assert_allclose(found, [[0.0, 0.0], [12.69, -0.29]], atol=1e-6)


def test_halving_rounds_parameters_that_half_precision_holds_and_nothing_else() -> None:
    arrays: Arrays = {
        "weight": np.array([1 / 3, 2.0], np.float32),
        "huge": np.array([1 / 3, 1e6], np.float32),
        "statistic": np.array([1 / 3], np.float32),
    }
    found = halved(arrays, ["weight", "huge", "private"])
    assert found["weight"].tolist() == [float(np.float16(1 / 3)), 2.0]
    assert found["weight"].dtype == np.float32
    assert found["huge"] is arrays["huge"]
    assert found["statistic"] is arrays["statistic"]


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
def test_what_does_not_change_costs_nothing_and_stays(codec: CodecConfig) -> None:
    arrays = {"frozen": np.zeros((300, 300), np.float32)}
    assert len(encode(arrays, codec)) < 300
    assert not through(arrays, codec)["frozen"].any()


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
@pytest.mark.parametrize("value", [3e38, 1e-45, -1e-40])
def test_extreme_differences_stay_finite(codec: CodecConfig, value: float) -> None:
    found = through({"a": np.full((3, 3), value, np.float32)}, codec)["a"]
    assert np.isfinite(found).all()
    # A value of half a step arrives as nearly a whole one.
    assert (
        np.abs(found.astype(float))
        <= float(np.float32(abs(value))) * (2 if codec.name == "topk" else 1.01)
    ).all()


def test_topk_takes_a_tenth_of_the_bytes_and_int8_less_than_a_quarter() -> None:
    arrays = {"w": np.random.default_rng(0).laplace(0, 1, (512, 512)).astype(np.float32)}
    sizes = {codec.name: len(encode(arrays, codec)) / arrays["w"].nbytes for codec in CODECS}
    assert sizes["float16"] < 0.5
    assert sizes["int8"] < 0.25
    assert sizes["topk"] < 0.04


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
def test_cut_off_or_prolonged_bytes_are_refused(codec: CodecConfig) -> None:
    arrays = difference()
    layout, data = Layout.of(arrays), encode(arrays, codec)
    for length in {*range(0, len(data), 7), len(data) - 1}:
        with pytest.raises(ValueError, match=r"the encoded (arrays|difference)"):
            decode(data[:length], layout, codec)
    with pytest.raises(ValueError, match="cut off, or something follows"):
        decode(data + b"x", layout, codec)


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
def test_flipped_bits_are_refused_or_give_finite_values(codec: CodecConfig) -> None:
    """Also within the deflated bytes, where zlib's own checksum finds nothing wrong."""
    arrays = difference()
    layout, body = Layout.of(arrays), zlib.decompress(encode(arrays, codec))
    for position in range(0, 8 * len(body), 11):
        changed = bytearray(body)
        changed[position // 8] ^= 1 << position % 8
        try:
            found = decode(zlib.compress(bytes(changed)), layout, codec)
        except ValueError:
            continue
        assert Layout.of(found) == layout
        assert all(np.isfinite(array).all() for array in found.values())
    for position in range(0, 8 * len(encode(arrays, codec)), 101):
        data = bytearray(encode(arrays, codec))
        data[position // 8] ^= 1 << position % 8
        with pytest.raises(ValueError, match="the encoded"):
            decode(bytes(data), layout, codec)


@pytest.mark.parametrize("codec", CODECS, ids=NAMES)
def test_a_zip_bomb_is_not_inflated(codec: CodecConfig) -> None:
    bomb = zlib.compress(bytes(10**7))
    tracemalloc.start()
    with pytest.raises(ValueError, match=r"bytes or more, expected \d{1,4}$"):
        decode(bomb, Layout.of(difference()), codec)
    with pytest.raises(ValueError, match=r"bytes or more, expected 1536$"):
        unpack(bomb, Layout.of(difference()))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6


@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 3e38])
def test_steps_that_are_none_are_refused(scale: float) -> None:
    layout = Layout((("a", (2,), "float32"),))
    for codec, expected in zip(CODECS[1:], ([10.0, -2.0], [9.8, -1.8]), strict=True):
        good = zlib.compress(np.float32(2).tobytes() + b"\x05\xff")
        np.testing.assert_allclose(decode(good, layout, codec)["a"], expected, rtol=1e-6)
        with pytest.raises(ValueError, match="negative, huge or NaN"):
            decode(zlib.compress(np.float32(scale).tobytes() + b"\x05\xff"), layout, codec)
