"""CreateML, Supervisely, Datumaro, CVAT and CSV: shapes, refusals and what is left out."""

import json
import os
from pathlib import Path

import exports_per_image as made
import numpy as np
import pytest
from read_per_image import (
    BOX,
    ONE,
    WRITERS,
    boxes,
    objects_of,
    read,
    recognised,
    refused,
)

from federated_yolo.data.exports import tables


def other_of(kind: str, folder: Path) -> Path:
    """One image in a format; gives the file that describes it."""
    WRITERS[kind][0](folder, [ONE], ["cat", "dog"])
    return next(
        path
        for name in ("_annotations.*", "*.jpg.json", "train.json", "annotations.xml", "train-*.csv")
        for path in folder.rglob(name)
    )


@pytest.mark.parametrize(
    ("kind", "old", "new", "expected"),
    [
        ("createml", '"width": 16', '"width": -3', "0.annotations.0.coordinates.width: found -3"),
        ("createml", '"label": "cat"', '"label": ""', "0.annotations.0.label: found ''"),
        ("createml", '"a.jpg"', '"../../b.jpg"', "0.image: no image '../../b.jpg' below"),
        ("createml", "}]", "}", "not readable as CreateML"),
        ("supervisely", '"width": 64', '"width": "x"', "size.width: found 'x'"),
        ("supervisely", "[[4, 6], [20, 30]]", "[[4, 6]]", "found 1 corners of a rectangle"),
        ("supervisely", '"rectangle"', '"bitmap"', "objects.0 ('cat'): found a bitmap without"),
        ("datumaro", '"label_id": 0', '"label_id": 2', "label_id: found 2, expected 0 to 1"),
        ("datumaro", '"bbox": [4', '"box": [4', "annotations.0: found a bbox without"),
        ("datumaro", '"path": "a.jpg"', '"path": "/x/b.jpg"', None),
        ("datumaro", '"items": [', '"items": [1,', "items.0: found 1"),
        ("cvat", 'xtl="4"', 'xtl="x"', "image 0 ('a.jpg'): xtl: found 'x', expected a number"),
        ("cvat", 'name="a.jpg"', 'name="c.jpg"', "image 0 ('c.jpg'): no image 'c.jpg' below"),
        ("cvat", "<image ", '<track label="cat"/><image ', "CVAT for video 1.1, with 1 tracks"),
        ("cvat", "</annotations>", "", "not readable as XML"),
        ("table", "cat,4", "cat,x", "row 2: xmin: found 'x', expected a number"),
        ("table", "cat,4", ",4", "row 2: no class; correct or remove the row"),
        ("table", "cat,4,6,20,30", "cat,0.1,0.1,0.2,0.3", "seem to be fractions"),
        ("table", "a.jpg", "c.jpg", "row 2: no image 'c.jpg' below"),
        ("open_images", "0.0625", "4", "row 2: found 4, expected fractions of the image"),
        ("open_images", "0.0625", "", "row 2: no XMin"),
        ("open_images", "a,x", "c,x", "none of the images of the tables is below"),
    ],
)  # fmt: skip
def test_what_is_wrong_in_other_formats_is_refused(
    kind: str, old: str, new: str, expected: str | None, tmp_path: Path
) -> None:
    file = other_of(kind, tmp_path)
    text = file.read_text()
    assert old in text
    made.save(file, text.replace(old, new, 1))
    if expected is None:
        assert [*boxes(read(tmp_path)).values()] == [[BOX]]
        return
    problems = refused(tmp_path).splitlines()
    assert len(problems) == 1
    assert expected in problems[0]
    assert str(tmp_path) in problems[0]


def test_fractions_in_createml_are_refused(tmp_path: Path) -> None:
    file = other_of("createml", tmp_path)
    content = json.loads(file.read_text())
    place = content[0]["annotations"][0]["coordinates"]
    place.update(x=0.5, y=0.5, width=0.2, height=0.3)
    made.save(file, json.dumps(content))
    assert "no coordinate is above 1, so that they seem to be fractions" in refused(tmp_path)


