"""A model of a federation, as a round saves it, and what it predicts."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics import YOLO

from federated_yolo.storage.archive import RoundMeta
from federated_yolo.yolo.model import load_into, to_arrays

BASE = "yolov8n.yaml"


NAMES = ("bolt", "nut", "washer")


META = RoundMeta(round=3, names=NAMES, task="detect", base_model=BASE)


SIZE = 64  # pixels


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Move every weight, statistic and counter away from where a new model has it."""
    rng = np.random.default_rng(0)
    arrays = to_arrays(model)
    for name, array in arrays.items():
        if name.endswith("num_batches_tracked"):
            arrays[name] = np.array(rng.integers(1, 1000))
        elif name.endswith("running_mean"):
            arrays[name] = rng.normal(0, 0.1, array.shape).astype(np.float32)
        elif "dfl" not in name:  # the bins of the box distribution are constants
            arrays[name] = array * rng.uniform(0.9, 1.1, array.shape).astype(np.float32)
    load_into(model, arrays)
    return model.eval()


def make_data(names: tuple[str, ...] = NAMES, **more: Any) -> dict[str, Any]:
    return {"names": dict(enumerate(names)), "nc": len(names), **more}


def raw_output(model: torch.nn.Module, seed: int = 0) -> torch.Tensor:
    """Raw predictions on a random image, (1, 4 + classes + ..., anchors) float32."""
    image = torch.rand((1, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        output: Any = model.eval()(image)
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output


def load(path: Path) -> torch.nn.Module:
    """The module that `YOLO(path)` works with."""
    model = YOLO(path).model
    assert isinstance(model, torch.nn.Module)
    return model
