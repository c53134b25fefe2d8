"""Formats that are not read, but named, with the export to choose instead."""

import re
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from federated_yolo.data.exports.content import Format
from federated_yolo.data.exports.files import head_of, looks_so, sniffed, walk

LINES = 5  # of a text file that are looked at
FOLDERS = 50  # of a folder


def _any_json(path: Path, *patterns: str) -> bool:
    return any(looks_so(file, *patterns) for file in sniffed(path, ".json", limit=8))


def is_label_studio(path: Path) -> bool:
    """Whether it is Label Studio's own JSON: tasks with annotations and data."""
    return _any_json(
        path,
        r"^\s*\[\s*\{",
        r'"(annotations|completions)"\s*:\s*\[',
        r'"data"\s*:\s*\{',
        r'"result"\s*:\s*\[',
    )


def is_label_studio_min(path: Path) -> bool:
    """Whether it is Label Studio's JSON-MIN: a flat list, with who annotated for how long."""
    return _any_json(path, r"^\s*\[\s*\{", r'"annotation_id"\s*:', r'"lead_time"\s*:')


def is_via(path: Path) -> bool:
    """Whether it is of the VGG Image Annotator."""
    is_project = _any_json(path, r'"_via_(img_metadata|settings)"\s*:')
    return is_project or _any_json(path, r'"regions"\s*:', r'"shape_attributes"\s*:')


def is_panoptic(path: Path) -> bool:
    """Whether it is COCO for panoptic segmentation."""
    return _any_json(path, r'"segments_info"\s*:\s*\[')


def is_labelme_xml(path: Path) -> bool:
    """Whether it is of the first LabelMe, of MIT, which CVAT writes as LabelMe 3.0."""
    for file in sniffed(path, ".xml", limit=8):
        text = head_of(file)
        if re.search(r"<annotation[\s>]", text) and re.search(r"<polygon>.*?<pt>", text, re.DOTALL):
            return True
    return False


def is_tfrecord(path: Path) -> bool:
    """Whether it is a TFRecord file, or a folder with one."""
    files = sniffed(path, ".tfrecord", ".tfrecords", limit=1)
    return bool(files) or bool(re.search(r"\.(tf)?record(s|-\d+-of-\d+)?$", path.name))


def is_vendor_ndjson(path: Path) -> bool:
    """Whether it is NDJSON of Labelbox, or JSON of Scale."""
    for file in sniffed(path, ".ndjson", ".jsonl", ".json", limit=8):
        if looks_so(file, r'"data_row"\s*:\s*\{') or looks_so(
            file, r'"task_id"\s*:', r'"response"\s*:', r'"annotations"\s*:'
        ):
            return True
    return False


def is_kitti(path: Path) -> bool:
    """Whether it is of KITTI: label_2 with lines of 15 numbers and words."""
    for folder in _folders(path, "label_2"):
        file = next((p for p in sorted(folder.glob("*.txt"))), None)
        if file and all(len(line.split()) in (15, 16) for line in _lines(file)):
            return True
    return False


def is_mot(path: Path) -> bool:
    """Whether it is of MOT: gt/gt.txt with lines of numbers between commas."""
    for folder in _folders(path, "gt"):
        lines = _lines(folder / "gt.txt")
        if lines and all(re.fullmatch(r"[-\d.,\s]+", x) and x.count(",") >= 5 for x in lines):
            return True
    return False


def _folders(path: Path, name: str) -> list[Path]:
    """Folders of this name in a folder, or one or two below it."""
    if not path.is_dir() or (path / "data.yaml").is_file():
        return []
    patterns = (name, f"*/{name}", f"*/*/{name}")
    return [f for p in patterns for f in islice(path.glob(p), FOLDERS) if f.is_dir()]


def _lines(path: Path) -> list[str]:
    lines = [line for line in head_of(path, 4096).splitlines() if line.strip()]
    return lines[:LINES] if len(lines) > LINES else lines


def is_one_xml(path: Path) -> bool:
    """Whether it is one file of Pascal VOC."""
    return path.suffix.lower() == ".xml" and looks_so(path, r"<annotation[\s>]", r"<filename>")


def is_one_labelme(path: Path) -> bool:
    """Whether it is one file of labelme."""
    return path.is_file() and _any_json(path, r'"shapes"\s*:\s*\[', r'"imagePath"\s*:')


def is_cvat_backup(path: Path) -> bool:
    """Whether a folder has a CVAT backup: task.json and annotations.json."""
    names = {p.name for p in walk(path, 1)} if path.is_dir() else set()
    return {"task.json", "annotations.json"} <= names


