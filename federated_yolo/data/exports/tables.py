"""CSV tables with an object in each row: Open Images, and those of TensorFlow and Roboflow.

Open Images  ImageID, LabelName, XMin, XMax, YMin, YMax as fractions; images are ImageID.jpg.
             Names of classes are in a table of LabelName and name, such as
             class-descriptions-boxable.csv, or are LabelName itself.
TensorFlow   filename, width, height, class, xmin, ymin, xmax, ymax in pixels
"""

import csv
import io
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

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
    files_of,
    head_of,
    limited,
    names_of,
    read_text,
    sniffed,
    some,
    split_of,
)
from federated_yolo.data.exports.shapes import Box, are_fractions, ordered_box
from federated_yolo.data.exports.sizes import image_size

OPEN_IMAGES = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax")
TENSORFLOW = ("filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax")
ROBOFLOW = "_annotations.csv"  # its export has all images of a split beside it
GROUP = "a group of objects (IsGroupOf)"


@dataclass
class _Table:
    """Rows by image, in the order of the file. problems: of all tables, by kind."""

    path: Path
    rows: dict[str, list[tuple[int, dict[str, str]]]] = field(default_factory=dict)


@dataclass
class _Reading:
    """What is found while reading tables. pictures: of each image, its split and rows' objects."""

    path: Path
    root: Path
    images: ImageFiles
    problems: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: list[str] = field(default_factory=list)
    pictures: dict[Path, tuple[str | None, Picture]] = field(default_factory=dict)


def is_open_images(path: Path) -> bool:
    """Whether a file, or a file in a folder, is a table of Open Images."""
    return any(_has(file, OPEN_IMAGES) for file in sniffed(path, ".csv"))


def is_tensorflow(path: Path) -> bool:
    """Whether a file, or a file in a folder, is such a table of TensorFlow or Roboflow."""
    return any(_has(file, TENSORFLOW) for file in sniffed(path, ".csv"))


def _has(path: Path, columns: tuple[str, ...]) -> bool:
    line = head_of(path).split("\n", 1)[0]
    return set(columns) <= {name.strip().strip('"') for name in line.split(",")}


def read_open_images(path: Path) -> Content:
    """Read a table of Open Images, or all below a folder. Raises InputError."""
    reading, tables = _open(path, OPEN_IMAGES, "ImageID")
    listed = _descriptions(reading)
    absent = 0
    for table in tables:
        for name, rows in table.rows.items():
            try:
                image = _image_of_id(name, table, reading)
                size = image and image_size(image)
                if image and size is None:
                    raise ValueError(f"{image} is not readable as an image; repair or remove it")
            except ValueError as error:
                reading.problems["images"].append(f"{table.path}: row {rows[0][0]}: {error}")
                continue
            if image and size:
                objects = tuple(_of_open_images(table, rows, size, listed, reading))
                _add(image, objects, None, table, rows[0][0], reading)
            absent += image is None
    if absent:
        reading.notes.append(
            f"the tables have rows of {absent} images that are not there, which are left out"
        )
    if not reading.pictures and not reading.problems:
        reading.problems["none"].append(
            f"{path}: none of the images of the tables is below {reading.root}; put them there as "
            "ImageID.jpg"
        )
    return _content("Open Images", reading, list(dict.fromkeys(listed.values())))


def _image_of_id(name: str, table: _Table, reading: _Reading) -> Path | None:
    """The image of an ImageID; None where it is not there. Raises ValueError for several."""
    near, images = table.path.parent, reading.images
    found = images.stem_anywhere(name, near) or images.anywhere(name, near)
    split = _split(table, reading)
    found = [p for p in found if split_of(p.parent, reading.root) in (split, None)]
    if len(found) > 1:
        where = some([p.relative_to(reading.root).as_posix() for p in found])
        raise ValueError(f"{len(found)} images are called '{name}' ({where}); remove all but one")
    return found[0] if found else None


def read_tensorflow(path: Path) -> Content:
    """Read such a table of TensorFlow or Roboflow, or all below a folder. Raises InputError."""
    reading, tables = _open(path, TENSORFLOW, "filename")
    for table in tables:
        for name, rows in table.rows.items():
            folder = table.path.parent
            folders = [folder, folder / table.path.stem.removesuffix("_labels"), folder / "images"]
            try:
                image = reading.images.find(name, folders)
                objects = tuple(_of_tensorflow(table, rows, reading))
                first = rows[0][1]
                size = (_number(first, "width"), _number(first, "height"))
            except ValueError as error:
                reading.problems["rows"].append(f"{table.path}: row {rows[0][0]}: {error}")
                continue
            _add(image, objects, size, table, rows[0][0], reading)
        if table.path.name == ROBOFLOW:
            _add_bare(table, reading)
    if are_fractions([o for _, picture in reading.pictures.values() for o in picture.objects]):
        reading.problems["fractions"].append(
            f"{path}: no coordinate is above 1, so that they seem to be fractions; expected "
            "pixels: export it again"
        )
    return _content("CSV of TensorFlow", reading, [])


