"""YOLO label files in folders of tools that write no data.yaml.

CVAT YOLO 1.1   obj.data, obj.names, train.txt with lines of data/obj_train_data/a.jpg;
                labels lie beside the images, in obj_train_data
Label Studio    notes.json, classes.txt, images/, labels/
LabelImg        classes.txt and labels beside the images, in one folder or in train/ and valid/
Darknet         images/ and labels/ (or train/images and train/labels), classes.txt
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import repeated_names
from federated_yolo.data.exports.content import SPLIT_WORDS, Content, Format, split_in
from federated_yolo.data.exports.files import read_json, read_text, split_of, walk
from federated_yolo.data.exports.yolo import find_yaml
from federated_yolo.data.exports.yolo_files import (
    NAME_FILES,
    Reading,
    below,
    by_folder,
    has_labels,
    images_in,
    inside,
    label_of,
    labels_in,
    list_lines,
    looks_as_label,
    read_names,
    same_names,
    signature,
)

CVAT, LABEL_STUDIO, LABELIMG, DARKNET = (
    "CVAT YOLO 1.1",
    "Label Studio YOLO",
    "LabelImg YOLO",
    "YOLO",
)
OTHER_KEYS = ("classes", "names", "backup")  # of an obj.data, beside its subsets


@signature
def is_cvat(path: Path) -> bool:
    """Whether a folder has, or a file is, the obj.data of CVAT or Darknet with obj.names."""
    folder = _folder_of(path, "obj.data")
    return (folder / "obj.data").is_file() and (folder / "obj.names").is_file()


def _folder_of(path: Path, *files: str) -> Path:
    """The folder of an export, of which a user may also name one of these files."""
    return path.parent if path.name in files and path.is_file() else path


def read_cvat(path: Path) -> Content:
    """Read CVAT's YOLO 1.1. Raises InputError."""
    root = _folder_of(path, "obj.data")
    config = root / "obj.data"
    values = dict(_config(config))
    names_file = below(values.get("names", "obj.names"), root) or root / "obj.names"
    names = read_names(names_file)
    reading = Reading(config, root, names, names_file)
    num = values.get("classes", str(len(names)))
    if num != str(len(names)):
        reading.problems["names"].append(
            f"{config}: classes = {num}, but {names_file} has {len(names)} names; export again"
        )
    for key, value in values.items():
        if key.lower() in OTHER_KEYS:
            continue
        split, listed = split_in(key), below(value, root)
        if split is None:
            reading.problems["splits"].append(
                f"{config}: {key}: a subset that is none of train, valid and test; rename it, or "
                "remove the line"
            )
        elif listed is None:
            reading.problems["lists"].append(f"{config}: {key}: no file {value}; export again")
        else:
            _add_cvat(reading, split, listed)
    folders = {folder for folder in root.glob("obj_*_data") if folder.is_dir()}
    reading.count_unused(labels_in(folders))
    return reading.content(CVAT)


def _config(path: Path) -> Iterator[tuple[str, str]]:
    for line in read_text(path).splitlines():
        if match := re.match(r"\s*(\w+)\s*=\s*(.+)", line):
            yield match.group(1), match.group(2).strip()


def _add_cvat(reading: Reading, split: str, path: Path) -> None:
    """Add the images of a list of CVAT's; their labels lie beside them."""
    lines = list_lines(path)
    absent = []
    for number, line in lines:
        entry = f"{inside(path, reading.root)}: line {number}"
        if image := below(line, reading.root):
            reading.add(split, image, image.with_suffix(".txt"), entry)
        else:
            absent.append((number, line))
    if not absent:
        return
    number, line = absent[0]
    labelled = below(str(Path(line).with_suffix(".txt")), reading.root)
    step = "export with 'Save images'" if labelled else "put them there, or remove the lines"
    reading.problems["images"].append(
        f"{path}: {len(absent)} of {len(lines)} listed images are not there, the first in line "
        f"{number} ({line}); {step}"
    )


class _Category(TypedDict):
    id: int
    name: str


class _Notes(TypedDict):
    categories: list[_Category]


@signature
def is_label_studio(path: Path) -> bool:
    """Whether a folder has Label Studio's notes.json beside images or labels."""
    folder = _folder_of(path, "notes.json")
    is_there = (folder / "notes.json").is_file() and _has_no_yaml(folder)
    return is_there and ((folder / "labels").is_dir() or (folder / "images").is_dir())


def read_label_studio(path: Path) -> Content:
    """Read Label Studio's YOLO, with boxes, polygons or rotated boxes. Raises InputError."""
    root = _folder_of(path, "notes.json")
    notes, listed = root / "notes.json", root / "classes.txt"
    names = _names_of_notes(notes)
    if listed.is_file() and (others := read_names(listed)) != names:
        raise InputError(
            f"{listed}: found [{', '.join(others)}], and {notes} has [{', '.join(names)}] in the "
            "order of its ids, so that an index means two classes; export again"
        )
    reading = Reading(path, root, names, notes)
    _add_pairs(reading, [root], "export as 'YOLO with Images'")
    return reading.content(LABEL_STUDIO)


def _names_of_notes(path: Path) -> tuple[str, ...]:
    """Names of the categories of a notes.json by their ids, which have to count from 0."""
    found: _Notes = read_json(path, TypeAdapter(_Notes), LABEL_STUDIO)
    names: Mapping[int, str] = {c["id"]: c["name"] for c in found["categories"]}
    problems = [f"{path}: categories: {problem}" for problem in repeated_names(names)]
    ids = sorted(c["id"] for c in found["categories"])
    if ids != list(range(len(ids))):
        problems.append(
            f"{path}: categories: found ids {', '.join(map(str, ids))}, expected 0 to "
            f"{len(ids) - 1}, as labels count; export again"
        )
    if problems:
        raise InputError(problems)
    return tuple(names[index] for index in ids)


