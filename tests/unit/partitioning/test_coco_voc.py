"""COCO and Pascal VOC folders, split as they are downloaded."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from partitions import NUM_TRAIN, NUM_VAL, listed, run
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
    flat = f"warning: 1 of {n} objects have a box without width or height and are left out"
    assert warnings == [flat] * ("bbox" in change)


def test_a_coco_file_without_objects_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of(source, tmp_path / "coco")
    for path in (tmp_path / "coco" / "annotations").iterdir():
        path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert code == 2
    assert "has a label" in errors[0]


def test_a_broken_coco_file_is_named_and_nothing_is_left(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of(source, tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 5
    path.write_text(json.dumps(content))
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert code == 2
    assert errors == [
        f"error: {path}: annotations.0.category_id: found 5, which none of the categories has; "
        "correct or remove the annotation"
    ]
    assert not (tmp_path / "parts").exists()
    path.unlink()
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert code == 2
    assert errors == [
        f"error: {path.parent}: found none, expected one .json with 'val' in its name, e.g. "
        "instances_val2017.json"
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": None}, "images: found None; expected a valid array"),
        ({"images.0.width": "wide"}, "images.0.width: found 'wide'; expected a valid number, "),
        ({"images.0.width": 0}, "images.0.width: found 0; expected greater than 0"),
        ({"images.0.id": [1]}, "images.0.id: found [1]; expected a valid integer"),
        ({"images.1.id": 0}, "images: two have the id 0; give each its own"),
        ({"categories.1.id": 0}, "categories: two have the id 0; give each its own"),
        ({"annotations.0": None}, "annotations.0: found None; expected an object"),
        ({"annotations.0.bbox": None}, "annotations.0.bbox: found None; expected a valid array"),
        (
            {"annotations.0.bbox": [1, 2, 3]},
            "annotations.0.bbox: found [1, 2, 3]; List should have",
        ),
        ({"annotations.0.bbox": [1, 2, 3, 1e999]}, "annotations.0.bbox.3: found inf; expected a f"),
        ({"annotations.0.keypoints": "x"}, "annotations.0.keypoints: found 'x'; expected a valid"),
        (
            {"annotations.0.image_id": "0"},
            "annotations.0.image_id: found '0', which none of the im",
        ),
    ],
)
def test_what_is_wrong_in_a_coco_file_is_said_with_its_place(
    change: dict[str, Any], expected: str, source: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    coco_of(source, tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "instances_train2017.json"

    def spoil(content: Any) -> None:
        for place, value in change.items():
            *parents, last = (int(p) if p.isdigit() else p for p in place.split("."))
            for parent in parents:
                content = content[parent]
            content[last] = value

    edit_coco(path, spoil)
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert code == 2
    assert errors[0].startswith(f"error: {path}: {expected}")
    assert len(errors) == 1 or "two have" in expected  # some annotations are of none then


def test_of_many_problems_of_a_coco_file_a_few_are_shown(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of(source, tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    edit_coco(path, lambda content: [image.pop("width") for image in content["images"]])
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert (code, len(errors)) == (2, 6)
    assert errors[4:] == [
        f"error: {path}: images.4.width: Field required",
        f"error: {path}: ... and {NUM_TRAIN - 5} more problems",
    ]
    path.write_text("no JSON")
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert (code, len(errors)) == (2, 1)
    assert errors[0].startswith(f"error: {path}: Invalid JSON: expected ident at line 1 column 2")


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


def test_objects_of_other_numbers_of_keypoints_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of(source, tmp_path / "coco")
    folder = tmp_path / "coco" / "annotations"

    def give_points(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["keypoints"] = [10, 10, 2, 20, 20, 1]
        content["annotations"][1]["keypoints"] = [10, 10, 2, 20, 20, 1, 7]
        content["annotations"][2].update(keypoints=[10, 10, 2], iscrowd=1)

    for path in folder.iterdir():
        edit_coco(path, give_points)
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert code == 2
    assert errors == [
        f"error: {folder}/instances_{split}2017.json: annotations.1.keypoints: found 7 numbers, "
        "expected x, y and visibility of 2 keypoints, as in the first object; correct it, or make "
        "a data set of each kind of object"
        for split in ("train", "val")
    ]


def test_objects_without_keypoints_are_left_out_of_coco_with_a_word(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of(source, tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "instances_train2017.json"
    total = 0

    def give_points(content: dict[str, Any]) -> None:
        nonlocal total
        for annotation in content["annotations"]:
            annotation["keypoints"] = [10, 10, 2, 20, 20, 1]
            total += 1

    for split in ("train", "val"):
        edit_coco(path.with_name(f"instances_{split}2017.json"), give_points)
    edit_coco(path, lambda content: content["annotations"][0].update(keypoints=[0] * 6))
    code, shown, warnings = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert code == 0
    assert shown.startswith(f"Labels of pose: all {total} objects have keypoints\n")
    assert warnings[0] == (
        f"warning: 1 of {total} objects have no labelled keypoint and are left out, as in COCO's "
        "scores; where they are to be learned as boxes, make a detect data set of them"
    )
    result = json.loads((tmp_path / "parts" / "partitions.json").read_text())
    objects = [
        client[f"{split}_classes"]
        for client in result["clients"].values()
        for split in ("train", "val")
    ]
    assert result["task"] == "pose"
    assert sum(sum(classes.values()) for classes in objects) == total - 1


def test_names_of_keypoints_come_from_the_categories_of_coco(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of(source, tmp_path / "coco")
    folder = tmp_path / "coco" / "annotations"

    def give_points(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            annotation["keypoints"] = [10, 10, 2, 20, 20, 1]
        content["categories"][0]["keypoints"] = ["only one"]
        content["categories"][1]["keypoints"] = ["nose", "tail"]

    for path in folder.iterdir():
        edit_coco(path, give_points)
    path = folder / "instances_val2017.json"
    edit_coco(path, lambda content: content["categories"][1].pop("keypoints"))  # one says it
    code, _, warnings = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert code == 0
    assert warnings == [
        "warning: COCO does not say which keypoints change places in a mirrored image: training "
        "will not mirror images left-right until flip_idx is added to the clients' data.yaml files"
    ]
    for name in ("source", "client_0", "client_1"):
        data = yaml.safe_load((tmp_path / "parts" / name / "data.yaml").read_text())
        assert (data["kpt_shape"], data["kpt_names"]) == ([2, 3], {1: ["nose", "tail"]})
    edit_coco(path, lambda content: content["categories"][1].update(keypoints=["tail", "nose"]))
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "again", "--clients", 2)
    assert (code, len(errors)) == (2, 1)
    assert errors[0].startswith(f"error: {path}: its categories list other keypoints than those")


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["0.jpg", "0.png"], "file_name '0.png' and '0.jpg' differ only in their ending"),
        (["images/0.jpg"], "file_name 'images/0.jpg': expected one below the folder of the split"),
        (["a/../../0.jpg"], "file_name 'a/../../0.jpg': expected one below the folder"),
        (["/a/0.jpg"], "file_name '/a/0.jpg': expected one below the folder of the split"),
        (["0.gif"], "file_name '0.gif': expected an image that Ultralytics reads (avif, bmp, "),
    ],
)
def test_names_in_coco_whose_labels_would_go_astray_are_refused(
    names: list[str], expected: str, source: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    coco_of(source, tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "instances_val2017.json"
    edit_coco(
        path,
        lambda content: [
            image.update(file_name=name)
            for image, name in zip(content["images"], names, strict=False)
        ],
    )
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert (code, len(errors)) == (2, 1)
    assert errors[0].startswith(f"error: {path}: {expected}")
    assert not (tmp_path / "parts").exists()


def test_two_coco_categories_of_one_name_are_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of(source, tmp_path / "coco")
    folder = tmp_path / "coco" / "annotations"
    for path in folder.iterdir():
        edit_coco(path, lambda content: content["categories"][2].update(name="a"))
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert code == 2
    assert errors == [
        f"error: {folder}/instances_train2017.json: categories: 'a' is listed twice (0 and 9); "
        "classes are told apart by their names; rename one"
    ]


def test_one_coco_file_for_train_and_val_is_refused(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco_of(source, tmp_path / "coco")
    folder = tmp_path / "coco" / "annotations"
    (folder / "instances_val2017.json").unlink()
    path = (folder / "instances_train2017.json").rename(folder / "instances_trainval.json")
    code, _, errors = run(capsys, tmp_path / "coco", "-o", tmp_path / "parts", "--clients", 2)
    assert (code, len(errors)) == (2, 1)
    assert errors[0].startswith(f"error: {path}: the only .json with 'train' or 'val' in its name")


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
    pytest.importorskip("supervision")
    folder = tmp_path / "voc"
    voc_of(source, folder)
    for name, path in (("yolo", source), ("voc", folder)):
        code, shown, errors = run(capsys, path, "-o", tmp_path / f"parts_{name}", "--clients", 2)
        assert (code, errors) == (0, [])
    assert shown.startswith("Labels of detect: Pascal VOC has boxes\n")
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
    assert "val.txt: no such file; it lists the val images" in errors[0]


def test_lists_of_pascal_voc_have_names_of_any_kind_and_a_missing_xml_is_said(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("supervision")
    folder = tmp_path / "voc"
    voc_of(source, folder)
    for part, ending in (("JPEGImages", "jpg"), ("Annotations", "xml")):
        (folder / part / f"train_0.{ending}").rename(folder / part / f"a 1.{ending}")
    for number in (1, 2):
        (folder / "Annotations" / f"train_{number}.xml").unlink()
    path = folder / "ImageSets" / "Main" / "train.txt"
    lines = ["a 1", "  train_1  -1", "", "train_2", "train_3"]
    path.write_text("\n".join(lines), encoding="utf-8-sig")
    code, _, warnings = run(capsys, folder, "-o", tmp_path / "parts", "--clients", 1)
    assert code == 0
    assert warnings == [
        f"warning: 2 of {4 + NUM_VAL} listed images have no .xml in {folder}/Annotations and are "
        "taken as images without objects"
    ]
    names = {Path(image).stem for images in listed(tmp_path / "parts") for image in images}
    assert names == {"a 1", "train_1", "train_2", "train_3"}


def test_without_supervision_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "supervision", None)
    for part in ("JPEGImages", "Annotations"):
        (tmp_path / "voc" / part).mkdir(parents=True)
    code, _, errors = run(capsys, tmp_path / "voc", "-o", tmp_path / "parts")
    assert code == 2
    assert errors == [
        f'error: {tmp_path}/voc: Pascal VOC is read by supervision: pip install -e ".[supervision]"'
    ]


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
    images = tmp_path / "parts" / "source" / "images"
    assert (code, len(errors)) == (2, 6)
    assert errors[0].endswith(
        f": {images}/val/0.jpg is in train (as {images}/train/0.jpg) and in val; list it in one"
    )
    code, _, errors = run(capsys, pets, "-o", tmp_path / "parts", "--clients", 2)
    assert code == 2
    assert errors == [
        f"error: {pets}: {pets}/val/a/twin.jpg is in train (as {pets}/train/a/3.jpg) and in val; "
        "list it in one"
    ]
