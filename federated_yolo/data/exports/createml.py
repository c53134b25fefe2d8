"""CreateML: a .json that lists images with their boxes, by centre and size in pixels."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, Field, FiniteFloat, TypeAdapter

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports.content import Content, Format, Object, Picture, split_in
from federated_yolo.data.exports.files import (
    ImageFiles,
    beyond,
    by_split,
    files_of,
    limited,
    looks_so,
    names_of,
    read_json,
    sniffed,
    some,
    split_of,
    twice,
)
from federated_yolo.data.exports.shapes import are_fractions


@dataclass(frozen=True)
class Coordinates:
    """Centre and size of a box in pixels."""

    x: FiniteFloat
    y: FiniteFloat
    width: Annotated[FiniteFloat, Field(ge=0)]
    height: Annotated[FiniteFloat, Field(ge=0)]


@dataclass(frozen=True)
class Annotation:
    """An object."""

    label: Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]
    coordinates: Coordinates


class Entry(BaseModel):
    """An image; some tools write imagefilename and annotation."""

    image: Annotated[str, Field(validation_alias=AliasChoices("image", "imagefilename"))]
    annotations: Annotated[
        list[Annotation], Field(validation_alias=AliasChoices("annotations", "annotation"))
    ] = []


ENTRIES = TypeAdapter(list[Entry])


def is_createml(path: Path) -> bool:
    """Whether a file, or a file in a folder, is of CreateML."""
    return any(map(_is_of_createml, sniffed(path, ".json")))


def _is_of_createml(path: Path) -> bool:
    """Whether a file is a list of images with boxes by centre and size."""
    return looks_so(
        path,
        r"^\s*\[\s*\{",
        r'"(image|imagefilename)"\s*:\s*"',
        r'"annotations?"\s*:\s*\[',
        r'"coordinates"\s*:\s*\{',
    )


def read_createml(path: Path) -> Content:
    """Read a file of CreateML, or all below a folder.

    Raises:
        InputError: With all problems.
    """
    root = path if path.is_dir() else path.parent
    images = ImageFiles(root)
    problems: dict[str, list[str]] = defaultdict(list)
    pictures: list[tuple[str | None, Picture]] = []
    for file in [p for p in files_of(path, ".json") if _is_of_createml(p)]:
        try:
            entries = read_json(file, ENTRIES, "CreateML")
        except InputError as error:
            problems["files"] += error.problems
            continue
        split = split_of(file.parent, root) or split_in(file.stem)
        for index, entry in enumerate(entries):
            where = f"{file.relative_to(root).as_posix()}: {index}"
            try:
                image = images.find(entry.image, [file.parent, file.parent / "images", root])
            except ValueError as error:
                problems["images"].append(f"{file}: {index}.image: {error}")
                continue
            objects = tuple(map(_object, entry.annotations))
            pictures.append(
                (split or split_of(image.parent, root), Picture(image, objects, entry=where))
            )
    problems["twice"] += twice((picture for _, picture in pictures), path)
    problems["beyond"] += beyond((picture for _, picture in pictures), path)
    objects = [o for _, picture in pictures for o in picture.objects]
    if are_fractions(objects):
        problems["fractions"].append(
            f"{path}: no coordinate is above 1, so that they seem to be fractions; CreateML has "
            "pixels: export it again"
        )
    if found := limited(problems):
        raise InputError(found)
    used = {picture.path for _, picture in pictures}
    lost = [p.name for p in images.paths if p not in used]
    left = f"{len(lost)} images are in no .json and are left out: {some(lost)}"
    return Content(
        format="CreateML",
        root=root,
        names=names_of(Counter(o.name for o in objects)),
        splits=by_split(pictures),
        notes=(left,) if lost else (),
        file=path,
    )


def _object(annotation: Annotation) -> Object:
    c = annotation.coordinates
    box = (c.x - c.width / 2, c.y - c.height / 2, c.x + c.width / 2, c.y + c.height / 2)
    return Object(annotation.label, box)


FORMATS = (Format("CreateML", is_createml, read_createml),)
