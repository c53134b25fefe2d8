"""Ordinary data sets written again as annotation tools export them: the same images and boxes."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import yaml

Numbers = list[float]


def as_coco(data_yaml: Path, folder: Path, splits: Sequence[str] = ("train", "val")) -> Path:
    """Write it as COCO: annotations/instances_SPLIT.json and images/SPLIT. Returns the folder."""
    names = yaml.safe_load(data_yaml.read_text())["names"]
    (folder / "annotations").mkdir(parents=True)
    for split in splits:
        target = folder / "images" / split
        shutil.copytree(data_yaml.parent / "images" / split, target)
        images, annotations = [], []
        for number, image in enumerate(sorted(target.iterdir()), 1):
            size = 64  # of recipes.make_dataset
            images.append({"id": number, "file_name": image.name, "width": size, "height": size})
            for label, (x, y, w, h) in _rows(data_yaml.parent, split, image):
                box = [(x - w / 2) * size, (y - h / 2) * size, w * size, h * size]
                annotations.append(
                    {"id": len(annotations), "image_id": number, "category_id": label + 1}
                    | {"bbox": box, "iscrowd": 0, "segmentation": []}
                )
        categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return folder


def as_labelimg(data_yaml: Path, folder: Path) -> Path:
    """Write its train images as LabelImg does in YOLO mode: all in one folder, classes.txt."""
    names = yaml.safe_load(data_yaml.read_text())["names"]
    shutil.copytree(data_yaml.parent / "images" / "train", folder)
    for label in (data_yaml.parent / "labels" / "train").iterdir():
        shutil.copy(label, folder)
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in names))
    return folder


def _rows(root: Path, split: str, image: Path) -> list[tuple[int, Numbers]]:
    lines = (root / "labels" / split / f"{image.stem}.txt").read_text().splitlines()
    parts = [line.split() for line in lines]
    return [(int(label), [float(n) for n in numbers]) for label, *numbers in parts]
