"""A data.yaml: what it holds, and what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest
from data_sites import LINES, check, problems_of
from ultralytics.data.utils import check_det_dataset

from federated_yolo.data.data_yaml import class_names, read_data_yaml, write_private_yaml
from federated_yolo.data.scan import check_dataset
from federated_yolo.data.summary import DataSummary


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
