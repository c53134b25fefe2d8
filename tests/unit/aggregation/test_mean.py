"""The running mean: what it equals, bit for bit where it can, and what it costs in memory."""

import tracemalloc
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from flwr.app import ConfigRecord
from hypothesis import given
from hypothesis import strategies as st
from local_grid import identify_process

from federated_yolo.aggregation.aggregator import Aggregation, Update, abstain
from federated_yolo.aggregation.mean import RunningMean, Share, limited
from federated_yolo.aggregation.strategies import STRATEGIES
from federated_yolo.common.arrays import CHUNK, Arrays, Layout, cast_to, distance
from federated_yolo.config.schema import StrategyConfig

STREAMING = [name for name, entry in STRATEGIES.items() if not entry.needs_all]
CLASSES = "head"  # an array of class rows


def model(seed: int, scale: float = 1.0) -> Arrays:
    """Weights of many magnitudes, over more than one chunk; class rows; a counter."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=CHUNK + 7) * 10.0 ** rng.integers(-9, 3, CHUNK + 7)
    return {
        "w": (scale * values).astype(np.float32),
        CLASSES: rng.normal(size=(3, 2)).astype(np.float32),
        "var": rng.uniform(0, 9, 5).astype(np.float32),
        "count": np.array(rng.integers(0, 99)),
    }


def update(name: str, arrays: Arrays, num_examples: int, num_steps: int = 1) -> Update:
    return Update(name, arrays, num_examples, num_steps, {"train/loss": 1.0}, 0.0, 0.0)


UPDATES = [
    update("a", model(1), num_examples=69, num_steps=5),
    update("b", model(2), num_examples=1, num_steps=50),
    update("c", model(3), num_examples=1043, num_steps=7),
]
START = model(0)


def mean_of(updates: list[Update], absent: Mapping[str, list[int]] | None = None) -> Arrays:
    mean = RunningMean(START, [CLASSES])
    for u in updates:
        share = Share(u.num_examples, u.num_steps, frozenset((absent or {}).get(u.name, ())))
        mean.add(u.arrays, share)
    return mean.result()


def assert_close(found: Arrays, expected: Arrays) -> None:
    """Up to rounding in float64, of values below 1000."""
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-13, atol=1e-12, err_msg=name)


def test_the_mean_is_the_sum_in_float64_divided_once() -> None:
    found = mean_of(UPDATES)
    for name, array in found.items():
        total = sum(u.num_examples * u.arrays[name].astype(np.float64) for u in UPDATES)
        assert array.dtype == np.float64
        assert np.array_equal(array, total / 1113), name
    weighted = {
        name: np.average([u.arrays[name] for u in UPDATES], 0, [69, 1, 1043]) for name in START
    }
    assert_close(found, weighted)


def test_one_client_gives_exactly_its_weights_with_the_signs_of_its_zeros() -> None:
    arrays = {"w": np.array([-0.0, 0.0, 1e-45, 3.4e38, 1 / 3], np.float32)}
    for per_step in ([], ["w"]):
        mean = RunningMean({"w": np.full(5, 1e9, np.float32)}, per_step=per_step)
        mean.add(arrays, Share(weight=69, num_steps=7))
        found = cast_to(mean.result(), Layout.of(arrays))
        assert found["w"].tobytes() == arrays["w"].tobytes()


def test_fednova_of_equal_steps_is_the_plain_mean() -> None:
    found = RunningMean(START, per_step=["w"])
    for u in UPDATES:
        found.add(u.arrays, Share(u.num_examples, num_steps=7))
    assert_close(found.result(), mean_of(UPDATES))


def test_fednova_is_its_formula_with_the_buffers_plain_means() -> None:
    found = RunningMean(START, per_step=["w"])
    for u in UPDATES:
        found.add(u.arrays, Share(u.num_examples, u.num_steps))
    result = found.result()
    shares = [u.num_examples / 1113 for u in UPDATES]
    tau = sum(p * u.num_steps for p, u in zip(shares, UPDATES, strict=True))
    start = START["w"].astype(float)
    steps = [
        p / u.num_steps * (u.arrays["w"] - start) for p, u in zip(shares, UPDATES, strict=True)
    ]
    np.testing.assert_allclose(result["w"], start + tau * sum(steps), rtol=1e-12, atol=1e-12)
    plain = mean_of(UPDATES)
    assert np.array_equal(result["var"], plain["var"])


@pytest.mark.parametrize("absent", [{"a": [0, 2]}, {"a": [1], "b": [1], "c": [1, 2]}])
def test_class_rows_are_the_mean_of_the_clients_that_annotate_the_class(
    absent: dict[str, list[int]],
) -> None:
    """As when the others' rows are filled with that mean first; a row of nobody stays."""
    filled = abstain(UPDATES, absent, [CLASSES], START)
    found = mean_of(UPDATES, absent)
    assert_close(found, mean_of(filled))
    for index in range(3):
        if all(index in absent.get(name, ()) for name in "abc"):
            assert np.array_equal(found[CLASSES][index], START[CLASSES][index])