def has_json(*patterns: str) -> Callable[[Path], bool]:
    """A test whether a file, or a .json in a folder, has all of these."""
    return lambda path: _any_json(path, *patterns)


def is_via_csv(path: Path) -> bool:
    """Whether it is VIA's table."""
    return any(
        "region_shape_attributes" in head_of(p, 4096) for p in sniffed(path, ".csv", limit=8)
    )


def is_dota(path: Path) -> bool:
    """Whether it is of DOTA: labelTxt with lines of eight numbers, a class and a number."""
    line = r"(-?[\d.]+\s+){8}\S+\s+\d"
    for folder in (f for name in ("labelTxt", "labelTxt-v1.0") for f in _folders(path, name)):
        file = next((p for p in sorted(folder.glob("*.txt"))), None)
        if file and any(re.fullmatch(line, text.strip()) for text in _lines(file)):
            return True
    return False


def is_odgt(path: Path) -> bool:
    """Whether it is of CrowdHuman."""
    return any(looks_so(p, r'"gtboxes"\s*:') for p in sniffed(path, ".odgt", limit=8))


LABEL_STUDIO = "export the project as COCO or YOLO with images"
CVAT = "export the task as COCO 1.0 or CVAT for images 1.1, with its images"

FORMATS = (
    Format("one file of Pascal VOC", is_one_xml, advice="give the folder that it is in"),
    Format("one file of labelme", is_one_labelme, advice="give the folder that it is in"),
    Format("LabelMe 3.0 (XML)", is_labelme_xml, advice=CVAT),
    Format("a backup of a CVAT task", is_cvat_backup, advice=CVAT),
    Format("Label Studio's JSON", is_label_studio, advice=LABEL_STUDIO),
    Format("Label Studio's JSON-MIN", is_label_studio_min, advice=LABEL_STUDIO),
    Format(
        "of the VGG Image Annotator (VIA)",
        is_via,
        advice="export it there as COCO (Annotation, Export Annotations as COCO)",
    ),
    Format(
        "COCO for panoptic segmentation",
        is_panoptic,
        advice="take the instances_*.json of the same data set, or export as COCO",
    ),
    Format(
        "TFRecord",
        is_tfrecord,
        advice="export it from the tool that made it as COCO, or as YOLO",
    ),
    Format(
        "JSON of Labelbox or Scale",
        is_vendor_ndjson,
        advice="convert it to COCO by the tool's own library (labelbox, nucleus)",
    ),
    Format(
        "of the VGG Image Annotator (VIA), CSV",
        is_via_csv,
        advice="export it there as COCO (Annotation, Export Annotations as COCO)",
    ),
    Format(
        "VoTT's JSON",
        has_json(r'"assets"\s*:\s*\{', r'"regions"\s*:', r'"boundingBox"\s*:'),
        advice="export it there as Pascal VOC",
    ),
    Format(
        "JSON of Darwin (V7)",
        has_json(r'"item"\s*:\s*\{', r'"slots"\s*:', r'"annotations"\s*:\s*\['),
        advice="export it there as COCO",
    ),
    Format(
        "JSON of SuperAnnotate",
        has_json(r'"instances"\s*:\s*\[', r'"metadata"\s*:\s*\{'),
        advice="convert it to COCO by the tool's own library (superannotate)",
    ),
    Format(
        "JSON of Encord",
        has_json(r'"label_hash"\s*:', r'"data_units"\s*:'),
        advice="export it there as COCO",
    ),
    Format(
        "of BDD100K",
        has_json(r'"labels"\s*:\s*\[', r'"box2d"\s*:'),
        advice="convert it to COCO, by its own toolkit or FiftyOne",
    ),
    Format(
        "of Cityscapes",
        has_json(r'"imgHeight"\s*:', r'"objects"\s*:\s*\[', r'"polygon"\s*:'),
        advice="convert it to COCO, e.g. by datumaro or FiftyOne",
    ),
    Format(
        "of DOTA",
        is_dota,
        advice="convert it once, by convert_dota_to_yolo_obb of ultralytics.data.converter",
    ),
    Format("of CrowdHuman", is_odgt, advice="convert it to COCO"),
    Format("of KITTI", is_kitti, advice="convert it to COCO, e.g. by datumaro or FiftyOne"),
    Format("of MOT", is_mot, advice="export it from the tool that made it as COCO, or as YOLO"),
)
