"""A classifier's folders of classes."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipes
from data_sites import SPLITS, described, seed_all, snapshot
from recipes import Touch
from ultralytics.cfg import get_cfg
from ultralytics.data.dataset import ClassificationDataset

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import read_data
from federated_yolo.data.datasets import PrivateClassDataset, build_dataset
from federated_yolo.data.scan import check_dataset
from federated_yolo.data.summary import DataSummary


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    """A sound classification data set, for a test to spoil."""
    return recipes.make_class_folders(tmp_path / "site")


def check_folders(
    folders: Path, splits: tuple[str, ...] = SPLITS, cache: str = "caches"
) -> DataSummary:
    caches = folders.parent / cache
    return check_dataset(folders, "classify", caches, where="datasets[0]", splits=splits)


def folder_problems(folders: Path) -> list[str]:
    with pytest.raises(InputError) as caught:
        check_folders(folders)
    where = f"datasets[0] ({folders}): "
    assert all(line.startswith(where) for line in caught.value.problems)
    return [line.removeprefix(where).replace(f"{folders}/", "") for line in caught.value.problems]


def test_class_folders_are_counted(folders: Path) -> None:
    shutil.copytree(folders / "val", folders / "test")
    (folders / "test" / "a" / "0.jpg").unlink()
    for path in (folders / "train" / "b").iterdir():
        path.unlink()
    expected = DataSummary(("a", "b", "c"), 4, 3, num_test=2, class_counts=(2, 0, 2))
    expected = replace(expected, val_classes=("a", "b", "c"), test_classes=("b", "c"))
    assert check_folders(folders) == expected
    shutil.rmtree(folders / "train")
    expected = replace(expected, num_train=0, class_counts=(0, 0, 0))
    assert check_folders(folders, ("val",)) == expected


def test_a_split_goes_by_the_names_that_ultralytics_knows(folders: Path) -> None:
    (folders / "val").rename(folders / "valid")
    assert read_data(folders, "classify", where="x")["val"] == str(folders / "valid")
    assert check_folders(folders).num_val == 3


def test_what_is_no_data_of_a_classifier_is_refused(folders: Path) -> None:
    layout = "a folder with train/CLASS/*.jpg and val/CLASS/*.jpg, as a classifier's data is"
    assert folder_problems(folders / "none") == [f"no such folder; expected {layout}"]
    assert folder_problems(folders / "train" / "a" / "0.jpg") == [f"a file; expected {layout}"]
    assert folder_problems(folders / "train") == [
        f"no folder of a class in train or val; expected {layout}"
    ]
    shutil.rmtree(folders / "val")
    assert folder_problems(folders) == ["val: no such folder; expected val/CLASS/*.jpg"]
    (folders / "val" / "a").mkdir(parents=True)
    assert folder_problems(folders) == [
        "val: no images in the folders of its classes; expected at least one"
    ]


def test_a_folder_is_refused_where_a_data_yaml_is_needed(folders: Path) -> None:
    with pytest.raises(InputError, match="a folder, as classifiers have; expected an Ultralytics"):
        read_data(folders, "detect", where="x")


def test_odd_class_folders_are_refused(folders: Path) -> None:
    (folders / "val" / "cc").mkdir()
    (folders / "train" / ".hidden").mkdir()
    assert folder_problems(folders) == [
        "val: class 'cc' has no folder in train [.hidden, a, b, c]; did you mean 'c'?; make one "
        "(it may be empty), or remove it",
        "train: found a hidden folder '.hidden', which would be a class; remove it",
    ]


def test_damaged_images_of_classes_are_named_and_left_as_they_are(folders: Path) -> None:
    for split, name in (("train", "a/0.jpg"), ("train", "b/4.jpg"), ("val", "c/2.jpg")):
        (folders / split / name).write_bytes(b"not an image" * 9)
    before = snapshot(folders)
    problems = folder_problems(folders)
    assert [problem.split(": ")[:2] for problem in problems] == [
        ["train", "train/a/0.jpg"],
        ["train", "train/b/4.jpg"],
        ["val", "val/c/2.jpg"],
    ]
    assert all("repair or remove" in problem for problem in problems)
    assert folder_problems(folders) == problems  # from the cache
    assert snapshot(folders) == before


def test_class_folders_are_byte_identical_after_use_and_caches_beside_them_unread(
    folders: Path, tmp_path: Path
) -> None:
    path = folders / "train" / "a" / "0.jpg"
    path.write_bytes(path.read_bytes() + b"\x00" * 7)  # Ultralytics would write it anew
    marker = tmp_path / "executed"
    with (folders / "train.cache").open("wb") as file:
        np.save(file, np.array(Touch(marker), object))
    before = snapshot(folders)
    assert check_folders(folders).num_train == 6
    data = read_data(folders, "classify", where="test")
    caches = folders.parent / "caches"
    times = snapshot(caches)
    for mode in SPLITS:
        args = get_cfg(overrides={"task": "classify", "mode": "train", "imgsz": 32, "cache": "ram"})
        dataset = build_dataset(args, data[mode], 2, data, mode, 32, caches)
        assert isinstance(dataset, PrivateClassDataset)
        assert {tuple(dataset[i]["img"].shape) for i in range(len(dataset))} == {(3, 32, 32)}
    assert snapshot(caches) == times  # scanned once, while checking
    assert snapshot(folders) == before
    assert not marker.exists()


@pytest.mark.parametrize("mode", SPLITS)
@pytest.mark.parametrize("overrides", [{}, {"fraction": 0.5}, {"auto_augment": "augmix"}])
def test_a_built_class_dataset_equals_that_of_ultralytics(
    folders: Path, mode: str, overrides: dict[str, Any]
) -> None:
    args: Any = get_cfg(
        overrides={"task": "classify", "mode": "train", "imgsz": 32, "erasing": 0.4, **overrides}
    )
    data = read_data(folders, "classify", where="test")
    ours: Any = build_dataset(args, data[mode], 2, data, mode, 32, folders.parent)
    theirs: Any = ClassificationDataset(
        data[mode], args, augment=mode == "train", prefix=mode, names=data["names"]
    )
    samples = []
    for dataset in (ours, theirs):
        seed_all()
        samples.append([described(dataset[i]) for i in range(len(dataset))])
    assert samples[0] == samples[1]
    assert ours.samples == theirs.samples
