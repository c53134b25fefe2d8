"""What a reply can be: each bound at its edge, where honest clients come."""

import math
from typing import Any

import numpy as np
import pytest

from federated_yolo.common.arrays import Arrays, Layout
from federated_yolo.server.plausible import (
    Numbers,
    Size,
    Work,
    counted,
    counter_problems,
    fixed_problems,
    seconds_problem,
    size_problem,
    statistics_factors,
    statistics_problems,
)


@pytest.mark.parametrize(
    ("work", "images", "possible"),
    [
        (Work(batch=2, nbs=2, local_epochs=1), 6, {3}),
        (Work(batch=2, nbs=2, local_epochs=3), 5, {9}),  # the last batch is smaller
        (Work(batch=16, nbs=16, local_epochs=1), 1, {1}),
        # A last batch of one tiny image is left out: 5 images make 2 batches, 3 make 1 of 3.
        (Work(batch=2, nbs=2, local_epochs=3, drops_single=True), 5, {6}),
        (Work(batch=4, nbs=4, local_epochs=3, drops_single=True), 3, {3}),
        (Work(batch=2, nbs=2, local_epochs=3, drops_single=True), 4, {6}),
        (Work(batch=2, nbs=2, local_epochs=3, drops_single=True), 1, {3}),
        # 7 batches accumulate 4: one step and what is left, or one more where each round begins
        # with a step, or any number up to 7 while it warms up.
        (Work(batch=16, nbs=64, local_epochs=1), 100, {2, 3, 4, 5, 6, 7}),
        (Work(batch=8, nbs=2, local_epochs=1), 16, {2}),  # nbs below a batch is one batch
        (Work(batch=2, nbs=2, local_epochs=1, is_plain=False), 6, {1, 2, 3}),
        (Work(batch=2, nbs=2, local_epochs=1, may_skip_steps=True), 6, {1, 2, 3}),
        (Work(batch=1, nbs=1, local_epochs=1, may_skip_steps=True), 100, set(range(67, 101))),
    ],
)
def test_steps_are_those_of_the_images(work: Work, images: int, possible: set[int]) -> None:
    found = {n for n in range(1, 2 * max(possible)) if not work.step_problem(images, n)}
    assert found == possible
    assert "num-steps: found 9007199254740992" in work.step_problem(images, 2**53)


def test_a_client_that_has_grown_counts_with_the_images_and_steps_of_its_start() -> None:
    assert counted(10, 5, known=10) == (10, 5)
    assert counted(4, 2, known=10) == (4, 2)
    assert counted(1000, 500, known=10) == (10, 5)
    assert counted(2**29, 1, known=10) == (10, 1)


def test_a_client_cannot_have_worked_longer_than_its_answer_took() -> None:
    assert not seconds_problem(0.0, 0.0)
    assert not seconds_problem(1000.0, 999.0)  # clocks differ
    assert "seconds: found 1e+30, expected 0 to 15.1" in seconds_problem(1e30, 10.0)
    assert "seconds: found -1" in seconds_problem(-1.0, 10.0)


def bounds(task: str = "detect", **train: Any) -> Numbers:
    return Numbers.of(task, ("a", "b/c"), ("mAP50",), train)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("metrics/mAP50(B)", 1.0 + 1e-9),
        ("fitness", 0.0),
        ("class/b/c/mAP50", 1.0),
        ("local/fitness", 0.5),
        ("train/box_loss", 999_999.0),
        ("train/box_loss", -0.001),  # 1 - IoU in half precision
        ("train/own", -3.0),
        ("my/number", -1e30),
        ("x/1", 37.0),
    ],
)
def test_numbers_that_honest_clients_send_are_taken(name: str, value: float) -> None:
    assert bounds().problems({name: value}) == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("metrics/mAP50(B)", 1.01, "metrics/mAP50(B): found 1.01, expected 0 to 1"),
        ("metrics/mAP50(B)", -0.5, "found -0.5, expected 0 to 1"),
        ("fitness", 1e30, "fitness: found 1e+30, expected 0 to 1"),
        ("local/fitness", 2.0, "local/fitness: found 2, expected 0 to 1"),
        ("local/metrics/recall(B)", 2.0, "expected 0 to 1"),
        ("class/a/mAP50", 3.0, "class/a/mAP50: found 3"),
        ("class/z/mAP50", 0.5, "class/z/mAP50: not of a class and metric of this federation"),
        ("class/a/own", 0.5, "class/a/own: not of a class and metric"),
        ("train/box_loss", -1.0, "train/box_loss: found -1, expected 0 to 1e+06"),
        ("train/rle_loss", -1.0, "train/rle_loss: found -1, expected 0"),
        ("train/loss", 1e7, "expected 0 to 1e+06"),
        ("train/own", -1e7, "train/own: found -1e+07, expected -1e+06 to 1e+06"),
    ],
)
def test_numbers_that_no_client_can_have_are_named(name: str, value: float, expected: str) -> None:
    (problem,) = bounds().problems({name: value, "metrics/recall(B)": 0.5})
    assert expected in problem


