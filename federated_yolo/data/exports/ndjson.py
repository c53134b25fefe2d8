"""Ultralytics NDJSON whose images are there: a record of the data set, then one for each image.

    {"type": "dataset", "task": "detect", "class_names": {"0": "cat"}}
    {"type": "image", "file": "a.jpg", "width": 640, "height": 480, "split": "train",
     "annotations": {"boxes": [[0, 0.5, 0.5, 0.2, 0.1]]}}

Read as `yolo train data=x.ndjson` reads it, but for a split: that makes a val split of every tenth
image where there is none, and this leaves it to val_fraction. Nothing is downloaded.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from federated_yolo.common.errors import InputError
from federated_yolo.common.files import read_yaml
from federated_yolo.data.data_yaml import OF_KEYPOINTS, ndjson_command
from federated_yolo.data.exports.content import Content, Format, LeftOut, Object, Picture
from federated_yolo.data.exports.files import (
    ImageFiles,
    by_split,
    head_of,
    limited,
    misfits,
    read_text,
    twice,
)
from federated_yolo.data.exports.sizes import image_size
from federated_yolo.data.exports.yolo_files import images_in, inside, signature

NAME = "Ultralytics NDJSON"
TASKS = ("detect", "segment", "pose", "obb", "classify")
UNLABELLED = "without a class, as Ultralytics leaves them out"


@dataclass(frozen=True)
class _Record:
    """An image. annotations: labels by kind, of which Ultralytics reads the first alone."""

    file: Annotated[str, Field(min_length=1)]
    split: Literal["train", "val", "test"]
    width: Annotated[FiniteFloat, Field(gt=0)] | None = None
    height: Annotated[FiniteFloat, Field(gt=0)] | None = None
    annotations: dict[str, list[Any]] = field(default_factory=dict)


@signature
def is_ndjson(path: Path) -> bool:
    """Whether this is, or a folder has as its only such file, an NDJSON of Ultralytics."""
    return _file(path) is not None


def _file(path: Path) -> Path | None:
    if path.is_dir():
        found = [p for p in path.iterdir() if p.suffix.lower() == ".ndjson"]
        path = found[0] if len(found) == 1 else path
    if path.suffix.lower() != ".ndjson" or not path.is_file():
        return None
    try:
        first = json.loads(head_of(path, 4 << 20).lstrip().split("\n", 1)[0])
    except ValueError:
        return None
    is_ours = isinstance(first, dict) and ("class_names" in first or first.get("type") == "dataset")
    return path if is_ours else None


def read_ndjson(path: Path) -> Content:
    """Read such a file. Raises InputError, also with the command that downloads its images."""
    file = _file(path)
    assert file is not None
    header, records = _records(file)
    task = _task_of(header, file)
    problems: dict[str, list[str]] = defaultdict(list)
    images = ImageFiles(file.parent)
    names = _names(header, [record for _, record in records])
    left_out = LeftOut()
    pictures: list[tuple[str | None, Picture]] = []
    absent = []
    for number, record in records:
        image = _image(images, record, header)
        if image is None:
            absent.append((number, record.file))
            continue
        try:
            objects = tuple(_objects(record, names, task, image))
        except ValueError as error:
            problems["labels"].append(f"{file}: line {number}: {error}; export again")
            continue
        if task == "classify" and not objects:
            left_out.add(UNLABELLED, "no class")
            continue
        size = (record.width, record.height) if record.width and record.height else None
        picture = Picture(image, objects, size, entry=f"line {number}")  # pyright: ignore
        pictures.append((record.split, picture))
    if absent:
        number, name = absent[0]
        raise InputError(
            f"{file}: {len(absent)} of {len(records)} images are not below {file.parent}, the "
            f"first in line {number} ({name}); they have to be downloaded, which this toolkit does "
            f"not do; do so once, by {ndjson_command(file)}, and give what it prints"
        )
    problems["twice"] += twice((picture for _, picture in pictures), file)
    if lines := limited(problems):
        raise InputError(lines)
    form = {key: header[key] for key in ("channels", "kpt_shape", *OF_KEYPOINTS) if key in header}
    return Content(
        format=NAME,
        root=file.parent,
        names=tuple(names.values()),
        splits=by_split(pictures),
        left_out=left_out.counts,
        form={} if task == "classify" else form,
        file=file,
        task="classify" if task == "classify" else None,
    )


def _task_of(header: Mapping[str, Any], file: Path) -> str:
    """Return Ultralytics' task of a file. Raises InputError for one that cannot be read."""
    task = header.get("task", "detect")
    if task not in TASKS:
        raise InputError(f"{file}: line 1: task '{task}', expected one of {', '.join(TASKS)}")
    if task == "pose" and list(header.get("kpt_shape") or [])[1:] != [3]:
        raise InputError(
            f"{file}: line 1: kpt_shape: found {header.get('kpt_shape')}, and only keypoints with "
            f"x, y and visibility are read from NDJSON; make a data set of it, by "
            f"{ndjson_command(file)}, and give what it prints"
        )
    return task


