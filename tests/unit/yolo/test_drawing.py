"""Pictures of predictions beside labels."""

import io
from pathlib import Path

import numpy as np
from evaluated import hitting_arrays, whole_image_dataset
from PIL import Image
from trainings import assert_identical

from federated_yolo.data.data_yaml import read_data_yaml, write_private_yaml
from federated_yolo.yolo.evaluator import Evaluator
from federated_yolo.yolo.model import build_model, to_arrays


def panels(picture: bytes) -> list[np.ndarray]:
    """The three parts of a picture side by side, each (height, width, 3)."""
    image = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    return np.array_split(image[60:], 3, axis=1)


def num_coloured(panel: np.ndarray) -> int:
    """Pixels that are not gray; the images of these tests are."""
    return int((panel.max(axis=2) - panel.min(axis=2) > 60).sum())


def test_a_picture_shows_labels_and_the_predictions_of_each_model(tmp_path: Path) -> None:
    path = whole_image_dataset(tmp_path / "data", [0, 1, 2, 0, 1])
    for image in (tmp_path / "data" / "images" / "val").iterdir():
        Image.fromarray(np.full((128, 128), 90, "u1")).save(image)
    data = read_data_yaml(path, where="test")
    write_private_yaml(data, tmp_path / "private")
    model = build_model("yolov8n.yaml", "detect", data)
    versions = {"blind": hitting_arrays(), "seeing": hitting_arrays(0, 1)}
    evaluator = Evaluator(data, "detect", {"imgsz": 128}, tmp_path / "private")
    labels, blind, seeing = map(num_coloured, panels(evaluator.draw(model, versions, 4)))
    assert labels > 500
    assert blind == 0
    assert seeing > 500
    assert_identical(to_arrays(model), versions["seeing"])
    chosen = (tmp_path / "private" / "pictures" / "images.txt").read_text().splitlines()
    assert len(chosen) == 4
