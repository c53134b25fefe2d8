"""Datumaro: annotations/SPLIT.json with categories and items, images in images/SPLIT or images."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports.content import (
    Content,
    Format,
    LeftOut,
    Object,
    Picture,
    split_in,
)
from federated_yolo.data.exports.files import (
    ImageFiles,
    by_split,
    clean_name,
    files_of,
    limited,
    looks_so,
    names_of,
    read_json,
    sniffed,
    twice,
)
from federated_yolo.data.exports.labelme import PARTS, joined
from federated_yolo.data.exports.shapes import ellipse, rotated_corners


@dataclass(frozen=True)
class Label:
    """A class. parent: of a keypoint's label, the class that it is of."""

    name: Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]
    parent: str | None = ""


@dataclass(frozen=True)
class Labels:
    """All classes, in the order of their indices."""

    labels: list[Label]


@dataclass(frozen=True)
class Categories:
    """What the classes are."""

    label: Labels


@dataclass(frozen=True)
class Thing:
    """An object. bbox: left, top, width and height. points: x and y in turn."""

    type: str
    label_id: int | None = None
    bbox: Annotated[list[FiniteFloat], Field(min_length=4, max_length=4)] | None = None
    points: list[FiniteFloat] | Any = None
    group: int | None = 0
    attributes: dict[str, Any] | None = None


@dataclass(frozen=True)
class Image:
    """An image. size: height and width."""

    path: str = ""
    size: Annotated[list[FiniteFloat], Field(min_length=2, max_length=2)] | None = None


@dataclass(frozen=True)
class Item:
    """An image and its objects."""

    id: Annotated[str, Field(coerce_numbers_to_str=True)]
    annotations: list[Thing] = field(default_factory=list)
    image: Image | None = None


@dataclass(frozen=True)
class File:
    """A file of Datumaro."""

    categories: Categories
    items: list[Item]


FILE = TypeAdapter(File)


def is_datumaro(path: Path) -> bool:
    """Whether a file, or a file in the folder annotations, is of Datumaro."""
    place = path / "annotations" if path.is_dir() else path
    if (path / "data.yaml").is_file():
        return False
    return any(map(_is_of_datumaro, sniffed(place, ".json")))


def _is_of_datumaro(path: Path) -> bool:
    return looks_so(
        path,
        r'"categories"\s*:\s*\{',
        r'"label"\s*:\s*\{',
        r'"labels"\s*:\s*\[',
        r'"items"\s*:\s*\[',
    )


def _name_problems(names: Mapping[Path, tuple[str, ...]]) -> Iterator[str]:
    """Yield the files that list other classes than the first one."""
    first, *others = names or (None,)
    for other in others:
        if first and names[other] != names[first]:
            yield (
                f"{other}: categories.label: other classes than in {first.name}; a data set has "
                "one list of classes for all splits"
            )


def read_datumaro(path: Path) -> Content:
    """Read a file of Datumaro, or all in the folder annotations. Raises InputError."""
    root = path if path.is_dir() else path.parent
    root = root.parent if root.name == "annotations" else root
    images = ImageFiles(root)
    left_out = LeftOut()
    problems: dict[str, list[str]] = defaultdict(list)
    pictures: list[tuple[str | None, Picture]] = []
    names: dict[Path, tuple[str, ...]] = {}
    place = path / "annotations" if path.is_dir() else path
    for file in [p for p in files_of(place, ".json") if _is_of_datumaro(p)]:
        try:
            content: File = read_json(file, FILE, "Datumaro")
        except InputError as error:
            problems["files"] += error.problems
            continue
        names[file] = tuple(label.name for label in content.categories.label.labels)
        for index, item in enumerate(content.items):
            try:
                image = _image_of(item, file.stem, root, images)
                objects = _objects(item, names[file], left_out)
            except ValueError as error:
                problems["items"].append(f"{file}: items.{index} ('{item.id}'): {error}")
                continue
            entry = f"{file.name}: items.{index}"
            pictures.append(
                (split_in(file.stem), Picture(image, objects, _size(item), entry=entry))
            )
    problems["twice"] += twice((picture for _, picture in pictures), path)
    problems["names"] += _name_problems(names)
    if found := limited(problems):
        raise InputError(found)
    listed = [label for labels in names.values() for label in labels]
    objects = [o for _, picture in pictures for o in picture.objects]
    num_parts = sum(max(len(o.outline) - 1, 0) for o in objects)
    return Content(
        format="Datumaro",
        root=root,
        names=names_of(Counter(o.name for o in objects), listed),
        splits=by_split(pictures),
        left_out=left_out.counts,
        notes=(PARTS.format(num=num_parts),) if num_parts else (),
        file=path,
    )


