"""COCO exports: read from every layout with each object at its place, or refused with a reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import exports_coco as made
import numpy as np
import pytest
import truths
import yaml
from exports_coco import IDS, SOME, Shot, coco_of, draw, edit, run_lengths, save, written
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from recipes import file_digests

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports import coco, convert
from federated_yolo.data.exports.coco_objects import CROWD
from federated_yolo.data.exports.convert import Options, Prepared
from federated_yolo.data.exports.masks import rle_outline
from federated_yolo.data.exports.write import FLAT, UNLABELLED, write
from federated_yolo.data.scan import check_dataset


def prepare(path: Path, **options: Any) -> Prepared:
    return convert.prepare(path, path.parent / "made", "x", Options(**options), where="")


def assert_as(prepared: Prepared, truth: dict[Path, Any]) -> None:
    found = written(prepared.path)
    assert found.keys() == truth.keys()
    for path, objects in truth.items():
        truths.assert_same_objects(found[path], objects)


def refusal(path: Path, **options: Any) -> list[str]:
    with pytest.raises(InputError) as caught:
        prepare(path, **options)
    return caught.value.problems


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """COCO as it is downloaded."""
    made.coco(tmp_path / "coco", SOME)
    return tmp_path / "coco"


@pytest.fixture
def train(folder: Path) -> Path:
    """Its annotation file of the train split."""
    return folder / "annotations" / "instances_train2017.json"


@pytest.mark.parametrize("layout", made.WITH_SPLITS)
def test_splits_of_every_layout_have_their_objects(
    layout: Callable[..., Any], tmp_path: Path
) -> None:
    truth = layout(tmp_path / "in", SOME)
    before = file_digests(tmp_path / "in")
    prepared = prepare(tmp_path / "in")
    assert_as(prepared, truth)
    assert file_digests(tmp_path / "in") == before
    assert prepared.made
    assert prepared.made.images == {"train": 4, "val": 2}
    assert prepared.made.objects["train"] == {"a": 3, "b": 2, "c": 1}
    summary = check_dataset(
        prepared.path, "detect", tmp_path / "cache", where="x", splits=("train", "val")
    )
    assert summary.names == ("a", "b", "c")


@pytest.mark.parametrize("layout", made.WITHOUT)
def test_layouts_without_splits_are_all_train(layout: Callable[..., Any], tmp_path: Path) -> None:
    truth = layout(tmp_path / "in", SOME)
    content = coco.read_coco(tmp_path / "in")
    assert {split: len(pictures) for split, pictures in content.splits.items()} == {"train": 6}
    assert_as(prepare(tmp_path / "in", val_fraction=0.3), truth)
    assert "without a val split; val_fraction=0.2" in refusal(tmp_path / "in")[0]


def test_a_file_itself_is_read_with_its_images(folder: Path, train: Path, tmp_path: Path) -> None:
    truth = {p: o for p, o in made.coco(folder, SOME).items() if p.parent.name == "train2017"}
    assert_as(prepare(train, val_fraction=0.4), truth)
    content = coco.read_coco(folder / "annotations" / "instances_val2017.json")
    assert {split: len(pictures) for split, pictures in content.splits.items()} == {"val": 2}
    assert content.splits["val"][0].entry == "images.0"
    truth = made.roboflow(tmp_path / "rf", SOME)
    content = coco.read_coco(tmp_path / "rf" / "valid" / "_annotations.coco.json")
    assert {p.path for p in content.splits["val"]} == {p for p in truth if p.parent.name == "valid"}


NAMES = st.from_regex(r"[a-zé #%~(+'&;-]{1,6}[0-9]", fullmatch=True).filter(
    lambda name: name.strip() == name
)
BOXES = st.tuples(st.floats(2, 30), st.floats(2, 20), st.floats(2, 30), st.floats(2, 25)).map(
    lambda n: (n[0], n[1], n[0] + n[2], n[1] + n[3])
)


@st.composite
def shots(draw_: st.DrawFn) -> made.Shots:
    """Images of two splits, some with the same names in other folders."""
    names = draw_(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    folders = draw_(
        st.lists(st.sampled_from(["", "x/", "x/y z/", "images/"]), min_size=1, unique=True)
    )
    ending = draw_(st.sampled_from([".png", ".PNG", ".bmp"]))
    objects = st.lists(st.tuples(st.sampled_from(sorted(IDS)), BOXES), max_size=3).map(tuple)
    return {
        split: [Shot(f + name + ending, draw_(objects)) for f in folders for name in names]
        for split in ("train", "val")
    }


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    shots=shots(),
    layout=st.sampled_from([*made.WITH_SPLITS, *made.WITHOUT]),
    order=st.permutations(sorted(IDS)),
    numbers=st.lists(st.integers(1, 999), min_size=3, max_size=3, unique=True),
    first_id=st.integers(-3, 10**9),
    step=st.integers(1, 50),
)
def test_names_ids_and_orders_of_any_kind_keep_objects_at_their_place(
    shots: made.Shots, layout: Callable[..., Any], order: list[str], numbers: list[int],
    first_id: int, step: int, tmp_path_factory: pytest.TempPathFactory,
) -> None:  # fmt: skip
    folder = tmp_path_factory.mktemp("any") / "in"
    ids = dict(zip(order, numbers, strict=True))
    truth = layout(folder, shots, ids=ids, first_id=first_id, step=step)
    content = coco.read_coco(folder)
    found = {p.path: [(o.name, o.box) for o in p.objects] for p in content.pictures}
    assert found.keys() == truth.keys()
    for path, objects in truth.items():
        truths.assert_same_objects(found[path], objects)  # pyright: ignore
    assert set(content.names) == set(IDS)
    if layout is not made.roboflow:  # which gives numbers in the order of the classes
        assert list(content.names) == sorted(ids, key=lambda name: ids[name])
    if "val" in content.splits:
        assert_as(prepare(folder), truth)


@pytest.mark.parametrize("case", ["cvat_coco_default", "cvat_coco_masks", "rf_coco"])
def test_shared_exports_have_every_object_at_its_place(case: str, tmp_path: Path) -> None:
    source = truths.FORMATS / case
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    options = Options(val_fraction=0.25)
    prepared = convert.prepare(source, tmp_path, "x", options, where="")
    truths.assert_truth(prepared.path, json.loads((source / "truth.json").read_text()))
    assert prepared.made
    assert prepared.made.task == ("segment" if case == "cvat_coco_masks" else "detect")
    assert prepared.made.left_out == {}


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("coco_dupnames_same", r"images\.1\.file_name: 'BloodImage_00001\.jpg' .* of images\.0"),
        (
            "coco_wrong_size",
            r"images\.0: .* is 320 x 240 pixels, .* 640 x 480 \(and 11 more\), but",
        ),
    ],
)
def test_shared_exports_that_cannot_be_right_are_refused(
    case: str, message: str, tmp_path: Path
) -> None:
    source = truths.FORMATS / case
    if not source.is_dir():
        pytest.skip(f"{source} is not there")
    with pytest.raises(InputError, match=message):
        convert.prepare(source, tmp_path, "x", Options(), where="")


@pytest.mark.parametrize("factor", [2, 0.5])
def test_boxes_are_rescaled_with_images_of_another_size(factor: float, folder: Path) -> None:
    truth = {}
    for path, objects in made.coco(folder, SOME).items():
        with Image.open(path) as image:
            size = image.size
        draw(path, (int(size[0] * factor), int(size[1] * factor)))
        truth[path] = [(name, tuple(n * factor for n in box)) for name, box in objects]
    assert f"all 6 images are {factor:g} times as large as in the export" in refusal(folder)[0]
    assert_as(prepare(folder, rescale=True), truth)


def test_sizes_that_alone_are_wrong_rescale_nothing(folder: Path) -> None:
    for path in (folder / "annotations").iterdir():
        edit(path, lambda c: [i.update(width=2 * i["width"]) for i in c["images"]])
        edit(path, lambda c: [i.update(height=2 * i["height"]) for i in c["images"]])
    assert "only the sizes in the export are wrong" in refusal(folder, rescale=True)[0]


def test_other_folders_are_not_coco(folder: Path, train: Path, tmp_path: Path) -> None:
    assert coco.is_coco(folder)
    assert coco.is_coco(train)
    for place in (folder / "train2017", tmp_path, tmp_path / "none", Path("x\0y")):
        assert not coco.is_coco(place)
    (folder / "data.yaml").write_text("train: train2017\n")  # it has labels of its own
    assert not coco.is_coco(folder)
    for number, content in enumerate(
        (
            [{"image": "a.jpg", "annotations": []}],  # CreateML
            {"shapes": [], "imagePath": "a.jpg"},  # labelme
            {"categories": [{"id": 0, "name": "a"}], "info": {}},  # notes.json of Label Studio
            {"classes": ["a"], "labels": {"a": "b"}},  # FiftyOne's classification
            {"info": {}, "categories": {}, "items": [{"id": "a", "annotations": []}]},  # Datumaro
        )
    ):
        other = tmp_path / f"other{number}"
        (other / "data").mkdir(parents=True)
        (other / "labels.json").write_text(json.dumps(content))
        assert not coco.is_coco(other)
        assert not coco.is_coco(other / "labels.json")


# Masks and crowds.


def with_mask(path: Path, index: int, mask: np.ndarray, **change: Any) -> None:
    """Give an object a mask in place of polygons, with the box of Datumaro."""
    rows, columns = np.nonzero(mask)
    left, top = int(columns.min()), int(rows.min())
    box = [left, top, int(columns.max()) - left, int(rows.max()) - top]
    change = {"segmentation": run_lengths(mask), "bbox": box, **change}
    edit(path, lambda content: content["annotations"][index].update(change))


def rectangle(left: int, top: int, right: int, bottom: int) -> np.ndarray:
    mask = np.zeros((48, 64), np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


@pytest.mark.parametrize("crowd", [0, 1])
@pytest.mark.parametrize("share", ["all", "one, by CVAT"])
def test_masks_are_objects_with_the_box_of_their_pixels(
    crowd: int, share: str, folder: Path, train: Path
) -> None:
    (folder / "annotations" / "instances_val2017.json").unlink()
    truth = {p: list(o) for p, o in made.coco(folder, SOME).items() if p.parent.name == "train2017"}
    (folder / "annotations" / "instances_val2017.json").unlink()
    content = json.loads(train.read_text())
    size = {i["id"]: (i["height"], i["width"]) for i in content["images"]}
    boxes = [box for objects in truth.values() for _, box in objects]
    for index, annotation in enumerate(content["annotations"]):
        left, top, right, bottom = (round(n) for n in boxes[index])
        if share == "all" or index == 0:
            mask = np.zeros(size[annotation["image_id"]], np.uint8)
            mask[top:bottom, left:right] = 1
            with_mask(train, index, mask, iscrowd=crowd, attributes={"occluded": False})
        else:
            polygon = [left, top, right, top, right, bottom, left, bottom]
            box = [left, top, right - left, bottom - top]
            change = {"segmentation": [polygon], "bbox": box, "attributes": {"occluded": True}}
            edit(train, lambda c, i=index, change=change: c["annotations"][i].update(change))
    prepared = prepare(folder, val_fraction=0.3)
    rounded = {
        path: [(name, tuple(round(n) for n in box)) for name, box in objects]
        for path, objects in truth.items()
    }
    assert_as(prepared, rounded)
    assert prepared.made
    assert (prepared.made.task, prepared.made.left_out) == ("segment", {})
    marked = f"{6 if share == 'all' else 1} objects with iscrowd: 1 are taken as single objects"
    assert any(marked in note for note in prepared.made.notes) == bool(crowd)


def test_all_marked_masks_are_objects_whoever_wrote_them(folder: Path) -> None:
    for path in (folder / "annotations").iterdir():
        number = len(json.loads(path.read_text())["annotations"])
        for index in range(number):
            edit(path, lambda c, i=index: c["annotations"][i].update(iscrowd=1))
    content = coco.read_coco(folder)
    assert sum(len(p.objects) for p in content.pictures) == 9
    assert content.left_out == {}
    assert "crowds are rare" in content.notes[0]


def test_masks_that_supervision_marks_are_objects(folder: Path, train: Path) -> None:
    with_mask(train, 0, rectangle(2, 3, 9, 9), iscrowd=1)
    assert coco.read_coco(folder).left_out == {CROWD: {"a": 1}}
    for path in train.parent.iterdir():
        edit(path, lambda c: [x.update(supercategory="common-objects") for x in c["categories"]])
    content = coco.read_coco(folder)
    assert content.left_out == {}
    assert content.splits["train"][0].objects[0].box == (2, 3, 9, 9)


def test_a_crowd_is_left_out_and_counted_by_class(folder: Path, train: Path) -> None:
    with_mask(train, 1, rectangle(2, 3, 9, 9), iscrowd=1)
    prepared = prepare(folder)
    assert prepared.made
    assert prepared.made.left_out == {CROWD: {"c": 1}}
    assert prepared.made.objects["train"] == {"a": 3, "b": 2}
    assert not prepared.made.notes


TEXTS = [  # made by pycocotools 2.0.11 of the masks beside
    (";230009", [(2, 1, 5, 3)], (7, 5)),
    ("0S1", [(0, 0, 7, 5)], (7, 5)),
]


@pytest.mark.parametrize(("text", "boxes", "size"), TEXTS)
def test_compressed_run_lengths_are_read(
    text: str, boxes: list[truths.Box], size: tuple[int, int], tmp_path: Path
) -> None:
    shot = Shot("a.png", (("a", (0, 0, 5, 5)),), size)
    made.label_studio(tmp_path / "in", {"train": [shot]})
    segmentation = {"size": [size[1], size[0]], "counts": text}
    left, top, right, bottom = boxes[0]
    change = {"segmentation": segmentation, "bbox": [left, top, right - left, bottom - top]}
    edit(tmp_path / "in" / "result.json", lambda c: c["annotations"][0].update(change))
    (o,) = coco.read_coco(tmp_path / "in").splits["train"][0].objects
    corners = {(left, top), (right, top), (right, bottom), (left, bottom)}
    assert (o.box, set(o.outline[0])) == (boxes[0], corners)


def test_compressed_and_plain_run_lengths_are_the_same_to_pycocotools() -> None:
    library = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = np.asfortranarray(rng.random((37, 300)) < 0.4, np.uint8)
        text = library.encode(mask)["counts"].decode()
        plain = run_lengths(mask)
        assert rle_outline(plain, (300, 37)) == rle_outline({**plain, "counts": text}, (300, 37))


def test_holes_and_parts_of_masks_are_kept(tmp_path: Path) -> None:
    shot = Shot("a.png", (("a", (0, 0, 64, 48)),))
    made.label_studio(tmp_path / "in", {"train": [shot], "val": [shot]})
    mask = rectangle(4, 4, 30, 40)
    mask[10:20, 8:25] = 0
    mask[30:36, 10:12] = 0
    mask[20:44, 40:60] = 1
    mask[46, 62] = 1  # a single pixel
    with_mask(tmp_path / "in" / "result.json", 0, mask)
    with_mask(tmp_path / "in" / "result.json", 1, mask)
    content = coco.read_coco(tmp_path / "in")
    outline = content.splits["train"][0].objects[0].outline
    assert len(outline) == 3
    folder = tmp_path / "written"
    write(content, folder, "segment")
    line = (folder / "labels" / "train" / "a.txt").read_text().split()[1:]
    scale = 16
    points = np.array(line, float).reshape(-1, 2) * (64 * scale, 48 * scale)
    drawn = np.zeros((48 * scale, 64 * scale), np.uint8)
    cv2.fillPoly(drawn, [np.round(points - 0.5).astype(np.int32)], (1,))
    expected = mask.repeat(scale, 0).repeat(scale, 1)
    assert (drawn != expected).mean() < 0.01


def test_a_mask_is_fitted_to_a_box_of_fractions_of_pixels(folder: Path, train: Path) -> None:
    with_mask(train, 0, rectangle(2, 3, 10, 11), bbox=[2.25, 2.5, 8.25, 8])
    o = coco.read_coco(folder).splits["train"][0].objects[0]
    xs, ys = zip(*o.outline[0], strict=True)
    assert (min(xs), min(ys), max(xs), max(ys)) == o.box == (2.25, 2.5, 10.5, 10.5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": [64, 48]}, r"found a mask of the size \[64, 48\], expected \[48, 64\], the heig"),
        ({"size": None}, "found a mask of the size None"),
        ({"counts": [5, 5]}, "found run lengths of 10 pixels, expected those of the image, 3072"),
        ({"counts": [3073, -1]}, "found counts that are no run lengths"),
        ({"counts": {"a": 1}}, "found counts that are no run lengths"),
        ({"counts": "0"}, "found run lengths of 0 pixels"),
        ({"counts": "P"}, "found a text of run lengths that ends too early"),
        ({"counts": "PPPPPPPPPPPPPPPPPPPPPPPPPPPPP"}, "found counts that are no text"),
        ({"counts": "zz"}, "found counts that are no text of run lengths"),
    ],
)
def test_masks_that_are_none_of_their_image_are_refused(
    change: dict[str, Any], message: str, folder: Path, train: Path
) -> None:
    with_mask(train, 1, rectangle(2, 3, 9, 9))
    edit(train, lambda c: c["annotations"][1]["segmentation"].update(change))
    with pytest.raises(InputError, match=rf"annotations\.1\.segmentation: {message}"):
        prepare(folder)


# What labels are for.


def with_polygons(folder: Path) -> None:
    def add(content: dict[str, Any]) -> None:
        for annotation in content["annotations"]:
            left, top, width, height = annotation["bbox"]
            middle = [left + width / 2, top + height]
            right, low = left + width, top + height
            polygon = [left, top, right, top, right, low, *middle, left, low]
            annotation["segmentation"] = [polygon]

    for path in (folder / "annotations").iterdir():
        edit(path, add)


@pytest.mark.parametrize(
    ("change", "task", "why"),
    [
        ({}, "segment", "all 9 objects have polygons"),
        ({"segmentation": []}, "detect", "not all objects have polygons (8 of 9), so"),
        ({"segmentation": [[1, 1, 20, 1, 20, 20, 5]]}, "detect", "not all objects have polygons"),
        ({"segmentation": {"counts": "", "size": [48, 64]}}, "detect", "not all objects have"),
        ({"segmentation": [1, 2, 30, 2, 30, 40]}, "segment", "all 9 objects have polygons"),
        ({"keypoints": [9, 9, 2]}, "segment", "all 9 objects have polygons; not all have keyp"),
        # These two are left out.
        ({"segmentation": [], "iscrowd": 1}, "segment", "all 8 objects have polygons"),
        ({"segmentation": [], "bbox": [1, 1, 0, 5]}, "segment", "all 8 objects have poly"),
    ],
)
def test_what_labels_are_taken_as_is_said_with_the_reason(
    change: dict[str, Any], task: str, why: str, folder: Path, train: Path
) -> None:
    with_polygons(folder)
    edit(train, lambda content: content["annotations"][0].update(change))
    summary = prepare(folder).made
    assert summary
    assert (summary.task, summary.why[: len(why)]) == (task, why)
    expected = {CROWD: {"a": 1}} if "iscrowd" in change else {FLAT: {"a": 1}}
    assert summary.left_out == (expected if "8 objects" in why else {})


def test_objects_without_a_box_get_it_from_their_polygon(folder: Path, train: Path) -> None:
    truth = made.coco(folder, SOME)
    with_polygons(folder)
    for value in (None, [], [0, 0, 0, 0], "none"):
        edit(train, lambda c, v=value: [a.update(bbox=v) for a in c["annotations"]])
        if value == "none":
            edit(train, lambda c: [a.pop("bbox") for a in c["annotations"]])
        assert_as(prepare(folder), truth)
    edit(train, lambda c: [a.update(segmentation=[]) for a in c["annotations"]])
    assert refusal(folder)[0].startswith(
        f"{train}: annotations.0.bbox: found None; expected a valid array"
    )


def test_a_file_without_objects_is_refused(folder: Path, tmp_path: Path) -> None:
    for path in (folder / "annotations").iterdir():
        edit(path, lambda content: content.pop("annotations"))
    with pytest.raises(InputError, match="has a label"):
        check_dataset(
            prepare(folder).path, "detect", tmp_path / "c", where="x", splits=("train", "val")
        )


# Keypoints.


def with_keypoints(folder: Path, points: list[float]) -> None:
    for path in (folder / "annotations").iterdir():
        edit(path, lambda c: [a.update(keypoints=list(points)) for a in c["annotations"]])


def test_keypoints_are_kept_with_their_visibility(folder: Path) -> None:
    with_keypoints(folder, [16, 12, 2, 32, 24, 1, 0, 0, 0])
    prepared = prepare(folder)
    assert prepared.made
    assert (prepared.made.task, prepared.made.why) == ("pose", "all 9 objects have keypoints")
    assert "flip_idx" in prepared.made.notes[0]
    data = yaml.safe_load(prepared.path.read_text())
    assert data["kpt_shape"] == [3, 3]
    label = prepared.path.parent / "labels" / "train" / "0.txt"
    rows = [line.split() for line in label.read_text().splitlines()]
    assert rows[0][5:] == ["0.25", "0.25", "2", "0.5", "0.5", "1", "0", "0", "0"]


def test_objects_of_other_numbers_of_keypoints_are_refused(folder: Path, train: Path) -> None:
    with_keypoints(folder, [10, 10, 2, 20, 20, 1])

    def spoil(content: dict[str, Any]) -> None:
        content["annotations"][1]["keypoints"] = [10, 10, 2, 20, 20, 1, 7]
        if len(content["annotations"]) > 3:
            content["annotations"][2].update(keypoints=[10, 10, 2], iscrowd=1)

    for path in train.parent.iterdir():
        edit(path, spoil)
    assert refusal(folder) == [
        f"{train.parent}/instances_{split}2017.json: annotations.1.keypoints: found 7 numbers, "
        "expected x, y and visibility of 2 keypoints, as in the first object; correct it, or make "
        "a data set of each kind of object"
        for split in ("train", "val")
    ]


def test_objects_without_keypoints_are_left_out_with_their_count(folder: Path, train: Path) -> None:
    with_keypoints(folder, [10, 10, 2, 20, 20, 1])
    edit(train, lambda content: content["annotations"][0].update(keypoints=[0] * 6))
    summary = prepare(folder).made
    assert summary
    assert summary.task == "pose"
    assert summary.left_out == {UNLABELLED: {"a": 1}}
    assert summary.objects["train"] == {"a": 2, "b": 2, "c": 1}
    boxes = prepare(folder, task="detect").made
    assert boxes
    assert (boxes.left_out, boxes.objects["train"]) == ({}, {"a": 3, "b": 2, "c": 1})


def test_names_of_keypoints_come_from_the_categories(folder: Path, train: Path) -> None:
    with_keypoints(folder, [10, 10, 2, 20, 20, 1])

    def name(content: dict[str, Any]) -> None:
        content["categories"][0]["keypoints"] = ["only one"]
        content["categories"][1]["keypoints"] = ["nose", "tail"]

    for path in train.parent.iterdir():
        edit(path, name)
    val = train.with_name("instances_val2017.json")
    edit(val, lambda content: content["categories"][1].pop("keypoints"))  # one says it
    data = yaml.safe_load(prepare(folder).path.read_text())
    assert (data["kpt_shape"], data["kpt_names"]) == ([2, 3], {1: ["nose", "tail"]})
    edit(val, lambda content: content["categories"][1].update(keypoints=["tail", "nose"]))
    assert refusal(folder)[0].startswith(f"{val}: categories: 'b' lists other keypoints than")


# Refusals.


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"images": None}, "images: found None; expected a valid array"),
        ({"images.0.width": "wide"}, "images.0.width: found 'wide'; expected a valid number, "),
        ({"images.0.width": 0}, "images.0.width: found 0; expected greater than 0"),
        ({"images.0.id": [1]}, "images.0.id: found [1]; expected a valid integer"),
        ({"images.1.id": 1}, "images: two have the id 1; give each its own"),
        ({"categories.1.id": 0}, "categories: two have the id 0; give each its own"),
        ({"categories": None}, "categories: found None; expected a valid array"),
        ({"annotations.0": None}, "annotations.0: found None; expected an object"),
        ({"annotations.0.bbox": None}, "annotations.0.bbox: found None; expected a valid array"),
        (
            {"annotations.0.bbox": [1, 2, 3]},
            "annotations.0.bbox: found [1, 2, 3]; List should have",
        ),
        ({"annotations.0.bbox": [1, 2, 3, 1e999]}, "annotations.0.bbox.3: found inf; expected a f"),
        ({"annotations.0.keypoints": "x"}, "annotations.0.keypoints: found 'x'; expected a valid"),
        (
            {"annotations.0.image_id": "1"},
            "annotations.0.image_id: found '1', which none of the im",
        ),
        (
            {"annotations.0.category_id": 5},
            "annotations.0.category_id: found 5, which none of the categories has; correct or",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_its_place(
    change: dict[str, Any], expected: str, folder: Path, train: Path
) -> None:
    def spoil(content: Any) -> None:
        for place, value in change.items():
            *parents, last = (int(p) if p.isdigit() else p for p in place.split("."))
            for parent in parents:
                content = content[parent]
            content[last] = value

    edit(train, spoil)
    problems = refusal(folder)
    assert problems[0].startswith(f"{train}: {expected}")
    assert len(problems) == 1 or "two have" in expected  # some annotations are of none then
    assert not [*(folder.parent / "made").glob("*")]


def test_of_many_problems_a_few_are_shown(tmp_path: Path) -> None:
    made.label_studio(tmp_path / "in", {"train": [Shot(f"{n}.png") for n in range(12)]})
    path = tmp_path / "in" / "result.json"
    edit(path, lambda content: [image.pop("width") for image in content["images"]])
    problems = refusal(tmp_path / "in")
    assert len(problems) == 6
    assert problems[4:] == [
        f"{path}: images.4.width: Field required",
        f"{path}: ... and 7 more problems",
    ]


def test_a_broken_file_is_named(folder: Path, train: Path) -> None:
    train.write_text("no JSON")
    (problem,) = refusal(folder)
    assert problem.startswith(f"{train}: Invalid JSON: expected ident at line 1 column 2")
    train.write_bytes(b'{"images": [\xff]}')
    (problem,) = refusal(folder)
    assert problem.startswith(f"{train}: not a COCO annotation file: 'utf-8' codec")


def test_ids_and_numbers_may_be_texts_and_a_file_may_begin_with_a_mark(
    folder: Path, train: Path
) -> None:
    truth = made.coco(folder, SOME)

    def rename(content: dict[str, Any]) -> None:
        for image in content["images"]:
            width, height = image["width"], image["height"]
            image.update(id=f"image {image['id']}", width=str(width), height=float(height))
            image.update(area=float("nan"))
        for annotation in content["annotations"]:
            annotation["image_id"] = f"image {annotation['image_id']}"
            annotation["category_id"] = float(annotation["category_id"])

    edit(train, rename)
    val = train.with_name("instances_val2017.json")
    val.write_text(val.read_text(), encoding="utf-8-sig")
    assert_as(prepare(folder), truth)


def test_ids_of_classes_may_be_texts(tmp_path: Path) -> None:
    truth = made.label_studio(tmp_path / "in", SOME, ids={"b": "y", "a": "x", "c": "z"})
    assert_as(prepare(tmp_path / "in", val_fraction=0.3), truth)
    assert coco.read_coco(tmp_path / "in").names == ("a", "b", "c")


def test_boxes_of_fractions_are_refused(folder: Path, train: Path) -> None:
    edit(
        train,
        lambda c: [a.update(bbox=[n / 64 for n in a["bbox"]]) for a in c["annotations"]],
    )
    with pytest.raises(InputError, match=r"annotations\.0: .* all 6 boxes are within 0 to 1"):
        prepare(folder)


def test_polygons_and_keypoints_of_fractions_are_refused(folder: Path, train: Path) -> None:
    with_keypoints(folder, [0.25, 0.5, 2, 0.5, 0.75, 1, 0, 0, 0])
    with pytest.raises(InputError, match=r"0\.keypoints: all keypoints are within 0 to 1, as frac"):
        prepare(folder)
    polygon = [[0.1, 0.1, 0.9, 0.1, 0.9, 0.8]]
    edit(train, lambda c: [a.update(bbox=None, segmentation=polygon) for a in c["annotations"]])
    with pytest.raises(InputError, match=r"annotations\.0: .* all 6 boxes are within 0 to 1"):
        prepare(folder)


def test_an_outline_of_fractions_beside_a_box_of_pixels_is_refused(
    folder: Path, train: Path
) -> None:
    polygon = [[0.1, 0.1, 0.9, 0.1, 0.9, 0.8]]
    edit(train, lambda c: [a.update(segmentation=polygon) for a in c["annotations"]])
    with pytest.raises(InputError, match="lie apart"):
        prepare(folder)


@pytest.mark.parametrize("how", ["beyond the image", "beside the polygons"])
def test_boxes_that_are_corners_are_refused(how: str, folder: Path, train: Path) -> None:
    with_polygons(folder)
    if how == "beyond the image":
        edit(train, lambda c: [a.pop("segmentation") for a in c["annotations"]])
    else:
        edit(train, lambda c: c.update(annotations=[c["annotations"][2]]))
    edit(
        train,
        lambda c: [
            a.update(bbox=[x, y, x + w, y + h])
            for a in c["annotations"]
            for x, y, w, h in [a["bbox"]]
        ],
    )
    with pytest.raises(InputError, match="are right only as left, top, right, bottom; expected l"):
        prepare(folder)


def test_boxes_that_reach_a_little_beyond_the_image_are_read(folder: Path, train: Path) -> None:
    edit(train, lambda c: c["annotations"][1].update(bbox=[20, 20, 50, 40]))
    content = coco.read_coco(folder)
    assert content.splits["train"][0].objects[1].box == (20, 20, 70, 60)


def test_a_box_that_lies_apart_from_its_polygon_is_refused(folder: Path, train: Path) -> None:
    with_polygons(folder)
    edit(train, lambda c: c["annotations"][3].update(bbox=[40, 30, 5, 5]))
    with pytest.raises(InputError, match=r"annotations\.3: its bbox \[40, 30, 5, 5\] .* lie apart"):
        prepare(folder)


def test_two_entries_of_one_image_are_refused(folder: Path, train: Path) -> None:
    edit(train, lambda c: c["images"][1].update(file_name="0.jpg"))
    (problem,) = refusal(folder)
    assert problem.startswith(
        f"{train}: images.1.file_name: '0.jpg' is the same file as that of images.0, '0.jpg', so"
    )
    edit(train, lambda c: c["images"][1].update(file_name="../other/0.jpg"))
    assert "'../other/0.jpg' is the same file as that of images.0, '0.jpg'" in refusal(folder)[0]


def test_absent_images_are_named_with_the_folders_searched(folder: Path, train: Path) -> None:
    (folder / "train2017" / "1.jpg").unlink()
    (problem,) = refusal(folder)
    assert problem == (
        f"{train}: images.1.file_name: '1.jpg' is not there; put it into one of "
        f"{folder}/train2017, {folder}, {folder}/annotations, or remove the entry and its "
        "annotations"
    )


@pytest.mark.parametrize(
    "name",
    [
        "/data/upload/0.jpg",
        "{here}/upload/0.jpg",
        "../../upload/0.jpg",
        r"C:\shots\0.jpg",
        "s3://bucket/0.jpg",
    ],
)
def test_names_that_lead_out_of_the_export_are_looked_for_inside(
    name: str, folder: Path, train: Path
) -> None:
    (folder.parent / "upload").mkdir()
    draw(folder.parent / "upload" / "0.jpg", (64, 48))
    name = name.replace("{here}", str(folder.parent))
    edit(train, lambda c: c["images"][0].update(file_name=name))
    content = coco.read_coco(folder)
    assert content.splits["train"][0].path == folder / "train2017" / "0.jpg"
    (folder / "train2017" / "0.jpg").unlink()
    assert "is not there" in refusal(folder)[0]


def test_files_that_are_no_images_are_refused(folder: Path, train: Path) -> None:
    (folder / "train2017" / "0.jpg").rename(folder / "train2017" / "0.gif")
    edit(train, lambda c: c["images"][0].update(file_name="0.gif"))
    with pytest.raises(InputError, match=r"images\.0: '0\.gif' is no image that Ultralytics reads"):
        prepare(folder)


def test_names_that_differ_only_in_their_ending_keep_their_own_objects(tmp_path: Path) -> None:
    shots = {
        "train": [Shot("0.jpg", SOME["train"][0].objects), Shot("0.png", SOME["train"][1].objects)],
        "val": SOME["val"],
    }
    truth = made.coco_in_images(tmp_path / "in", shots)
    assert_as(prepare(tmp_path / "in"), truth)


def test_a_name_in_other_unicode_letters_is_found(folder: Path) -> None:
    val = folder / "annotations" / "instances_val2017.json"
    edit(val, lambda c: c["images"][1].update(file_name="a\u0308 b.png"))
    assert coco.read_coco(folder).splits["val"][1].path.name == "ä b.png"


def test_sizes_of_other_images_are_refused(folder: Path) -> None:
    Image.new("RGB", (48, 64)).save(folder / "train2017" / "1.jpg")
    with pytest.raises(
        InputError, match=r"instances_train2017\.json: images\.1: 1\.jpg is 48 x 64 pixels, and the"
    ):
        prepare(folder)


def test_two_categories_of_one_name_are_refused(folder: Path) -> None:
    for path in (folder / "annotations").iterdir():
        edit(path, lambda content: content["categories"][2].update(name="a"))
    assert refusal(folder) == [
        f"{folder}/annotations/instances_{split}2017.json: categories: 'a' is listed twice (0 and "
        "9); classes are told apart by their names; rename one"
        for split in ("train", "val")
    ]


def test_files_of_other_classes_are_refused_and_of_other_ids_are_not(folder: Path) -> None:
    truth = made.coco(folder, SOME)
    val = folder / "annotations" / "instances_val2017.json"
    save(val, coco_of(SOME["val"], {"c": 1, "b": 2, "a": 3}))
    assert_as(prepare(folder), truth)
    edit(val, lambda c: c["categories"][0].update(name="C"))
    with pytest.raises(InputError, match=r"val2017\.json: its categories differ .* \('C', 'c' is"):
        prepare(folder)


def test_a_class_without_objects_is_a_class(folder: Path) -> None:
    shots = {split: [Shot(s.name) for s in of_split] for split, of_split in SOME.items()}
    made.coco(folder, shots)
    assert coco.read_coco(folder).names == ("a", "b", "c")


def test_category_0_of_roboflow_is_a_class_where_it_has_objects(tmp_path: Path) -> None:
    made.roboflow(tmp_path / "in", SOME)
    for path in tmp_path.glob("in/*/*.json"):
        edit(path, lambda c: c["categories"][0].update(name="group"))
    content = coco.read_coco(tmp_path / "in")
    assert content.names == ("a", "b", "c")
    assert content.notes == (
        "the category 'group' without objects is no class: Roboflow adds the group of the classes "
        "as one",
    )
    path = tmp_path / "in" / "valid" / "_annotations.coco.json"
    edit(path, lambda c: c["annotations"][0].update(category_id=0))
    assert coco.read_coco(tmp_path / "in").names == ("group", "a", "b", "c")


def test_one_file_for_train_and_val_is_split(folder: Path, train: Path) -> None:
    train.with_name("instances_val2017.json").unlink()
    train.rename(train.with_name("instances_trainval.json"))
    assert "without a val split" in refusal(folder)[0]
    prepared = prepare(folder, val_fraction=0.3)
    assert prepared.made
    assert prepared.made.images == {"train": 3, "val": 1}


def test_files_of_the_same_or_of_no_split_are_refused(folder: Path, train: Path) -> None:
    other = train.with_name("instances_train2014.json")
    other.write_text(train.read_text())
    assert refusal(folder) == [
        f"{train}: found two files of the split train, this and {other.name}; remove one, or name "
        "one file itself"
    ]
    other.rename(train.with_name("instances_more.json"))
    with pytest.raises(InputError, match=r"instances_more\.json: found no split in its name, and"):
        prepare(folder)


def test_other_kinds_of_files_beside_are_passed_over_with_a_word(folder: Path, train: Path) -> None:
    for name in ("captions_train2017.json", "person_keypoints_train2017.json", "._x.json"):
        train.with_name(name).write_text(train.read_text())
    content = coco.read_coco(folder)
    assert len(content.splits["train"]) == 4
    assert content.notes == (
        "person_keypoints_train2017.json is not read; to read it, name the file itself",
    )


def test_images_of_lvis_go_by_the_end_of_their_address(tmp_path: Path) -> None:
    made.coco(tmp_path / "in", made.SOME)
    folder = tmp_path / "in" / "annotations"

    def as_lvis(content: dict[str, Any]) -> None:
        for image in content["images"]:
            image["coco_url"] = f"http://images.cocodataset.org/train2017/{image.pop('file_name')}"

    expected = prepare(tmp_path / "in").made
    for path in folder.iterdir():
        made.edit(path, as_lvis)
    found = prepare(tmp_path / "in").made
    assert found is not None
    assert expected is not None
    assert (found.images, found.objects) == (expected.images, expected.objects)