def _add_pairs(reading: Reading, folders: list[Path], step: str) -> None:
    """Add the images of folders with images/ and labels/. step: What to do without images."""
    for folder in folders:
        by_folder(reading, folder / "images", lambda image: label_of(image, reading.root))
    labels = [folder / "labels" for folder in folders if (folder / "labels").is_dir()]
    if not reading.pictures and not reading.problems:
        reading.problems["images"].append(
            f"{reading.path}: labels, but no images in {folders[0] / 'images'}; {step}, or put "
            "them there"
        )
        return
    reading.count_unused(labels_in(labels))


def _has_no_yaml(folder: Path) -> bool:
    """Whether a folder is none of a data.yaml, nor of COCO or VOC with labels made of them."""
    others = any((folder / name).is_dir() for name in ("annotations", "Annotations"))
    return folder.is_dir() and find_yaml(folder) is None and not others


@signature
def is_labelimg(path: Path) -> bool:
    """Whether a folder has LabelImg's classes.txt and labels, or folders of splits have them."""
    root = _folder_of(path, "classes.txt")
    if not _has_no_yaml(root) or _pairs(root):
        return False
    return any(
        any(looks_as_label(p) for p in walk(folder, 1) if p.suffix == ".txt")
        for folder in _with_classes(root)
    )


def _with_classes(root: Path) -> list[Path]:
    """The folder, and those of splits in it, that have a classes.txt or are below one that has."""
    splits = [p for p in sorted(root.iterdir()) if p.is_dir() and _is_split(p)]
    if (root / "classes.txt").is_file():
        return [root, *splits]
    return [folder for folder in splits if (folder / "classes.txt").is_file()]


def _is_split(folder: Path) -> bool:
    return any(folder.name.lower() in words for words in SPLIT_WORDS.values())


def read_labelimg(path: Path) -> Content:
    """Read LabelImg's YOLO. Raises InputError."""
    root = _folder_of(path, "classes.txt")
    files = [p for p in walk(root) if p.name == "classes.txt"]
    names = same_names(files)
    reading = Reading(path, root, names, files[0])
    for image in images_in(root):
        label = image.with_suffix(".txt")
        if label.name in NAME_FILES:
            reading.problems["names"].append(
                f"{image}: its label file would be {label.name}, which lists classes; rename the "
                "image"
            )
            continue
        reading.add(split_of(image.parent, root), image, label)
    if not reading.pictures and not reading.problems:
        reading.problems["images"].append(
            f"{path}: labels, but no images beside them; put them there"
        )
    else:
        reading.count_unused(labels_in([root]))
    return reading.content(LABELIMG)


def _pairs(root: Path) -> list[Path]:
    """The folder, or folders of splits in it, with images/ and labels/."""
    return [
        folder
        for folder in (root, *sorted(p for p in root.iterdir() if p.is_dir() and _is_split(p)))
        if (folder / "images").is_dir() and (folder / "labels").is_dir()
    ]


@signature
def is_darknet(path: Path) -> bool:
    """Whether a folder has images/ and labels/ with label files, and no data.yaml."""
    root = _folder_of(path, *NAME_FILES)
    pairs = _pairs(root) if _has_no_yaml(root) else []
    return has_labels(folder / "labels" for folder in pairs)


def read_darknet(path: Path) -> Content:
    """Read folders of images and labels with a list of names. Raises InputError."""
    root = _folder_of(path, *NAME_FILES)
    pairs = _pairs(root)
    places = [root, *(folder / "labels" for folder in pairs), *pairs]
    files = [f for p in dict.fromkeys(places) for n in NAME_FILES if (f := p / n).is_file()]
    files += sorted(p for p in root.glob("*.names") if p not in files)
    if not files:
        raise InputError(
            f"{path}: images and labels, but nothing says what the classes are called; write "
            f"{root / 'classes.txt'} with one name a line, in the order of the indices in the "
            "labels, or a data.yaml with train, val and names"
        )
    reading = Reading(path, root, same_names(files), files[0])
    lists = {split: file for split in SPLIT_WORDS for file in _lists(root, split)}
    if lists:
        _add_lists(reading, lists)
        _count_unlisted(reading, pairs)
    else:
        _add_pairs(reading, pairs, "export with images")
    return reading.content(DARKNET)


def _lists(root: Path, split: str) -> list[Path]:
    return [p for word in SPLIT_WORDS[split] if (p := root / f"{word}.txt").is_file()]


def _add_lists(reading: Reading, lists: Mapping[str, Path]) -> None:
    for split, path in lists.items():
        for number, line in list_lines(path):
            image = below(line, reading.root)
            entry = f"{inside(path, reading.root)}: line {number}"
            if image is None:
                reading.problems["images"].append(
                    f"{path}: line {number}: no image '{line}' below {reading.root}; put it there, "
                    "or remove the line"
                )
            else:
                reading.add(split, image, label_of(image, reading.root), entry)


def _count_unlisted(reading: Reading, pairs: list[Path]) -> None:
    """Note how many images are in no list, and count their objects."""
    listed = {picture.path for _, picture in reading.pictures}
    counts = Counter(p in listed for folder in pairs for p in images_in(folder / "images"))
    if counts[False]:
        reading.notes.append(f"{counts[False]} images are in no list and are left out")
    reading.count_unused(labels_in(folder / "labels" for folder in pairs))


FORMATS = (
    Format(CVAT, is_cvat, read_cvat),
    Format(LABEL_STUDIO, is_label_studio, read_label_studio),
    Format(LABELIMG, is_labelimg, read_labelimg),
    Format(DARKNET, is_darknet, read_darknet),
)
