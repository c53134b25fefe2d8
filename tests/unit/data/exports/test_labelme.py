"""labelme: shapes are where they were drawn; what is none is counted or refused."""

import json
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import exports_per_image as made
import numpy as np
import pytest
import truths
from read_per_image import (
    boxes,
    objects_of,
    prepared,
    read,
    refused,
)

from federated_yolo.data.exports import labelme


def labelme_of(folder: Path, *shapes: Mapping[str, object], image: str = "a.jpg") -> Path:
    made.draw(folder / "a.jpg", (64, 48))
    made.save_labelme(folder / "a.json", image, (64, 48), shapes)
    return folder


def shape(kind: str | None, *points: Sequence[object], **more: object) -> dict[str, object]:
    return {"label": "cat", "shape_type": kind, "points": list(points), **more}


def test_shapes_of_labelme_are_where_they_were_drawn(tmp_path: Path) -> None:
    mask = np.zeros((10, 6), bool)
    mask[2:, 1:4] = True
    turned = [[10, 4], [20, 14], [14, 20], [4, 10]]
    content = read(
        labelme_of(
            tmp_path,
            shape("polygon", [1, 2], [9, 2.5], [5, 8]),
            shape(None, [1, 2], [9, 2.5], [5, 8]),
            shape("rectangle", [30, 20], [10, 25]),
            shape("rectangle", [10, 20], [30, 20], [30, 25], [10, 25]),
            shape("circle", [20, 20], [23, 24]),
            shape("mask", [7, 5], [12, 14], mask=made.png(mask)),
            shape("oriented_rectangle", *turned),
            shape("rotation", *turned),
        )
    )
    triangle, box, ring, blob, corners, _ = [objects_of(content)[i] for i in (0, 2, 4, 5, 6, 7)]
    assert objects_of(content)[1] == triangle
    assert objects_of(content)[3] == box
    assert triangle.outline == (((1, 2), (9, 2.5), (5, 8)),)
    assert (box.bounds, box.outline) == ((10, 20, 30, 25), ())
    assert ring.bounds == (15, 15, 25, 25)
    assert len(ring.outline[0]) == 32
    assert all(np.hypot(x - 20, y - 20) == pytest.approx(5) for x, y in ring.outline[0])
    assert blob.bounds == (8, 7, 11, 15)
    assert set(blob.outline[0]) == {(8, 7), (11, 7), (11, 15), (8, 15)}
    assert corners.corners == ((10, 4), (20, 14), (14, 20), (4, 10))
    assert corners.bounds == (4, 4, 20, 20)
    assert not content.left_out


def test_what_labelme_has_beside_areas_is_counted(tmp_path: Path) -> None:
    hollow = np.ones((5, 5), bool)
    hollow[2, 2] = False
    content = read(
        labelme_of(
            tmp_path,
            shape("point", [1, 2]),
            shape("line", [1, 2], [3, 4]),
            shape("linestrip", [1, 2], [3, 4], [5, 6]),
            shape("polygon", [1, 2], [3, 4]),
            shape("rectangle", [1, 2], [3, 4], label="__ignore__"),
            shape("mask", [0, 0], [4, 4], mask=made.png(~hollow & hollow)),
            shape("mask", [0, 0], [4, 4], mask=made.png(hollow)),
        )
    )
    assert {reason: dict(counts) for reason, counts in content.left_out.items()} == {
        "a point, which is no area": {"cat": 1},
        "a line, which is no area": {"cat": 1},
        "a linestrip, which is no area": {"cat": 1},
        "a polygon of fewer than three points": {"cat": 1},
        "labelme's __ignore__": {"__ignore__": 1},
        "an empty mask": {"cat": 1},
    }
    assert [o.bounds for o in objects_of(content)] == [(0, 0, 5, 5)]
    assert content.notes[0].startswith("1 objects have holes, which are filled")


def test_shapes_of_a_group_of_labelme_are_parts_of_one_object(tmp_path: Path) -> None:
    one, two = ([1, 2], [9, 2], [5, 8]), ([30, 30], [40, 30], [35, 40])
    content = read(
        labelme_of(
            tmp_path,
            shape("polygon", *one, group_id=0),
            shape("polygon", *two, group_id=0),
            shape("polygon", *two, group_id=0, label="dog"),
            shape("polygon", *two, group_id=1),
            shape("polygon", *two),
            shape("polygon", *two),
        )
    )
    assert [(o.name, len(o.outline)) for o in objects_of(content)] == [
        ("cat", 2), ("dog", 1), ("cat", 1), ("cat", 1), ("cat", 1)
    ]  # fmt: skip
    assert objects_of(content)[0].bounds == (1, 2, 40, 40)


def test_labelme_finds_images_of_windows_and_of_other_folders(tmp_path: Path) -> None:
    made.draw(tmp_path / "images" / "train" / "b c.JPG", (64, 48))
    made.draw(tmp_path / "images" / "val" / "b c.JPG", (64, 48))
    for split in ("train", "val"):
        path = tmp_path / "labels" / split / "b c.json"
        image = f"..\\..\\images\\{split}\\b c.JPG"
        made.save_labelme(path, image, (64, 48), [shape("rectangle", [1, 2], [3, 4])])
    assert {s: len(p) for s, p in read(tmp_path).splits.items()} == {"train": 1, "val": 1}
    (tmp_path / "images" / "train" / "b c.JPG").rename(tmp_path / "labels" / "train" / "b c.JPG")
    assert "train:labels/train/b c.JPG" in boxes(read(tmp_path))


