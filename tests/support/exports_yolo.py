"""Exports with YOLO label files, class folders and NDJSON, written from lists of images."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from PIL import Image

Box = tuple[float, float, float, float]
SIZE = (40, 32)


@dataclass(frozen=True)
class Drawn:
    """An image of an export. name: Below its folder. objects: Class index and box in pixels."""

    name: str
    objects: tuple[tuple[int, Box], ...] = ()
    split: str = "train"


NAMES = ("cat", "dog", "a fox")
IMAGES = (
    Drawn("a.jpg", ((0, (1, 2, 11, 12)), (2, (20, 3, 39, 31)))),
    Drawn("b c#%.JPG", ((1, (0, 0, 40, 32)),)),
    Drawn("ü.png"),
    Drawn("v.jpg", ((1, (5, 5, 9, 9)),), "val"),
)


def draw(path: Path) -> None:
    """Write an image that is unlike all others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = [*str(path.name).encode(), *str(path.parent.name).encode()]
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 5, 3), np.uint8)
    Image.fromarray(pixels).resize(SIZE).save(path)


def lines_of(drawn: Drawn) -> str:
    """The label lines of an image, as fractions with all digits."""
    lines = []
    for index, (left, top, right, bottom) in drawn.objects:
        w, h = SIZE
        numbers = (left + right) / 2 / w, (top + bottom) / 2 / h, (right - left) / w
        lines.append(" ".join(map(str, (index, *numbers, (bottom - top) / h))))
    return "".join(f"{line}\n" for line in lines)


def write_text(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def pair(root: Path, drawn: Drawn, image: str, label: str, *, save: bool = True) -> None:
    """Write an image and its label file, into these folders. save: Whether to write the image."""
    if save:
        draw(root / image / drawn.name)
    if drawn.objects:
        write_text((root / label / drawn.name).with_suffix(".txt"), lines_of(drawn))


def ultralytics(
    root: Path, images: Sequence[Drawn] = IMAGES, *, save: bool = True, **form: object
) -> None:
    """Folders images/SPLIT and labels/SPLIT, and a data.yaml of `form` with the names."""
    for drawn in images:
        pair(root, drawn, f"images/{drawn.split}", f"labels/{drawn.split}", save=save)
    text = yaml.safe_dump({"names": dict(enumerate(NAMES)), **form}, allow_unicode=True)
    write_text(root / "data.yaml", text)


def cvat_ultralytics(
    root: Path, images: Sequence[Drawn] = IMAGES, *, prefix: str = "", save: bool = True
) -> None:
    """CVAT's Ultralytics YOLO 1.0."""
    splits = dict.fromkeys(drawn.split for drawn in images)
    ultralytics(root, images, save=save, path=".", **{s: f"{s}.txt" for s in splits})
    for split in splits:
        lines = [f"{prefix}images/{split}/{d.name}\n" for d in images if d.split == split]
        write_text(root / f"{split}.txt", "".join(lines))


def cvat_darknet(root: Path, images: Sequence[Drawn] = IMAGES, *, save: bool = True) -> None:
    """CVAT's YOLO 1.1."""
    words = {"train": "train", "val": "valid"}
    splits = {words[d.split]: None for d in images}
    for drawn in images:
        folder = f"obj_{words[drawn.split]}_data"
        pair(root, drawn, folder, folder, save=save)
    for split in splits:
        lines = [f"data/obj_{split}_data/{d.name}\n" for d in images if words[d.split] == split]
        write_text(root / f"{split}.txt", "".join(lines))
    subsets = "".join(f"{split} = data/{split}.txt\n" for split in splits)
    config = f"classes = {len(NAMES)}\n{subsets}names = data/obj.names\nbackup = backup/\n"
    write_text(root / "obj.data", config)
    write_text(root / "obj.names", "".join(f"{name}\n" for name in NAMES))


def label_studio(root: Path, images: Sequence[Drawn] = IMAGES, *, save: bool = True) -> None:
    """Label Studio's YOLO, which has no splits."""
    for drawn in images:
        pair(root, drawn, "images", "labels", save=save)
    categories = [{"id": i, "name": name} for i, name in enumerate(NAMES)][::-1]
    write_text(root / "notes.json", json.dumps({"categories": categories, "info": {}}))
    write_text(root / "classes.txt", "\n".join(NAMES))


def labelimg(root: Path, images: Sequence[Drawn] = IMAGES, *, folders: bool = False) -> None:
    """LabelImg's YOLO. folders: train/ and valid/, each with its classes.txt."""
    words = {"train": "train", "val": "valid"}
    for drawn in images:
        folder = words[drawn.split] if folders else "."
        pair(root, drawn, folder, folder)
        write_text(root / folder / "classes.txt", "\n".join(NAMES))


def darknet(root: Path, images: Sequence[Drawn] = IMAGES) -> None:
    """Folders of splits with images/ and labels/, and a classes.txt."""
    for drawn in images:
        pair(root, drawn, f"{drawn.split}/images", f"{drawn.split}/labels")
    write_text(root / "classes.txt", "\n".join(NAMES) + "\n")


def ndjson(root: Path, images: Sequence[Drawn] = IMAGES, *, save: bool = True) -> None:
    """Ultralytics' NDJSON with images/SPLIT beside it."""
    records: list[Mapping[str, object]] = [
        {"type": "dataset", "task": "detect", "class_names": dict(enumerate(NAMES)), "path": "."}
    ]
    for drawn in images:
        if save:
            draw(root / "images" / drawn.split / drawn.name)
        labels = [[float(n) for n in line.split()] for line in lines_of(drawn).splitlines()]
        labels = [[int(index), *numbers] for index, *numbers in labels]
        records.append(
            {
                **{"type": "image", "file": drawn.name, "split": drawn.split},
                **{"width": SIZE[0], "height": SIZE[1], "annotations": {"boxes": labels}},
            }
        )
    write_text(root / "x.ndjson", "".join(f"{json.dumps(r)}\n" for r in records))


def roboflow(root: Path, images: Sequence[Drawn] = IMAGES) -> None:
    """Roboflow's YOLO as its notebooks write it, with the folder's old name before the paths."""
    words = {"train": "train", "val": "valid"}
    for drawn in images:
        split = words[drawn.split]
        pair(root, drawn, f"{split}/images", f"{split}/labels")
    form = {s: f"Old-1/{words[s]}/images" for s in dict.fromkeys(d.split for d in images)}
    write_text(root / "data.yaml", yaml.safe_dump({**form, "nc": 3, "names": list(NAMES)}))


WITH_SPLITS: tuple[Callable[..., None], ...] = (
    cvat_ultralytics,
    cvat_darknet,
    darknet,
    ndjson,
    roboflow,
    lambda root, images=IMAGES: labelimg(root, images, folders=True),
)
WITHOUT_SPLITS: tuple[Callable[..., None], ...] = (label_studio, labelimg)
