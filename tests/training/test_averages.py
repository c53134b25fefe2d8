"""A round that averages its clients several times: parts of passes, and what they leave."""

from pathlib import Path
from typing import Any

import pytest
import torch
from local_grid import LocalGrid
from recipes import assert_same, make_dataset, outcome
from torch.utils.data import BatchSampler, RandomSampler
from trainings import (
    TRAIN,
    ForgetfulGrid,
    assert_identical,
    federation,
    final_arrays,
    plain_training,
)

from federated_yolo.common.errors import FederationError
from federated_yolo.server.server import Server
from federated_yolo.storage.run_dir import read_csv
from federated_yolo.yolo.passes import PassInParts, kept_slices, part_sizes

MOSAIC = {**TRAIN, "optimizer": "AdamW", "lr0": 0.002, "close_mosaic": 1}


def batches(num_images: int) -> BatchSampler:
    sampler = RandomSampler(range(num_images), generator=torch.Generator().manual_seed(3))
    return BatchSampler(sampler, 2, drop_last=False)


@pytest.mark.parametrize(
    ("num_images", "lengths"), [(12, [2, 2, 2]), (15, [2, 3, 3]), (5, [1] * 3)]
)
def test_the_parts_of_a_pass_are_the_batches_of_an_epoch(
    num_images: int, lengths: list[int]
) -> None:
    parts, whole = PassInParts(batches(num_images), 3), batches(num_images)
    for _ in range(2):
        found = []
        for part in range(3):
            parts.current = part
            assert len(parts) == lengths[part]
            found.append(list(parts))
        assert [len(part) for part in found] == lengths
        assert [batch for part in found for batch in part] == list(whole)
    least, most = part_sizes(len(whole), 3)
    assert (least, most) == (min(lengths), max(lengths))


def test_fewer_batches_than_parts_come_again() -> None:
    parts = PassInParts(batches(3), 4)
    found = [list(parts) for _ in range(4)]
    (first,), (second,), (third,), (fourth,) = found
    assert first == second
    assert third == fourth
    assert sorted(first + third) == [0, 1, 2]


@pytest.mark.parametrize(
    ("saved", "now", "kept"),
    [
        ([1, 2], 2, {1, 2}),
        ([4, 5, 6], 6, {4, 5, 6}),  # 4 ended a round of 4: that of now may be done again
        ([4, 5, 6, 7], 7, {4, 6, 7}),
        ([4, 7, 8], 8, {4, 7, 8}),
        ([4, 7, 8, 9], 9, {8, 9}),
        ([2, 3, 7], 7, {3, 7}),
        ([8, 9, 12], 10, {8, 9}),
    ],
)
def test_a_client_keeps_what_a_round_may_start_again_from(
    saved: list[int], now: int, kept: set[int]
) -> None:
    assert kept_slices(saved, now, 4, 2) == kept


@pytest.mark.parametrize("grid", [LocalGrid, ForgetfulGrid])
def test_one_client_in_parts_equals_plain_training_bit_for_bit(
    grid: type[LocalGrid], tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data")  # 3 batches
    expected = plain_training("yolov8n.yaml", data, MOSAIC, epochs=3, folder=tmp_path)
    node = grid(1)
    result = federation([data], tmp_path / "runs", MOSAIC, grid=node, averages_per_round=3)
    assert_identical(final_arrays(result), expected)
    configs = [message.content.config_records["config"] for message in node.sent]
    asked = [(c["server-round"], c["part"]) for c in configs if "part" in c]
    assert asked == [(r, part) for r in (1, 2, 3) for part in (1, 2, 3)]
    rows = read_csv(result.run_dir / "clients.csv")
    assert [(row["round"], row["num_steps"]) for row in rows] == [(str(r), "3") for r in (1, 2, 3)]


def test_a_round_of_several_epochs_has_parts_of_as_many(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    train = {**TRAIN, "optimizer": "AdamW"}
    expected = plain_training("yolov8n.yaml", data, train, epochs=4, folder=tmp_path)
    result = federation(
        [data], tmp_path / "runs", train, num_rounds=2, local_epochs=2, averages_per_round=3
    )
    assert_identical(final_arrays(result), expected)


@pytest.mark.parametrize(
    "settings",
    [{}, {"codec": "topk", "strategy": "fedavgm"}],
    ids=["arrays", "changes and momentum"],
)
def test_a_run_stopped_within_a_round_goes_on_to_the_same_bits(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [make_dataset(tmp_path / f"c{i}", num_train=4 + 3 * i, seed=i) for i in range(2)]

    def start(folder: Path, **more: Any) -> Any:
        return federation(data, folder, MOSAIC, averages_per_round=2, **settings, **more)

    whole = start(tmp_path / "whole")
    average, calls = Server.average, []

    def stopping(self: Server, grid: Any, round_number: int, part: int) -> Any:
        updates = average(self, grid, round_number, part)
        calls.append((round_number, part))
        if (round_number, part) == (2, 1):
            raise FederationError("stopped")
        return updates

    with monkeypatch.context() as patched:
        patched.setattr(Server, "average", stopping)
        with pytest.raises(FederationError, match="stopped"):
            start(tmp_path / "stopped")
    assert calls == [(1, 1), (1, 2), (2, 1)]
    resumed = start(tmp_path / "stopped", resume=True)
    assert_same(outcome(resumed.run_dir), outcome(whole.run_dir))


def test_averages_within_a_round_change_what_comes_out(tmp_path: Path) -> None:
    data = [make_dataset(tmp_path / f"c{i}", seed=i) for i in range(2)]
    once = federation(data, tmp_path / "once", MOSAIC, averages_per_round=1)
    often = federation(data, tmp_path / "often", MOSAIC, averages_per_round=3)
    first, second = final_arrays(once), final_arrays(often)
    assert any((first[name] != second[name]).any() for name in first)
