"""When `patience` ends a run."""

import pytest

from federated_yolo.config.schema import Config
from federated_yolo.server.results import RoundResult, early_end, is_done


def end_of(scores: list[float | None], patience: int | None, num_rounds: int = 10) -> str:
    """Why a run of these rounds ends; whether it is done has to agree."""
    config = Config(
        base_model="yolov8n.yaml", datasets="demo", num_rounds=num_rounds, patience=patience
    )
    rounds = [RoundResult(number, score, {}) for number, score in enumerate(scores, 1)]
    reason = early_end(config, rounds)
    assert is_done(config, rounds) == (bool(reason) or len(rounds) == num_rounds)
    return reason


@pytest.mark.parametrize(
    ("scores", "patience", "expected"),
    [
        ([0.1, 0.3, 0.2, 0.25], 2, "no better score than round 2's in the last 2 rounds"),
        ([0.3, 0.2], 1, "no better score than round 1's in the last 1 round"),
        ([0.3, 0.3, 0.3], 2, "no better score than round 1's in the last 2 rounds"),
        ([0.0, 0.0, 0.3, 0.0, 0.0], 2, "no better score than round 3's in the last 2 rounds"),
        ([None, 0.3, None, 0.2], 2, "no better score than round 2's in the last 2 rounds"),
        ([None, 0.3, None, 0.2, None, 0.1], 3, "no better score than round 2's in the last 4"),
        ([0.3, 0.2, None, 0.1], 2, "no better score than round 1's in the last 3 rounds"),
    ],
)
def test_a_run_ends_after_as_many_rounds_without_a_better_score(
    scores: list[float | None], patience: int, expected: str
) -> None:
    assert end_of(scores, patience).startswith(expected)
    assert not end_of(scores[:-1], patience)


@pytest.mark.parametrize(
    ("scores", "patience"),
    [
        ([], 1),
        ([0.1, 0.3, 0.2], 2),
        ([0.3, 0.2, 0.1, 0.4], 2),  # a resumed run, which had a larger one
        ([0.0] * 9, 2),  # Ultralytics waits for the first score above 0
        ([None] * 9, 2),
        ([None, 0.3, None, 0.2, None], 3),  # only a round that is evaluated ends it
        ([0.3, 0.2, None], 2),
        ([0.3, 0.2, 0.1, 0.0], None),
        ([0.3, 0.2, 0.1, 0.0], 0),
    ],
)
def test_otherwise_it_goes_on(scores: list[float | None], patience: int | None) -> None:
    assert not end_of(scores, patience)


def test_a_run_with_all_its_rounds_has_not_ended_early() -> None:
    assert not end_of([0.3, 0.2, 0.1], 2, num_rounds=3)
    assert end_of([0.3, 0.2, 0.1], 2, num_rounds=4)
