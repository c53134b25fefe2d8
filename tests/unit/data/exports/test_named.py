"""Formats that are named only, and data sets that are none of the exports."""

from pathlib import Path

import exports_per_image as made
import pytest
import truths
from read_per_image import (
    FORMATS,
    prepared,
    recognised,
    voc_of,
)

from federated_yolo.common.errors import InputError

TASKS = '[{"id": 1, "annotations": [{"result": []}], "data": {"image": "a.jpg"}}]'
NAMED = {
    "Label Studio's JSON": ("project.json", TASKS),
    "Label Studio's JSON-MIN": ("min.json", '[{"image": "a", "annotation_id": 1, "lead_time": 2}]'),
    "of the VGG Image Annotator (VIA)": ("via.json", '{"_via_settings": {}, "x": {}}'),
    "COCO for panoptic segmentation": ("panoptic.json", '{"annotations": [{"segments_info": []}]}'),
    "TFRecord": ("train.tfrecord", "x"),
    "JSON of Labelbox or Scale": ("export.ndjson", '{"data_row": {"id": "x"}}'),
    "of KITTI": ("label_2/0.txt", "Car 0.00 0 -1.5 1 2 3 4 1 1 1 1 1 1 0\n"),
    "of MOT": ("gt/gt.txt", "1,1,912,484,97,109,0,7,1\n"),
    "LabelMe 3.0 (XML)": (
        "a.xml",
        "<annotation><filename>a</filename><object><name>c</name><polygon><pt><x>1</x></pt>"
        "</polygon></object></annotation>",
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_formats_that_are_not_read_are_named_with_the_next_step(name: str, tmp_path: Path) -> None:
    file, text = NAMED[name]
    made.save(tmp_path / "data" / file, text)
    assert [known.name for known in FORMATS if known.matches(tmp_path / "data")] == [name]
    with pytest.raises(InputError, match=r"this is .*, which is not read; .*(export|COCO|convert)"):
        prepared(tmp_path / "data", tmp_path / "out")


def test_one_file_of_many_names_its_folder(tmp_path: Path) -> None:
    voc_of(tmp_path, "")
    assert recognised(tmp_path / "a.xml") == "one file of Pascal VOC"
    made.save_labelme(tmp_path / "a.json", "a.jpg", (64, 48), [])
    assert recognised(tmp_path / "a.json") == "one file of labelme"


OTHERS = {
    "yolo": {"data.yaml": "names: [a]", "labels/train/a.txt": "0 .5 .5 .1 .1", "a.json": TASKS},
    "coco": {"annotations/instances_train.json": '{"images": [], "annotations": [], '
             '"categories": [{"id": 1, "name": "a"}]}'},
    "classes": {"train/cat/a.txt": "", "val/cat/b.txt": ""},
    "ndjson": {"data.ndjson": '{"type": "dataset", "task": "detect", "class_names": {"0": "a"}}'},
    "config": {"conf.xml": "<settings><annotation/></settings>", "x.json": "[1, 2", "t.csv": "a,b"},
    "empty": {"x/y.txt": "a"},
}  # fmt: skip


KNOWN = {"coco": "COCO", "ndjson": "Ultralytics NDJSON"}  # others' formats


@pytest.mark.parametrize("name", OTHERS)
def test_other_data_sets_are_taken_for_none_of_these(name: str, tmp_path: Path) -> None:
    for file, text in OTHERS[name].items():
        made.save(tmp_path / file, text)
    for path in (tmp_path, *tmp_path.rglob("*"), tmp_path / "absent"):
        if path.suffix != ".json" or name != "yolo":
            assert recognised(path) in (None, KNOWN.get(name))


@pytest.mark.skipif(not truths.FORMATS.is_dir(), reason="shared/cases is not beside this checkout")
def test_each_case_is_of_its_format() -> None:
    found = {folder.name: recognised(folder) for folder in truths.FORMATS.iterdir()}
    assert found == {
        "coco_dupnames_same": "COCO",
        "coco_wrong_size": "COCO",
        "cvat_coco_default": "COCO",
        "cvat_coco_masks": "COCO",
        "cvat_ul_proj": "YOLO (data.yaml)",
        "labelimg_yolo": "LabelImg YOLO",
        "labelme": "labelme",
        "ls_yolo": "Label Studio YOLO",
        "rf_coco": "COCO",
    }
