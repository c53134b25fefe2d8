"""labelme: a .json for each image, beside it or in other folders; also of X-AnyLabeling.

supervision's own reader makes masks of whole pixels of polygons, and knows no circles, masks and
rotated rectangles; so the few fields are read here. labelme turns images by their EXIF tag, so its
coordinates are those that a viewer shows.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, FiniteFloat, TypeAdapter

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports.content import Content, Format, LeftOut, Object, Picture, Point
from federated_yolo.data.exports.files import (
    ImageFiles,
    by_split,
    clean_name,
    limited,
    looks_so,
    names_of,
    read_json,
    sniffed,
    some,
    split_of,
    twice,
    walk,
)
from federated_yolo.data.exports.shapes import around, ellipse, mask_object, png_mask

IGNORED = "__ignore__"  # labelme's own name for what belongs to no class
ROTATED = ("oriented_rectangle", "rotation")  # of labelme, of X-AnyLabeling
PARTS = "{num} shapes are further parts of objects, by their group"
HOLES = "{num} objects have holes, which are filled: outlines of Ultralytics have none"

Place = Annotated[list[FiniteFloat], Field(min_length=2)]


@dataclass(frozen=True)
class Shape:
    """A shape. points: x and y of each. mask: a base64 PNG of what is between two points."""

    label: Annotated[str, Field(min_length=1, coerce_numbers_to_str=True)]
    points: list[Place] = field(default_factory=list)
    shape_type: str | None = "polygon"
    group_id: Any = None
    mask: str | None = None


@dataclass(frozen=True)
class File:
    """A file of labelme; what else it has is not read."""

    shapes: list[Shape]
    imagePath: str | None = None
    imageData: str | None = None
    imageWidth: FiniteFloat | None = None
    imageHeight: FiniteFloat | None = None
    flags: Any = None


FILE = TypeAdapter(File)


def is_labelme(path: Path) -> bool:
    """Whether a folder has files of labelme."""
    return path.is_dir() and any(_is_of_labelme(file) for file in sniffed(path, ".json"))


def _is_of_labelme(path: Path) -> bool:
    return looks_so(path, r"^\s*\{", r'"shapes"\s*:\s*\[', r'"imagePath"\s*:')


@dataclass
class _Reading:
    """What is found while reading an export."""

    path: Path
    images: ImageFiles
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    left_out: LeftOut = field(default_factory=LeftOut)
    others: list[str] = field(default_factory=list)
    num_holes: int = 0
    num_parts: int = 0
    num_flagged: int = 0
    pictures: list[tuple[str | None, Picture]] = field(default_factory=list)


def read_labelme(path: Path) -> Content:
    """Read all files of labelme below a folder.

    Raises:
        InputError: With all problems.
    """
    reading = _Reading(path, ImageFiles(path))
    for file in walk(path):
        if file.suffix.lower() == ".json":
            _read_file(file, reading)
    pictures = [picture for _, picture in reading.pictures]
    reading.problems["twice"] += twice(pictures, path)
    if reading.num_flagged and not any(p.objects for p in pictures):
        reading.problems["flags"].append(
            f"{path}: {reading.num_flagged} files have flags and no shapes, as labelme's "
            "classification does, which is not read; put the images in a folder of each class, "
            "train/CLASS/*.jpg"
        )
    if problems := limited(reading.problems):
        raise InputError(problems)
    return Content(
        format="labelme",
        root=path,
        names=names_of(Counter(o.name for p in pictures for o in p.objects)),
        splits=by_split(reading.pictures),
        left_out=reading.left_out.counts,
        notes=tuple(_notes(reading)),
        file=path,
    )


def _notes(reading: _Reading) -> Iterator[str]:
    if reading.num_holes:
        yield HOLES.format(num=reading.num_holes)
    if reading.num_parts:
        yield PARTS.format(num=reading.num_parts)
    if reading.others:
        yield (
            f"{len(reading.others)} .json files are not of labelme and are passed over: "
            f"{some(reading.others)}"
        )
    used = {picture.path for _, picture in reading.pictures}
    folders = {path.parent for path in used}
    lost = [p.name for p in reading.images.paths if p not in used and p.parent in folders]
    if lost:
        yield (
            f"{len(lost)} images have no .json and are left out ({some(lost)}): an image without "
            "objects needs one, too: save it once in labelme"
        )


def _read_file(file: Path, reading: _Reading) -> None:
    """Add the image of a file, or what is wrong with it."""
    own = reading.images.of_stem(file.stem, [file.parent])
    if not own and not _is_of_labelme(file):
        reading.others.append(file.relative_to(reading.path).as_posix())
        return
    try:
        content: File = read_json(file, FILE, "labelme")
        image = _image_of(content, file, own, reading.images)
        objects = tuple(_objects(content.shapes, reading))
    except InputError as error:
        reading.problems["files"] += error.problems
        return
    except ValueError as error:
        reading.problems["images"].append(f"{file}: {error}")
        return
    flags = content.flags if isinstance(content.flags, dict) else {}
    reading.num_flagged += any(flags.values())
    width, height = content.imageWidth, content.imageHeight
    split = split_of(file.parent, reading.path) or split_of(image.parent, reading.path)
    picture = Picture(
        image,
        objects,
        (width, height) if width and height else None,
        entry=file.relative_to(reading.path).as_posix(),
    )
    reading.pictures.append((split, picture))


def _image_of(content: File, file: Path, own: Sequence[Path], images: ImageFiles) -> Path:
    """The image of a file: by imagePath, or by the file's own name. Raises ValueError."""
    name = clean_name(content.imagePath or "")
    named = images.at(name, [file.parent]) if name else None
    if named and own and named not in own and named.stem != own[0].stem:
        raise ValueError(
            f"imagePath names {name}, and {own[0].name} is there, too; it is not clear whose "
            "shapes these are: correct imagePath"
        )
    if named or len(own) == 1:
        return named or own[0]
    if own:
        raise ValueError(
            f"{len(own)} images are called '{file.stem}' ({some([p.name for p in own])}); say "
            "which in imagePath"
        )
    for others in (
        images.anywhere(name, file.parent),
        images.stem_anywhere(file.stem, file.parent),
    ):
        if len(others) == 1:
            return others[0]
        if others:
            raise ValueError(
                f"{len(others)} images are called '{Path(name or file.stem).name}'; put each .json "
                "beside its image"
            )
    if content.imageData:
        raise ValueError(
            f"no image '{name}' below {images.root}, but imageData, which is not read; write it "
            f'as a file once, by "labelme_export_json {file.name}", and put it beside the .json as '
            f"{file.stem}.png"
        )
    raise ValueError(f"no image '{name}' below {images.root}; put it beside the .json")


