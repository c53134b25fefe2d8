"""The law of this project: a federation of one client equals plain Ultralytics training."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_grid import LocalGrid
from recipes import make_data, make_dataset
from trainings import (
    TRAIN,
    ForgetfulGrid,
    Silent,
    assert_identical,
    assert_learned,
    federation,
    final_arrays,
    plain_training,
)

from federated_yolo.client import workspace as client_module
from federated_yolo.protocol.records import from_record
from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import read_csv

SETTINGS = {
    "sgd": {},
    "adamw with cosine schedule, warm-up longer than a round": {
        "optimizer": "AdamW",
        "lr0": 0.001,
        "cos_lr": True,
        "warmup_epochs": 2.5,
    },
    "last batch of an epoch is smaller": {"batch": 4, "nbs": 4},
    "mosaic closes at the start of a round": {"close_mosaic": 2},
    "mosaic closes at once": {"close_mosaic": 3},
    "frozen layers and every augmentation": {
        "freeze": 3,
        "mixup": 0.5,
        "cutmix": 0.3,
        "degrees": 10.0,
        "multi_scale": 0.5,
        "cache": "ram",
    },
    "parts of layers frozen by their names": {"freeze": ["22.cv2", 0, "1.conv"]},
    "a single class, fraction and rectangular batches": {
        "single_cls": True,
        "fraction": 0.7,
        "rect": True,
    },
    # Ultralytics chooses lr0 with the optimizer, and a config that sets it is refused.
    "optimizer chosen by ultralytics, class weights": {
        "optimizer": "auto",
        "lr0": None,
        "cls_pw": 0.5,
    },
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_one_client_equals_plain_training_bit_for_bit(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data")
    train = {k: v for k, v in {**TRAIN, **settings}.items() if v is not None}
    expected = plain_training("yolov8n.yaml", data, train, epochs=3, folder=tmp_path)
    result = federation([data], tmp_path / "runs", train)
    assert_identical(final_arrays(result), expected)
    initial, _ = load_arrays(result.run_dir / "weights" / "round0.npz")
    assert_learned(expected, initial)


def test_rounds_of_several_epochs_equal_plain_training(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    train = {**TRAIN, "close_mosaic": 1}  # in the middle of round 2
    expected = plain_training("yolov8n.yaml", data, train, epochs=4, folder=tmp_path, seed=3)
    result = federation([data], tmp_path / "runs", train, num_rounds=2, local_epochs=2, seed=3)
    assert_identical(final_arrays(result), expected)


def test_yolo26_whose_loss_has_a_schedule_equals_plain_training(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", num_train=2)
    train = {**TRAIN, "optimizer": "MuSGD", "freeze": 20}  # Muon is slow on a CPU
    expected = plain_training("yolo26n.yaml", data, train, epochs=3, folder=tmp_path)
    result = federation([data], tmp_path / "runs", train, base_model="yolo26n.yaml")
    assert_identical(final_arrays(result), expected)


@pytest.mark.parametrize(
    ("task", "base_model"),
    [
        ("segment", "yolo11n-seg.yaml"),
        ("pose", "yolo11n-pose.yaml"),
        ("obb", "yolo11n-obb.yaml"),
        ("classify", "yolo11n-cls.yaml"),
        ("detect", "yolov8n-rtdetr.yaml"),
    ],
)
def test_every_task_equals_plain_training_also_in_new_processes(
    task: str, base_model: str, tmp_path: Path
) -> None:
    data = make_data(tmp_path / "data", task, num_train=4, num_val=2)
    train = {**TRAIN, "imgsz": 64, "optimizer": "AdamW", "lr0": 0.001, "close_mosaic": 1}
    expected = plain_training(base_model, data, train, epochs=2, folder=tmp_path)
    result = federation(
        [data],
        tmp_path / "runs",
        train,
        base_model=base_model,
        num_rounds=2,
        evaluate={"every": 1},
        grid=ForgetfulGrid(1),
    )
    assert_identical(final_arrays(result), expected)
    assert_learned(expected, load_arrays(result.run_dir / "weights" / "round0.npz")[0])


@pytest.mark.parametrize("name", ["sgd", "mosaic closes at the start of a round"])
def test_a_client_that_changes_the_process_every_round_equals_plain_training(
    name: str, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data")
    train = {**TRAIN, **SETTINGS[name], "optimizer": "AdamW"}
    expected = plain_training("yolov8n.yaml", data, train, epochs=3, folder=tmp_path)
    result = federation([data], tmp_path / "runs", train, grid=ForgetfulGrid(1))
    assert_identical(final_arrays(result), expected)


def test_clients_that_share_a_process_and_evaluation_leave_each_other_alone(
    tmp_path: Path,
) -> None:
    data = [
        make_dataset(tmp_path / "first"),
        make_dataset(tmp_path / "second", num_train=4, num_val=5, seed=1),
    ]
    shared = federation(data, tmp_path / "shared", TRAIN, evaluate={"every": 1})
    apart = federation(data, tmp_path / "apart", TRAIN, grid=ForgetfulGrid(2))
    assert_identical(final_arrays(shared), final_arrays(apart))


class AlternatingGrid(LocalGrid):
    """As if two worker processes took turns, each keeping the client it saw two rounds ago."""

    def __init__(self, num_nodes: int) -> None:
        super().__init__(num_nodes)
        self.workers: list[OrderedDict[Any, Any]] = [OrderedDict(), OrderedDict()]
        self.calls = 0

    def push_messages(self, messages: Any) -> list[str]:
        client_module.held_clients = self.workers[self.calls % 2]
        self.calls += 1
        return super().push_messages(messages)


def test_a_client_that_returns_to_an_old_worker_equals_plain_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "held_clients", OrderedDict())
    data = make_dataset(tmp_path / "data")
    train = {**TRAIN, "close_mosaic": 2}
    expected = plain_training("yolov8n.yaml", data, train, epochs=4, folder=tmp_path)
    result = federation([data], tmp_path / "runs", train, num_rounds=4, grid=AlternatingGrid(1))
    assert_identical(final_arrays(result), expected)


def test_a_pretrained_base_with_other_classes_starts_as_in_plain_training(tmp_path: Path) -> None:
    from recipes import make_checkpoint

    base = make_checkpoint(tmp_path / "base.pt", names=("zebra", "c", "a", "b", "d"))
    data = make_dataset(tmp_path / "data")
    expected = plain_training(str(base), data, TRAIN, epochs=2, folder=tmp_path)
    result = federation([data], tmp_path / "runs", TRAIN, base_model=str(base), num_rounds=2)
    assert_identical(final_arrays(result), expected)


def test_three_clients_with_the_same_data_and_seed_equal_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "SEED_STEP", 0)
    data = make_dataset(tmp_path / "data")
    one = federation([data], tmp_path / "one", TRAIN, num_rounds=2)
    three = federation([data] * 3, tmp_path / "three", TRAIN, num_rounds=2)
    assert_identical(final_arrays(three), final_arrays(one))


def test_clients_with_the_same_data_train_differently_by_default(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    grid = LocalGrid(2)
    federation([data] * 2, tmp_path / "runs", TRAIN, num_rounds=1, grid=grid)
    replies = [r for r in grid.received if "arrays" in r.content]
    first, second = (from_record(r.content.array_records["arrays"]) for r in replies)
    assert any(not np.array_equal(first[n], second[n]) for n in first)


def test_gradients_left_by_accumulation_are_applied_at_the_end_of_a_round(tmp_path: Path) -> None:
    """6 images, batch 2, nbs 8: steps after batch 1 (4 batches apart), then the rest at the end."""
    data = make_dataset(tmp_path / "data")
    train = {**TRAIN, "nbs": 8, "warmup_epochs": 0.0}
    grid = LocalGrid(1)
    result = federation([data], tmp_path / "runs", train, num_rounds=1, grid=grid)
    state = torch.load(result.run_dir / "clients" / "c0" / "state" / "round1.pt", weights_only=True)
    assert state["optimizer"]["state"]
    trainer = next(iter(client_module.held_clients.values())).trainer._trainer
    assert all(p.grad is None for p in trainer.model.parameters())


@pytest.mark.parametrize(
    ("task", "base_model"), [("detect", "yolov8n.yaml"), ("classify", "yolov8n-cls.yaml")]
)
def test_a_last_batch_of_one_tiny_image_is_left_out_of_its_epoch(
    task: str, base_model: str, tmp_path: Path
) -> None:
    """Ultralytics refuses it: 32 pixels are one value per channel to the last layers."""
    data = make_data(tmp_path / "data", task, num_train=5, num_val=2, size=32)
    results, displays = [], [Silent(), Silent()]
    for display, grid in zip(displays, (LocalGrid(1), ForgetfulGrid(1)), strict=True):
        results.append(
            federation(
                [data],
                tmp_path / type(grid).__name__,
                TRAIN,
                base_model=base_model,
                grid=grid,
                display=display,
            )
        )
    assert [display.failures for display in displays] == [[], []]
    rows = read_csv(results[0].run_dir / "clients.csv")
    assert [(row["num_examples"], row["num_steps"]) for row in rows] == [("5", "2")] * 3
    assert_identical(final_arrays(results[0]), final_arrays(results[1]))
    initial, _ = load_arrays(results[0].run_dir / "weights" / "round0.npz")
    assert_learned(final_arrays(results[0]), initial)
