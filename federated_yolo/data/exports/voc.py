"""Pascal VOC, as its devkit has it and as annotation tools write it: an XML file for each image.

    devkit            VOC2012/Annotations, JPEGImages and ImageSets/Main/train.txt; a parent of
                      several such folders; without ImageSets, all images are train
    CVAT, Datumaro    the same, ImageSets/Main/default.txt, labelmap.txt in the order of classes
    Label Studio      Annotations and images, FiftyOne: labels and data
    Roboflow          train/a.xml beside train/a.jpg, valid, test
    LabelImg          a.xml beside a.jpg

Whether pixels are counted from 0 or from 1, no file says; voc_edges.py tells it by who wrote it.
supervision's own reader takes all files as the devkit's, and polygons as masks of whole pixels.
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree.ElementTree import Element

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports.content import Content, Format, Object, Picture, Point
from federated_yolo.data.exports.files import (
    ImageFiles,
    beyond,
    by_split,
    clean_name,
    head_of,
    limited,
    names_of,
    read_text,
    read_xml,
    sniffed,
    some,
    split_of,
    twice,
    walk,
)
from federated_yolo.data.exports.shapes import Box, ordered_box, rotated_corners
from federated_yolo.data.exports.voc_edges import Edges, Placed, Source, edges_of, source_of
from federated_yolo.data.exports.voc_lists import read_lists

ANNOTATIONS = "Annotations"
IMAGE_FOLDERS = ("JPEGImages", "images", "data", "Images", "img")
MASKS = "SegmentationObject"
Problems = dict[str, list[str]]


@dataclass(frozen=True)
class _Thing:
    """An <object>. box, polygons: as written. degrees: by which the box is turned clockwise."""

    name: str
    box: Box | None
    polygons: tuple[tuple[Point, ...], ...] = ()
    degrees: float = 0.0


@dataclass(frozen=True)
class _File:
    """An XML file. source: what its pixels are told by. filename: as written, or ""."""

    path: Path
    filename: str
    size: tuple[float, float] | None
    source: Source
    has_mask: bool
    things: tuple[_Thing, ...]


@dataclass
class _Reading:
    """What is found while reading an export. path: what the user names."""

    path: Path
    problems: Problems = field(default_factory=lambda: defaultdict(list))
    notes: list[str] = field(default_factory=list)
    listed: list[str] = field(default_factory=list)  # class names
    pictures: list[tuple[str | None, Picture]] = field(default_factory=list)

    def name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()


def is_voc(path: Path) -> bool:
    """Whether a folder has Pascal VOC's XML files, or its folders."""
    if not path.is_dir() or (path / "data.yaml").is_file():
        return False
    if (path / ANNOTATIONS).is_dir() and (path / "JPEGImages").is_dir():
        return True
    for file in sniffed(path, ".xml"):
        text = head_of(file)
        if re.search(r"<annotation[\s>]", text) is None:
            continue
        if "bndbox>" in text or ("<object" not in text and "<filename>" in text):
            return True
    return False


def read_voc(path: Path) -> Content:
    """Read all XML files of Pascal VOC below a folder.

    Raises:
        InputError: With all problems.
    """
    reading = _Reading(path)
    for root in _roots(path):
        _read_root(root, reading)
    pictures = [picture for _, picture in reading.pictures]
    reading.problems["twice"] += twice(pictures, path)
    reading.problems["beyond"] += beyond(pictures, path)
    counts = Counter(o.name for picture in pictures for o in picture.objects)
    if not any(reading.problems.values()) and not counts:
        reading.problems["none"].append(
            f"{path}: none of the {len(pictures)} images has an <object>; where they have polygons "
            "or masks, which Pascal VOC has no place for, export as COCO instead"
        )
    if problems := limited(reading.problems):
        raise InputError(problems)
    listed = [name for name in reading.listed if name != "background" or counts[name]]
    return Content(
        format="Pascal VOC",
        root=path,
        names=names_of(counts, listed),
        splits=by_split(reading.pictures),
        notes=tuple(reading.notes),
        file=path,
    )


def _roots(path: Path) -> list[Path]:
    """The folders with Annotations, or the folder itself."""
    if (path / ANNOTATIONS).is_dir():
        return [path]
    found = [
        folder.parent
        for pattern in (f"*/{ANNOTATIONS}", f"*/*/{ANNOTATIONS}")
        for folder in sorted(path.glob(pattern))
        if folder.is_dir() and not folder.parent.name.startswith((".", "__MACOSX"))
    ]
    return found or [path]


