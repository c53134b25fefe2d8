"""COCO and Pascal VOC folders, split as they are downloaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from partitions import run
from recipes import file_digests, make_class_folders

from federated_yolo.data.scan import check_dataset


def coco_of(data: Path, folder: Path, outline: str = "none") -> None:
    """The same data set as COCO, with category numbers that begin at 0 and leave one out.

    outline: what `segmentation` of each object is: "polygon", "corners" (of the box), "empty" (a
    list of nothing) or "none" (it is not there).
    """
    (folder / "annotations").mkdir(parents=True)
    names = {0: "a", 4: "b", 9: "c"}
    for split in ("train", "val"):
        shutil.copytree(data.parent / "images" / split, folder / f"{split}2017")
        content = {
            "categories": [{"id": i, "name": name} for i, name in names.items()],
            "images": [],
            "annotations": [],
        }
        for path in sorted((folder / f"{split}2017").iterdir()):
            image_id = len(content["images"])
            content["images"].append(
                {"id": image_id, "file_name": path.name, "width": 64, "height": 64}
            )
            for row in (
                (data.parent / "labels" / split / f"{path.stem}.txt").read_text().splitlines()
            ):
                label, x, y, w, h = (float(value) for value in row.split())
                box = [64 * (x - w / 2), 64 * (y - h / 2), 64 * w, 64 * h]
                left, top, right, low = box[0], box[1], box[0] + box[2], box[1] + box[3]
                middle = [] if outline == "corners" else [(left + right) / 2, low]
                shape = [[left, top, right, top, right, low, *middle, left, low]]
                shape = [] if outline == "empty" else shape
                content["annotations"].append(
                    {"image_id": image_id, "category_id": list(names)[int(label)], "bbox": box}
                    | ({} if outline == "none" else {"segmentation": shape})
                )
        path = folder / "annotations" / f"instances_{split}2017.json"
        path.write_text(json.dumps(content))


def edit_coco(path: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change what an annotation file holds."""
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("outline", "task"),
    [("polygon", "segment"), ("corners", "segment"), ("empty", "detect"), ("none", "detect")],
)
def test_coco_gives_the_same_split_as_the_data_set_it_was_made_of(
    outline: str, task: str, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of(source, tmp_path / "coco", outline)
    before = file_digests(tmp_path / "coco")
    for name, path in (("yolo", source), ("coco", tmp_path / "coco")):
        code, _, errors = run(capsys, path, "-o", tmp_path / f"parts_{name}", "--clients", 2)
        assert (code, errors) == (0, [])
    results = [
        json.loads((tmp_path / f"parts_{name}" / "partitions.json").read_text())
        for name in ("yolo", "coco")
    ]
    assert results[1]["clients"] == results[0]["clients"]
    assert results[1]["task"] == task
    labels = tmp_path / "parts_coco" / "source" / "labels" / "train"
    rows = [row.split() for path in labels.iterdir() for row in path.read_text().splitlines()]
    assert {len(row) for row in rows} == {{"polygon": 11, "corners": 9}.get(outline, 5)}
    assert file_digests(tmp_path / "coco") == before
    data = tmp_path / "parts_coco" / "client_0" / "data.yaml"
    summary = check_dataset(data, "detect", tmp_path, where="x", splits=("train", "val"))
    assert summary.names == ("a", "b", "c")


@pytest.mark.parametrize(
    ("change", "task", "why"),
    [
        ({}, "segment", "all {n} objects have polygons"),
        ({"segmentation": []}, "detect", "not all objects have polygons ({but_one} of {n}), so"),
        ({"segmentation": [[1, 1, 20, 1, 20, 20, 5]]}, "detect", "not all objects have polygons"),
        ({"segmentation": {"counts": "", "size": [64, 64]}}, "detect", "not all objects have"),
        ({"keypoints": [9, 9, 2]}, "segment", "all {n} objects have polygons; not all have key"),
        # These two are left out.
        ({"segmentation": [], "iscrowd": 1}, "segment", "all {but_one} objects have polygons"),
        ({"segmentation": [], "bbox": [1, 1, 0, 5]}, "segment", "all {but_one} objects have poly"),
    ],
)
def test_what_coco_labels_are_taken_as_is_said_with_the_reason(
    change: dict[str, Any], task: str, why: str, source: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    coco_of(source, tmp_path / "coco", "polygon")
    path = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    edit_coco(path, lambda content: content["annotations"][0].update(change))
    code, shown, warnings = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert code == 0
    n = sum(len(json.loads(p.read_text())["annotations"]) for p in path.parent.iterdir())
    assert shown.startswith(f"Labels of {task}: {why.format(n=n, but_one=n - 1)}")
    assert "base_model" not in shown.splitlines()[0]  # these labels are what they are
    assert warnings == []
    assert ("left out: a 1: a box without width or height" in shown) == ("bbox" in change)
    assert ("left out: a 1: a crowd" in shown) == ("iscrowd" in change)
    left_out = json.loads((tmp_path / "parts" / "partitions.json").read_text())["left_out"]
    num_left_out = sum(sum(counts.values()) for counts in left_out.values())
    assert num_left_out == bool({"iscrowd", "bbox"} & set(change))


def test_a_coco_file_without_objects_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of(source, tmp_path / "coco")
    for path in (tmp_path / "coco" / "annotations").iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert code == 2
    assert "has a label" in errors[0]


def test_ids_and_numbers_of_coco_may_be_texts_and_the_file_may_begin_with_a_mark(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of(source, tmp_path / "coco")
    folder = tmp_path / "coco" / "annotations"

    def rename(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image.update(id=f"image {image['id']}", width="64", height=64.0, area=float("nan"))
        for annotation in content["annotations"]:
            annotation["image_id"] = f"image {annotation['image_id']}"
            annotation["category_id"] = float(annotation["category_id"])

    edit_coco(folder / "instances_train2017.json", rename)
    path = folder / "instances_val2017.json"
    path.write_text(path.read_text(), encoding="utf-8-sig")
    clients = []
    for name, place in (("yolo", source), ("coco", tmp_path / "coco")):
        code, _, errors = run(capsys, place, "-o", tmp_path / f"parts_{name}", "--clients", 2)
        assert (code, errors) == (0, [])
        result = json.loads((tmp_path / f"parts_{name}" / "partitions.json").read_text())
        clients.append(result["clients"])
    assert clients[1] == clients[0]


def voc_of(data: Path, folder: Path) -> None:
    """The same data set as Pascal VOC. In each image, the objects but the first have a polygon."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    for split in ("train", "val"):
        stems = []
        for path in sorted((data.parent / "images" / split).iterdir()):
            stem = f"{split}_{path.stem}"
            stems.append(stem)
            shutil.copy(path, folder / "JPEGImages" / f"{stem}.jpg")
            objects = ""
            label = data.parent / "labels" / split / f"{path.stem}.txt"
            for row in label.read_text().splitlines():
                index, x, y, w, h = (float(value) for value in row.split())
                low, high = (round(64 * (x - w / 2)) + 1, round(64 * (y - h / 2)) + 1), (
                    round(64 * (x + w / 2)), round(64 * (y + h / 2)),
                )  # fmt: skip
                # The polygon, of which some VOC data sets have one here and there, is left out.
                polygon = f"<polygon><x1>{low[0]}</x1><y1>{low[1]}</y1><x2>{high[0]}</x2>" + (
                    f"<y2>{low[1]}</y2><x3>{high[0]}</x3><y3>{high[1]}</y3></polygon>"
                )
                objects += (
                    f"<object><name>{'abc'[int(index)]}</name><bndbox><xmin>{low[0]}</xmin>"
                    f"<ymin>{low[1]}</ymin><xmax>{high[0]}</xmax><ymax>{high[1]}</ymax></bndbox>"
                    f"{polygon if objects else ''}</object>"
                )
            (folder / "Annotations" / f"{stem}.xml").write_text(
                f"<annotation><filename>{stem}.jpg</filename>{objects}</annotation>"
            )
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(stems))


def test_pascal_voc_gives_the_same_split_as_the_data_set_it_was_made_of(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "voc"
    voc_of(source, folder)
    for name, path in (("yolo", source), ("voc", folder)):
        code, shown, errors = run(capsys, path, "-o", tmp_path / f"parts_{name}", "--clients", 2)
        assert code == 0
    assert [error.partition("voc: ")[2] for error in errors] == [
        "no <source> says who wrote it; pixels are counted from 1, as VOC does"
    ]
    assert shown.startswith("Labels of detect: not all objects have polygons (18 of 36), so all")
    results = [
        json.loads((tmp_path / f"parts_{name}" / "partitions.json").read_text())
        for name in ("yolo", "voc")
    ]
    labels = (tmp_path / "parts_voc" / "source" / "labels").rglob("*.txt")
    rows = [row.split() for path in labels for row in path.read_text().splitlines()]
    assert {len(row) for row in rows} == {5}
    assert results[1]["task"] == "detect"
    assert results[1]["clients"] == results[0]["clients"]
    (folder / "ImageSets" / "Main" / "val.txt").unlink()
    code, _, errors = run(capsys, folder, "-o", tmp_path / "parts", "--clients", 2)
    assert (code, len(errors)) == (2, 1)
    assert "Pascal VOC without a val split; val_fraction=0.2" in errors[0]


def test_an_image_in_train_and_val_by_two_paths_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of(source, tmp_path / "coco")
    folder = tmp_path / "coco" / "images"  # of both splits
    shutil.move(tmp_path / "coco" / "train2017", folder)
    shutil.rmtree(tmp_path / "coco" / "val2017")
    pets = make_class_folders(tmp_path / "pets", num_train=6, num_val=3)
    (pets / "val" / "a" / "0.jpg").unlink()
    (pets / "val" / "a" / "twin.jpg").symlink_to(pets / "train" / "a" / "3.jpg")
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    image = folder / "0.jpg"
    assert (code, len(errors)) == (2, 6)
    assert errors[0].endswith(f": {image} is in train (as {image}) and in val; list it in one")
    code, _, errors = run(capsys, pets, "-o", tmp_path / "parts", "--clients", 2)
    assert code == 2
    assert errors == [
        f"error: {pets}: {pets}/val/a/twin.jpg is in train (as {pets}/train/a/3.jpg) and in val; "
        "list it in one"
    ]
