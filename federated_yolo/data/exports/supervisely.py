"""Supervisely: meta.json with the classes, and DATASET/ann/a.jpg.json of DATASET/img/a.jpg.

Edges of rectangles are taken as they are written, as by Supervisely's own export as COCO.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports.content import Content, Format, LeftOut, Object, Picture
from federated_yolo.data.exports.files import (
    ImageFiles,
    by_split,
    limited,
    looks_so,
    names_of,
    read_json,
    some,
    split_of,
    twice,
    walk,
)
from federated_yolo.data.exports.labelme import HOLES
from federated_yolo.data.exports.shapes import around, mask_object, png_mask

Name = Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]
Place = Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)]


@dataclass(frozen=True)
class Class:
    """A class of meta.json."""

    title: Name


@dataclass(frozen=True)
class Meta:
    """meta.json."""

    classes: list[Class]


@dataclass(frozen=True)
class Points:
    """Corners of a shape, and of its holes."""

    exterior: list[Place] = field(default_factory=list)
    interior: list[list[Place]] = field(default_factory=list)


@dataclass(frozen=True)
class Bitmap:
    """A mask. data: base64 of a PNG that zlib compressed. origin: its first pixel's place."""

    data: str
    origin: Place


@dataclass(frozen=True)
class Thing:
    """An object."""

    classTitle: Name
    geometryType: str | None = None
    points: Points | Any = None
    bitmap: Bitmap | None = None


@dataclass(frozen=True)
class Size:
    """Of the image, in pixels."""

    width: FiniteFloat
    height: FiniteFloat


@dataclass(frozen=True)
class File:
    """The objects of an image."""

    size: Size
    objects: list[Thing]


META, FILE = TypeAdapter(Meta), TypeAdapter(File)


def is_supervisely(path: Path) -> bool:
    """Whether a folder is a project of Supervisely."""
    return looks_so(path / "meta.json", r'"classes"\s*:\s*\[') and any(
        True for _ in _datasets(path)
    )


def _datasets(path: Path) -> Iterator[Path]:
    """Folders that have ann and img, at most some levels deep."""
    for pattern in ("ann", "*/ann", "*/*/ann", "*/*/*/ann"):
        for folder in sorted(path.glob(pattern)):
            if folder.is_dir() and (folder.parent / "img").is_dir():
                yield folder.parent


def read_supervisely(path: Path) -> Content:
    """Read a project of Supervisely. Raises InputError with all problems."""
    names = [
        c.title for c in read_json(path / "meta.json", META, "Supervisely's meta.json").classes
    ]
    images = ImageFiles(path)
    left_out, notes = LeftOut(), []
    problems: dict[str, list[str]] = defaultdict(list)
    pictures: list[tuple[str | None, Picture]] = []
    num_holes = 0
    for dataset in _datasets(path):
        for file in walk(dataset / "ann"):
            if file.suffix.lower() != ".json":
                continue
            try:
                content: File = read_json(file, FILE, "Supervisely")
                image = _image_of(file, dataset, images)
                objects, holes = _objects(content, left_out)
            except InputError as error:
                problems["files"] += error.problems
                continue
            except ValueError as error:
                problems["images"].append(f"{file}: {error}")
                continue
            num_holes += holes
            entry = file.relative_to(path).as_posix()
            size = (content.size.width, content.size.height)
            pictures.append((split_of(dataset, path), Picture(image, objects, size, entry=entry)))
    problems["twice"] += twice((picture for _, picture in pictures), path)
    if found := limited(problems):
        raise InputError(found)
    if num_holes:
        notes.append(HOLES.format(num=num_holes))
    used = {picture.path for _, picture in pictures}
    lost = [p.name for p in images.paths if p not in used and p.parent.name == "img"]
    if lost:
        notes.append(f"{len(lost)} images have no .json in ann and are left out: {some(lost)}")
    return Content(
        format="Supervisely",
        root=path,
        names=names_of(Counter(o.name for _, p in pictures for o in p.objects), names),
        splits=by_split(pictures),
        left_out=left_out.counts,
        notes=tuple(notes),
        file=path,
    )


def _image_of(file: Path, dataset: Path, images: ImageFiles) -> Path:
    """img/a.jpg of ann/a.jpg.json; of ann/a.json in older projects. Raises ValueError."""
    folder = dataset / "img" / file.parent.relative_to(dataset / "ann")
    name = file.name[: -len(".json")]
    if found := images.at(name, [folder]):
        return found
    candidates = images.of_stem(name, [folder])
    if len(candidates) == 1:
        return candidates[0]
    what = f"{len(candidates)} images are called '{name}'" if candidates else f"no image '{name}'"
    raise ValueError(f"{what} in {folder}; put it there, or remove the .json")


def _objects(content: File, left_out: LeftOut) -> tuple[tuple[Object, ...], int]:
    """The objects of an image, and how many have holes. Raises ValueError."""
    objects, num_holes = [], 0
    for index, thing in enumerate(content.objects):
        try:
            found, has_holes = _object(thing)
        except ValueError as error:
            raise ValueError(
                f"objects.{index} ('{thing.classTitle}'): {error}; correct it, or export again"
            ) from error
        if isinstance(found, str):
            left_out.add(found, thing.classTitle)
            continue
        objects.append(found)
        num_holes += has_holes
    return tuple(objects), num_holes


def _object(thing: Thing) -> tuple[Object | str, bool]:
    """The object, or why it is left out; and whether it has holes. Raises ValueError."""
    kind = thing.geometryType or ("bitmap" if thing.bitmap else "polygon")
    if kind == "bitmap":
        if thing.bitmap is None:
            raise ValueError("found a bitmap without content")
        left, top = (round(n) for n in thing.bitmap.origin)
        mask = png_mask(thing.bitmap.data, compressed=True)
        found, has_holes = mask_object(thing.classTitle, mask, left, top)
        return found or "an empty mask", has_holes
    if kind not in ("rectangle", "polygon"):
        return f"a {kind}, which is no area", False
    if not isinstance(thing.points, Points):
        raise ValueError(f"found a {kind} without points")
    corners = [(x, y) for x, y in thing.points.exterior]
    if kind == "rectangle":
        if len(corners) < 2:
            raise ValueError(f"found {len(corners)} corners of a rectangle, expected 2")
        return Object(thing.classTitle, around(corners)), False
    if len(corners) < 3:
        return "a polygon of fewer than three points", False
    return Object(thing.classTitle, outline=(tuple(corners),)), bool(thing.points.interior)


FORMATS = (Format("Supervisely", is_supervisely, read_supervisely),)
