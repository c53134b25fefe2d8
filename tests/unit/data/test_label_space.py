"""Classes by name: the union of several data sets, and what it renumbers."""

from pathlib import Path
from typing import Any

import pytest
from recipes import make_class_folders
from ultralytics.cfg import get_cfg

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import read_data
from federated_yolo.data.datasets import build_dataset
from federated_yolo.data.label_space import in_label_space, label_space


def test_the_union_keeps_the_order_of_appearance() -> None:
    clients = {"north": ("b", "a"), "south": ("c", "a"), "west": ("d",)}
    assert label_space(clients) == ("b", "a", "c", "d")
    with pytest.raises(InputError, match="class 'red Cell' and 'Red cell' of 'x' differ only in"):
        label_space({"x": ("Red cell",), "y": ("red Cell",)})


def test_a_data_set_that_has_the_federations_classes_stays_as_it_is() -> None:
    data = {"names": {0: "a", 1: "b"}, "nc": 2, "train": "t"}
    assert in_label_space(data, ("a", "b")) == data
    assert in_label_space(data, ("a", "b"), ("b",)) == {**data, "federated_not_annotated": [1]}
    assert in_label_space(data, ("c", "b", "a")) == {
        "names": {0: "c", 1: "b", 2: "a"},
        "nc": 3,
        "train": "t",
        "federated_class_map": [2, 1],
        "federated_not_annotated": [0],
    }


def test_names_of_keypoints_are_renumbered_with_their_classes() -> None:
    data = {"names": {0: "c", 1: "b"}, "nc": 2, "kpt_names": {0: ["x", "y"], 1: ["left", "right"]}}
    found = in_label_space(data, ("a", "b", "c"))
    assert found["kpt_names"] == {2: ["x", "y"], 1: ["left", "right"]}
    assert in_label_space(data, ("c", "b"))["kpt_names"] == data["kpt_names"]


def test_class_folders_are_matched_by_name(tmp_path: Path) -> None:
    """Folders are in alphabetical order, whatever the federation's is."""
    folder = make_class_folders(tmp_path / "data", names=("b", "d"))
    data = in_label_space(read_data(folder, "classify", where="test"), ("d", "c", "b"))
    args = get_cfg(overrides={"task": "classify", "mode": "train", "imgsz": 32})
    dataset: Any = build_dataset(args, data["train"], 2, data, "train", 32, tmp_path)
    found = {Path(file).parent.name: label for file, label, *_ in dataset.samples}
    assert found == {"b": 2, "d": 0}
    assert all(dataset[i]["cls"] == dataset.samples[i][1] for i in range(len(dataset)))
