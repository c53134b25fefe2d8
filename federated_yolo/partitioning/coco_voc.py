"""Converts COCO and Pascal VOC data sets to Ultralytics data sets (with Ultralytics, supervision).

Takes a folder; writes a data.yaml and labels, and returns the task. Images stay where they are and
are linked. Expected layouts:

    COCO  FOLDER/annotations/instances_train2017.json and ..._val2017.json (or others with `train`
          and `val` in their names), images in FOLDER/train2017 or FOLDER/images/train2017
    VOC   FOLDER/Annotations, FOLDER/JPEGImages, FOLDER/ImageSets/Main/train.txt and val.txt
"""

import json
import reprlib
import tempfile
from collections import Counter
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from federated_yolo.common.command_line import install_hint
from federated_yolo.common.errors import InputError
from federated_yolo.common.files import refuse_special, special_files
from federated_yolo.data.data_yaml import is_image_name, repeated_names
from federated_yolo.data.messages import ENDINGS

SPLITS = ("train", "val")
MAX_LINES = 5
MIN_NUMBERS = 6  # in a polygon: x and y of three corners; the converter accepts no fewer


@dataclass(frozen=True)
class Converted:
    """A data set that Ultralytics can read. path: Its data.yaml. task: Task of its labels.

    why: Reason for the task. warnings: Lines about parts of the original that are missing.
    """

    path: Path
    task: str
    why: str
    warnings: tuple[str, ...] = ()


Id = int | str
Text = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]
Pixels = Annotated[FiniteFloat, Field(gt=0)]


@dataclass(frozen=True)
class Image:
    """An image of a COCO file."""

    id: Id
    file_name: Text
    width: Pixels
    height: Pixels


@dataclass(frozen=True)
class Category:
    """A class of a COCO file. keypoints: Names of the keypoints, if it is a list of names."""

    id: Id
    name: Text
    keypoints: Any = None


@dataclass(frozen=True)
class Annotation:
    """An object of a COCO file.

    bbox: Left, top, width, height in pixels. segmentation: Value of several kinds; `_has_polygon`
    recognises polygons. keypoints: x, y, visibility of each (0: unlabelled).
    """

    image_id: Id
    category_id: Id
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)]
    iscrowd: bool | None = False
    segmentation: Any = None
    keypoints: list[FiniteFloat] | None = None

    @property
    def is_flat(self) -> bool:
        """Whether the box has no area; the converter leaves out such objects."""
        return min(self.bbox[2:]) <= 0


@dataclass(frozen=True)
class Coco:
    """A COCO file of annotations; its other keys are not read."""

    images: list[Image]
    annotations: list[Annotation]
    categories: list[Category]


def is_coco(folder: Path) -> bool:
    """Whether a folder looks like a COCO data set."""
    return (folder / "annotations").is_dir()


def is_voc(folder: Path) -> bool:
    """Whether a folder looks like a Pascal VOC data set."""
    return (folder / "Annotations").is_dir() and (folder / "JPEGImages").is_dir()