@pytest.mark.parametrize("name", STREAMING)
def test_updates_added_one_by_one_give_the_same_bits_as_all_at_once(name: str) -> None:
    identify_process()
    absent = {"a": [0], "c": [0, 1]}
    results = []
    for early in (0, 2):
        combine = Aggregation(StrategyConfig(name=name), frozenset({"w", CLASSES}), [CLASSES])
        for round_number in (1, 2):  # server optimisers have a state in the second
            combine.configure(round_number, START, ConfigRecord({}), range(3))
            for u in UPDATES[:early]:
                combine.add(u, absent.get(u.name, ()))
            taken = [Update(**{**vars(u), "arrays": {}}) for u in UPDATES[:early]]
            arrays = combine.aggregate(round_number, [*taken, *UPDATES[early:]], absent)
            assert arrays is not None
        results.append({**arrays, **combine.state()})
    assert list(results[0]) == list(results[1])
    assert all(np.array_equal(results[0][n], results[1][n]) for n in results[0])


@pytest.mark.parametrize(
    ("weights", "max_share", "expected"),
    [
        ([100, 10, 10], None, [100, 10, 10]),
        ([100, 10, 10], 1.0, [100, 10, 10]),
        ([100, 10, 10], 0.5, [20, 10, 10]),  # 20 / 40
        ([50, 30, 20], 0.5, [50, 30, 20]),  # just within
        ([10, 100, 10, 1000], 0.4, [10, 40, 10, 40]),  # 40 / 100, both of the largest
        ([8, 1, 1, 1], 0.25, [1, 1, 1, 1]),
        ([7, 1, 1], 0.2, [1, 1, 1]),  # three cannot all have a fifth: as near to it as can be
        ([2.0**29, 1], 0.6, [1.5, 1]),
        ([5], 0.5, [1]),
    ],
)
def test_a_cap_on_a_share_lowers_the_largest_weights_and_leaves_the_others(
    weights: list[float], max_share: float | None, expected: list[float]
) -> None:
    assert limited(weights, max_share) == pytest.approx(expected, rel=1e-12)


@given(
    weights=st.lists(st.integers(1, 2**29), min_size=1, max_size=9),
    max_share=st.floats(0.01, 1, exclude_min=True),
)
def test_no_share_is_above_the_cap_and_none_above_its_weight(
    weights: list[int], max_share: float
) -> None:
    found = limited(weights, max_share)
    shares = [weight / sum(found) for weight in found]
    assert max(shares) <= max(max_share, 1 / len(weights)) * (1 + 1e-9)
    if len(weights) * max_share > 1:
        below = [i for i, share in enumerate(shares) if share < max_share * (1 - 1e-9)]
        assert all(found[i] == weights[i] for i in below)


class Made(Mapping[str, np.ndarray]):
    """A model whose arrays are made when they are asked for."""

    def __init__(self, num_arrays: int, size: int) -> None:
        self.num_arrays, self.size = num_arrays, size

    def __getitem__(self, name: str) -> np.ndarray:
        return np.full(self.size, float(name), np.float32)

    def __iter__(self) -> Iterator[str]:
        return map(str, range(self.num_arrays))

    def __len__(self) -> int:
        return self.num_arrays


def test_adding_takes_the_memory_of_one_sum_however_many_updates_there_are() -> None:
    made = Made(num_arrays=20, size=100_000)
    origin = dict(made)
    one_model = 20 * 100_000 * 4
    tracemalloc.start()
    try:
        mean = RunningMean(origin)
        for _ in range(10):
            mean.add(made, Share(3, 1))
        mean.result()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 2 * one_model <= peak < 2.3 * one_model


def test_the_distance_is_that_of_all_arrays_together_over_chunks() -> None:
    a = {"x": np.zeros(CHUNK + 2, np.float32), "y": np.array(5.0, np.float32)}
    b = {"x": a["x"].copy(), "y": np.array(1.0, np.float32)}
    b["x"][[0, -1]] = 3, -12
    assert distance(a, b, ["x", "y"]) == 13  # sqrt(9 + 144 + 16)
    assert distance(a, b, ["y"]) == 4