@pytest.mark.parametrize("kind", ["createml", "supervisely", "datumaro", "cvat", "table"])
def test_an_image_of_two_entries_is_refused(kind: str, tmp_path: Path) -> None:
    file = other_of(kind, tmp_path)
    text = file.read_text()
    if kind == "supervisely":
        made.save(file.with_name("a.json"), text)
    elif kind == "table":
        made.save(file, text + text.splitlines()[1].replace("a.jpg", "./a.jpg"))
    elif kind == "cvat":
        entry = text[text.index("<image ") : text.index("</annotations>")]
        made.save(file, text.replace(entry, entry + entry))
    else:
        content = json.loads(text)
        entries = content if kind == "createml" else content["items"]
        entries.append(entries[0])
        made.save(file, json.dumps(content))
    assert "are both of the image" in refused(tmp_path)


def test_masks_polygons_and_other_shapes_of_supervisely(tmp_path: Path) -> None:
    file = other_of("supervisely", tmp_path)
    mask = np.ones((4, 6), bool)
    mask[0, 0] = False
    content = json.loads(file.read_text())
    triangle = {"exterior": [[1, 2], [9, 2], [5, 8]], "interior": [[[4, 3], [5, 3], [5, 4]]]}
    bitmap = {"data": made.png(mask, compressed=True), "origin": [10, 20]}
    content["objects"] = [
        {"classTitle": "dog", "geometryType": "bitmap", "bitmap": bitmap},
        {"classTitle": "cat", "geometryType": "polygon", "points": triangle},
        {"classTitle": "cat", "geometryType": "point", "points": {"exterior": [[1, 2]]}},
        {"classTitle": "cat", "geometryType": "graph", "nodes": {}},
    ]
    made.save(file, json.dumps(content))
    found = read(tmp_path)
    assert [(o.name, o.bounds) for o in objects_of(found)] == [
        ("dog", (10, 20, 16, 24)), ("cat", (1, 2, 9, 8))
    ]  # fmt: skip
    assert {r: dict(c) for r, c in found.left_out.items()} == {
        "a point, which is no area": {"cat": 1}, "a graph, which is no area": {"cat": 1}
    }  # fmt: skip
    assert found.notes[0].startswith("1 objects have holes")


def test_polygons_groups_and_masks_of_datumaro(tmp_path: Path) -> None:
    file = other_of("datumaro", tmp_path)
    content = json.loads(file.read_text())
    polygon = {"type": "polygon", "label_id": 1, "group": 3, "points": [1, 2, 9, 2, 5, 8]}
    content["items"][0]["annotations"] = [
        polygon,
        {**polygon, "points": [20, 20, 30, 20, 30, 30]},
        {**polygon, "group": 0},
        {"type": "mask", "label_id": 0, "rle": {"counts": "", "size": [1, 1]}},
        {"type": "bbox", "label_id": 0, "bbox": [4, 6, 16, 24], "attributes": {"rotation": 90.0}},
        {"type": "ellipse", "label_id": 0, "points": [10, 10, 20, 30]},
    ]
    made.save(file, json.dumps(content))
    found = read(tmp_path)
    assert [o.bounds and tuple(round(n, 6) for n in o.bounds) for o in objects_of(found)] == [
        (1, 2, 30, 30), (1, 2, 9, 8), (0, 10, 24, 26), (10, 10, 20, 30)
    ]  # fmt: skip
    assert [*found.left_out] == ["a mask, which is not read from Datumaro (COCO has it)"]


def test_datumaro_files_with_other_classes_are_refused(tmp_path: Path) -> None:
    file = other_of("datumaro", tmp_path)
    content = json.loads(file.read_text())
    content["categories"]["label"]["labels"].reverse()
    content["items"] = []
    made.save(file.with_name("val.json"), json.dumps(content))
    assert "val.json: categories.label: other classes than in train.json" in refused(tmp_path)


