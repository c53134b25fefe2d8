"""Exports with a file for each image, and tables, written from images and their objects."""

import base64
import csv
import io
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Drawn:
    """An image to export. place: its path below the folder of images of its split."""

    place: str
    split: str
    size: tuple[int, int]
    objects: tuple[tuple[str, Box], ...]


Write = Callable[[Path, Sequence[Drawn], Sequence[str]], None]


def draw(path: Path, size: tuple[int, int], seed: int = 0) -> None:
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def save(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def voc_xml(drawn: Drawn, head: str = "", shift: tuple[int, int] = (0, 0), tail: str = "") -> str:
    """An XML file. shift: is added to left and top, and to right and bottom edges."""
    low, high = shift
    objects = "".join(
        f"<object><name>{escape(name)}</name><difficult>1</difficult><bndbox>"
        f"<xmin>{x1 + low}</xmin><xmax>{x2 + high}</xmax><ymin>{y1 + low}</ymin>"
        f"<ymax>{y2 + high}</ymax></bndbox>{tail}</object>"
        for name, (x1, y1, x2, y2) in drawn.objects
    )
    width, height = drawn.size
    return (
        f"<annotation>{head}<filename>{escape(Path(drawn.place).name)}</filename>"
        f"<size><width>{width}</width><height>{height}</height></size>{objects}</annotation>"
    )


DEVKIT = "<folder>VOC2007</folder><source><database>The VOC2007 Database</database></source>"
UNKNOWN = "<source><database>Unknown</database></source>"


def write_devkit(folder: Path, images: Sequence[Drawn], names: Sequence[str]) -> None:
    """VOC2007 with lists, and pixels that are counted from 1."""
    for number, drawn in enumerate(images):
        draw(folder / "JPEGImages" / drawn.place, drawn.size, number)
        xml = voc_xml(drawn, DEVKIT, (1, 0))
        save((folder / "Annotations" / drawn.place).with_suffix(".xml"), xml)
    _lists(folder, images)


def _lists(folder: Path, images: Sequence[Drawn], name: str | None = None) -> None:
    for split in dict.fromkeys(drawn.split for drawn in images):
        stems = [Path(d.place).with_suffix("").as_posix() for d in images if d.split == split]
        save(folder / "ImageSets" / "Main" / f"{name or split}.txt", "\n".join(stems))


def write_cvat_voc(folder: Path, images: Sequence[Drawn], names: Sequence[str]) -> None:
    """CVAT's Pascal VOC 1.1."""
    for number, drawn in enumerate(images):
        draw(folder / "JPEGImages" / drawn.place, drawn.size, number)
        xml = voc_xml(drawn, UNKNOWN)
        save((folder / "Annotations" / drawn.place).with_suffix(".xml"), xml)
    _lists(folder, images)
    rows = [f"{name}:{number},1,2::" for number, name in enumerate(names)]
    text = "\n".join(["# label:color_rgb:parts:actions", "background:0,0,0::", *rows])
    save(folder / "labelmap.txt", text)


def write_flat_voc(folder: Path, images: Sequence[Drawn], names: Sequence[str]) -> None:
    """Roboflow's and LabelImg's: the XML beside the image, a folder for each split."""
    for number, drawn in enumerate(images):
        path = folder / {"val": "valid"}.get(drawn.split, drawn.split) / drawn.place
        draw(path, drawn.size, number)
        save(path.with_suffix(".xml"), voc_xml(drawn, UNKNOWN))


def write_labelme(folder: Path, images: Sequence[Drawn], names: Sequence[str]) -> None:
    """labelme, with rectangles from bottom right to top left."""
    for number, drawn in enumerate(images):
        path = folder / drawn.split / drawn.place
        draw(path, drawn.size, number)
        shapes = [
            {"label": n, "points": [[b[2], b[3]], [b[0], b[1]]], "shape_type": "rectangle"}
            for n, b in drawn.objects
        ]
        save_labelme(path.with_suffix(".json"), path.name, drawn.size, shapes)


def save_labelme(
    path: Path, image: str, size: tuple[int, int], shapes: Sequence[Mapping[str, object]]
) -> None:
    content = {
        "version": "5.4.1",
        "flags": {},
        "shapes": [{"group_id": None, "flags": {}, **shape} for shape in shapes],
        "imagePath": image,
        "imageData": None,
        "imageHeight": size[1],
        "imageWidth": size[0],
    }
    save(path, json.dumps(content, ensure_ascii=False))


def write_createml(folder: Path, images: Sequence[Drawn], names: Sequence[str]) -> None:
    """Roboflow's CreateML."""
    for split in dict.fromkeys(drawn.split for drawn in images):
        entries = []
        for number, drawn in enumerate(d for d in images if d.split == split):
            draw(folder / split / drawn.place, drawn.size, number)
            objects = [
                {
                    "label": n,
                    "coordinates": {
                        "x": (b[0] + b[2]) / 2,
                        "y": (b[1] + b[3]) / 2,
                        "width": b[2] - b[0],
                        "height": b[3] - b[1],
                    },
                }
                for n, b in drawn.objects
            ]
            entries.append({"image": drawn.place, "annotations": objects})
        save(folder / split / "_annotations.createml.json", json.dumps(entries))


def write_supervisely(folder: Path, images: Sequence[Drawn], names: Sequence[str]) -> None:
    """A project of Supervisely with a data set for each split."""
    classes = [{"title": name, "shape": "any", "color": "#000000"} for name in names]
    save(folder / "meta.json", json.dumps({"classes": classes, "tags": []}))
    for number, drawn in enumerate(images):
        draw(folder / drawn.split / "img" / drawn.place, drawn.size, number)
        objects = [
            {
                "classTitle": n,
                "geometryType": "rectangle",
                "points": {"exterior": [[b[0], b[1]], [b[2], b[3]]], "interior": []},
            }
            for n, b in drawn.objects
        ]
        size = {"width": drawn.size[0], "height": drawn.size[1]}
        content = {"size": size, "tags": [], "objects": objects}
        save(folder / drawn.split / "ann" / f"{drawn.place}.json", json.dumps(content))


def write_datumaro(folder: Path, images: Sequence[Drawn], names: Sequence[str]) -> None:
    """Datumaro, whose size is height and width."""
    labels = [{"name": name, "parent": "", "attributes": []} for name in names]
    for split in dict.fromkeys(drawn.split for drawn in images):
        items = []
        for number, drawn in enumerate(d for d in images if d.split == split):
            draw(folder / "images" / split / drawn.place, drawn.size, number)
            things = [
                {
                    "id": 7 * i,
                    "type": "bbox",
                    "group": 0,
                    "label_id": list(names).index(n),
                    "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]],
                }
                for i, (n, b) in enumerate(drawn.objects)
            ]
            image = {"path": drawn.place, "size": [drawn.size[1], drawn.size[0]]}
            stem = Path(drawn.place).with_suffix("").as_posix()
            items.append({"id": stem, "annotations": things, "image": image})
        content = {"info": {}, "categories": {"label": {"labels": labels}}, "items": items}
        save(folder / "annotations" / f"{split}.json", json.dumps(content, ensure_ascii=False))


def write_cvat(folder: Path, images: Sequence[Drawn], names: Sequence[str]) -> None:
    """CVAT for images 1.1 of a project."""
    subsets = {"train": "Train", "val": "Validation", "test": "Test"}
    entries = []
    for number, drawn in enumerate(images):
        subset = subsets[drawn.split]
        draw(folder / "images" / subset / drawn.place, drawn.size, number)
        boxes = "".join(
            f'<box label="{escape(n)}" xtl="{b[0]}" ytl="{b[1]}" xbr="{b[2]}" ybr="{b[3]}"/>'
            for n, b in drawn.objects
        )
        entries.append(
            f'<image id="{3 * number}" name="{escape(drawn.place)}" subset="{subset}" '
            f'width="{drawn.size[0]}" height="{drawn.size[1]}">{boxes}</image>'
        )
    labels = "".join(f"<label><name>{escape(name)}</name></label>" for name in names)
    save(
        folder / "annotations.xml",
        '<?xml version="1.0" encoding="utf-8"?>\n<annotations>\n  <version>1.1</version>'
        f"<meta><project><labels>{labels}</labels></project></meta>{''.join(entries)}"
        "</annotations>",
    )


def write_table(folder: Path, images: Sequence[Drawn], names: Sequence[str]) -> None:
    """Roboflow's CSV."""
    head = ["filename", "width", "height", "class", "xmin", "ymin", "xmax", "ymax"]
    for split in dict.fromkeys(drawn.split for drawn in images):
        rows = []
        for number, drawn in enumerate(d for d in images if d.split == split):
            draw(folder / split / drawn.place, drawn.size, number)
            rows += [[drawn.place, *drawn.size, n, *b] for n, b in drawn.objects]
        save_csv(folder / split / "_annotations.csv", [head, *rows])


def save_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text).writerows(rows)
    save(path, text.getvalue())


