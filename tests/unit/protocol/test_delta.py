"""Increments: what changed, exactly or with the rest in the residual, and hostile ones."""

from pathlib import Path

import numpy as np
import pytest

from federated_yolo.client.kept_arrays import HeldArrays, Residuals
from federated_yolo.common.arrays import Arrays, Layout, checksum
from federated_yolo.config.schema import CodecConfig
from federated_yolo.protocol.delta import Encoding, LackingArraysError

PARAMETERS = frozenset({"weight", "bias"})
TOPK = CodecConfig(name="topk", fraction=0.1)


def model(seed: int = 0) -> Arrays:
    rng = np.random.default_rng(seed)
    return {
        "weight": rng.normal(0, 1, (20, 10)).astype(np.float32),
        "running_mean": rng.normal(0, 1, 20).astype(np.float32),
        "bias": rng.normal(0, 1, 20).astype(np.float32),
        "counter": np.array(seed, np.int64),
    }


def encoding(codec: CodecConfig = TOPK) -> Encoding:
    return Encoding(Layout.of(model()), codec, PARAMETERS)


def assert_identical(found: Arrays, expected: Arrays) -> None:
    assert list(found) == list(expected)
    assert checksum(found) == checksum(expected)


@pytest.mark.parametrize("codec", [TOPK, CodecConfig(name="int8"), CodecConfig(name="float16")])
def test_buffers_and_counters_are_exact_and_parameters_are_near(codec: CodecConfig) -> None:
    old, new = model(0), model(1)
    delta, residual = encoding(codec).delta(new, old, {})
    found = encoding(codec).rebuilt(delta, old)
    exact = ("running_mean", "counter")
    assert_identical({n: found[n] for n in exact}, {n: new[n] for n in exact})
    assert list(residual) == ["weight", "bias"]
    for name, rest in residual.items():
        assert not np.array_equal(found[name], new[name])
        np.testing.assert_allclose(found[name] + rest, new[name], atol=1e-6)
        np.testing.assert_allclose(found[name], new[name], atol=np.abs(rest).max() + 1e-6)


def test_what_is_left_out_of_a_round_arrives_in_later_ones() -> None:
    """The sum of what arrives goes after the sum of the changes, by a bounded distance."""
    rng = np.random.default_rng(0)
    total = held = model()
    residual: Arrays = {}
    coding = encoding(CodecConfig(name="topk", fraction=0.3))
    distances = []
    for number in range(60):
        scale = 0.1 if number < 20 else 0.0
        steps = {n: rng.normal(0, scale, total[n].shape).astype(np.float32) for n in PARAMETERS}
        total = total | {name: total[name] + step for name, step in steps.items()}
        trained = held | {name: held[name] + step for name, step in steps.items()}
        delta, residual = coding.delta(trained, held, residual)
        held = coding.rebuilt(delta, held)
        distances.append(max(float(np.abs(held[n] - total[n]).max()) for n in PARAMETERS))
    assert distances[19] > 0.1
    assert distances[-1] < 0.001


def test_without_a_codec_only_what_changed_travels_and_exactly() -> None:
    old = model(0)
    new = {**old, "bias": model(1)["bias"], "running_mean": -0.0 * old["running_mean"]}
    exact = encoding(CodecConfig())
    delta, residual = exact.delta(new, old, {})
    assert delta["changed"].tolist() == [False, True, True, False]
    assert not residual
    assert_identical(exact.rebuilt(delta, old), new)


def test_a_zero_that_changes_its_sign_is_a_change() -> None:
    old = {**model(), "running_mean": np.zeros(20, np.float32)}
    new = {**old, "running_mean": np.full(20, -0.0, np.float32)}
    delta, _ = encoding(CodecConfig()).delta(new, old, {})
    assert_identical(encoding(CodecConfig()).rebuilt(delta, old), new)


