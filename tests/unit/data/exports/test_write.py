"""What an export holds becomes labels that Ultralytics reads, beside links to the images."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from truths import assert_same_objects, boxes_of

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import read_data_yaml
from federated_yolo.data.exports.content import Content, Object, Picture
from federated_yolo.data.exports.made import original_of
from federated_yolo.data.exports.write import FLAT, NO_PLACE, OUTSIDE, task_of, write
from federated_yolo.data.scan import scan_split

SQUARE = ((10.0, 10.0), (50.0, 10.0), (50.0, 40.0), (10.0, 40.0))


def picture(path: Path, *objects: Object, size: tuple[int, int] = (100, 80)) -> Picture:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(path)
    return Picture(path, objects, size)


def content(folder: Path, *pictures: Picture, names: tuple[str, ...] = ("a", "b")) -> Content:
    return Content("test", folder, names, {"train": pictures}, file=folder / "labels.json")


def lines(folder: Path, stem: str = "x") -> list[str]:
    return (folder / "labels" / "train" / f"{stem}.txt").read_text().splitlines()


def test_boxes_are_fractions_of_the_image_and_ultralytics_reads_them(tmp_path: Path) -> None:
    one = picture(tmp_path / "x.png", Object("b", box=(10, 20, 50, 60)))
    written = write(content(tmp_path, one), tmp_path / "made", "detect")
    assert lines(tmp_path / "made") == ["1 0.3 0.5 0.4 0.5"]
    assert written.objects == {"train": {"b": 1}}
    found = boxes_of(tmp_path / "made" / "data.yaml")["train"]
    assert_same_objects(found["x.png"], [("b", (10, 20, 50, 60))])


def test_images_are_links_and_nothing_is_written_beside_them(tmp_path: Path) -> None:
    one = picture(tmp_path / "export" / "x.png", Object("a", box=(1, 1, 9, 9)))
    write(content(tmp_path / "export", one), tmp_path / "made", "detect")
    link = tmp_path / "made" / "images" / "train" / "x.png"
    assert link.is_symlink()
    assert link.resolve() == one.path
    assert [p.name for p in (tmp_path / "export").iterdir()] == ["x.png"]


def test_a_message_about_a_link_names_the_image_that_it_leads_to(tmp_path: Path) -> None:
    one = picture(tmp_path / "export" / "Ä b: c.png", Object("a", box=(1, 1, 9, 9)))
    write(content(tmp_path / "export", one), tmp_path / "made", "detect")
    link = tmp_path / "made" / "images" / "train" / "Ä b: c.png"
    text = f"train: {link}: image is damaged; repair it"
    assert original_of(text, tmp_path / "made") == f"train: {one.path}: image is damaged; repair it"
    assert original_of("nothing of it", tmp_path / "made") == "nothing of it"


def test_images_of_one_name_in_folders_or_with_two_endings_keep_labels_of_their_own(
    tmp_path: Path,
) -> None:
    export = tmp_path / "export"
    pictures = [
        picture(export / "images" / "cam1" / "x.png", Object("a", box=(0, 0, 10, 10))),
        picture(export / "images" / "cam2" / "x.png", Object("a", box=(0, 0, 20, 20))),
        picture(export / "cam1" / "x.png", Object("a", box=(0, 0, 30, 30))),
        picture(export / "cam1" / "x.bmp", Object("a", box=(0, 0, 40, 40))),
    ]
    write(content(export, *pictures), tmp_path / "made", "detect")
    made = tmp_path / "made"
    found = {}
    for link in (made / "images").rglob("x*"):
        label = made / "labels" / link.relative_to(made / "images")
        found[link.resolve()] = float(label.with_suffix(".txt").read_text().split()[3])
    expected = {p.path: width / 100 for p, width in zip(pictures, (10, 20, 30, 40), strict=True)}
    assert found == expected


def test_what_cannot_be_placed_is_left_out_and_counted(tmp_path: Path) -> None:
    one = picture(
        tmp_path / "x.png",
        Object("a", box=(10, 10, 10, 20)),
        Object("a", box=(200, 10, 210, 20)),
        Object("b"),
        Object("b", box=(10, 10, 20, 20)),
    )
    written = write(content(tmp_path, one), tmp_path / "made", "detect")
    assert written.left_out == {FLAT: {"a": 1}, OUTSIDE: {"a": 1}, NO_PLACE: {"b": 1}}
    assert written.objects == {"train": {"b": 1}}


def test_a_box_beyond_the_edge_is_cut_only_where_ultralytics_would_refuse_it(
    tmp_path: Path,
) -> None:
    one = picture(
        tmp_path / "x.png", Object("a", box=(-2, 10, 10, 20)), Object("b", box=(-5, -5, 105, 85))
    )
    write(content(tmp_path, one), tmp_path / "made", "detect")
    found = boxes_of(tmp_path / "made" / "data.yaml")["train"]["x.png"]
    assert_same_objects(found, [("a", (-2, 10, 10, 20)), ("b", (0, 0, 100, 80))])


def test_the_size_is_that_of_the_turned_image(tmp_path: Path) -> None:
    path = tmp_path / "x.jpg"
    exif = Image.Exif()
    exif[274] = 6  # turned by a quarter: 100 x 80 is shown as 80 x 100
    Image.fromarray(np.zeros((80, 100, 3), np.uint8)).save(path, exif=exif)
    one = Picture(path, (Object("a", box=(40, 50, 60, 100)),))
    write(content(tmp_path, one), tmp_path / "made", "detect")
    assert lines(tmp_path / "made") == ["0 0.625 0.75 0.25 0.5"]


def test_outlines_of_several_parts_become_one_line_around_all(tmp_path: Path) -> None:
    other = tuple((x + 45, y + 35) for x, y in SQUARE)
    one = picture(tmp_path / "x.png", Object("a", outline=(SQUARE, other)))
    write(content(tmp_path, one), tmp_path / "made", "segment")
    numbers = [float(n) for n in lines(tmp_path / "made")[0].split()[1:]]
    corners = set(zip(numbers[::2], numbers[1::2], strict=True))
    assert corners == {(x / 100, y / 80) for x, y in (*SQUARE, *other)}


def test_detect_takes_the_box_of_the_export_and_not_that_of_the_outline(tmp_path: Path) -> None:
    one = picture(tmp_path / "x.png", Object("a", box=(11, 11, 50, 40), outline=(SQUARE,)))
    write(content(tmp_path, one), tmp_path / "made", "detect")
    found = boxes_of(tmp_path / "made" / "data.yaml")["train"]["x.png"]
    assert_same_objects(found, [("a", (11, 11, 50, 40))])


@pytest.mark.parametrize(
    ("task", "o", "numbers"),
    [
        ("obb", Object("a", corners=SQUARE), 8),
        ("pose", Object("a", box=(10, 10, 50, 40), keypoints=((20, 20, 2), (30, 30, 0))), 10),
        ("segment", Object("a", outline=(SQUARE,)), 8),
    ],
)
def test_each_task_has_its_numbers_and_is_found_by_the_labels(
    task: str, o: Object, numbers: int, tmp_path: Path
) -> None:
    made = content(tmp_path, picture(tmp_path / "x.png", o))
    assert task_of(made)[0] == task
    write(made, tmp_path / "made", task)
    assert len(lines(tmp_path / "made")[0].split()) == 1 + numbers


def test_a_task_that_some_objects_lack_something_for_is_refused_with_their_number(
    tmp_path: Path,
) -> None:
    one = picture(tmp_path / "x.png", Object("a", outline=(SQUARE,)), Object("a", box=(1, 1, 9, 9)))
    assert task_of(content(tmp_path, one)) == (
        "detect",
        "not all objects have polygons (1 of 2), so all are taken as boxes",
    )
    with pytest.raises(InputError, match=r"1 of 2 objects have no outline, which the task segment"):
        write(content(tmp_path, one), tmp_path / "made", "segment")


def test_all_images_that_cannot_be_used_are_told(tmp_path: Path) -> None:
    (tmp_path / "x.gif").write_bytes(b"")
    (tmp_path / "y.png").write_bytes(b"no image")
    pictures = [
        Picture(tmp_path / "x.gif", entry="images.0"),
        Picture(tmp_path / "y.png", (Object("a", box=(1, 1, 2, 2)),), entry="images.1"),
    ]
    with pytest.raises(InputError) as error:
        write(content(tmp_path, *pictures), tmp_path / "made", "detect")
    assert [line.split(": ", 2)[1] for line in error.value.problems] == ["images.0", "images.1"]


def test_ultralytics_reads_what_is_written(tmp_path: Path) -> None:
    pictures = [
        picture(
            tmp_path / "x.png", Object("b", box=(10, 20, 50, 60)), Object("a", box=(0, 0, 9, 9))
        ),
        picture(tmp_path / "empty.png"),
    ]
    both = Content("test", tmp_path, ("a", "b"), {"train": pictures, "val": pictures})
    write(both, tmp_path / "made", "detect")
    data = read_data_yaml(tmp_path / "made" / "data.yaml", where="test")
    found: Any = scan_split(data, "detect", "train", tmp_path)
    by_name = {Path(label["im_file"]).name: label["cls"].ravel().tolist() for label in found.labels}
    assert by_name == {"x.png": [1, 0], "empty.png": []}
