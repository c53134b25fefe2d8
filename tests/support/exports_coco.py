"""COCO as tools export it, written from a list of images and their objects."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageOps
from truths import Box, _boxes

IDS = {"a": 0, "b": 4, "c": 9}  # of the classes, from 0 and with gaps


@dataclass(frozen=True)
class Shot:
    """An image and its objects: class, and left, top, right, bottom in pixels."""

    name: str
    objects: tuple[tuple[str, Box], ...] = ()
    size: tuple[int, int] = (64, 48)


Shots = Mapping[str, Sequence[Shot]]  # by split

SOME: Shots = {
    "train": [
        Shot("0.jpg", (("a", (1.5, 2.25, 30, 40)), ("c", (10, 10, 64, 48)))),
        Shot("1.jpg", (("b", (5, 5, 25.5, 15)), ("a", (0, 0, 12, 12)), ("a", (20, 20, 40, 31)))),
        Shot("2.JPG"),
        Shot("3 #50%.png", (("b", (40, 1, 63, 9)),), (100, 80)),
    ],
    "val": [
        Shot("0.jpg", (("c", (3, 3, 33, 33)),)),
        Shot("ä b.png", (("b", (7, 8, 9.5, 44)), ("c", (1, 1, 60, 6)))),
    ],
}


def draw(path: Path, size: tuple[int, int]) -> None:
    """Write an image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 255, (size[1], size[0], 3))
    Image.fromarray(noise.astype(np.uint8)).save(path)


def coco_of(
    shots: Sequence[Shot],
    ids: Mapping[str, int | str] = IDS,
    *,
    first_id: int = 1,
    step: int = 1,
    prefix: str = "",
) -> dict[str, Any]:
    """The content of an annotation file.

    Args:
        shots: The images.
        ids: Ids of the classes.
        first_id: Of the images.
        step: From one image's id to the next one's.
        prefix: What stands before the images' names.
    """
    content: dict[str, Any] = {
        "info": {"description": "", "version": "1"},
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n, "supercategory": ""} for n, i in ids.items()],
    }
    for number, shot in enumerate(shots):
        image_id = first_id + number * step
        width, height = shot.size
        content["images"].append(
            {"id": image_id, "width": width, "height": height, "file_name": prefix + shot.name}
        )
        for name, (left, top, right, bottom) in shot.objects:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image_id,
                    "category_id": ids[name],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                    "segmentation": [],
                    "iscrowd": 0,
                }
            )
    return content


def save(path: Path, content: Mapping[str, Any]) -> None:
    """Write an annotation file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change what an annotation file holds."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _write(
    folder: Path, shots: Shots, annotations: str, images: str, **settings: Any
) -> dict[Path, Sequence[tuple[str, Box]]]:
    """Write each split. annotations, images: Paths in which {split} stands for it."""
    truth = {}
    for split, of_split in shots.items():
        save(folder / annotations.format(split=split), coco_of(of_split, **settings))
        for shot in of_split:
            path = folder / images.format(split=split) / shot.name
            draw(path, shot.size)
            truth[path] = shot.objects
    return truth


def _all_as_train(shots: Shots) -> Shots:
    """A task has no splits: names are kept apart by folders."""
    flat = [
        Shot(f"{split}/{shot.name}", shot.objects, shot.size)
        for split, of_split in shots.items()
        for shot in of_split
    ]
    return {"train": flat}


def coco(folder: Path, shots: Shots, **settings: Any) -> dict[Path, Any]:
    """As it is downloaded."""
    return _write(
        folder, shots, "annotations/instances_{split}2017.json", "{split}2017", **settings
    )


def coco_in_images(folder: Path, shots: Shots, **settings: Any) -> dict[Path, Any]:
    """With the folders of images in a folder."""
    return _write(folder, shots, "annotations/{split}.json", "images/{split}", **settings)


def cvat_task(folder: Path, shots: Shots, **settings: Any) -> dict[Path, Any]:
    """CVAT's COCO 1.0 of a task."""
    shots = {"default": _all_as_train(shots)["train"]}
    return _write(folder, shots, "annotations/instances_{split}.json", "images/{split}", **settings)