def test_a_whole_model_builds_on_nothing() -> None:
    whole = encoding().whole(model(3))
    assert_identical(encoding().rebuilt(whole, None), model(3))
    delta, _ = encoding().delta(model(1), model(0), {})
    with pytest.raises(ValueError, match="build on others that are not there"):
        encoding().rebuilt(delta, None)


HOSTILE = {
    "of another length": ("changed", np.ones(3, bool), r"found bool \(3,\), expected bool \(4,\)"),
    "of another type": ("changed", np.ones(4, np.int64), r"found int64 \(4,\), expected bool"),
    "packed floats": ("packed", np.ones(4, np.float32), r"found float32 \(4,\), expected uint8"),
    "a packed table": ("packed", np.ones((2, 2), np.uint8), r"found uint8 \(2, 2\), expected"),
    "no bytes": ("packed", np.ones(0, np.uint8), "expected 88"),
    "too few arrays": ("changed", np.zeros(4, bool), "bytes or more, expected 0"),
    "too many arrays": ("changed", np.ones(4, bool), "bytes or more, expected 968"),
    "noise": ("difference", np.arange(99, dtype=np.uint8), "damaged"),
}


@pytest.mark.parametrize(("name", "array", "reason"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_increment_is_refused(name: str, array: np.ndarray, reason: str) -> None:
    delta, _ = encoding().delta(model(1), model(0), {})
    with pytest.raises(ValueError, match=reason):
        encoding().rebuilt({**delta, name: array}, model(0))


def test_a_difference_where_no_codec_was_agreed_is_refused() -> None:
    delta, _ = encoding().delta(model(1), model(0), {})
    with pytest.raises(ValueError, match="a difference, and no codec is set"):
        encoding(CodecConfig()).rebuilt(delta, model(0))


def test_a_client_makes_the_same_arrays_and_keeps_them(tmp_path: Path) -> None:
    held = HeldArrays(tmp_path)
    first = model(0)
    assert_identical(held.receive(encoding().whole(first), checksum(first), encoding()), first)
    delta, _ = encoding().delta(model(1), first, {})
    second = encoding().rebuilt(delta, first)
    for again in (delta, delta, {}):  # a round that is tried again, and an evaluation
        found = HeldArrays(tmp_path).receive(again, checksum(second), encoding())
        assert_identical(found, second)


def test_a_client_that_has_not_what_an_increment_builds_on_says_so(tmp_path: Path) -> None:
    delta, _ = encoding().delta(model(1), model(0), {})
    expected = checksum(encoding().rebuilt(delta, model(0)))
    held = HeldArrays(tmp_path)
    with pytest.raises(LackingArraysError):  # it has nothing
        held.receive(delta, expected, encoding())
    held.receive(encoding().whole(model(2)), checksum(model(2)), encoding())
    with pytest.raises(LackingArraysError):  # it has others
        held.receive(delta, expected, encoding())
    with pytest.raises(LackingArraysError):
        held.receive({}, expected, encoding())
    held.receive(encoding().whole(model(0)), checksum(model(0)), encoding())
    held.path.write_bytes(held.path.read_bytes()[:500])
    with pytest.raises(LackingArraysError):  # what it has is damaged
        held.receive(delta, expected, encoding())


def test_a_whole_model_that_is_another_is_an_error_and_not_kept(tmp_path: Path) -> None:
    held = HeldArrays(tmp_path)
    with pytest.raises(ValueError, match="do not match their checksum"):
        held.receive(encoding().whole(model(1)), checksum(model(0)), encoding())
    assert not held.path.exists()


def test_a_round_that_is_tried_again_starts_from_the_residual_before_it(tmp_path: Path) -> None:
    residuals = Residuals(tmp_path, averages_per_round=1)
    assert residuals.before(1) == {}
    for number in (1, 2, 3, 3):
        residuals.save(number, {"bias": np.full(2, number, np.float32)})
    assert sorted(residuals.slices()) == [2, 3]
    assert residuals.before(3)["bias"].tolist() == [2, 2]
    assert residuals.before(9)["bias"].tolist() == [3, 3]
