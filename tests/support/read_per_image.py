"""Exports with a file for each image, and tables, as they are recognised and read in tests."""

from collections.abc import Callable
from pathlib import Path

import exports_per_image as made
import pytest
from exports_per_image import Drawn, Write

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports import (
    convert,
    createml,
    cvat,
    datumaro,
    labelme,
    named,
    recognise,
    supervisely,
    tables,
    voc,
)
from federated_yolo.data.exports.content import Content, Format, Object

MODULES = (cvat, supervisely, datumaro, createml, labelme, tables, voc, named)
FORMATS: tuple[Format, ...] = tuple(known for module in MODULES for known in module.FORMATS)
WRITERS: dict[str, tuple[Write, str]] = {
    "devkit": (made.write_devkit, "Pascal VOC"),
    "cvat_voc": (made.write_cvat_voc, "Pascal VOC"),
    "flat_voc": (made.write_flat_voc, "Pascal VOC"),
    "labelme": (made.write_labelme, "labelme"),
    "createml": (made.write_createml, "CreateML"),
    "supervisely": (made.write_supervisely, "Supervisely"),
    "datumaro": (made.write_datumaro, "Datumaro"),
    "cvat": (made.write_cvat, "CVAT for images"),
    "table": (made.write_table, "CSV of TensorFlow"),
    "open_images": (made.write_open_images, "Open Images"),
}
NAMES = ("pear", "apple", "kiwi")
IMAGES = (
    Drawn("a.jpg", "train", (64, 48), (("apple", (1, 2, 11, 22)), ("pear", (30, 8, 64, 48)))),
    Drawn("b c.png", "train", (40, 40), (("pear", (5.5, 6.25, 7.5, 30)),)),
    Drawn("Größe #1 50%.JPG", "val", (48, 64), (("kiwi", (3, 3, 33, 9)),)),
)
ONE = Drawn("a.jpg", "train", (64, 48), (("cat", (4, 6, 20, 30)),))
BOX = ("cat", (4.0, 6.0, 20.0, 30.0))


def recognised(path: Path) -> str | None:
    found = recognise.recognise(path)
    return found and found.name


def read(path: Path) -> Content:
    found = recognise.recognise(path)
    assert found is not None
    assert found.read is not None
    return found.read(path)


def prepared(path: Path, target: Path, **options: object) -> convert.Prepared:
    return convert.prepare(path, target, "it", convert.Options(**options), where="")  # pyright: ignore


def refused(path: Path, reader: Callable[[Path], Content] = read) -> str:
    """What is said of an export that is refused."""
    with pytest.raises(InputError) as caught:
        reader(path)
    return "\n".join(caught.value.problems)


def boxes(content: Content) -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """Class and box of all objects by the path of their image below the export."""
    return {
        f"{split}:{picture.path.relative_to(content.root).as_posix()}": [
            (o.name, o.bounds or ()) for o in picture.objects
        ]
        for split, pictures in content.splits.items()
        for picture in pictures
    }


def objects_of(content: Content) -> list[Object]:
    return [o for picture in content.pictures for o in picture.objects]


def voc_of(folder: Path, head: str, shift: tuple[int, int] = (0, 0), drawn: Drawn = ONE) -> Path:
    """One image with its XML beside it."""
    made.draw(folder / drawn.place, drawn.size)
    xml = made.voc_xml(drawn, head, shift)
    made.save((folder / drawn.place).with_suffix(".xml"), xml)
    return folder
