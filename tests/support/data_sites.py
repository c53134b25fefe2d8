"""A client's data set that a test may spoil, and what is read of it."""

import hashlib
import random
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data.base import BaseDataset

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import read_data_yaml
from federated_yolo.data.datasets import PrivateDataset, build_dataset
from federated_yolo.data.scan import check_dataset
from federated_yolo.data.summary import DataSummary

SPLITS = ("train", "val")
LINES = "train: images/train\nval: images/val\n"


def check(site: Path, task: str = "detect") -> DataSummary:
    """Check a data set with caches beside its folder."""
    caches = site.parent / "caches"
    return check_dataset(site / "data.yaml", task, caches, where="datasets[0]", splits=SPLITS)


def problems_of(site: Path, task: str = "detect") -> list[str]:
    """The lines of the InputError that checking this data set raises, without where it is."""
    with pytest.raises(InputError) as caught:
        check(site, task)
    where = f"datasets[0] ({site / 'data.yaml'}): "
    for line in caught.value.problems:
        assert line.startswith(where)
        assert "\n" not in line
        assert "\x1b" not in line
    return [line.removeprefix(where).replace(f"{site}/", "") for line in caught.value.problems]


def build(site: Path, mode: str = "train", **overrides: Any) -> PrivateDataset:
    """Build a split as a client does."""
    data = read_data_yaml(site / "data.yaml", where="test")
    args = get_cfg(overrides={"task": "detect", "mode": mode, "imgsz": 64, **overrides})
    dataset = build_dataset(args, data[mode], 2, data, mode, 32, site.parent / "caches")
    assert isinstance(dataset, PrivateDataset)
    return dataset


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Time and digest of every file and folder below."""
    return {
        str(path.relative_to(folder)): (
            path.stat().st_mtime_ns,
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
        )
        for path in [folder, *folder.rglob("*")]
    }


def seed_all() -> None:
    """Seed all that augmentation draws from."""
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)


def described(value: Any) -> Any:
    """A value of any depth as plain, comparable Python objects."""
    if isinstance(value, BaseDataset):
        return "the data set"
    if isinstance(value, np.ndarray | torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.tolist()
    if isinstance(value, dict):
        return {key: described(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [described(entry) for entry in value]
    if isinstance(value, FunctionType):
        return value.__qualname__
    if hasattr(value, "__dict__"):
        return type(value).__name__, described(vars(value))
    return value