def test_shapes_of_cvat(tmp_path: Path) -> None:
    file = other_of("cvat", tmp_path)
    shapes = (
        '<polygon label="dog" points="1.00,2.00;9.00,2.00;5.00,8.00" group_id="2"/>'
        '<polygon label="dog" points="20.0,20.0;30.0,20.0;30.0,30.0" group_id="2"/>'
        '<mask label="cat" rle="0, 5, 2, 5" left="10" top="20" width="6" height="2"/>'
        '<box label="cat" xtl="4" ytl="6" xbr="20" ybr="30" rotation="90.00"/>'
        '<ellipse label="cat" cx="30" cy="20" rx="10" ry="5" rotation="90"/>'
        '<points label="cat" points="1,2"/><polyline label="cat" points="1,2;3,4"/>'
        '<tag label="dog"/></image>'
    )
    made.save(file, file.read_text().replace("</image>", shapes))
    found = read(tmp_path)
    assert [o.bounds and tuple(round(n, 6) for n in o.bounds) for o in objects_of(found)] == [
        (4, 6, 20, 30), (1, 2, 30, 30), (10, 20, 16, 22), (0, 10, 24, 26), (25, 10, 35, 30)
    ]  # fmt: skip
    assert {r: dict(c) for r, c in found.left_out.items()} == {
        "points, which is no area": {"cat": 1},
        "polyline, which is no area": {"cat": 1},
        "tag of the whole image, which is no area": {"dog": 1},
    }
    made.save(file, file.read_text().replace("0, 5, 2, 5", "0, 5, 2"))
    assert "rle of a mask of 'cat': found runs of 7 pixels for 6 x 2" in refused(tmp_path)


def test_tables_leave_nothing_out_unsaid(tmp_path: Path) -> None:
    made.write_table(tmp_path / "rf", [ONE], [])
    made.draw(tmp_path / "rf" / "train" / "bare.jpg", (9, 9))
    content = read(tmp_path / "rf")
    assert boxes(content) == {"train:train/a.jpg": [BOX], "train:train/bare.jpg": []}
    assert content.notes[0].startswith("1 images have no row in")
    table = tmp_path / "rf" / "train" / "_annotations.csv"
    table.rename(tmp_path / "rf" / "train" / "train_labels.csv")
    content = read(tmp_path / "rf")
    assert boxes(content) == {"train:train/a.jpg": [BOX]}
    assert content.notes == ("1 images have no row in a table and are left out: bare.jpg",)
    file = other_of("open_images", tmp_path / "oi")
    rows = file.read_text().splitlines()
    head, row = f"{rows[0]},IsGroupOf", f"{rows[1]},0"
    made.save(file, "\n".join([head, row, f"{rows[1]},1", row.replace("a,x", "gone,x")]))
    content = read(tmp_path / "oi")
    assert boxes(content) == {"train:train/a.jpg": [BOX]}
    assert {r: dict(c) for r, c in content.left_out.items()} == {tables.GROUP: {"cat": 1}}
    assert "rows of 1 images that are not there" in content.notes[0]
    assert content.names == ("cat", "dog")


@pytest.mark.parametrize("kind", ["createml", "datumaro", "cvat", "table", "open_images"])
def test_the_file_of_an_export_stands_for_its_folder(kind: str, tmp_path: Path) -> None:
    file = other_of(kind, tmp_path)
    assert recognised(file) == WRITERS[kind][1]
    assert [*boxes(read(file)).values()] == [[BOX]]


@pytest.mark.parametrize("kind", WRITERS)
def test_special_files_are_refused_without_waiting_for_them(kind: str, tmp_path: Path) -> None:
    WRITERS[kind][0](tmp_path, [ONE], ["cat"])
    (image,) = tmp_path.rglob("*.jpg")
    os.mkfifo(image.with_name("b.jpg"))
    assert f"{image.with_name('b.jpg')}: is a FIFO, expected an ordinary file" in refused(tmp_path)


def test_special_files_of_annotations_are_passed_over_or_refused(tmp_path: Path) -> None:
    for ending in ("json", "xml", "csv", "ndjson", "tfrecord"):
        os.mkfifo(tmp_path / f"a.{ending}")
    assert recognised(tmp_path) in (None, "TFRecord")