def convert_coco(folder: Path, target: Path) -> Converted:
    """Write the labels of a COCO data set and a data.yaml below `target`.

    Polygons or keypoints are kept if all objects have them; otherwise the result is a data set of
    boxes. Crowds and boxes without an area are left out; so are, in a data set of keypoints,
    objects without a labelled keypoint, which COCO's scores also ignore. Raises InputError.
    """
    files = {split: _annotation_file(folder, split) for split in SPLITS}
    if files["train"] == files["val"]:
        raise InputError(
            f"{files['train']}: the only .json with 'train' or 'val' in its name, so that both "
            "splits would be the same images; divide it in two, e.g. instances_train2017.json and "
            "instances_val2017.json"
        )
    contents = {split: _read_coco(path) for split, path in files.items()}
    _refuse({files[split]: _file_name_problems(c) for split, c in contents.items()})
    images = {split: _image_folder(folder, path, split) for split, path in files.items()}
    names = _class_names(contents, files)
    objects = [o for c in contents.values() for o in c.annotations if not o.iscrowd]
    warnings = []
    if lost := sum(o.is_flat for o in objects):
        warnings.append(
            f"{lost} of {len(objects)} objects have a box without width or height and are left out"
        )
    objects = [o for o in objects if not o.is_flat]
    task, why = _task_of(objects)
    form: dict[str, Any] = {"names": list(names.values())}
    if task == "pose":
        form |= _keypoint_form(contents, files, len(objects[0].keypoints or ()) // 3)
        warnings += _keypoint_warnings(objects)
    _convert_coco_labels(contents, list(names), target, task)
    listed = {
        split: [f"{split}/{image.file_name}" for image in content.images]
        for split, content in contents.items()
    }
    return Converted(_write(target, images, listed, form), task, why, tuple(warnings))


def _refuse(problems: Mapping[Path, Iterable[str]]) -> None:
    """Raise InputError if there are problems: a few per file, each line with the file's path."""
    lines = []
    for path, found in ((path, list(found)) for path, found in problems.items()):
        more = [f"... and {len(found) - MAX_LINES} more problems"] if found[MAX_LINES:] else []
        lines += [f"{path}: {problem}" for problem in [*found[:MAX_LINES], *more]]
    if lines:
        raise InputError(lines)


def _class_names(contents: Mapping[str, Coco], files: Mapping[str, Path]) -> dict[Id, str]:
    """Return class names by id, in the order of ids. Raises InputError if the two files differ."""
    train, val = ({c.id: c.name for c in content.categories} for content in contents.values())
    if train != val:
        raise InputError(
            f"{files['val']}: its categories differ from those of {files['train']}; a data set has "
            "one list of classes for both"
        )
    if repeated := list(repeated_names(train)):
        raise InputError(f"{files['train']}: categories: {problem}" for problem in repeated)
    return train


def _task_of(objects: Sequence[Annotation]) -> tuple[str, str]:
    """Return the task that the labels of these objects suit, and the reason."""
    num = len(objects)
    with_points = sum(bool(o.keypoints) for o in objects)
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


def _file_name_problems(content: Coco) -> Iterator[str]:
    """Describe file names whose labels would overwrite each other, or would not be found."""
    taken: dict[Path, str] = {}
    for name in (image.file_name for image in content.images):
        path = Path(name)
        if path.is_absolute() or {"..", "images"} & set(path.parts):
            yield (
                f"file_name '{name}': expected one below the folder of the split, without a folder "
                "'images' in it, since labels are looked for beside the last one; correct it to "
                f"e.g. '{path.name}'"
            )
            return  # most likely all of them are like this
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


def _has_polygon(annotation: Annotation) -> bool:
    """Whether the converter finds an outline; exports of only boxes have `segmentation: []`."""
    parts = annotation.segmentation
    return isinstance(parts, list) and any(
        isinstance(part, list)
        and len(part) >= MIN_NUMBERS
        and len(part) % 2 == 0
        and all(isinstance(number, int | float) for number in part)
        for part in parts
    )


def _keypoint_form(
    contents: Mapping[str, Coco], files: Mapping[str, Path], num_points: int
) -> dict[str, Any]:
    """Return the keys of the data.yaml about keypoints: kpt_shape, and names if as many are given.

    num_points: Keypoints of the first object. Raises InputError if others have another number.
    """
    _refuse({files[split]: _keypoint_problems(c, num_points) for split, c in contents.items()})
    listed = [[c.keypoints for c in content.categories] for content in contents.values()]
    if any(a and b and a != b for a, b in zip(*listed, strict=True)):
        raise InputError(
            f"{files['val']}: its categories list other keypoints than those of {files['train']}; "
            "a data set has one list of keypoints for both"
        )
    names = {
        index: points
        for index, points in enumerate(a or b for a, b in zip(*listed, strict=True))
        if isinstance(points, list)
        and len(points) == num_points
        and all(isinstance(point, str) and point.strip() for point in points)
    }
    return {"kpt_shape": [num_points, 3], **({"kpt_names": names} if names else {})}


def _keypoint_problems(content: Coco, num_points: int) -> Iterator[str]:
    for index, annotation in enumerate(content.annotations):
        num = len(annotation.keypoints or ())
        if num != 3 * num_points and not annotation.iscrowd and not annotation.is_flat:
            yield (
                f"annotations.{index}.keypoints: found {num} numbers, expected x, y and visibility "
                f"of {num_points} keypoints, as in the first object; correct it, or make a data "
                "set of each kind of object"
            )


def _keypoint_warnings(objects: Sequence[Annotation]) -> Iterator[str]:
    """Describe what a data set of keypoints lacks: objects that are left out, and flip_idx."""
    # The third number of each keypoint is its visibility: 0 is unlabelled.
    if lost := sum(not any((o.keypoints or ())[2::3]) for o in objects):
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


def _read_coco(path: Path) -> Coco:
    """Read the needed parts of a file, with its categories in the order of their ids."""
    try:
        refuse_special(path)
        content = TypeAdapter(Coco).validate_json(path.read_text(encoding="utf-8-sig"))
    except ValidationError as error:
        _refuse({path: _misfits(error)})
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a COCO annotation file: {error}") from error
    _refuse({path: _id_problems(content)})
    ordered = sorted(content.categories, key=lambda c: (isinstance(c.id, str), c.id))
    return replace(content, categories=ordered)


def _misfits(error: ValidationError) -> Iterator[str]:
    """Yield one line for each place of a file that does not follow COCO's format."""
    seen = set()
    for problem in error.errors(include_url=False, include_context=False):
        place = ".".join(str(part) for part in problem["loc"] if part not in ("int", "str"))
        text = problem["msg"].replace("Input should be ", "expected ")
        if problem["type"] not in ("json_invalid", "missing"):
            text = f"found {reprlib.repr(problem['input'])}; {text}"
        if place not in seen:  # an id can be of two types, and may fit neither
            yield f"{place}: {text}" if place else text
        seen.add(place)


def _id_problems(content: Coco) -> Iterator[str]:
    """Describe ids that are used twice, or that refer to nothing."""
    images = Counter(image.id for image in content.images)
    categories = Counter(category.id for category in content.categories)
    for key, ids in (("images", images), ("categories", categories)):
        repeated = [found for found, times in ids.items() if times > 1]
        yield from (f"{key}: two have the id {found!r}; give each its own" for found in repeated)
    for index, annotation in enumerate(content.annotations):
        if annotation.image_id not in images:
            yield (
                f"annotations.{index}.image_id: found {annotation.image_id!r}, which none of the "
                "images has; correct or remove the annotation"
            )
        elif annotation.category_id not in categories:
            yield (
                f"annotations.{index}.category_id: found {annotation.category_id!r}, which none of "
                "the categories has; correct or remove the annotation"
            )


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


def _convert_coco_labels(
    contents: Mapping[str, Coco], ids: list[Id], target: Path, task: str
) -> None:
    from ultralytics.data import converter

    # The converter maps category 1 to class 0, and needs whole numbers as ids of images. Many files
    # have categories that begin at 0 or have gaps, and some have names as ids of images.
    classes = {category: number for number, category in enumerate(ids, 1)}
    with tempfile.TemporaryDirectory() as scratch:
        for split, content in contents.items():
            numbers = {image.id: n for n, image in enumerate(content.images)}
            renumbered = {
                "images": [{**vars(image), "id": numbers[image.id]} for image in content.images],
                "annotations": [
                    {
                        **vars(o),
                        "image_id": numbers[o.image_id],
                        "category_id": classes[o.category_id],
                    }
                    for o in content.annotations
                    if not o.iscrowd and not o.is_flat
                ],
            }
            (Path(scratch) / f"{split}.json").write_text(json.dumps(renumbered), encoding="utf-8")
        converter.convert_coco(
            scratch, str(target), task == "segment", task == "pose", cls91to80=False
        )


def convert_voc(folder: Path, target: Path) -> Converted:
    """Write the boxes of a VOC data set and a data.yaml below `target`; no polygons.

    Raises InputError, also if the package supervision is missing.
    """
    try:
        import supervision
    except ImportError as error:
        raise InputError(
            f"{folder}: Pascal VOC is read by supervision: {install_hint('supervision')}"
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
    odd = [*special_files(str(p) for f in (images, folder / "Annotations") for p in f.glob("*"))]
    if odd:
        raise InputError(odd[:MAX_LINES])
    try:
        data = supervision.DetectionDataset.from_pascal_voc(
            str(images), str(folder / "Annotations")
        )
        for detections in data.annotations.values():
            detections.mask = None  # otherwise objects with a <polygon> would not be boxes
        data.as_yolo(annotations_directory_path=str(target / "labels" / images.name))
    except Exception as error:  # supervision raises any error on unexpected XML
        raise InputError(
            f"{folder}: not read as Pascal VOC: {' '.join(str(error).split())}"
        ) from error
    file_of = {Path(path).stem: Path(path).name for path in data.image_paths}
    listed = {split: list(_stems(path, file_of)) for split, path in lists.items()}
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
    warnings = _without_xml(folder / "Annotations", [stem for s in SPLITS for stem in listed[s]])
    return Converted(path, "detect", "Pascal VOC has boxes", tuple(warnings))


def _stems(path: Path, known: Container[str]) -> Iterator[str]:
    """Yield the image names in a list. A number may follow a name: whether it shows a class."""
    for line in path.read_text(encoding="utf-8-sig").splitlines():
        if name := line.strip():
            yield name if name in known else name.split()[0]


def _without_xml(annotations: Path, stems: Sequence[str]) -> Iterator[str]:
    if lost := sum(not (annotations / f"{stem}.xml").is_file() for stem in stems):
        yield (
            f"{lost} of {len(stems)} listed images have no .xml in {annotations} and are taken as "
            "images without objects"
        )


def _write(
    target: Path,
    folders: dict[str, Path],
    images: Mapping[str, Sequence[str]],
    form: dict[str, Any],
) -> Path:
    """Link the folders of images beside the labels, and write the lists and the data.yaml.

    folders: Folders of images by the name of their link. images: Paths LINK/FILE by split.
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