def _read_root(root: Path, reading: _Reading) -> None:
    """Add the images of one folder with Annotations."""
    files = list(_files(root, reading))
    images = ImageFiles(root)
    keys = {_key(file.path, root) for file in files}
    places = [root / folder for folder in IMAGE_FOLDERS]
    lists = read_lists(
        root,
        lambda name: name in keys or bool(images.of_stem(name, places)),
        reading.problems["lists"],
    )
    labelmap = _labelmap(root)
    reading.listed += labelmap
    edges_of = _edges(files, has_lists=bool(lists) and not labelmap)
    for why in sorted({edges.why for edges in edges_of.values() if edges.why}):
        reading.notes.append(f"{reading.path}: {why}")
    masked = [file for file in files if file.has_mask] if labelmap else []
    if masked and (root / MASKS).is_dir():
        reading.problems["masks"].append(
            f"{root / MASKS}: {len(masked)} images have objects that are masks (the first is "
            f"{reading.name(masked[0].path)}), which are not read from Pascal VOC; export as COCO "
            "1.0 or CVAT for images 1.1"
        )
    found: dict[str, Picture] = {}
    for file in files:
        try:
            image = _image_of(file, root, images)
        except ValueError as error:
            reading.problems["images"].append(f"{file.path}: {error}")
            continue
        edges = edges_of[file.source]
        objects = tuple(_object(thing, edges) for thing in file.things)
        picture = Picture(image, objects, file.size, entry=reading.name(file.path))
        found[_key(file.path, root)] = picture
    if lists:
        _add_listed(lists, found, root, images, reading)
        return
    for picture in found.values():
        xml = reading.path / picture.entry
        split = split_of(xml.parent, reading.path) or split_of(picture.path.parent, reading.path)
        reading.pictures.append((split, picture))
    used = {picture.path for picture in found.values()}
    folders = {path.parent for path in used}
    lost = [p for p in images.paths if p not in used and p.parent in folders]
    if lost:
        reading.notes.append(
            f"{len(lost)} images have no .xml and are left out ({some([p.name for p in lost])}): "
            "an image without objects needs one, too"
        )


def _key(path: Path, root: Path) -> str:
    """How lists name the image of an XML file."""
    folder = root / ANNOTATIONS
    return path.relative_to(folder if folder in path.parents else root).with_suffix("").as_posix()


def _add_listed(
    lists: Mapping[str, Sequence[str]],
    found: Mapping[str, Picture],
    root: Path,
    images: ImageFiles,
    reading: _Reading,
) -> None:
    """Add the images that lists name; those without an XML file have no objects."""
    first: dict[str, str] = {}
    bare = num = 0
    for split, names in lists.items():
        for name in names:
            folders = [root / folder for folder in IMAGE_FOLDERS]
            candidates = images.of_stem(name, folders)
            picture = found.get(name)
            if picture is None and len(candidates) == 1:
                picture = Picture(candidates[0], entry=f"{split}.txt: {name}")
                bare += 1
            num += 1
            if picture is None:
                what = f"{len(candidates)} images are called so" if candidates else "it is not"
                reading.problems["unknown"].append(
                    f"{root}: '{name}' of the list of {split} images: {what} among the images of "
                    f"{root / IMAGE_FOLDERS[0]}; correct the list"
                )
                continue
            if other := first.get(name):
                reading.problems["both"].append(
                    f"{root}: '{name}' is listed in {other} and in {split}; list it in one"
                )
            first[name] = split
            reading.pictures.append((split, picture))
    if bare:
        reading.notes.append(
            f"{bare} of {num} listed images have no .xml in {root / ANNOTATIONS} and are taken as "
            "images without objects"
        )
    if lost := sum(name not in first for name in found):
        reading.notes.append(
            f"{lost} of {len(found)} .xml files are of images that no list names, and left out"
        )


def _labelmap(root: Path) -> list[str]:
    """Class names in the order of CVAT's and Datumaro's labelmap.txt, or of VoTT's."""
    path = root / "labelmap.txt"
    if path.is_file():
        lines = [line.strip() for line in read_text(path).splitlines()]
        return [x.rsplit(":", 3)[0] for x in lines if x and not x.startswith("#")]
    path = root / "pascal_label_map.pbtxt"
    if path.is_file():
        return re.findall(r"name\s*:\s*['\"](.+?)['\"]\s*$", read_text(path), re.MULTILINE)
    return []


def _files(root: Path, reading: _Reading) -> Iterator[_File]:
    """Read the XML files of a folder."""
    folder = root / ANNOTATIONS if (root / ANNOTATIONS).is_dir() else root
    others = []
    for path in walk(folder):
        if path.suffix.lower() != ".xml":
            continue
        try:
            element = read_xml(path)
        except InputError as error:
            reading.problems["xml"] += error.problems
            continue
        if element.tag != "annotation":
            others.append(path)
            continue
        try:
            yield _file(path, element)
        except ValueError as error:
            reading.problems["xml"].append(f"{path}: {error}")
    if others:
        reading.notes.append(
            f"{len(others)} .xml files are not of Pascal VOC and are passed over: "
            f"{some([reading.name(p) for p in others])}"
        )


def _file(path: Path, root: Element) -> _File:
    """An XML file as it is written. Raises ValueError."""
    size = root.find("size")
    width, height = (_size(size, tag) for tag in ("width", "height"))
    source = source_of(
        _text(root, "source/database"),
        _text(root, "folder"),
        root.find("source") is not None,
        root.find("path") is not None,
    )
    things = []
    for number, element in enumerate(root.findall("object"), 1):
        try:
            if _text(element, "deleted") != "1":
                things.append(_thing(element))
        except ValueError as error:
            raise ValueError(f"object {number}: {error}; correct it, or export again") from error
    return _File(
        path,
        clean_name(_text(root, "filename")),
        (width, height) if width and height else None,
        source,
        _text(root, "segmented") == "1",
        tuple(things),
    )


