"""CVAT for images 1.1, its own format: annotations.xml with all images, and a folder images."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports.content import (
    Content,
    Format,
    LeftOut,
    Object,
    Picture,
    Point,
    split_in,
)
from federated_yolo.data.exports.files import (
    ImageFiles,
    by_split,
    head_of,
    limited,
    names_of,
    read_xml,
    twice,
)
from federated_yolo.data.exports.labelme import HOLES, PARTS, joined
from federated_yolo.data.exports.shapes import (
    ellipse,
    mask_object,
    ordered_box,
    rotated_corners,
    runs_mask,
)

ANNOTATIONS = "annotations.xml"
AREAS = ("box", "polygon", "mask", "ellipse")


@dataclass
class _Reading:
    """What is found while reading an export."""

    file: Path
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    left_out: LeftOut = field(default_factory=LeftOut)
    num_holes: int = 0
    num_parts: int = 0


def _file(path: Path) -> Path:
    return path / ANNOTATIONS if path.is_dir() else path


def is_cvat(path: Path) -> bool:
    """Whether a folder has CVAT's annotations.xml of images, or is such a file."""
    file = _file(path)
    if file.suffix.lower() != ".xml" or not file.is_file():
        return False
    head = head_of(file)
    return "<annotations>" in head and "<version>1.1" in head


def read_cvat(path: Path) -> Content:
    """Read CVAT's annotations.xml. Raises InputError with all problems."""
    file = _file(path)
    root = file.parent
    element = read_xml(file)
    tracks = element.findall("track")
    if tracks:
        raise InputError(
            f"{file}: CVAT for video 1.1, with {len(tracks)} tracks; export the task as CVAT for "
            "images 1.1, which has the objects of each frame"
        )
    reading, images = _Reading(file), ImageFiles(root)
    pictures: list[tuple[str | None, Picture]] = []
    for entry in element.findall("image"):
        name, subset = entry.get("name", ""), entry.get("subset", "")
        folders = [root / "images" / subset, root / "images", root / subset, root]
        where = f"image {entry.get('id', '?')} ('{name}')"
        try:
            path_of = images.find(name, folders)
            size = (_number(entry, "width"), _number(entry, "height"))
            objects = tuple(_objects(entry, reading))
        except ValueError as error:
            reading.problems["images"].append(f"{file}: {where}: {error}")
            continue
        pictures.append((split_in(subset), Picture(path_of, objects, size, entry=where)))
    reading.problems["twice"] += twice((picture for _, picture in pictures), file)
    if not element.findall("image"):
        reading.problems["none"].append(f"{file}: lists no image; export the task with its images")
    if problems := limited(reading.problems):
        raise InputError(problems)
    counts = Counter(o.name for _, p in pictures for o in p.objects)
    return Content(
        format="CVAT for images",
        root=root,
        names=names_of(counts, list(_labels(element))),
        splits=by_split(pictures),
        left_out=reading.left_out.counts,
        notes=tuple(
            note.format(num=num)
            for note, num in ((HOLES, reading.num_holes), (PARTS, reading.num_parts))
            if num
        ),
        file=file,
    )


def _labels(root: Element) -> Iterator[str]:
    """Class names in the order of the task or project; labels of keypoints have a parent."""
    for labels in root.findall("meta/*/labels"):
        for label in labels.findall("label"):
            name = label.findtext("name")
            if name and label.find("parent") is None:
                yield name


def _number(element: Element, key: str) -> float:
    text = element.get(key, "")
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if abs(number) < float("inf"):  # which nothing is that is no number
        return number
    raise ValueError(f"{key}: found '{text}', expected a number; export again")


def _objects(entry: Element, reading: _Reading) -> Iterator[Object]:
    """The objects of an image: polygons and masks of the same class and group are one."""
    groups: dict[tuple[str, ...], list[Object]] = defaultdict(list)
    for index, element in enumerate(entry):
        name = element.get("label")
        if not name:
            continue
        if element.tag not in AREAS:
            what = "tag of the whole image" if element.tag == "tag" else element.tag
            reading.left_out.add(f"{what}, which is no area", name)
            continue
        found = _object(element, name, reading)
        if isinstance(found, str):
            reading.left_out.add(found, name)
            continue
        group = element.get("group_id", "0")
        is_part = element.tag in ("polygon", "mask") and group != "0"
        groups[(name, group) if is_part else (str(index),)].append(found)
    for parts in groups.values():
        reading.num_parts += len(parts) - 1
        yield joined(parts)


def _object(element: Element, name: str, reading: _Reading) -> Object | str:
    """The object, or why it is left out. Raises ValueError."""
    degrees = _number(element, "rotation") if element.get("rotation") else 0.0
    if element.tag == "box":
        box = ordered_box(*(_number(element, key) for key in ("xtl", "ytl", "xbr", "ybr")))
        return Object(name, corners=rotated_corners(box, degrees)) if degrees else Object(name, box)
    if element.tag == "ellipse":
        x, y, rx, ry = (_number(element, key) for key in ("cx", "cy", "rx", "ry"))
        return Object(name, outline=(ellipse(x, y, rx, ry, degrees),))
    if element.tag == "polygon":
        points = tuple(_points(element.get("points", "")))
        if len(points) < 3:
            return "a polygon of fewer than three points"
        return Object(name, outline=(points,))
    left, top, width, height = (
        int(_number(element, key)) for key in ("left", "top", "width", "height")
    )
    try:
        runs = [int(run) for run in element.get("rle", "").split(",")]
        mask = runs_mask(runs, width, height)
    except ValueError as error:
        raise ValueError(f"rle of a mask of '{name}': {error}; export again") from error
    found, has_holes = mask_object(name, mask, left, top)
    reading.num_holes += has_holes
    return found or "an empty mask"


def _points(text: str) -> Iterator[Point]:
    try:
        for pair in filter(None, text.split(";")):
            x, y = pair.split(",")
            yield float(x), float(y)
    except ValueError as error:
        raise ValueError(f"points: found '{text[:40]}', expected x,y;x,y;...") from error


FORMATS = (Format("CVAT for images", is_cvat, read_cvat),)
