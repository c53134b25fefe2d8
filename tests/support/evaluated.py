"""Data sets whose models can be scored by hand."""

import shutil
from pathlib import Path

from recipes import make_dataset

from federated_yolo.common.arrays import Arrays
from federated_yolo.yolo.model import build_model, to_arrays

NAMES = {0: "a", 1: "b", 2: "c"}


def whole_image_dataset(folder: Path, labels: list[int], seed: int = 0) -> Path:
    """A data set whose val labels are boxes of the whole image: an untrained model hits those."""
    path = make_dataset(folder, num_train=4, num_val=len(labels), size=128, seed=seed)
    for number, label in enumerate(labels):
        (folder / "labels" / "val" / f"{number}.txt").write_text(f"{label} 0.5 0.5 1 1\n")
    return path


def add_test_split(data: Path, num_images: int, *, labelled: bool = True) -> Path:
    """Copy the first val images of a data set to a test split."""
    folder = data.parent
    for kind in ("images", "labels"):
        (folder / kind / "test").mkdir()
    for number in range(num_images):
        shutil.copy(folder / "images" / "val" / f"{number}.jpg", folder / "images" / "test")
        if labelled:
            shutil.copy(folder / "labels" / "val" / f"{number}.txt", folder / "labels" / "test")
    data.write_text(data.read_text() + "test: images/test\n")
    return data


def hitting_arrays(*classes: int) -> Arrays:
    """An untrained model that sees an object of these classes everywhere, 120 pixels wide."""
    model = build_model("yolov8n.yaml", "detect", {"names": NAMES, "nc": 3})
    arrays = to_arrays(model)
    for index in classes:
        arrays["model.22.cv3.0.2.bias"][index] += 9 + index / 4
    return arrays