def test_labelme_finds_names_whose_letters_macos_took_apart(tmp_path: Path) -> None:
    made.draw(tmp_path / "img" / unicodedata.normalize("NFC", "Größe.jpg"), (64, 48))
    name = unicodedata.normalize("NFD", "Größe.jpg")
    made.save_labelme(
        tmp_path / "b.json", f"img/{name}", (64, 48), [shape("rectangle", [1, 2], [3, 4])]
    )
    assert [*boxes(read(tmp_path)).values()] == [[("cat", (1, 2, 3, 4))]]


def test_rotated_rectangles_alone_are_for_the_task_obb(tmp_path: Path) -> None:
    turned = shape("oriented_rectangle", [10, 4], [20, 14], [14, 20], [4, 10])
    for split in ("train", "val"):
        labelme_of(tmp_path / "data" / split, turned)
    out = prepared(tmp_path / "data", tmp_path / "out")
    assert out.made
    assert out.made.task == "obb"
    text = (out.path.parent / "labels" / "train" / "a.txt").read_text()
    numbers = [float(n) for n in text.split()[1:]]
    corners = [10 / 64, 4 / 48, 20 / 64, 14 / 48, 14 / 64, 20 / 48, 4 / 64, 10 / 48]
    assert numbers == pytest.approx(corners)


def test_other_files_in_a_folder_of_labelme_are_said(tmp_path: Path) -> None:
    labelme_of(tmp_path, shape("rectangle", [1, 2], [3, 4]))
    made.draw(tmp_path / "later.jpg", (9, 9))
    made.save(tmp_path / "truth.json", '{"names": []}')
    notes = read(tmp_path).notes
    assert notes[0] == "1 .json files are not of labelme and are passed over: truth.json"
    assert notes[1].startswith("1 images have no .json and are left out (later.jpg)")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"imagePath": "b.jpg"}, "imagePath names b.jpg, and a.jpg is there, too"),
        ({"shapes": [shape("rectangle", [1, 2])]}, r"shapes.0 ('cat'): found 1 points of a rect"),
        ({"shapes": [shape("mask", [1, 2], mask="x")]}, "is no PNG in base64"),
        (
            {"shapes": [shape("polygon", [1, "x"], [2, 3], [4, 5])]},
            "shapes.0.points.0.1: found 'x'",
        ),
        ({"shapes": [shape("polygon", label="")]}, "shapes.0.label: found ''"),
        ({"shapes": None}, "shapes: found None"),
    ],
)
def test_what_is_wrong_in_labelme_is_refused(
    change: dict[str, object], expected: str, tmp_path: Path
) -> None:
    labelme_of(tmp_path)
    made.draw(tmp_path / "b.jpg", (64, 48))
    content = json.loads((tmp_path / "a.json").read_text())
    made.save(tmp_path / "a.json", json.dumps({**content, **change}))
    found = refused(tmp_path, labelme.read_labelme).splitlines()
    assert len(found) == 1
    assert expected in found[0]
    assert str(tmp_path / "a.json") in found[0]


def test_labelme_without_image_files_or_with_flags_alone_has_a_next_step(tmp_path: Path) -> None:
    labelme_of(tmp_path, shape("rectangle", [1, 2], [3, 4]))
    content = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.jpg").unlink()
    made.save(tmp_path / "a.json", json.dumps({**content, "imageData": "/9j/"}))
    assert 'write it as a file once, by "labelme_export_json a.json"' in refused(tmp_path)
    made.draw(tmp_path / "a.jpg", (64, 48))
    made.save(tmp_path / "a.json", json.dumps({**content, "shapes": [], "flags": {"cat": True}}))
    assert "1 files have flags and no shapes, as labelme's classification" in refused(tmp_path)
    made.save(tmp_path / "a.json", '{"shapes": [], "imagePath": "a.jpg"')
    assert "a.json: not readable as labelme" in refused(tmp_path)


@pytest.mark.skipif(not truths.FORMATS.is_dir(), reason="shared/cases is not beside this checkout")
def test_the_case_of_labelme_is_read(tmp_path: Path) -> None:
    folder = truths.FORMATS / "labelme"
    content = read(folder)
    assert content.task is None
    assert set(content.splits) == {"train"}
    out = prepared(folder, tmp_path, val_fraction=0.3)
    assert out.made
    assert (out.made.task, out.made.left_out) == ("segment", {})
    truths.assert_truth(out.path, json.loads((folder / "truth.json").read_text()), within=0.011)


def test_boxes_of_one_group_stay_objects_of_their_own(tmp_path: Path) -> None:
    """As X-AnyLabeling writes the boxes of a track; only outlines are parts of one object."""
    first = {**shape("rectangle", [1, 2], [11, 12]), "group_id": 3}
    second = {**shape("rectangle", [30, 20], [40, 30]), "group_id": 3}
    labelme_of(tmp_path, first, second)
    content = read(tmp_path)
    assert [o.box for o in objects_of(content)] == [(1, 2, 11, 12), (30, 20, 40, 30)]
    assert not content.notes