def _size(item: Item) -> tuple[float, float] | None:
    """Width and height, which are written the other way round."""
    size = item.image.size if item.image else None
    return (size[1], size[0]) if size else None


def _image_of(item: Item, subset: str, root: Path, images: ImageFiles) -> Path:
    """The image of an item, by its path or its id. Raises ValueError."""
    folders = [root / "images" / subset, root / "images", root / subset, root]
    path = clean_name(item.image.path) if item.image else ""
    if path and (found := images.at(path, folders)):
        return found
    candidates = images.of_stem(item.id, folders)
    if len(candidates) == 1:
        return candidates[0]
    return images.find(path or item.id, folders)


def _objects(item: Item, names: tuple[str, ...], left_out: LeftOut) -> tuple[Object, ...]:
    """The objects of an item: polygons of the same class and group are one. Raises ValueError."""
    groups: dict[tuple[Any, ...], list[Object]] = defaultdict(list)
    for index, thing in enumerate(item.annotations):
        if thing.label_id is None and thing.type in ("caption", "label"):
            left_out.add(f"a {thing.type}, which is no area", "(no class)")
            continue
        if thing.label_id is None or not 0 <= thing.label_id < len(names):
            raise ValueError(
                f"annotations.{index}.label_id: found {thing.label_id}, expected 0 to "
                f"{len(names) - 1}, as there are {len(names)} labels"
            )
        name = names[thing.label_id]
        found = _object(thing, name, index)
        if isinstance(found, str):
            left_out.add(found, name)
            continue
        is_part = thing.type == "polygon" and thing.group
        groups[(name, thing.group) if is_part else (index,)].append(found)
    return tuple(map(joined, groups.values()))


def _object(thing: Thing, name: str, index: int) -> Object | str:
    """The object, or why it is left out. Raises ValueError."""
    points = thing.points if isinstance(thing.points, list) else []
    degrees = (thing.attributes or {}).get("rotation") or 0
    if thing.type == "bbox" and thing.bbox:
        x, y, w, h = thing.bbox
        box = (x, y, x + w, y + h)
        if isinstance(degrees, int | float) and degrees % 360:
            return Object(name, corners=rotated_corners(box, degrees))
        return Object(name, box)
    if thing.type == "polygon":
        if len(points) < 6 or len(points) % 2:
            return "a polygon of fewer than three points"
        return Object(name, outline=(tuple(zip(points[::2], points[1::2], strict=True)),))
    if thing.type == "ellipse" and len(points) == 4:
        left, top, right, bottom = points
        outline = ellipse(
            (left + right) / 2, (top + bottom) / 2, abs(right - left) / 2, abs(bottom - top) / 2
        )
        return Object(name, outline=(outline,))
    if thing.type in ("bbox", "ellipse"):
        raise ValueError(f"annotations.{index}: found a {thing.type} without its numbers")
    if thing.type == "mask":
        return "a mask, which is not read from Datumaro (COCO has it)"
    return f"a {thing.type}, which is no area"


FORMATS = (Format("Datumaro", is_datumaro, read_datumaro),)
