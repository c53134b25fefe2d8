"""Images and labels: found sound or refused with every reason, and never written to."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import recipes
from data_sites import LINES, SPLITS, build, check, problems_of, snapshot

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import read_data
from federated_yolo.data.scan import check_dataset


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


def test_a_list_that_names_images_that_are_not_there_says_how_many(tmp_path: Path) -> None:
    data = recipes.make_dataset(tmp_path / "data", num_train=2)
    lines = ["./images/train/0.jpg", "./1.jpg", "", "./2.jpg"]
    (tmp_path / "data" / "train.txt").write_text("\n".join(lines) + "\n")
    data.write_text(data.read_text().replace("train: images/train", "train: train.txt"))
    with pytest.raises(InputError) as error:
        check_dataset(data, "detect", tmp_path / "c", where="w", splits=("train",))
    (line,) = error.value.problems
    assert "train.txt: 2 of 3 listed images are not there, the first in line 2; " in line