def _text(element: Element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _size(element: Element | None, tag: str) -> float:
    """A side of the image; 0 where it is not said, as some tools write it, too."""
    text = "" if element is None else _text(element, tag)
    try:
        return max(float(text), 0.0) if text else 0.0
    except ValueError as error:
        raise ValueError(f"{tag}: found '{text}', expected a number") from error


def _number(element: Element, tag: str) -> float:
    text = _text(element, tag)
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{tag}: found '{text}', expected a number of pixels")
    return number


def _thing(element: Element) -> _Thing:
    """An <object>. Raises ValueError."""
    name = _text(element, "name")
    if not name:
        raise ValueError("has no <name>, expected a class name")
    polygons = tuple(map(_polygon, element.findall("polygon")))
    turned = element.find("robndbox")  # of roLabelImg; its angle is in radians
    if turned is not None:
        x, y, w, h, angle = (_number(turned, tag) for tag in ("cx", "cy", "w", "h", "angle"))
        box = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
        return _Thing(name, box, polygons, math.degrees(angle))
    place = element.find("bndbox")
    if place is None and not polygons:
        raise ValueError(f"'{name}' has no <bndbox>, expected one")
    if place is None:
        return _Thing(name, None, polygons)
    box = ordered_box(*(_number(place, tag) for tag in ("xmin", "ymin", "xmax", "ymax")))
    degrees = 0.0
    for attribute in element.findall("attributes/attribute"):
        if _text(attribute, "name") == "rotation":  # of CVAT: the box is of the unturned object
            degrees = _number(attribute, "value")
    return _Thing(name, box, polygons, degrees)


def _polygon(element: Element) -> tuple[Point, ...]:
    """The points of <x1>, <y1>, <x2>, ..., as Roboflow has them. Raises ValueError."""
    tags = {child.tag for child in element}
    num = sum(tag.startswith("x") for tag in tags)
    if num < 3 or tags != {f"{axis}{n}" for axis in "xy" for n in range(1, num + 1)}:
        raise ValueError("<polygon>: expected <x1>, <y1> to <x3>, <y3> or more")
    return tuple((_number(element, f"x{n}"), _number(element, f"y{n}")) for n in range(1, num + 1))


def _edges(files: Sequence[_File], *, has_lists: bool) -> dict[Source, Edges]:
    """How edges are written, by source."""
    boxes: dict[Source, list[Placed]] = {file.source: [] for file in files}
    for file in files:
        boxes[file.source] += [(file.size, thing.box) for thing in file.things if thing.box]
    return {source: edges_of(source, placed, has_lists) for source, placed in boxes.items()}


def _object(thing: _Thing, edges: Edges) -> Object:
    """An object with its edges in the image."""
    outline = tuple(
        tuple((x - edges.low, y - edges.low) for x, y in polygon) for polygon in thing.polygons
    )
    if thing.box is None:
        return Object(thing.name, outline=outline)
    left, top, right, bottom = thing.box
    low, high = edges.low, edges.high
    box = (left - low, top - low, right - high, bottom - high)
    if thing.degrees % 360:
        return Object(thing.name, outline=outline, corners=rotated_corners(box, thing.degrees))
    return Object(thing.name, box, outline)


def _image_of(file: _File, root: Path, images: ImageFiles) -> Path:
    """The image of an XML file: by <filename>, or by the file's own name. Raises ValueError."""
    folders = list(_image_folders(file.path.parent, root))
    own = images.of_stem(file.path.stem, folders)
    named = None
    if file.filename:
        candidates = images.of_stem(file.filename, folders)
        named = images.at(file.filename, folders) or (
            candidates[0] if len(candidates) == 1 else None
        )
    if named and own and named not in own and named.stem != own[0].stem:
        raise ValueError(
            f"<filename> names {file.filename}, and {own[0].name} is there, too; it is not clear "
            "whose objects these are: correct <filename>"
        )
    if named or len(own) == 1:
        return named or own[0]
    if own:
        raise ValueError(
            f"{len(own)} images are called '{file.path.stem}' ({some([p.name for p in own])}); "
            "say which in <filename>"
        )
    near = file.path.parent
    for others in (
        images.anywhere(file.filename, near),
        images.stem_anywhere(file.path.stem, near),
    ):
        if len(others) == 1:
            return others[0]
    name = file.filename or file.path.stem
    raise ValueError(f"no image '{name}' below {root}; put it there, or remove the .xml")


def _image_folders(folder: Path, root: Path) -> Iterator[Path]:
    """Where the image of an XML file in this folder may be, the nearest first."""
    yield folder
    above = folder
    while above != root:
        below = folder.relative_to(above)
        above = above.parent
        yield from (above / name / below for name in IMAGE_FOLDERS)
        yield from (above / name for name in IMAGE_FOLDERS)
    yield from (root / name for name in IMAGE_FOLDERS)
    yield root


FORMATS = (Format("Pascal VOC", is_voc, read_voc),)