def test_bounds_go_by_task_and_gains() -> None:
    for task, largest in (("segment", 2.0), ("pose", 2.0), ("obb", 1.0), ("classify", 1.0)):
        assert bounds(task).problems({"fitness": largest}) == []
        assert bounds(task).problems({"fitness": largest + 0.1})
    assert bounds(box=100.0).problems({"train/box_loss": 5e7}) == []
    assert bounds(box=-1.0).problems({"train/box_loss": -5.0}) == []


BN = "model.0.bn."


def statistics(mean: float = 0.0, variance: float = 1.0, counter: int = 10) -> Arrays:
    return {
        f"{BN}running_mean": np.array([0, mean], np.float32),
        f"{BN}running_var": np.array([1, variance], np.float32),
        f"{BN}num_batches_tracked": np.array(counter),
    }


def test_counters_go_on_by_the_batches_of_a_round_at_most() -> None:
    for counter in (10, 11, 13):
        assert counter_problems(statistics(counter=counter), statistics(), 3) == []
    for counter in (9, 14, 2**62):
        (problem,) = counter_problems(statistics(counter=counter), statistics(), 3)
        assert problem == (
            f"{BN}num_batches_tracked: found {counter}, expected 10 to 13: it has trained 3 "
            "batches at most"
        )


@pytest.mark.parametrize(
    ("new", "factor", "expected"),
    [
        (statistics(variance=99), 100, ""),
        (statistics(variance=102), 100, "running_var: moved 102 times, expected at most 100"),
        (statistics(variance=0.011), 100, ""),
        (statistics(variance=0), 100, "running_var: moved 1e+03 times"),
        (statistics(variance=3e38), math.inf, ""),
        (statistics(mean=-9.9), 100, ""),
        (statistics(mean=-11), 100, "running_mean: moved 121 times"),  # 11 standard deviations
        (statistics(mean=50, variance=50), 100, ""),  # of the variance that it has now
        (statistics(mean=3e38), 1e6, "running_mean: moved 8.99e+76 times"),
    ],
)
def test_statistics_move_by_a_factor_at_most(new: Arrays, factor: float, expected: str) -> None:
    problems = statistics_problems(statistics_factors(new, statistics()), factor)
    assert len(problems) == bool(expected)
    assert expected in "".join(problems)


def test_what_no_training_moves_stays() -> None:
    old = {"dfl": np.arange(3.0), "w": np.zeros(2)}
    assert fixed_problems({"dfl": old["dfl"], "w": np.ones(2)}, old, ["dfl"]) == []
    assert fixed_problems({"dfl": np.ones(3), "w": old["w"]}, old, ["dfl"]) == [
        "1 arrays changed that training does not move: dfl"
    ]


def test_a_reply_is_no_larger_than_all_arrays_once() -> None:
    layout = Layout((("w", (1000, 1000), "float32"), ("n", (), "int64")))
    assert layout.num_bytes == 4_000_008
    assert not size_problem(Size(3, 1000, 4_000_200, 2000), layout, num_numbers=1000)
    for size, expected in (
        (Size(9, 0, 0, 0), "9 records, expected at most 8"),
        (Size(3, 10**6, 0, 0), "1000000 entries, expected at most 1104"),
        (Size(3, 5, 8_000_000, 0), "8000000 bytes of arrays, expected at most 404"),
        (Size(3, 5, 0, 10**9), "1000000000 bytes beside its arrays"),
    ):
        assert expected in size_problem(size, layout, num_numbers=1000)
