"""Exports that look like what they are not: boxes as corners, files of another's name, no JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import exports_coco as made
import pytest
from exports_coco import Shot, coco_of, draw, save

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports import coco, createml, files, named, yolo_folders
from federated_yolo.data.exports.classification import is_table, read_class_folders
from federated_yolo.data.exports.convert import Options, prepare
from federated_yolo.data.exports.recognise import recognise, unknown_folder

SMALL = (Shot("a.jpg", (("a", (3, 4, 20, 20)), ("a", (5, 6, 15, 12)))),)


def corners_of(folder: Path, shots: tuple[Shot, ...], *, with_area: bool) -> Path:
    """A COCO file whose boxes are left, top, right, bottom."""
    content = coco_of(shots)
    for annotation, (_, box) in zip(
        content["annotations"], (o for shot in shots for o in shot.objects), strict=True
    ):
        annotation["bbox"] = list(box)
        if not with_area:
            del annotation["area"]
    return of_content(folder, shots, content)


def of_content(
    folder: Path, shots: tuple[Shot, ...], content: dict[str, Any], name: str = ""
) -> Path:
    for shot in shots:
        draw(folder / shot.name, shot.size)
    save(folder / (name or "x.json"), content)
    return folder


def test_boxes_whose_area_is_that_of_corners_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="are right only as left, top, right, bottom"):
        coco.read_coco(corners_of(tmp_path, SMALL, with_area=True))


def test_boxes_that_are_corners_are_refused_though_one_is_outside(tmp_path: Path) -> None:
    objects = (("a", (30, 20, 60, 47)), ("a", (40, 30, 70, 45)))
    with pytest.raises(InputError, match="are right only as left, top, right, bottom"):
        coco.read_coco(corners_of(tmp_path, (Shot("a.jpg", objects),), with_area=False))


def test_boxes_of_their_own_area_are_read(tmp_path: Path) -> None:
    content = coco.read_coco(of_content(tmp_path, SMALL, coco_of(SMALL)))
    assert content.splits["train"][0].objects[0].box == (3, 4, 20, 20)


def test_the_coco_file_of_makesense_is_recognised_by_its_boxes(tmp_path: Path) -> None:
    name = "labels_my-project-name_2024-05-01-10-00-00.json"
    folder = of_content(tmp_path, SMALL, coco_of(SMALL), name)
    found = recognise(folder)
    assert found
    assert found.name == "COCO"
    content = coco_of(SMALL)
    for annotation in content["annotations"]:
        del annotation["bbox"]  # as Datumaro's labels of whole images
    save(folder / name, content)
    assert recognise(folder) is None


def test_objects_of_createml_above_or_left_of_an_image_are_refused(tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg", (64, 48))
    box = {"x": 3, "y": 4, "width": 27, "height": 36}  # which are left and top
    entry = {"image": "a.jpg", "annotations": [{"label": "a", "coordinates": box}]}
    (tmp_path / "a.json").write_text(json.dumps([entry]))
    with pytest.raises(InputError, match=r"its objects reach from -10\.5 x -14 to 16\.5 x 22"):
        createml.read_createml(tmp_path)


def test_objects_of_label_files_with_an_ending_in_capitals_are_counted(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw(tmp_path / f"{name}.jpg", (64, 48))
    (tmp_path / "classes.txt").write_text("cat\n")
    (tmp_path / "a.TXT").write_text("0 .5 .5 .1 .1\n")
    (tmp_path / "b.txt").write_text("0 .5 .5 .1 .1\n")
    content = yolo_folders.read_labelimg(tmp_path)
    assert [dict(counts) for counts in content.left_out.values()] == [{"cat": 1}]


def test_endless_json_is_of_no_format(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_text("[" * 100_000)
    assert recognise(tmp_path) is None


@pytest.mark.parametrize("column", ["x_center", "xc", "x0", "bbox_x"])
def test_a_table_with_places_is_none_of_classes(column: str, tmp_path: Path) -> None:
    draw(tmp_path / "a.jpg", (64, 48))
    (tmp_path / "t.csv").write_text("image,label\na.jpg,cat\n")
    assert is_table(tmp_path)
    (tmp_path / "t.csv").write_text(f"image,label,{column}\na.jpg,cat,3\n")
    assert not is_table(tmp_path)


def test_a_folder_around_a_data_set_names_the_data_set(tmp_path: Path) -> None:
    made.coco(tmp_path / "my data", made.SOME)
    (tmp_path / "__MACOSX").mkdir()
    assert unknown_folder(tmp_path).endswith(f"give {tmp_path / 'my data'}")
    (tmp_path / "other").mkdir()
    assert unknown_folder(tmp_path).startswith("a folder that is not known")


TEXTS = {
    "of the VGG Image Annotator (VIA), CSV": ("v.csv", "filename,region_shape_attributes\n"),
    "VoTT's JSON": ("a.json", '{"assets": {"x": {"regions": [{"boundingBox": {}}]}}}'),
    "JSON of Darwin (V7)": ("a.json", '{"item": {"slots": []}, "annotations": []}'),
    "JSON of SuperAnnotate": ("a.json", '{"metadata": {}, "instances": []}'),
    "JSON of Encord": ("a.json", '[{"label_hash": "x", "data_units": {}}]'),
    "of BDD100K": ("a.json", '[{"name": "a", "labels": [{"box2d": {}}]}]'),
    "of Cityscapes": ("a.json", '{"imgHeight": 4, "objects": [{"polygon": []}]}'),
    "of DOTA": ("labelTxt/a.txt", "gsd:0.1\n1 1 5 1 5 5 1 5 plane 0\n"),
    "of CrowdHuman": ("a.odgt", '{"ID": "a", "gtboxes": []}\n'),
}


@pytest.mark.parametrize("name", TEXTS)
def test_more_formats_are_named_with_the_next_step(name: str, tmp_path: Path) -> None:
    file, text = TEXTS[name]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    found = recognise(tmp_path)
    assert found in named.FORMATS
    assert found
    assert found.name == name
    assert found.advice


def test_boxes_that_cvat_has_turned_are_turned(tmp_path: Path) -> None:
    shots = (Shot("a.jpg", (("a", (17, 14, 47, 34)), ("a", (1, 1, 9, 5)))),)
    content = coco_of(shots)
    content["annotations"][0]["attributes"] = {"occluded": False, "rotation": 90.0}
    content["annotations"][1]["attributes"] = {"occluded": False, "rotation": 0.0}
    turned, plain = coco.read_coco(of_content(tmp_path, shots, content)).splits["train"][0].objects
    assert turned.bounds == pytest.approx((22, 9, 42, 39))
    assert plain.box == (1, 1, 9, 5)


def test_a_data_set_of_any_yaml_stays_the_users_own_beside_annotations(tmp_path: Path) -> None:
    of_content(tmp_path, (), coco_of(SMALL))
    for split in ("train", "val"):
        draw(tmp_path / "images" / split / "a.jpg", (64, 48))
    assert recognise(tmp_path)
    text = "train: images/train\nval: images/val\nnames: [a]\n"
    (tmp_path / "my.yaml").write_text(text)
    assert recognise(tmp_path) is None
    assert prepare(tmp_path, tmp_path / "made", "x", Options(), where="").path.name == "my.yaml"


def test_residue_of_zip_files_is_no_image_outside_of_the_classes(tmp_path: Path) -> None:
    for name in ("cat/a.jpg", "dog/b.jpg"):
        draw(tmp_path / name, (64, 48))
    (tmp_path / "._a.jpg").write_bytes(b"\0\5\x16\7")
    assert read_class_folders(tmp_path).names == ("cat", "dog")


def test_a_folder_is_walked_once_for_all_formats(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stuff").mkdir()
    walked: list[tuple[Path, int | None]] = []
    original = files._walk

    def counted(root: Path, depth: int | None) -> Iterator[Path]:
        walked.append((root, depth))
        return original(root, depth)

    monkeypatch.setattr(files, "_walk", counted)
    assert recognise(tmp_path) is None
    assert len(walked) == len(set(walked))
