"""COCO and Pascal VOC data sets as Ultralytics data sets, by Ultralytics and supervision.

Takes a folder and gives a data.yaml, and the task that it is for; images stay where they are and
are linked. As they come:

    COCO  FOLDER/annotations/instances_train2017.json and ..._val2017.json (or others with `train`
          and `val` in their names), images in FOLDER/train2017 or FOLDER/images/train2017
    VOC   FOLDER/Annotations, FOLDER/JPEGImages, FOLDER/ImageSets/Main/train.txt and val.txt
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from utils.config import InputError
from utils.data import ENDINGS, is_image_name, repeated_names

SPLITS = ("train", "val")
MAX_LINES = 5
MIN_NUMBERS = 6  # of a polygon: x and y of three corners; the converter takes no shorter one


@dataclass(frozen=True)
class Converted:
    """A data set that Ultralytics can read. path: its data.yaml. task, why: of its labels.

    warnings: what of the original it lacks.
    """

    path: Path
    task: str
    why: str
    warnings: tuple[str, ...] = ()


def is_coco(folder: Path) -> bool:
    """Whether a folder looks as a COCO data set."""
    return (folder / "annotations").is_dir()


def is_voc(folder: Path) -> bool:
    """Whether a folder looks as a Pascal VOC data set."""
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def convert_coco(folder: Path, target: Path) -> Converted:
    """Write the labels of a COCO data set and a data.yaml below `target`.

    Polygons and keypoints are kept where all objects have them; else it is a data set of boxes.
    Crowds and boxes without an area are left out, and in a data set of keypoints objects without
    any labelled one, which COCO's scores ignore, too. Raises InputError.
    """
    files = {split: _annotation_file(folder, split) for split in SPLITS}
    if files["train"] == files["val"]:
        raise InputError(
            f"{files['train']}: the only .json with 'train' or 'val' in its name, so that both "
            "splits would be the same images; divide it in two, e.g. instances_train2017.json and "
            "instances_val2017.json"
        )
    contents = {split: _read_coco(path) for split, path in files.items()}
    problems = [
        f"{path}: {problem}"
        for split, path in files.items()
        for problem in _file_name_problems(contents[split])
    ]
    if problems:
        raise InputError(problems)
    images = {split: _image_folder(folder, path, split) for split, path in files.items()}
    categories = [
        {c["id"]: c["name"] for c in sorted(content["categories"], key=lambda c: c["id"])}
        for content in contents.values()
    ]
    if categories[0] != categories[1]:
        raise InputError(
            f"{files['val']}: its categories differ from those of {files['train']}; a data set has "
            "one list of classes for both"
        )
    if repeated := list(repeated_names(categories[0])):
        raise InputError(f"{files['train']}: categories: {problem}" for problem in repeated)
    found = [o for c in contents.values() for o in c["annotations"] if not o.get("iscrowd", False)]
    objects = [o for o in found if min(o["bbox"][2:]) > 0]
    task, why = _task_of(objects)
    _convert_coco_labels(contents, list(categories[0]), target, task)
    form: dict[str, Any] = {"names": list(categories[0].values())}
    warnings = []
    if lost := len(found) - len(objects):
        warnings.append(
            f"{lost} of {len(found)} objects have a box without width or height and are left out"
        )
    if task == "pose":
        num_points = len(objects[0]["keypoints"]) // 3
        form |= {"kpt_shape": [num_points, 3], **_keypoint_names(contents, files, num_points)}
        warnings += _keypoint_warnings(objects)
    listed = {
        split: [f"{split}/{image['file_name']}" for image in content["images"]]
        for split, content in contents.items()
    }
    return Converted(_write(target, images, listed, form), task, why, tuple(warnings))


def _task_of(objects: Sequence[dict[str, Any]]) -> tuple[str, str]:
    """The task that labels of these objects are for, and why."""
    num = len(objects)
    with_points = sum(bool(o.get("keypoints")) for o in objects)
    with_polygon = sum(map(_has_polygon, objects))
    if with_points and with_points == num:
        return "pose", f"all {num} objects have keypoints"
    but = f"; not all have keypoints ({with_points} of {num})" if with_points else ""
    if not with_polygon:
        return "detect", f"no object has a polygon{but}"
    if with_polygon < num:
        few = f"not all objects have polygons ({with_polygon} of {num})"
        return "detect", f"{few}, so all are taken as boxes{but}"
    return "segment", f"all {num} objects have polygons{but}"


def _file_name_problems(content: dict[str, Any]) -> Iterator[str]:
    """File names whose labels would be written over each other, or elsewhere than is looked."""
    taken: dict[Path, str] = {}
    for name in (str(image["file_name"]) for image in content["images"]):
        path = Path(name)
        if path.is_absolute() or {"..", "images"} & set(path.parts):
            yield (
                f"file_name '{name}': expected one below the folder of the split, without a folder "
                "'images' in it, since labels are looked for beside the last one; correct it to "
                f"e.g. '{path.name}'"
            )
            return  # most likely all of them are so
        if not is_image_name(name):
            yield (
                f"file_name '{name}': expected an image that Ultralytics reads ({ENDINGS}); "
                "convert it, or remove it here"
            )
            return
        other = taken.setdefault(path.with_suffix(""), name)
        if other != name:
            yield (
                f"file_name '{name}' and '{other}' differ only in their ending, and would get the "
                "same labels; rename one"
            )
            return


def _has_polygon(annotation: dict[str, Any]) -> bool:
    """Whether the converter takes an outline; exports of boxes alone have `segmentation: []`."""
    parts = annotation.get("segmentation")
    return isinstance(parts, list) and any(
        isinstance(part, list)
        and len(part) >= MIN_NUMBERS
        and len(part) % 2 == 0
        and all(isinstance(number, int | float) for number in part)
        for part in parts
    )


def _keypoint_names(
    contents: dict[str, Any], files: dict[str, Path], num_points: int
) -> dict[str, Any]:
    """`kpt_names` by index of the class, as far as categories list as many."""
    listed = [
        [c.get("keypoints") for c in sorted(content["categories"], key=lambda c: c["id"])]
        for content in contents.values()
    ]
    if listed[0] != listed[1]:
        raise InputError(
            f"{files['val']}: its categories list other keypoints than those of {files['train']}; "
            "a data set has one list of keypoints for both"
        )
    names = {
        index: points
        for index, points in enumerate(listed[0])
        if isinstance(points, list)
        and len(points) == num_points
        and all(isinstance(point, str) and point.strip() for point in points)
    }
    return {"kpt_names": names} if names else {}


def _keypoint_warnings(objects: Sequence[dict[str, Any]]) -> Iterator[str]:
    """Say how many objects the converter leaves out of a data set of keypoints, and what lacks."""
    lost = sum(not any(o["keypoints"][2::3]) for o in objects)  # the third number: 0 is unlabelled
    if lost:
        yield (
            f"{lost} of {len(objects)} objects have no labelled keypoint and are left out, as in "
            "COCO's scores; where they are to be learned as boxes, make a detect data set of them"
        )
    yield (
        "COCO does not say which keypoints change places in a mirrored image: training will not "
        "mirror images left-right until flip_idx is added to the clients' data.yaml files"
    )


def _annotation_file(folder: Path, split: str) -> Path:
    found = sorted(p for p in (folder / "annotations").glob("*.json") if split in p.stem)
    found = [p for p in found if p.stem.startswith("instances_")] or found
    if len(found) != 1:
        names = f"{len(found)}: {', '.join(p.name for p in found)}" if found else "none"
        raise InputError(
            f"{folder / 'annotations'}: found {names}, expected one .json with '{split}' in its "
            f"name, e.g. instances_{split}2017.json"
        )
    return found[0]


def _read_coco(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        known = {i["id"] for i in content["images"] if i["file_name"] and i["width"] * i["height"]}
        ids = {category["id"] for category in content["categories"] if category["name"]}
        lost = [
            o
            for o in content["annotations"]
            if o["image_id"] not in known or o["category_id"] not in ids or len(o["bbox"]) != 4
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a COCO annotation file ({type(error).__name__}: {error}); expected "
            "'images', 'annotations' and 'categories'"
        ) from error
    if lost:
        raise InputError(
            f"{path}: {len(lost)} annotations have no box, or are of an image or category that it "
            f"does not list, e.g. the one of image_id {lost[0]['image_id']}; correct or remove them"
        )
    return content


def _image_folder(folder: Path, annotations: Path, split: str) -> Path:
    name = annotations.stem.rpartition("_")[2]
    candidates = [
        folder / part for part in (name, f"images/{name}", split, f"images/{split}", "images")
    ]
    for candidate in candidates:
        if candidate.is_dir():
            return candidate
    raise InputError(
        f"{annotations}: no folder with its images; expected {candidates[0]} or {candidates[1]}"
    )


def _convert_coco_labels(contents: dict[str, Any], ids: list[int], target: Path, task: str) -> None:
    from ultralytics.data import converter

    with tempfile.TemporaryDirectory() as scratch:
        for split, content in contents.items():
            # The converter takes category 1 for class 0; many files begin at 0, or leave some out.
            renumbered = [
                {**o, "category_id": ids.index(o["category_id"]) + 1}
                for o in content["annotations"]
            ]
            text = json.dumps({**content, "annotations": renumbered})
            (Path(scratch) / f"{split}.json").write_text(text, encoding="utf-8")
        converter.convert_coco(
            scratch, str(target), task == "segment", task == "pose", cls91to80=False
        )


def convert_voc(folder: Path, target: Path) -> Converted:
    """Write the boxes of a VOC data set and a data.yaml below `target`; no polygons.

    Raises InputError, also where the package supervision is missing.
    """
    try:
        import supervision
    except ImportError as error:
        raise InputError(
            f'{folder}: Pascal VOC is read by supervision: pip install -e ".[supervision]"'
        ) from error
    lists = {split: folder / "ImageSets" / "Main" / f"{split}.txt" for split in SPLITS}
    missing = [
        f"{path}: no such file; it lists the {split} images, one name without its ending a line"
        for split, path in lists.items()
        if not path.is_file()
    ]
    if missing:
        raise InputError(missing)
    images = folder / "JPEGImages"
    try:
        data = supervision.DetectionDataset.from_pascal_voc(
            str(images), str(folder / "Annotations")
        )
        for detections in data.annotations.values():
            detections.mask = None  # else objects with a <polygon> would not be boxes
        data.as_yolo(annotations_directory_path=str(target / "labels" / images.name))
    except Exception as error:  # XML of any shape meets its code here
        raise InputError(
            f"{folder}: not read as Pascal VOC: {' '.join(str(error).split())}"
        ) from error
    file_of = {Path(path).stem: Path(path).name for path in data.image_paths}
    listed = {s: [line.split()[0] for line in _lines(path)] for s, path in lists.items()}
    unknown = [
        f"{lists[split]}: '{stem}' is not among the images of {images}; correct the list"
        for split, stems in listed.items()
        for stem in stems
        if stem not in file_of
    ]
    if unknown:
        raise InputError(unknown[:MAX_LINES])
    files = {s: [f"{images.name}/{file_of[stem]}" for stem in stems] for s, stems in listed.items()}
    path = _write(target, {images.name: images}, files, {"names": data.classes})
    return Converted(path, "detect", "Pascal VOC has boxes")


def _lines(path: Path) -> list[str]:
    return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def _write(
    target: Path,
    folders: dict[str, Path],
    images: Mapping[str, Sequence[str]],
    form: dict[str, Any],
) -> Path:
    """Link the folders of images beside the labels, and write the lists and the data.yaml.

    folders: by the name of their link. images: of each split, LINK/FILE.
    """
    (target / "images").mkdir(exist_ok=True)
    for name, folder in folders.items():
        (target / "images" / name).symlink_to(folder.absolute(), target_is_directory=True)
    for split, files in images.items():
        text = "".join(f"./images/{file}\n" for file in files)
        (target / f"{split}.txt").write_text(text, encoding="utf-8")
    path = target / "data.yaml"
    data = {**{split: f"{split}.txt" for split in images}, **form}
    path.write_text(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path