def _records(file: Path) -> tuple[dict[str, Any], list[tuple[int, _Record]]]:
    """The record of the data set, and those of images with their line. Raises InputError."""
    adapter = TypeAdapter(_Record)
    header: dict[str, Any] = {}
    records, problems = [], []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        try:
            if not header:
                header = json.loads(line)
                listed = TypeAdapter(dict[int, str]).validate_python(header.get("class_names", {}))
                header["class_names"] = listed
            else:
                records.append((number, adapter.validate_json(line)))
        except ValidationError as error:
            problems += [f"{file}: line {number}: {text}" for text in misfits(error, NAME)]
    if problems:
        raise InputError(limited({"records": problems}))
    return header, records


def _labels(record: _Record) -> list[Any]:
    """The labels of the first kind, which alone Ultralytics reads."""
    return next(iter(record.annotations.values()), [])


def _names(header: Mapping[str, Any], records: Sequence[_Record]) -> dict[int, str]:
    """Names of all classes by index; Ultralytics makes some up where there is none."""
    listed = header.get("class_names") or {}
    if header.get("task") == "classify":
        firsts = [c for r in records for c in r.annotations.get("classification", [])[:1]]
        found = {c for c in firsts if isinstance(c, int)}
        return {index: listed.get(index, str(index)) for index in sorted(found)}
    found = {
        int(label[0])
        for record in records
        for label in _labels(record)
        if isinstance(label, list) and label and isinstance(label[0], int | float)
    }
    made = "class{}" if listed else "class_{}"
    num = max((*listed, *found), default=-1) + 1
    return {index: listed.get(index, made.format(index)) for index in range(num)}


def _image(images: ImageFiles, record: _Record, header: Mapping[str, Any]) -> Path | None:
    """The image of a record, where Ultralytics looks for it or beside the file."""
    root = images.root
    local = root / str(header.get("path") or "")
    folders = [
        folder / part
        for folder in (local, root)
        for part in (f"images/{record.split}", record.split, "images", "")
    ]
    if found := images.at(record.file, folders):
        return found
    anywhere = images.anywhere(record.file, folders[0])
    return anywhere[0] if len(anywhere) == 1 else None


def _objects(record: _Record, names: Mapping[int, str], task: str, image: Path) -> Iterator[Object]:
    """The objects of an image. Raises ValueError for labels that are not of the task."""
    if task == "classify":
        for index in record.annotations.get("classification", [])[:1]:
            if not isinstance(index, int):
                raise ValueError(f"classification: found {index!r}, expected an index")
            yield Object(names[index])
        return
    labels = _labels(record)
    if not labels:
        return
    size = image_size(image)
    if size is None:
        raise ValueError(f"{image} is not readable as an image; repair it")
    for label in TypeAdapter(list[list[FiniteFloat]]).validate_python(labels):
        if not label or label[0] not in names:
            raise ValueError(f"label {label}: no class of this index")
        yield _object(names[int(label[0])], label[1:], size, task)


def _object(name: str, numbers: Sequence[float], size: tuple[int, int], task: str) -> Object:
    width, height = size
    if (task == "detect" and len(numbers) == 4) or task == "pose":
        if len(numbers) < 4 or (len(numbers) - 4) % 3:
            raise ValueError(f"found {len(numbers)} numbers, expected a box and keypoints")
        x, y, w, h = numbers[:4]
        box = (x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height
        rest = numbers[4:]
        points = zip(rest[::3], rest[1::3], rest[2::3], strict=True)
        return Object(name, box, keypoints=tuple((x * width, y * height, v) for x, y, v in points))
    if len(numbers) % 2 or len(numbers) < 6 or (task == "obb" and len(numbers) != 8):
        raise ValueError(f"found {len(numbers)} numbers, which are no label of the task {task}")
    points = zip(numbers[::2], numbers[1::2], strict=True)
    outline = tuple((x * width, y * height) for x, y in points)
    return Object(name, corners=outline) if task == "obb" else Object(name, outline=(outline,))


@signature
def is_made_folder(path: Path) -> bool:
    """Whether Ultralytics has made class folders of NDJSON here, which go by numbers."""
    return path.is_dir() and (path / ".ndjson.yaml").is_file()


def read_made_folder(path: Path) -> Content:
    """Read class folders that Ultralytics has made of NDJSON. Raises InputError."""
    file = path / ".ndjson.yaml"
    try:
        names = TypeAdapter(dict[int, str]).validate_python(read_yaml(file)["names"])
    except (
        Exception
    ) as error:  # YAML's constructors of numbers, dates, ... raise errors of any kind
        raise InputError(f"{file}: no names of classes; make the folder again") from error
    pictures: list[tuple[str | None, Picture]] = []
    for image in images_in(path):
        split, folder, *_ = image.relative_to(path).parts
        if (
            split not in ("train", "val", "test")
            or not folder.isdigit()
            or int(folder) not in names
        ):
            raise InputError(f"{image}: not in a folder SPLIT/NUMBER of {file}; remove it")
        entry = inside(image, path)
        pictures.append((split, Picture(image, (Object(names[int(folder)]),), entry=entry)))
    return Content(
        format=f"{NAME} class folders",
        root=path,
        names=tuple(sorted(set(names.values()))),
        splits=by_split(pictures),
        file=path,
        task="classify",
    )


FORMATS = (
    Format(NAME, is_ndjson, read_ndjson),
    Format(f"{NAME} class folders", is_made_folder, read_made_folder),
)
