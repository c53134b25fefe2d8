"""Reads the data set to be split: a data.yaml or class folders, with every image and label."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import class_names, read_class_folders, read_data_yaml
from federated_yolo.data.datasets import PrivateClassDataset, PrivateDataset
from federated_yolo.data.exports.content import first_problems
from federated_yolo.data.exports.recognise import unknown_folder
from federated_yolo.data.scan import scan_split

# Base model for each task, which needs no download.
BASE_MODELS = {
    "detect": "yolo11n.yaml",
    "segment": "yolo11n-seg.yaml",
    "pose": "yolo11n-pose.yaml",
    "obb": "yolo11n-obb.yaml",
    "classify": "yolo11n-cls.yaml",
}
# Folder names that do not show where an image comes from.
COMMON_FOLDERS = {"images", "train", "val", "valid", "validation", "test"}


@dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    images: Absolute paths, each once. labels: Class indices of the objects on each image.
    """

    images: list[str]
    labels: list[np.ndarray]


@dataclass(frozen=True)
class Source:
    """A data set. path: Its data.yaml, or its folder for classification.

    task: The given task, or one guessed from the labels, and then `why`. names: Class names by
    index. data: Other keys of the clients' data.yaml files, such as `kpt_shape`. splits: "train"
    and "val". folders: For each split of the data set, the folders that are searched for images at
    any depth; empty for lists of images.
    """

    path: Path
    task: str
    names: tuple[str, ...]
    data: dict[str, Any]
    splits: dict[str, Split]
    folders: dict[str, tuple[Path, ...]]
    why: str = ""


def read_source(path: Path, scratch: Path, task: str | None = None) -> Source:
    """Read a data.yaml or a folder of classification data, and check every image and label.

    scratch: Folder for label caches. task: Task of a data.yaml; None guesses it from the labels.
    Raises InputError with all problems.
    """
    if not path.is_dir():
        return _read_detection(path, scratch, task)
    if (path / "train").is_dir() and not _has_label_folders(path):
        return _read_classification(path, scratch)
    raise InputError(f"{path}: {unknown_folder(path)}")


def _has_label_folders(path: Path) -> bool:
    """Whether a folder has the images and labels of a data.yaml: images/train or train/images."""
    train = path / "train"
    return (path / "images").is_dir() or all((train / n).is_dir() for n in ("images", "labels"))


def _read_detection(path: Path, scratch: Path, task: str | None) -> Source:
    data = read_data_yaml(path, where="SOURCE")
    splits: dict[str, Split] = {}
    outlines: list[np.ndarray] = []
    num_outlines = 0
    problems: list[str] = []
    for name in ("train", "val"):
        try:
            # The task detect reads every kind of label; only classes and outlines are needed here.
            scanned = scan_split(data, "detect", name, scratch)
            assert isinstance(scanned, PrivateDataset)  # classify is read elsewhere
        except InputError as error:
            problems += [f"{path}: {name}: {line}" for line in error.problems]
            continue
        relative = [image for image in scanned.im_files if not Path(image).is_absolute()]
        if relative:  # the place of their labels would change with the path
            problems.append(
                f"{path}: {name}: lists {relative[0]}, which starts at the working directory; "
                "begin such lines with ./, to start at the list, or with /"
            )
        labels = {label["im_file"]: label["cls"].astype(int).ravel() for label in scanned.labels}
        splits[name] = Split(list(labels), list(labels.values()))
        outlines += [o for label in scanned.labels for o in label["segments"]]
        num_outlines += scanned.num_outlines
    problems = problems or list(_in_both(path, splits))
    if problems:
        raise InputError(first_problems(problems))
    num_objects = sum(len(labels) for split in splits.values() for labels in split.labels)
    task, why = (task, "") if task else _guess_task(data, outlines, num_outlines, num_objects)
    form = {key: value for key, value in data.items() if key not in ("train", "val", "test")}
    return Source(path, task, class_names(data), form, splits, _folders_of(data), why)


def _in_both(path: Path, splits: Mapping[str, Split]) -> Iterator[str]:
    """Describe images that are both in train and in val, also under different paths."""
    train = {os.path.realpath(image): image for image in splits["train"].images}
    for image in splits["val"].images:
        twin = train.get(os.path.realpath(image))
        if twin is not None:
            where = "" if twin == image else f" (as {twin})"
            yield f"{path}: {image} is in train{where} and in val; list it in one"


def _guess_task(
    data: dict[str, Any], outlines: Sequence[np.ndarray], num_outlines: int, num_objects: int
) -> tuple[str, str]:
    """Return the most likely task of labels, and the reason; a label file does not name its task.

    num_outlines: Number of outlines, including splits that also have boxes, whose outlines are
    missing in `outlines`.
    """
    if data.get("kpt_shape"):
        return "pose", "the data.yaml has kpt_shape"
    if not num_outlines:
        return "detect", "all are boxes"
    if num_outlines < num_objects:
        few = f"not all objects have outlines ({num_outlines} of {num_objects})"
        return "detect", f"{few}, so all are taken as boxes"
    if all(len(outline) == 4 for outline in outlines):
        return "obb", "all outlines have 4 corners"
    return "segment", "not all outlines have 4 corners"


def _folders_of(data: dict[str, Any]) -> dict[str, tuple[Path, ...]]:
    """Return the folders among the places of each split. data: Result of `read_data`."""
    found = {}
    for split in ("train", "val", "test"):
        places = data.get(split) or []
        places = [Path(place) for place in (places if isinstance(places, list) else [places])]
        found[split] = tuple(place for place in places if place.is_dir())
    return found


def _read_classification(path: Path, scratch: Path) -> Source:
    # Read as in training, which also finds images behind linked folders.
    data = read_class_folders(path, where="SOURCE")
    splits: dict[str, Split] = {}
    problems: list[str] = []
    for name in ("train", "val"):
        try:
            scanned = scan_split(data, "classify", name, scratch)
            assert isinstance(scanned, PrivateClassDataset)
        except InputError as error:
            problems += [f"{path}: {name}: {line}" for line in error.problems]
            continue
        files, classes = zip(*((file, label) for file, label, *_ in scanned.samples), strict=True)
        splits[name] = Split(list(files), [np.array([label]) for label in classes])
    problems = problems or list(_in_both(path, splits))
    if problems:
        raise InputError(first_problems(problems))
    return Source(path, "classify", class_names(data), {}, splits, _folders_of(data))
