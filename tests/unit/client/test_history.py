"""What a client remembers of its rounds."""

import math

from flwr.app import RecordDict

from federated_yolo.client.history import recall, remember


def test_a_round_that_is_tried_again_is_remembered_once_and_gaps_are_nan() -> None:
    state = RecordDict()
    assert recall(state, "train") == {}
    remember(state, "train", 1, {"loss": 3.0})
    remember(state, "train", 2, {"loss": 2.0})
    remember(state, "train", 2, {"loss": 1.0, "extra": 5.0})
    found = recall(state, "train")
    assert found["round"] == [1.0, 2.0]
    assert found["loss"] == [3.0, 1.0]
    assert math.isnan(found["extra"][0])
    assert found["extra"][1] == 5.0
