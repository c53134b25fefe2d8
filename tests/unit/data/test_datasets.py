"""Data sets as clients build them: equal to Ultralytics' own, and never written to."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import recipes
import torch
import yaml
from data_sites import SPLITS, build, check, described, seed_all, snapshot
from recipes import Touch
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.rtdetr.val import RTDETRValidator

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import read_data_yaml
from federated_yolo.data.datasets import build_dataset
from federated_yolo.data.scan import move_caches


@pytest.fixture
def locked_site(site: Path) -> Iterator[Path]:
    """The folder without write permissions (which root does not need)."""
    folders = [site, *(path for path in site.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    yield site
    for folder in folders:
        folder.chmod(0o755)


@pytest.mark.parametrize("cache", [False, "ram"])
def test_the_data_folder_is_byte_identical_after_use(locked_site: Path, cache: object) -> None:
    before = snapshot(locked_site)
    check(locked_site)
    for mode in SPLITS:
        dataset = build(locked_site, mode, cache=cache, deterministic=False)
        assert [dataset[i]["img"].shape[0] for i in range(len(dataset))] == [3] * len(dataset)
    assert snapshot(locked_site) == before


@pytest.mark.parametrize("cache", [False, "ram"])
def test_npy_files_beside_the_images_are_neither_read_nor_removed(
    site: Path, cache: object
) -> None:
    images = [build(site, "val")[i]["img"] for i in range(3)]
    folder = site / "images" / "val"
    np.save(folder / "0.npy", np.zeros((64, 64, 3), np.uint8))  # Ultralytics would use this,
    np.save(folder / "1.npy", np.zeros((64, 64, 1), np.uint8))  # write this anew
    (folder / "2.npy").write_bytes(b"damaged")  # and remove this
    before = snapshot(site)
    dataset = build(site, "val", cache=cache, deterministic=False)
    assert all(torch.equal(dataset[i]["img"], images[i]) for i in range(3))
    assert snapshot(site) == before


def test_a_pickle_beside_the_labels_is_never_loaded(site: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for split in SPLITS:
        with (site / "labels" / f"{split}.cache").open("wb") as file:
            np.save(file, np.array(Touch(marker), object))
    np.load(site / "labels" / "train.cache", allow_pickle=True)
    assert marker.exists()  # it would work
    marker.unlink()
    before = snapshot(site)
    check(site)
    for mode in SPLITS:
        build(site, mode)
    assert not marker.exists()
    assert snapshot(site) == before


@pytest.mark.parametrize("language", ["bash", "python"])
def test_code_in_a_download_entry_is_refused_and_never_run(
    site: Path, tmp_path: Path, language: str
) -> None:
    marker = tmp_path / "executed"
    code = {"bash": f"bash {tmp_path}/run.sh", "python": f"open({str(marker)!r}, 'w').close()"}
    (tmp_path / "run.sh").write_text(f"touch {marker}")
    path = site / "data.yaml"
    settings = {"train": "images/train", "val": "images/none", "names": ["a", "b", "c"]}
    path.write_text(yaml.safe_dump({**settings, "download": code[language]}))
    check_det_dataset(str(path), autodownload=True)
    assert marker.exists()  # it would work
    marker.unlink()
    for val in ("images/none", "images/val"):
        path.write_text(yaml.safe_dump({**settings, "val": val, "download": code[language]}))
        with pytest.raises(InputError, match=r"download: holds code, which Ultralytics would run"):
            check(site)
    assert not marker.exists()


# Private caches


def test_a_split_is_scanned_once_for_checking_and_training(site: Path) -> None:
    check(site)
    caches = site.parent / "caches"
    assert sorted(path.name for path in caches.iterdir()) == ["train.cache", "val.cache"]
    before = snapshot(caches)
    check(site)
    for mode in SPLITS:
        build(site, mode)
    assert snapshot(caches) == before


def test_a_changed_label_is_scanned_again(site: Path) -> None:
    (site / "labels" / "train" / "0.txt").write_text("0 .5 .5 .1 .1\n")
    first = check(site).class_counts
    (site / "labels" / "train" / "0.txt").write_text("0 .5 .5 .1 .1\n0 .2 .2 .1 .1\n")
    assert check(site).class_counts == (first[0] + 1, *first[1:])


def test_a_damaged_private_cache_is_made_anew(site: Path) -> None:
    expected = check(site)
    (site.parent / "caches" / "train.cache").write_bytes(b"damaged")
    assert check(site) == expected


def test_caches_move_into_the_run_directory(site: Path, tmp_path: Path) -> None:
    check(site)
    move_caches(tmp_path / "caches", tmp_path / "run" / "caches")
    assert list((tmp_path / "caches").iterdir()) == []
    assert sorted(path.name for path in (tmp_path / "run" / "caches").iterdir()) == [
        "train.cache",
        "val.cache",
    ]


OUR_OWN = {"cache_dir", "split", "messages", "shapes", "num_outlines", "npy_files"}


def rtdetr_dataset(args: Any, images: str, data: dict[str, Any], mode: str) -> Any:
    """What RT-DETR's own trainer and validator build."""
    owner: Any = object.__new__(RTDETRTrainer if mode == "train" else RTDETRValidator)
    owner.args, owner.data = args, data
    return owner.build_dataset(images, mode, 2)


@pytest.mark.parametrize("mode", SPLITS)
@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"mixup": 0.5, "cutmix": 0.5, "degrees": 20, "hsv_h": 0.1, "bgr": 0.5, "mosaic": 0.5},
        {"rect": True},
        {"cache": "ram", "deterministic": False},
        {"single_cls": True, "classes": [0, 2]},
        {"fraction": 0.5},
        {"fraction": [0.5, 0.7]},
        {"task": "segment", "copy_paste": 1.0, "mask_ratio": 2},
        {"task": "obb"},
        {"squares": True, "mosaic": 0.5},
    ],
)
def test_a_built_dataset_equals_that_of_ultralytics(
    site: Path, mode: str, overrides: dict[str, Any]
) -> None:
    if overrides.get("task"):
        recipes.write_polygons(site)
    wide = np.full((40, 80, 3), 90, np.uint8)  # so that rectangular batches differ from square ones
    cv2.imwrite(str(site / "images" / mode / "1.jpg"), wide)
    overrides = dict(overrides)
    squares = overrides.pop("squares", False)
    args: Any = get_cfg(overrides={"task": "detect", "mode": "train", "imgsz": 64, **overrides})
    data = read_data_yaml(site / "data.yaml", where="test")
    caches = site.parent / "caches"
    seed_all()
    ours = build_dataset(
        copy.copy(args), data[mode], 2, copy.deepcopy(data), mode, 32, caches, squares
    )
    samples = [[described(ours[i]) for i in range(len(ours))] for _ in range(2)]
    seed_all()
    theirs: Any
    if squares:
        theirs = rtdetr_dataset(copy.copy(args), data[mode], copy.deepcopy(data), mode)
    else:
        theirs = build_yolo_dataset(
            copy.copy(args), data[mode], 2, copy.deepcopy(data), mode, rect=mode == "val", stride=32
        )
    expected = [[described(theirs[i]) for i in range(len(theirs))] for _ in range(2)]
    assert samples == expected
    if mode == "train":
        assert samples[0] != samples[1]  # augmentation was at work
    attributes, expected_attributes = vars(ours), vars(theirs)
    assert attributes.keys() - expected_attributes.keys() == OUR_OWN - {"npy_files"}
    assert expected_attributes.keys() <= attributes.keys()
    for name in expected_attributes.keys() - OUR_OWN:
        assert described(attributes[name]) == described(expected_attributes[name]), name
