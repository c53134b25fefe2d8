"""Each row of the table in docs/formats.md is true: the export is read, or the advice is given."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import exports_coco as coco
import exports_per_image as per_image
import exports_yolo as yolo
import pytest
import read_per_image
from processes import ROOT

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports.convert import Options, prepare


def from_coco(write: Callable[..., object]) -> Callable[[Path], object]:
    return lambda folder: write(folder, coco.SOME)


def each_image(write: per_image.Write) -> Callable[[Path], object]:
    return lambda folder: write(folder, read_per_image.IMAGES, read_per_image.NAMES)


def classes(*folders: str) -> Callable[[Path], object]:
    def write(root: Path) -> None:
        for folder in folders:
            for number in range(5):
                for name in ("cat", "dog"):
                    yolo.draw(root / folder / name / f"{number}{name}.jpg")

    return write


def multi_label(root: Path) -> None:
    for split in ("train", "valid"):
        for name in ("a.jpg", "b.jpg"):
            yolo.draw(root / split / name)
        yolo.write_text(root / split / "_classes.csv", "filename,cat,dog\na.jpg,1,0\nb.jpg,0,1\n")


def table(root: Path) -> None:
    rows = [f"{number}.jpg,{('cat', 'dog')[number % 2]}" for number in range(8)]
    for number in range(8):
        yolo.draw(root / f"{number}.jpg")
    yolo.write_text(root / "labels.csv", "\n".join(["filename,label", *rows]))


def tool_json(name: str, content: object) -> Callable[[Path], object]:
    return lambda root: yolo.write_text(root / name, json.dumps(content))


REGION = {"shape_attributes": {"name": "rect", "x": 1}, "region_attributes": {"class": "a"}}
VIA = {"a.jpg123": {"filename": "a.jpg", "size": 123, "regions": [REGION], "file_attributes": {}}}
TASKS = [{"id": 1, "annotations": [{"result": []}], "data": {"image": "/a.jpg"}}]
LABELBOX = {"data_row": {"id": "x", "external_id": "a.jpg"}, "projects": {}, "media_attributes": {}}

WRITERS: dict[str, Callable[[Path], object]] = {
    "CVAT: Ultralytics YOLO": yolo.cvat_ultralytics,
    "CVAT: COCO 1.0": from_coco(coco.cvat_project),
    "CVAT: CVAT for images 1.1": each_image(per_image.write_cvat),
    "CVAT: YOLO 1.1": yolo.cvat_darknet,
    "CVAT: Pascal VOC 1.1": each_image(per_image.write_cvat_voc),
    "Datumaro: Datumaro": each_image(per_image.write_datumaro),
    "Label Studio: YOLO with Images": yolo.label_studio,
    "Label Studio: COCO with images": from_coco(coco.label_studio),
    "Roboflow: YOLOv5 to": yolo.roboflow,
    "Roboflow: COCO": from_coco(coco.roboflow),
    "Roboflow: Pascal VOC": each_image(per_image.write_flat_voc),
    "Roboflow: CreateML": each_image(per_image.write_createml),
    "Roboflow: TensorFlow": each_image(per_image.write_table),
    "Roboflow: Multi-label": multi_label,
    "labelme: its own": each_image(per_image.write_labelme),
    "LabelImg: YOLO": lambda folder: yolo.labelimg(folder, folders=True),
    "LabelImg: Pascal VOC": each_image(per_image.write_flat_voc),
    "FiftyOne: COCODetectionDataset": from_coco(coco.fiftyone_splits),
    "Supervisely: Supervisely JSON": each_image(per_image.write_supervisely),
    "COCO: `annotations": from_coco(coco.coco),
    "Pascal VOC: VOCdevkit": each_image(per_image.write_devkit),
    "Open Images: CSV": each_image(per_image.write_open_images),
    "Darknet: images": yolo.darknet,
    "Ultralytics Platform: NDJSON": yolo.ndjson,
    "folders of classes: train": classes("train", "test"),
    "folders of classes: CLASS": classes("."),
    "table of classes: a `.csv`": table,
    "Label Studio: JSON": tool_json("project.json", TASKS),
    "VGG Image Annotator: its own": tool_json("via.json", VIA),
    "Labelbox, Scale: NDJSON": tool_json("x.ndjson", LABELBOX),
    "any: TFRecord": lambda root: yolo.write_text(root / "train" / "a.tfrecord", "\0"),
}


def rows() -> dict[str, list[str]]:
    """Rows of the table by the beginning of their first two cells."""
    text = (ROOT / "docs" / "formats.md").read_text()
    lines = text.split("| tool | export |")[1].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    found = {f"{tool}: {export}": rest for tool, export, *rest in cells}
    return {
        next((start for start in WRITERS if name.startswith(start)), name): rest
        for name, rest in found.items()
    }


def test_every_row_has_an_export_that_is_tried() -> None:
    assert list(rows()) == list(WRITERS)


@pytest.mark.parametrize("row", WRITERS)
def test_what_the_table_says_of_an_export_is_so(row: str, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    WRITERS[row](folder)
    given, val = rows()[row]
    if given.startswith("not read: "):
        with pytest.raises(InputError, match=r"this is .*, which is not read; "):
            prepare(folder, tmp_path / "made", "x", Options(), where="")
        return
    path = next(folder.rglob("*.ndjson")) if given == "the `.ndjson` file" else folder
    options = Options(val_fraction=0.4 if val == "`val_fraction`" else None)
    if options.val_fraction:
        with pytest.raises(InputError, match=r"without a val split; val_fraction=0\.2"):
            prepare(path, tmp_path / "made", "x", Options(), where="")
    made = prepare(path, tmp_path / "made", "x", options, where="").made
    assert made is not None
    assert made.images["train"]
    assert made.images["val"]
    assert sum(sum(counts.values()) for counts in made.objects.values())
    assert bool(re.search("folder|class|Multi", row)) or made.task != "classify"