def _open(path: Path, columns: tuple[str, ...], key: str) -> tuple[_Reading, list[_Table]]:
    root = path if path.is_dir() else path.parent
    reading = _Reading(path, root, ImageFiles(root))
    tables = []
    for file in [p for p in files_of(path, ".csv") if _has(p, columns)]:
        table = _Table(file)
        try:
            reader = csv.DictReader(io.StringIO(read_text(file), newline=""), skipinitialspace=True)
            for number, row in enumerate(reader, 2):
                lacking = [name for name in columns if not (row.get(name) or "").strip()]
                if lacking:
                    reading.problems["rows"].append(
                        f"{file}: row {number}: no {lacking[0]}; correct or remove the row"
                    )
                    continue
                table.rows.setdefault(row[key].strip(), []).append((number, row))
        except (csv.Error, InputError) as error:
            reading.problems["files"] += [f"{file}: not readable as CSV: {error}"]
        tables.append(table)
    return reading, tables


def _split(table: _Table, reading: _Reading) -> str | None:
    return split_of(table.path.parent, reading.root) or split_in(table.path.stem)


def _add(
    image: Path,
    objects: tuple[Object, ...],
    size: tuple[float, float] | None,
    table: _Table,
    row: int,
    reading: _Reading,
) -> None:
    entry = f"{table.path.relative_to(reading.root).as_posix()}: row {row}"
    if other := reading.pictures.get(image):
        reading.problems["twice"].append(
            f"{reading.path}: {other[1].entry} and {entry} are both of the image {image}; correct "
            "or remove one"
        )
        return
    split = _split(table, reading) or split_of(image.parent, reading.root)
    reading.pictures[image] = (split, Picture(image, objects, size, entry=entry))


def _add_bare(table: _Table, reading: _Reading) -> None:
    """Add the images beside a table of Roboflow that have no row: they have no object."""
    folder = table.path.parent
    bare = [p for p in reading.images.paths if p.parent == folder and p not in reading.pictures]
    for image in bare:
        picture = Picture(image, entry=table.path.relative_to(reading.root).as_posix())
        reading.pictures[image] = (_split(table, reading), picture)
    if bare:
        reading.notes.append(
            f"{len(bare)} images have no row in {table.path} and are taken as images without "
            "objects"
        )


def _number(row: Mapping[str, str], column: str) -> float:
    try:
        number = float(row[column])
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{column}: found '{row[column]}', expected a number; correct it")
    return number


def _box(row: Mapping[str, str], columns: tuple[str, str, str, str]) -> Box:
    left, top, right, bottom = (_number(row, column) for column in columns)
    return ordered_box(left, top, right, bottom)


def _of_tensorflow(
    table: _Table, rows: list[tuple[int, dict[str, str]]], reading: _Reading
) -> Iterator[Object]:
    sizes = {(row["width"].strip(), row["height"].strip()) for _, row in rows}
    if len(sizes) > 1:
        raise ValueError("its rows give the image several sizes; correct them")
    for number, row in rows:
        try:
            box = _box(row, ("xmin", "ymin", "xmax", "ymax"))
        except ValueError as error:
            reading.problems["numbers"].append(f"{table.path}: row {number}: {error}")
            continue
        yield Object(row["class"].strip(), box)


def _of_open_images(
    table: _Table,
    rows: list[tuple[int, dict[str, str]]],
    size: tuple[int, int],
    listed: Mapping[str, str],
    reading: _Reading,
) -> Iterator[Object]:
    width, height = size
    for number, row in rows:
        label = row["LabelName"].strip()
        name = listed.get(label, label)
        if (row.get("IsGroupOf") or "").strip() in ("1", "True", "true"):
            reading.left_out.add(GROUP, name)
            continue
        try:
            left, top, right, bottom = _box(row, ("XMin", "YMin", "XMax", "YMax"))
        except ValueError as error:
            reading.problems["numbers"].append(f"{table.path}: row {number}: {error}")
            continue
        if left < -0.01 or top < -0.01 or right > 1.01 or bottom > 1.01:
            reading.problems["fractions"].append(
                f"{table.path}: row {number}: found {max(right, bottom):g}, expected fractions of "
                "the image from 0 to 1"
            )
            continue
        yield Object(name, (left * width, top * height, right * width, bottom * height))


def _descriptions(reading: _Reading) -> dict[str, str]:
    """Names of classes by LabelName, of the tables of two columns."""
    found: dict[str, str] = {}
    for file in [p for p in files_of(reading.root, ".csv") if not _has(p, OPEN_IMAGES)]:
        name = file.name.lower()
        if "class" not in name:
            continue
        try:
            rows = list(csv.reader(io.StringIO(read_text(file), newline="")))
        except (csv.Error, InputError) as error:
            reading.problems["files"].append(f"{file}: not readable as CSV: {error}")
            continue
        found |= {r[0].strip(): r[1].strip() for r in rows if len(r) == 2 and r[0] != "LabelName"}
    return found


def _content(name: str, reading: _Reading, listed: list[str]) -> Content:
    if problems := limited(reading.problems):
        raise InputError(problems)
    pictures = list(reading.pictures.values())
    lost = [p.name for p in reading.images.paths if p not in reading.pictures]
    if lost:
        reading.notes.append(
            f"{len(lost)} images have no row in a table and are left out: {some(lost)}"
        )
    return Content(
        format=name,
        root=reading.root,
        names=names_of(Counter(o.name for _, p in pictures for o in p.objects), listed),
        splits=by_split(pictures),
        left_out=reading.left_out.counts,
        notes=tuple(reading.notes),
        file=reading.path,
    )


FORMATS = (
    Format("Open Images", is_open_images, read_open_images),
    Format("CSV of TensorFlow", is_tensorflow, read_tensorflow),
)
