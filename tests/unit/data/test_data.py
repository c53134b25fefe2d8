"""A client's data: found sound or refused with every reason, and never written to."""

import copy
import hashlib
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import FunctionType
from typing import Any

import cv2
import numpy as np
import pytest
import recipes
import torch
import yaml
from ultralytics.cfg import get_cfg
from ultralytics.data import build_yolo_dataset
from ultralytics.data.base import BaseDataset
from ultralytics.data.dataset import ClassificationDataset
from ultralytics.data.utils import check_det_dataset
from ultralytics.models.rtdetr.train import RTDETRTrainer
from ultralytics.models.rtdetr.val import RTDETRValidator

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import class_names, read_data, read_data_yaml, write_private_yaml
from federated_yolo.data.datasets import PrivateClassDataset, PrivateDataset, build_dataset
from federated_yolo.data.scan import check_dataset, move_caches
from federated_yolo.data.summary import DataSummary

SPLITS = ("train", "val")
LINES = "train: images/train\nval: images/val\n"


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Folder of a sound data set, for a test to spoil."""
    recipes.make_dataset(tmp_path / "site")
    return tmp_path / "site"


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


class Touch:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


# What a data set holds


def test_the_summary_counts_images_and_boxes(site: Path) -> None:
    for path in (site / "labels" / "train").iterdir():
        path.unlink()
    (site / "labels" / "train" / "0.txt").write_text("0 .5 .5 .1 .1\n2 .2 .2 .1 .1\n")
    (site / "labels" / "train" / "1.txt").write_text("2 .5 .5 .1 .1\n")
    (site / "labels" / "train" / "2.txt").write_text("")  # nothing to see: also worth learning
    for number in range(3):
        (site / "labels" / "val" / f"{number}.txt").write_text("1 .5 .5 .1 .1\n" * (number == 2))
    expected = DataSummary(("a", "b", "c"), 6, 3, num_test=0, class_counts=(1, 0, 2))
    assert check(site) == replace(expected, val_classes=("b",))


def test_only_the_splits_asked_for_are_read(site: Path) -> None:
    (site / "images" / "train" / "0.jpg").write_bytes(b"")
    path = site / "data.yaml"
    summary = check_dataset(path, "detect", site.parent / "caches", where="x", splits=("val",))
    assert (summary.num_train, summary.num_val) == (0, 3)
    assert summary.class_counts == (0, 0, 0)


@pytest.mark.parametrize("names", ["[x, y]", "{0: x, 1: y}", "{1: y, 0: x}", "{'0': x, '1': y}"])
def test_class_names_come_in_the_order_of_their_indices(site: Path, names: str) -> None:
    (site / "data.yaml").write_text(f"{LINES}names: {names}")
    data = read_data_yaml(site / "data.yaml", where="test")
    assert class_names(data) == ("x", "y")


def test_what_ultralytics_reads_is_kept_and_nothing_else(site: Path) -> None:
    text = "names: [a, b, c]\nkpt_shape: [2, 3]\nflip_idx: [1, 0]\nauthor: me\n"
    text += "kpt_names: {'2': [1, right], 0: [x, y]}\nkpt_oks_sigmas: [0.1, 2]\n"
    text += "download: https://example.org/data.zip\n"
    (site / "data.yaml").write_text(LINES + text)
    assert read_data_yaml(site / "data.yaml", where="test") == {
        "train": str(site / "images" / "train"),
        "val": str(site / "images" / "val"),
        "names": {0: "a", 1: "b", 2: "c"},
        "nc": 3,
        "channels": 3,
        "kpt_shape": [2, 3],
        "flip_idx": [1, 0],
        "kpt_names": {0: ["x", "y"], 2: ["1", "right"]},
        "kpt_oks_sigmas": [0.1, 2],
    }
    for nothing in ("", "kpt_shape:\n"):
        (site / "data.yaml").write_text(LINES + text.replace("kpt_shape: [2, 3]\n", nothing))
        data = read_data_yaml(site / "data.yaml", where="test")
        assert not [key for key in data if "kpt" in key or "flip" in key]  # they mean nothing there
    (site / "data.yaml").write_text(f"{LINES}names: [a]\nkpt_shape: [2, 3]\nkpt_oks_sigmas: []")
    assert "kpt_oks_sigmas" not in read_data_yaml(site / "data.yaml", where="test")


def test_the_private_yaml_means_the_same_from_anywhere(site: Path, tmp_path: Path) -> None:
    data = read_data_yaml(site / "data.yaml", where="test")
    path = write_private_yaml(data, tmp_path / "private" / "north")
    assert read_data_yaml(path, where="test") == data
    loaded = check_det_dataset(str(path), autodownload=False)
    assert {key: loaded[key] for key in data} == data


# What is refused: the data.yaml


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "expected 'train', 'val' and 'names' lines as in a data.yaml"),
        ("- a\n- b", "expected 'train', 'val' and 'names' lines as in a data.yaml"),
        (
            "train: [1",
            "not a readable YAML file: expected ',' or ']', but got '<stream end>', line",
        ),
        (f"{LINES}names: []", "no 'names'; a data.yaml has train, val and names"),
        (f"{LINES}nc: 3", "no 'names'; a data.yaml has train, val and names"),
        ("train: images/train\nnames: [a]", "no 'val'; a data.yaml has train, val and names"),
        ("val: images/val\nnames: [a]", "no 'train'; a data.yaml has train, val and names"),
        (f"{LINES}names: cat", "names: found 'cat', expected a list of class names"),
        (f"{LINES}names: {{1: a, 2: b}}", "names: found indices 1, 2, expected 0 to 1 for 2"),
        (f"{LINES}names: [a, '']", "names: found an empty class name; name each class"),
        (
            f"{LINES}names: [a, b, a]",
            "names: 'a' is listed twice (0 and 2); classes are told apart by their names; rename",
        ),
        (f"{LINES}names: {{1: 7, 0: '7'}}", "names: '7' is listed twice (1 and 0); classes are"),
        (f"{LINES}names: {{x: a}}", "names: found indices x, expected 0 to 0 for 1"),
        (f"{LINES}names: [a, b]\nnc: 3", "'names' length 2 and 'nc: 3' must match; correct it"),
        (
            "train: 5\nval: images/val\nnames: [a]",
            "train: found 5, expected a folder of images or a list of them",
        ),
        (
            "train: images/train\nval: [1]\nnames: [a]",
            "val: found 1, expected a folder of images or a list of them",
        ),
        (
            f"{LINES}names: [a]\nkpt_shape: [17]",
            "kpt_shape: found [17], expected [number of keypoints, 2 or 3], e.g. [17, 3]",
        ),
        (f"{LINES}names: [a]\nkpt_shape: [0, 3]\nflip_idx: [0]", "kpt_shape: found [0, 3], expec"),
        (f"{LINES}names: [a]\nkpt_shape: [2, 4]", "kpt_shape: found [2, 4], expected [number of"),
        (
            f"{LINES}names: [a]\nkpt_shape: [2, 3]\nflip_idx: [1, 1]",
            "flip_idx: found [1, 1], expected each number from 0 to 1 once",
        ),
        (
            f"{LINES}names: [a]\nkpt_shape: [2, 3]\nkpt_oks_sigmas: [0.1, 0]",
            "kpt_oks_sigmas: found [0.1, 0], expected 2 positive numbers",
        ),
        (
            f"{LINES}names: [a]\nkpt_shape: [2, 3]\nkpt_names: [nose, tail]",
            "kpt_names: found ['nose', 'tail'], expected a list of 2 names for the index of each "
            "class, e.g. {0: [name0, name1]}",
        ),
        (
            f"{LINES}names: [a]\nkpt_shape: [2, 3]\nkpt_names: {{1: [nose, tail]}}",
            "kpt_names: found class 1, expected 0 to 0",
        ),
        (
            f"{LINES}names: [a]\nkpt_shape: [2, 3]\nkpt_names: {{0: [nose]}}",
            "kpt_names: 0: found ['nose'], expected 2 names",
        ),
        (f"{LINES}names: [a]\nchannels: rgb", "channels: found 'rgb', expected a whole number"),
        (
            "train: images/train\nval: images/none\nnames: [a, b, c]",
            "Dataset 'data.yaml' images not found, missing path 'images/none'; correct 'path', ",
        ),
        (
            "train: images/none\nval: images/val\nnames: [a, b, c]",
            "train: images/none does not exist; expected at least one image",
        ),
        (
            f"path: /nowhere\n{LINES}names: [a, b, c]",
            "Dataset 'data.yaml' images not found, missing path '/nowhere/images/val'; correct 'p",
        ),
    ],
)
def test_a_wrong_data_yaml_is_refused(site: Path, text: str, expected: str) -> None:
    (site / "data.yaml").write_text(text)
    (problem,) = problems_of(site)
    assert problem.startswith(expected)


def test_all_that_a_data_yaml_lacks_is_reported_at_once(site: Path) -> None:
    (site / "data.yaml").write_text("nc: 3\nchannels: 0")
    assert [problem.split(";")[0] for problem in problems_of(site)] == [
        "no 'train'",
        "no 'val'",
        "no 'names'",
        "channels: found 0, expected a whole number, 3 for colour images",
    ]


def test_a_missing_data_yaml_is_refused(site: Path) -> None:
    (site / "data.yaml").unlink()
    assert problems_of(site) == ["no such file; expected an Ultralytics data.yaml"]


def test_a_data_yaml_that_is_no_text_is_refused(site: Path) -> None:
    (site / "data.yaml").write_bytes(b"\xff\xfe\x80")
    (problem,) = problems_of(site)
    assert problem.startswith("not a readable YAML file: 'utf-8' codec")


@pytest.mark.parametrize(
    "value", ["*SECRET", "!!int SECRET", "!SECRET 1", "!SE!CRET 1", "&SECRET {", "!SE'CRET 1"]
)
def test_what_a_data_yaml_holds_is_not_in_the_error(site: Path, value: str) -> None:
    (site / "data.yaml").write_text(f"x: {value}")
    (problem,) = problems_of(site)
    assert problem.startswith("not a readable YAML file: ")
    assert "SE" not in problem


# What is refused: images and labels


def test_a_train_split_without_images_is_refused(site: Path) -> None:
    for path in (site / "images" / "train").iterdir():
        path.unlink()
    expected = "train: No images found in images/train; expected at least one image"
    assert [p.replace(f"{site}", "") for p in problems_of(site)] == [expected]


@pytest.mark.parametrize("empty", [False, True])
def test_a_train_split_without_labels_is_refused(site: Path, empty: bool) -> None:
    for path in (site / "labels" / "train").iterdir():
        path.write_text("") if empty else path.unlink()
    assert problems_of(site) == [
        "train: none of the 6 images has a label; expected .txt files in a 'labels' folder beside "
        "'images', one of them with a label; searched labels/train"
    ]


def truncate(data: bytes) -> bytes:
    """Cut off the end of a JPEG, with its end marker."""
    assert data.endswith(b"\xff\xd9")
    return data[:-100]


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda data: b"not an image" * 9, "not readable as an image"),
        (lambda data: b"", "not readable as an image"),
        (lambda data: b"\xff", "not readable as an image"),
        (truncate, "image file is truncated"),
        (lambda data: data[:200], ""),  # the words depend on the version of Pillow
    ],
)
def test_a_damaged_image_is_named_and_left_as_it_is(site: Path, damage: Any, expected: str) -> None:
    path = site / "images" / "val" / "1.jpg"
    path.write_bytes(damage(path.read_bytes()))
    before = snapshot(site)
    (problem,) = problems_of(site)
    assert problem.startswith(f"val: images/val/1.jpg: {expected}")
    assert problem.endswith("; repair or remove the image or its label")
    assert snapshot(site) == before


def test_a_jpeg_with_padding_after_its_end_is_used_and_left_as_it_is(site: Path) -> None:
    """Ultralytics would write it anew; some cameras write such files."""
    path = site / "images" / "val" / "1.jpg"
    path.write_bytes(path.read_bytes() + b"\x00" * 7)
    before = snapshot(site)
    assert check(site).num_val == 3
    assert snapshot(site) == before


# Ultralytics 8.4.190 leaves it to the garbage collector to close an image that Pillow refuses.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_a_truncated_png_is_named(site: Path) -> None:
    path = site / "images" / "train" / "6.png"
    cv2.imwrite(str(path), np.zeros((32, 32, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:-20])
    (problem,) = problems_of(site)
    assert problem.startswith("train: images/train/6.png: ")


def test_a_tiny_image_is_named(site: Path) -> None:
    cv2.imwrite(str(site / "images" / "train" / "0.jpg"), np.zeros((5, 5, 3), np.uint8))
    (problem,) = problems_of(site)
    assert problem.startswith("train: images/train/0.jpg: image size (5, 5) <10 pixels; ")


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        (b"3 .5 .5 .1 .1", "Label class 3 exceeds dataset class count 3."),
        (b"-1 .5 .5 .1 .1", "line 1 of its label has a negative number"),
        (b"0.5 .5 .5 .1 .1", "line 1 of its label begins with a class that is no whole number"),
        (b"0 1.5 .5 .1 .1", "line 1 of its label has coordinates that are not from 0 to 1"),
        (b"\n\n0 32 16 8 8", "line 3 of its label has coordinates that are not from 0 to 1"),
        (b"0 .5 -.5 .1 .1", "line 1 of its label has a negative number"),
        (b"0 .5 .5 .1 .1\n0 .5 .5 -.001 .1", "line 2 of its label has a negative number"),
        (b"0 nan .5 .1 .1", "line 1 of its label has coordinates that are not from 0 to 1"),
        (
            b"0 .5 .5 .1",
            "line 1 of its label has 4 columns, expected 5: class, x, y, width, height",
        ),
        (b"0 .5 .5 .1 .1\n0 .5 .5 .1", "line 2 of its label has 4 columns, expected 5: class"),
        (b"0 .5 .5 .1 .1 .9", "line 1 of its label has 6 columns, expected 5: class"),
        (
            b"0 .1 .1 .2 .1 .2 .2\n\n0 .1 .1 .2 .1 .2 .2 .3",
            "line 3 of its label has 8 columns, expected a class and pairs of x and y: an odd",
        ),
        (
            b"0 .1 .1 .2 .1 .2 .2\n0 .5 .5 .1 .1",
            "line 2 of its label has 5 columns, a box, among outlines; give each object an",
        ),
        (b"cat .5 .5 .1 .1", "line 1 of its label has something that is no number; repair"),
        (
            b"0,.5,.5,.1,.1",
            "line 1 of its label has something that is no number; blanks separate them, not",
        ),
        (b"0 .5 .5 .1 .1 \xe9", "'utf-8' codec can't decode byte 0xe9"),
        ("0 .5 .5 .1 .1".encode("utf-16"), "'utf-8' codec can't decode byte 0xff"),
    ],
)
def test_a_wrong_label_is_named_with_its_image(site: Path, label: bytes, expected: str) -> None:
    (site / "labels" / "train" / "2.txt").write_bytes(label)
    (problem,) = problems_of(site)
    assert problem.startswith(f"train: images/train/2.jpg: {expected}")
    assert problem.endswith("; repair or remove the image or its label")


@pytest.mark.parametrize(
    ("task", "label", "expected"),
    [
        ("segment", "0 .1 .1 .2 .1 .2 .2 .3", "has 8 columns, expected a class and pairs of x and"),
        ("obb", "0 .1 .1 .2 .1 .2 .2 .1 .2 .3", "has 10 columns, expected a class and pairs of"),
        ("obb", "0 .1 .1 .2 .1 .2 .2 .1 1.2", "has coordinates that are not from 0 to 1"),
        (
            "pose",
            "0 .5 .5 .2 .2 .4 .4 2 .6 .6",
            "has 10 columns, expected 11: class, x, y, width, height and 2 keypoints of 3 numbers",
        ),
        ("pose", "0 .5 .5 .2 .2", "has 5 columns, expected 11: class, x, y, width, height and 2"),
        ("pose", "0 .5 .5 .2 .2 .4 1.4 2 .6 .6 2", "has coordinates that are not from 0 to 1"),
        ("pose", "0 .5 .5 .2 .2 .4 -.4 2 .6 .6 2", "has a negative number"),
    ],
)
def test_a_wrong_label_of_another_task_is_named_with_its_line(
    tmp_path: Path, task: str, label: str, expected: str
) -> None:
    recipes.make_data(tmp_path / "site", task)
    path = tmp_path / "site" / "labels" / "train" / "2.txt"
    sound = path.read_text().splitlines()[0]
    path.write_text(f"{sound}\n\n{label}\n")
    (problem,) = problems_of(tmp_path / "site", task)
    assert problem.startswith(f"train: images/train/2.jpg: line 3 of its label {expected}")


@pytest.mark.parametrize(
    ("task", "label"),
    [
        ("detect", "0.0 .5 .5 .2 .2\n\n 1e0\t1.005 .5 .2 .2 "),
        ("detect", "0 .5 .5 .2 .2\n0 -.005 .5 .2 .2"),
        ("detect", "0 .1 .1 .2 .1 .2 .2"),
        ("segment", "0 .1 .1 .2 .1 .2 .2"),
        ("pose", "0 .5 .5 .2 .2 0 0 0 .6 .6 2"),
    ],
)
def test_what_ultralytics_takes_of_a_label_is_taken(tmp_path: Path, task: str, label: str) -> None:
    recipes.make_data(tmp_path / "site", task)
    (tmp_path / "site" / "labels" / "train" / "2.txt").write_text(label)
    assert check(tmp_path / "site", task).num_train == 6


def test_a_byte_order_mark_is_no_problem(site: Path) -> None:
    (site / "labels" / "train" / "2.txt").write_bytes(b"\xef\xbb\xbf0 .5 .5 .1 .1")
    assert check(site).num_train == 6


def test_lines_of_a_list_that_end_as_no_image_are_counted_and_not_quoted(site: Path) -> None:
    """Ultralytics would leave them out without a word."""
    lines = ["", "./images/train/0.jpg", "./images/train/1.jpg ", "", "./images/train/2.JPG\t"]
    (site / "train.txt").write_text("\n".join([*lines, "Ann.gif", "./images/train/3.jpg \n"]))
    (site / "val.txt").write_text("\ufeff./images/val/0.jpg \r\n\r\n")
    text = "train: [train.txt, images/train]\nval: val.txt\nnames: [a, b, c]"
    (site / "data.yaml").write_text(text)
    (problem,) = problems_of(site)
    assert problem.startswith("train: train.txt: line 3 does not end as an image that Ultralytics")
    assert "(avif, bmp, " in problem
    assert problem.endswith("), and 2 more; correct or remove them, and blanks at their ends")


@pytest.mark.parametrize("in_place", [False, True])
def test_bare_names_in_a_list_are_refused_with_the_way_out(
    site: Path, monkeypatch: pytest.MonkeyPatch, in_place: bool
) -> None:
    """As `ls > train.txt` makes them; Ultralytics finds no folder for their labels."""
    folder = site / "images" / "train"
    (folder / "train.txt").write_text("\n0.jpg\n1.jpg\n")
    text = "train: images/train/train.txt\nval: images/val\nnames: [a, b, c]"
    (site / "data.yaml").write_text(text)
    if in_place:
        monkeypatch.chdir(folder)
    (problem,) = problems_of(site)
    assert problem == (
        "train: images/train/train.txt: line 2 (and 1 more) is no whole path, so it is looked for "
        "in the working directory, where it is not; begin the lines with a dot and a slash, which "
        "stand for the folder of the list, or write whole paths"
    )
    (folder / "train.txt").write_text("./0.jpg\n./1.jpg\n")
    assert check(site).num_train == 2


def test_a_list_from_the_working_directory_is_taken_where_that_is_right(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (site / "train.txt").write_text("site/images/train/0.jpg\n")
    (site / "data.yaml").write_text("train: train.txt\nval: images/val\nnames: [a, b, c]")
    (problem,) = problems_of(site)
    assert "line 1 is no whole path" in problem
    monkeypatch.chdir(site.parent)
    assert check(site).num_train == 1


def write_image(path: Path, pixels: np.ndarray, pages: int = 0) -> None:
    """An image, or so many pages of it."""
    is_written = cv2.imwritemulti(str(path), [pixels] * pages) if pages else False
    assert is_written or cv2.imwrite(str(path), pixels)


IMAGES: dict[str, tuple[str, tuple[int, ...], str, int]] = {
    "grey": ("png", (32, 32), "uint8", 0),
    "colour": ("jpg", (32, 32, 3), "uint8", 0),
    "colour with transparency": ("png", (32, 32, 4), "uint8", 0),
    "grey of 16 bits": ("tif", (32, 32), "uint16", 0),
    "four pages": ("tif", (32, 32), "uint8", 4),
    "two pages": ("tiff", (32, 32), "uint8", 2),
}
CHANNELS = {"grey": 1, "colour": 3, "colour with transparency": 4, "grey of 16 bits": 1}
CHANNELS |= {"four pages": 4, "two pages": 2}


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("kind", IMAGES)
def test_images_of_other_channels_are_refused_where_ultralytics_cannot_train_on_them(
    site: Path, kind: str, channels: int
) -> None:
    """As colour or grey it reads all; else an image has to have what the data.yaml says."""
    for split in SPLITS:  # the others are right
        for path in (site / "images" / split).iterdir():
            path.unlink()
            write_image(path.with_suffix(".tif"), np.zeros((32, 32), np.uint8), channels)
    suffix, shape, dtype, pages = IMAGES[kind]
    (site / "images" / "train" / "2.tif").unlink()
    write_image(site / "images" / "train" / f"2.{suffix}", np.zeros(shape, dtype), pages)
    (site / "data.yaml").write_text(f"{LINES}names: [a, b, c]\nchannels: {channels}")
    if channels in (1, 3, CHANNELS[kind]):
        assert check(site).num_train == 6
        images = [build(site)[i]["img"] for i in range(6)]
        assert all(image.shape[0] == channels for image in images)
        return
    assert problems_of(site) == [
        f"train: images/train/2.{suffix}: found {CHANNELS[kind]} channels, expected {channels}, as "
        "its data.yaml says; repair or remove the image or its label"
    ]
    # A site that goes on trains on the others.
    assert len(build(site)) == 5


def test_labels_beside_a_linked_folder_are_refused_with_where_they_are_looked_for(
    site: Path, tmp_path: Path
) -> None:
    """Ultralytics follows the link before it looks for the labels."""
    elsewhere = tmp_path / "disk" / "pictures"
    elsewhere.parent.mkdir()
    (site / "images" / "train").rename(elsewhere)
    (site / "images" / "train").symlink_to(elsewhere, target_is_directory=True)
    (problem,) = problems_of(site)
    assert problem.endswith(f"searched {elsewhere}")


@pytest.mark.parametrize(("name", "task"), [("x.ndjson", "detect"), ("x.ndjson", "classify")])
def test_ndjson_is_refused_by_its_name_with_the_next_step(
    tmp_path: Path, name: str, task: str
) -> None:
    (tmp_path / name).write_text('{"type": "dataset", "task": "detect"}\n{"type": "image"}\n')
    with pytest.raises(InputError, match=r"x.ndjson\): NDJSON, .* convert_ndjson_to_yolo"):
        read_data(tmp_path / name, task, where="datasets[0]")


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_an_archive_is_refused_by_its_name(tmp_path: Path, task: str) -> None:
    (tmp_path / "coco8.zip").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"coco8.zip\): an archive; unpack it"):
        read_data(tmp_path / "coco8.zip", task, where="datasets[0]")


def test_damage_in_both_splits_is_reported_at_once(site: Path) -> None:
    (site / "images" / "train" / "3.jpg").write_bytes(b"")
    (site / "labels" / "train" / "1.txt").write_text("7 .5 .5 .1 .1")
    (site / "labels" / "val" / "0.txt").write_text("x")
    assert [problem.split(":")[:2] for problem in problems_of(site)] == [
        ["train", " images/train/1.jpg"],
        ["train", " images/train/3.jpg"],
        ["val", " images/val/0.jpg"],
    ]


def test_of_many_damaged_files_five_are_named(tmp_path: Path) -> None:
    recipes.make_dataset(tmp_path / "site", num_train=8)
    for number in range(1, 8):
        (tmp_path / "site" / "labels" / "train" / f"{number}.txt").write_text("7 .5 .5 .1 .1")
    problems = problems_of(tmp_path / "site")
    assert [p.split(":")[1] for p in problems[:5]] == [
        f" images/train/{i}.jpg" for i in range(1, 6)
    ]
    assert problems[5:] == ["train: ... and 2 more damaged files"]


def test_if_all_files_are_damaged_five_are_named(site: Path) -> None:
    for path in (site / "labels" / "train").iterdir():
        path.write_text("7 .5 .5 .1 .1")
    problems = problems_of(site)
    assert [p.split(":")[1] for p in problems[:5]] == [f" images/train/{i}.jpg" for i in range(5)]
    assert problems[5:] == ["train: ... and 1 more damaged files"]


def test_damage_is_named_again_when_the_cache_is_read(site: Path) -> None:
    (site / "labels" / "train" / "2.txt").write_text("7 .5 .5 .1 .1")
    assert problems_of(site) == problems_of(site)


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("segment", "Segment dataset requires equal numbers of boxes and segments"),
        ("obb", "OBB dataset requires equal numbers of boxes and segments"),
        ("pose", "'kpt_shape' in data.yaml missing or incorrect"),
    ],
)
def test_labels_of_another_task_are_refused(site: Path, task: str, expected: str) -> None:
    train, val = problems_of(site, task)
    assert train.startswith(f"train: {expected}")
    assert val.startswith(f"val: {expected}")


@pytest.mark.parametrize("task", ["segment", "obb"])
def test_boxes_among_outlines_are_refused_as_a_mixture(site: Path, task: str) -> None:
    recipes.write_polygons(site)
    (site / "labels" / "train" / "0.txt").write_text("0 .5 .5 .2 .2")
    num_outlines = sum(
        len(path.read_text().splitlines()) for path in (site / "labels" / "train").iterdir()
    )
    assert problems_of(site, task) == [
        f"train: labels mix boxes (1) and outlines ({num_outlines - 1}); give each object an "
        "outline, or train a model of the task detect"
    ]


# The data folder is only read


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


# The same data set as Ultralytics' own

OUR_OWN = {"cache_dir", "split", "messages", "shapes", "num_outlines", "npy_files"}


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


# Folders of classes


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


def test_a_list_that_names_images_that_are_not_there_says_how_many(tmp_path: Path) -> None:
    data = recipes.make_dataset(tmp_path / "data", num_train=2)
    lines = ["./images/train/0.jpg", "./1.jpg", "", "./2.jpg"]
    (tmp_path / "data" / "train.txt").write_text("\n".join(lines) + "\n")
    data.write_text(data.read_text().replace("train: images/train", "train: train.txt"))
    with pytest.raises(InputError) as error:
        check_dataset(data, "detect", tmp_path / "c", where="w", splits=("train",))
    (line,) = error.value.problems
    assert "train.txt: 2 of 3 listed images are not there, the first in line 2; " in line