def cvat_task_plain(folder: Path, shots: Shots, **settings: Any) -> dict[Path, Any]:
    """An older CVAT's."""
    shots = {"default": _all_as_train(shots)["train"]}
    return _write(folder, shots, "annotations/instances_{split}.json", "images", **settings)


def cvat_project(folder: Path, shots: Shots, **settings: Any) -> dict[Path, Any]:
    """CVAT's COCO 1.0 of a project, with its names of subsets."""
    shots = {{"train": "Train", "val": "Validation"}[split]: of for split, of in shots.items()}
    return _write(folder, shots, "annotations/instances_{split}.json", "images/{split}", **settings)


def roboflow(folder: Path, shots: Shots, **settings: Any) -> dict[Path, Any]:
    """With a dummy category and the folder "valid"."""
    shots = {{"train": "train", "val": "valid"}[split]: of for split, of in shots.items()}
    settings["ids"] = {n: i + 1 for i, n in enumerate(settings.pop("ids", IDS))}
    truth = _write(folder, shots, "{split}/_annotations.coco.json", "{split}", **settings)
    for path in folder.glob("*/*.json"):
        edit(path, _add_dummy)
    return truth


def _add_dummy(content: dict[str, Any]) -> None:
    for category in content["categories"]:
        category["supercategory"] = "a"  # a project of the name of one of its classes
    content["categories"].insert(0, {"id": 0, "name": "a", "supercategory": "none"})


def fiftyone(folder: Path, shots: Shots, **settings: Any) -> dict[Path, Any]:
    """FiftyOne's COCODetectionDataset."""
    shots = {"data": _all_as_train(shots)["train"]}
    return _write(folder, shots, "labels.json", "data", **settings)


def fiftyone_splits(folder: Path, shots: Shots, **settings: Any) -> dict[Path, Any]:
    """FiftyOne's data set zoo."""
    shots = {{"train": "train", "val": "validation"}[split]: of for split, of in shots.items()}
    return _write(folder, shots, "{split}/labels.json", "{split}/data", **settings)


def label_studio(folder: Path, shots: Shots, **settings: Any) -> dict[Path, Any]:
    """Its names begin with the folder of the images; ids begin at 0."""
    settings = {"first_id": 0, "prefix": "images/", **settings}
    return _write(folder, _all_as_train(shots), "result.json", "images", **settings)


def label_studio_on_windows(folder: Path, shots: Shots, **settings: Any) -> dict[Path, Any]:
    """With backslashes."""
    truth = label_studio(folder, shots, **settings)
    edit(
        folder / "result.json",
        lambda content: [
            image.update(file_name=image["file_name"].replace("/", "\\"))
            for image in content["images"]
        ],
    )
    return truth


WITH_SPLITS = (coco, coco_in_images, cvat_project, roboflow, fiftyone_splits)
WITHOUT = (cvat_task, cvat_task_plain, fiftyone, label_studio, label_studio_on_windows)


def written(data_yaml: Path) -> dict[Path, list[tuple[str, Box]]]:
    """The objects of a written data set by the image files that its links lead to."""
    folder = data_yaml.parent
    names = yaml.safe_load(data_yaml.read_text())["names"]
    found = {}
    for link in (p for p in (folder / "images").rglob("*") if p.is_symlink()):
        label = folder / "labels" / link.relative_to(folder / "images")
        with Image.open(link) as image:
            size = ImageOps.exif_transpose(image).size
        assert link.readlink() not in found
        found[link.readlink()] = _boxes(label.with_suffix(".txt"), size, names)
    return found


def run_lengths(mask: np.ndarray) -> dict[str, Any]:
    """COCO's run lengths of a mask of 0 and 1."""
    flat = np.concatenate([[0], mask.T.ravel(), [0]])
    changes = np.flatnonzero(np.diff(flat.astype(int)))
    ends = [0, *changes.tolist(), mask.size]
    counts = np.diff(ends).tolist()
    return {"size": list(mask.shape), "counts": counts if counts[-1] else counts[:-1]}