def _objects(shapes: Sequence[Shape], reading: _Reading) -> Iterator[Object]:
    """Yield the objects of an image: outlines of the same label and group are parts of one."""
    groups: dict[tuple[str, str], list[Object]] = defaultdict(list)
    for number, shape in enumerate(shapes):
        if shape.label == IGNORED:
            reading.left_out.add(f"labelme's {IGNORED}", shape.label)
            continue
        try:
            found = _object(shape, reading)
        except ValueError as error:
            raise ValueError(
                f"shapes.{number} ('{shape.label}'): {error}; correct it in labelme"
            ) from error
        if isinstance(found, str):
            reading.left_out.add(found, shape.label)
            continue
        # labelme joins the polygons and masks of a group; X-AnyLabeling gives boxes of one track
        # the same group, and each is an object.
        is_part = shape.group_id is not None and found.outline
        key = (shape.label, _id(shape)) if is_part else ("alone", str(number))
        groups[key].append(found)
    for parts in groups.values():
        reading.num_parts += len(parts) - 1
        yield joined(parts)


def _id(shape: Shape) -> str:
    return repr(shape.group_id)


def joined(parts: Sequence[Object]) -> Object:
    """One object of one or several parts: with an outline if all have one."""
    if len(parts) == 1:
        return parts[0]
    bounds = [bounds for part in parts if (bounds := part.bounds)]
    outline = tuple(polygon for part in parts for polygon in part.outline)
    box = around([point for b in bounds for point in (b[:2], b[2:])])
    return Object(parts[0].name, box, outline if all(part.outline for part in parts) else ())


def _object(shape: Shape, reading: _Reading) -> Object | str:
    """The object of a shape, or why it is left out. Raises ValueError."""
    kind = shape.shape_type or "polygon"
    points: list[Point] = [(point[0], point[1]) for point in shape.points]
    if kind == "polygon":
        if len(points) < 3:
            return "a polygon of fewer than three points"
        return Object(shape.label, outline=(tuple(points),))
    if kind == "rectangle" and len(points) >= 2:  # two corners, or four in X-AnyLabeling
        return Object(shape.label, box=around(points))
    if kind in ROTATED and len(points) == 4:
        return Object(shape.label, corners=tuple(points))
    if kind == "circle" and len(points) == 2:
        (x, y), (px, py) = points
        radius = ((x - px) ** 2 + (y - py) ** 2) ** 0.5
        outline = ellipse(x, y, radius, radius)
        return Object(shape.label, (x - radius, y - radius, x + radius, y + radius), (outline,))
    if kind == "mask":
        return _mask(shape, points, reading)
    if kind in ("rectangle", "circle", *ROTATED):
        raise ValueError(f"found {len(points)} points of a {kind}")
    return f"a {kind}, which is no area"


def _mask(shape: Shape, points: Sequence[Point], reading: _Reading) -> Object | str:
    """The object of a mask between two corners. Raises ValueError."""
    if len(points) < 1 or not shape.mask:
        raise ValueError("found a mask without points or content")
    corners = around(points)
    left, top = round(corners[0]), round(corners[1])
    found, has_holes = mask_object(shape.label, png_mask(shape.mask), left, top)
    reading.num_holes += has_holes
    return found or "an empty mask"


FORMATS = (Format("labelme", is_labelme, read_labelme),)
