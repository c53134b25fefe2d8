"""COCO as it is downloaded, and as CVAT, Roboflow, FiftyOne and Label Studio export it.

Where the files are: coco_files.py; what an annotation says: coco_objects.py. Ultralytics' converter
is not used: it loses masks, all boxes with `iscrowd`, and files of the same name in two folders.
"""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import repeated_names
from federated_yolo.data.exports.coco_files import (
    ROBOFLOW,
    annotation_files,
    base_of,
    by_split,
    find_images,
)
from federated_yolo.data.exports.coco_objects import (
    Category,
    Coco,
    Found,
    Id,
    Image,
    box_problems,
    keypoint_form,
    marks_are_masks,
    objects_of,
)
from federated_yolo.data.exports.content import Content, Format, LeftOut, Object, Picture
from federated_yolo.data.exports.json_files import read_json, refuse

FLIPS = (
    "COCO does not say which keypoints change places in a mirrored image: training will not mirror "
    "images left-right until flip_idx is added to the data.yaml"
)


def is_coco(path: Path) -> bool:
    """Whether a folder, or a .json file itself, has COCO's annotations."""
    try:
        return bool(annotation_files(path))
    except (OSError, ValueError):
        return False


def read_coco(path: Path) -> Content:
    """Read COCO's annotations.

    Polygons and masks become outlines; keypoints are kept. Left out, and counted, are crowds (see
    `marks_are_masks` for what is one) and boxes without an area.

    Raises:
        InputError: With all problems, some of each file.
    """
    files, notes = by_split(path)
    contents = {file: _read(file) for file in files.values()}
    names, more = _class_names(contents)
    notes += more
    masks = marks_are_masks(contents.values())
    if masks:
        num = sum(bool(a.iscrowd) for c in contents.values() for a in c.annotations)
        notes.append(f"{num} objects with iscrowd: 1 are taken as single objects: {masks}")
    left_out = LeftOut()
    found: dict[Path, list[Found]] = {}
    images: dict[Path, list[Path | None]] = {}
    problems: dict[Path, list[str]] = {}
    for split, file in files.items():
        content = contents[file]
        by_id = {c.id: c.name for c in content.categories}
        found[file], problems[file] = objects_of(content, by_id, bool(masks), left_out)
        problems[file] += box_problems(found[file])
        images[file], searched = find_images(file, split, [i.file_name for i in content.images])
        problems[file] += _image_problems(content.images, images[file], searched)
    refuse(problems)
    form, problems = keypoint_form(contents, found, names)
    refuse(problems)
    root = path if path.is_dir() else base_of(path)
    splits = {
        split: _pictures(contents[file], images[file], found[file], _entry(file, path))
        for split, file in files.items()
    }
    return Content(
        format="COCO",
        root=root,
        names=tuple(names),
        splits=splits,
        left_out={reason: dict(counts) for reason, counts in left_out.counts.items()},
        notes=(*notes, *([FLIPS] if form else [])),
        form=form,
        file=path,
    )


def _entry(file: Path, path: Path) -> str:
    """What stands before the place in a file; nothing if the user named the file."""
    return "" if file == path else f"{file.relative_to(path).as_posix()}: "


def _read(file: Path) -> Coco:
    content = read_json(file, Coco, "a COCO annotation file")
    refuse({file: _id_problems(content)})
    return content


def _id_problems(content: Coco) -> Iterator[str]:
    """Ids that stand for two things, or for nothing."""
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


def _class_names(contents: Mapping[Path, Coco]) -> tuple[list[str], list[str]]:
    """Names of the classes, in the order of their ids in the first file; and notes.

    Raises:
        InputError: Where files have other classes, or two classes have one name.
    """
    dummy = _dummy(contents)
    notes = []
    if dummy:
        notes.append(
            f"the category '{dummy.name}' without objects is no class: Roboflow adds the group of "
            "the classes as one"
        )
    classes = {
        file: {c.id: c.name for c in _sorted(content) if dummy is None or c.id != dummy.id}
        for file, content in contents.items()
    }
    refuse({file: _name_problems(of_file) for file, of_file in classes.items()})
    (first, names), *others = ((file, list(of.values())) for file, of in classes.items())
    for file, of_file in others:
        if set(of_file) != set(names):
            odd = ", ".join(repr(name) for name in sorted(set(of_file) ^ set(names))[:5])
            raise InputError(
                f"{file}: its categories differ from those of {first} ({odd} is in one alone); a "
                "data set has one list of classes for all splits"
            )
    return names, notes


def _sorted(content: Coco) -> list[Category]:
    return sorted(content.categories, key=lambda c: (isinstance(c.id, str), c.id))


def _name_problems(names: Mapping[Id, str]) -> Iterator[str]:
    yield from (f"categories: {problem}" for problem in repeated_names(names))


def _dummy(contents: Mapping[Path, Coco]) -> Category | None:
    """The category that Roboflow puts before the classes: their group, which has no objects.

    Its id is 0 in all files. In other files than Roboflow's it has to be the supercategory of all
    others, too.
    """
    used = {a.category_id for content in contents.values() for a in content.annotations}
    dummy = None
    for file, content in contents.items():
        first = next((c for c in content.categories if c.id == 0), None)
        others = [c for c in content.categories if c.id != 0]
        if first is None or not others or 0 in used or (dummy and first.name != dummy.name):
            return None
        is_group = all(c.supercategory == first.name for c in others)
        of_roboflow = file.name == ROBOFLOW and first.supercategory in ("none", None)
        if not is_group and not of_roboflow:
            return None
        dummy = first
    return dummy


def _image_problems(
    images: Sequence[Image], paths: Sequence[Path | None], searched: Sequence[Path]
) -> Iterator[str]:
    """Say which images are not there, and which file two entries name."""
    taken: dict[str, int] = {}
    for index, (image, path) in enumerate(zip(images, paths, strict=True)):
        if path is None:
            places = ", ".join(str(folder) for folder in searched[:4])
            yield (
                f"images.{index}.file_name: '{image.file_name}' is not there; put it into one of "
                f"{places}, or remove the entry and its annotations"
            )
            continue
        other = taken.setdefault(os.path.normpath(path), index)
        if other != index:
            yield (
                f"images.{index}.file_name: '{image.file_name}' is the same file as that of "
                f"images.{other}, '{images[other].file_name}', so that the objects of both would "
                "be on one image; correct the name of one, or remove one with its annotations"
            )


def _pictures(
    content: Coco, paths: Sequence[Path | None], found: Sequence[Found], entry: str
) -> list[Picture]:
    objects: dict[Id, list[Object]] = {}
    for f in found:
        objects.setdefault(f.image.id, []).append(f.object)
    return [
        Picture(path, tuple(objects.get(image.id, ())), image.size, entry=f"{entry}images.{index}")
        for index, (image, path) in enumerate(zip(content.images, paths, strict=True))
        if path is not None
    ]


FORMATS = (Format("COCO", is_coco, read_coco),)
