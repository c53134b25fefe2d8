"""Parts of models: every array of every family is in one of them."""

from typing import Any

import pytest
from ultralytics import RTDETR, YOLO

from federated_yolo.config.schema import SharedConfig
from federated_yolo.yolo.model import (
    batchnorm_arrays,
    build_model,
    part_of_arrays,
    shared_names,
)

# Model -> last layer of the backbone, first of the neck with arrays, the head; from their YAMLs.
FAMILIES = {
    "yolov3-tiny": (10, 13, 20),
    "yolov5n": (9, 10, 24),
    "yolov6n": (9, 10, 28),
    "yolov8n": (9, 12, 22),
    "yolov9t": (9, 12, 22),
    "yolov10n": (10, 13, 23),
    "yolo11n": (10, 13, 23),
    "yolo12n": (8, 11, 21),
    "yolo26n": (10, 13, 23),
    "yolov8n-seg": (9, 12, 22),
    "yolo11n-obb": (10, 13, 23),
    "yolo26n-pose": (10, 13, 23),
    "rtdetr-l": (9, 10, 28),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_array_of_every_family_belongs_to_one_part(name: str) -> None:
    model: Any = (RTDETR if "rtdetr" in name else YOLO)(f"{name}.yaml").model
    parts = part_of_arrays(model)
    assert list(parts) == list(model.state_dict())
    layers = {
        part: {int(array.split(".")[1]) for array, p in parts.items() if p == part}
        for part in ("backbone", "neck", "head")
    }
    backbone, neck, head = FAMILIES[name]
    assert (min(layers["backbone"]), max(layers["backbone"])) == (0, backbone)
    assert (min(layers["neck"]), max(layers["neck"])) == (neck, max(layers["neck"]))
    assert max(layers["neck"]) < head
    assert layers["head"] == {head}


def test_what_is_shared_follows_parts_and_batchnorm() -> None:
    data = {"names": {0: "a"}, "nc": 1}
    model = build_model("yolov8n.yaml", "detect", data)
    everything = list(model.state_dict())
    assert shared_names(model, SharedConfig()) == everything
    assert shared_names(model, SharedConfig(batchnorm="frozen")) == everything
    backbone = shared_names(model, SharedConfig(parts=("backbone",)))
    assert len(backbone) == 162
    assert all(int(name.split(".")[1]) < 10 for name in backbone)
    local = shared_names(model, SharedConfig(batchnorm="local"))
    # A YOLOv8 `Conv` is a convolution without bias and a BatchNorm; only the head has others.
    assert all(".bn." not in name for name in local)
    assert set(everything) - set(local) == batchnorm_arrays(model)
    assert len(batchnorm_arrays(model)) == 5 * 57
