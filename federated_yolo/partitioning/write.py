"""Writes the clients' data sets, and a config to start from."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from ultralytics.data.utils import img2label_paths

from federated_yolo.common.errors import InputError
from federated_yolo.partitioning.divide import Partition
from federated_yolo.partitioning.source import BASE_MODELS, Source


def write(source: Source, partition: Partition, output: Path, *, copy: bool) -> None:
    """Write the data set of each client."""
    for number, client in enumerate(partition.clients):
        folder = output / client
        folder.mkdir(parents=True)
        for split, content in source.splits.items():
            images = [content.images[i] for i in partition.indices(source, split, number)]
            if source.task == "classify":
                _write_class_folders(source, images, folder, split, copy=copy)
            elif copy:
                _copy_with_labels(images, folder / "images" / split, content.images)
            else:
                text = "".join(f"{image}\n" for image in images)
                (folder / f"{split}.txt").write_text(text, encoding="utf-8")
        if source.task != "classify":
            where = {s: f"images/{s}" if copy else f"{s}.txt" for s in source.splits}
            _write_yaml(folder / "data.yaml", {**where, **source.data})


def _write_class_folders(
    source: Source, images: Sequence[str], folder: Path, split: str, *, copy: bool
) -> None:
    (root,) = source.folders[split]
    for name in source.names:  # all of them: Ultralytics counts classes by existing folders
        (folder / split / name).mkdir(parents=True)
    for image in images:
        target = folder / split / Path(image).relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copyfile(image, target)
        else:
            target.symlink_to(image)


def _copy_with_labels(images: Sequence[str], folder: Path, of_split: Sequence[str]) -> None:
    """Copy images and their labels, with the folders below the one that all images share.

    Folders named `images` are left out: Ultralytics replaces the last one to find the labels.
    """
    root = os.path.commonpath([str(Path(image).parent) for image in of_split])
    folder.mkdir(parents=True)
    taken: dict[Path, Path] = {}
    for image in images:
        parts = Path(os.path.relpath(image, root)).parts
        target = folder.absolute().joinpath(*(part for part in parts if part != "images"))
        label, label_target = (Path(p) for p in img2label_paths([image, str(target)]))
        other = taken.setdefault(label_target, label)
        if other != label:
            raise InputError(
                f"--copy: the labels {other} and {label} would get the same name; rename one with "
                "its image"
            )
        for found, place in ((Path(image), target), (label, label_target)):
            if found.is_file():  # a background has no label
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, place)


def write_config(source: Source, partition: Partition, output: Path, options: str) -> Path:
    """Write a config that starts a federation of the clients, and return its path."""
    path = output / "federated.yaml"
    base = BASE_MODELS[source.task]
    file = "" if source.task == "classify" else "data.yaml"
    config = {
        "base_model": base,
        "datasets": [
            {"name": client, "data": str(output.absolute() / client / file)}
            for client in partition.clients
        ],
        "evaluate": {"data": str(source.path.absolute())},
    }
    comment = (
        f"# {options}\n"
        f"# {base} starts from random weights. A checkpoint, e.g. {Path(base).stem}.pt, learns\n"
        "# faster: put it there first. configs/example.yaml has the other settings.\n"
    )
    _write_yaml(path, config, comment)
    return path


def _write_yaml(path: Path, data: dict[str, Any], comment: str = "") -> None:
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
    path.write_text(comment + text, encoding="utf-8")


def refuse_inside(source: Source, output: Path) -> None:
    """Raise InputError if the output would become a part of the source."""
    for split, folders in source.folders.items():
        images = source.splits[split].images if split in source.splits else []
        # Also check the folder of each image that was found in a folder: it can be behind a link.
        below = {Path(i).parent for i in images if any(map(Path(i).is_relative_to, folders))}
        for folder in sorted({place.resolve() for place in (*folders, *below)}):
            if output.resolve().is_relative_to(folder):
                raise InputError(
                    f"-o {output}: is inside {folder}, where the {split} images are, and would "
                    "become a part of them; choose a place outside"
                )