def write_open_images(folder: Path, images: Sequence[Drawn], names: Sequence[str]) -> None:
    """Open Images; only the base names of images are written."""
    head = ["ImageID", "Source", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax"]
    labels = {name: f"/m/0{number}" for number, name in enumerate(names)}
    words = {"train": "train", "val": "validation", "test": "test"}
    for split in dict.fromkeys(drawn.split for drawn in images):
        rows = []
        for number, drawn in enumerate(d for d in images if d.split == split):
            draw(folder / words[split] / drawn.place, drawn.size, number)
            w, h = drawn.size
            rows += [
                [Path(drawn.place).stem, "x", labels[n], 1, b[0] / w, b[2] / w, b[1] / h, b[3] / h]
                for n, b in drawn.objects
            ]
        save_csv(folder / f"{words[split]}-annotations-bbox.csv", [head, *rows])
    rows = [[label, name] for name, label in labels.items()]
    save_csv(folder / "class-descriptions-boxable.csv", rows)


def png(mask: np.ndarray, *, compressed: bool = False) -> str:
    """A mask as a PNG in base64; compressed: by zlib before."""
    file = io.BytesIO()
    Image.fromarray(mask.astype(np.uint8) * 255).save(file, "PNG")
    content = file.getvalue()
    return base64.b64encode(zlib.compress(content) if compressed else content).decode()
