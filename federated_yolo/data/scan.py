"""Reads and checks all images and labels of a data set, before round 1 and during a run."""

import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.data.utils import img2label_paths

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import Fraction, image_lists, is_image_name, is_used, read_data
from federated_yolo.data.datasets import PrivateClassDataset, PrivateDataset, build_dataset
from federated_yolo.data.exports.made import naming_originals
from federated_yolo.data.messages import ENDINGS, damaged_files, one_line
from federated_yolo.data.summary import DataSummary, form_of

LABELS_EXPECTED = "expected .txt files in a 'labels' folder beside 'images'"


class _NothingThereError(InputError):
    """A split has no images."""


class _NoLabelError(InputError):
    """None of the images of a split has a label."""


def check_dataset(
    path: Path,
    task: str,
    cache_dir: Path,
    *,
    where: str,
    splits: tuple[str, ...],
    forgiven: list[str] | None = None,
    fraction: Fraction = 1.0,
) -> DataSummary:
    """Read every image header and label of a data set once; the training uses the same caches.

    path: As for `read_data`. splits: Splits that must exist. A test split is read if there is one.
    fraction: Ultralytics' `fraction`; only these images are checked and counted.
    Raises InputError with a line for each damaged file, up to 5 per split, and for an empty split.
    If `forgiven` is given, the lines are added to it instead, and such a split counts as empty.
    """
    with naming_originals(path):
        return _check_dataset(path, task, cache_dir, where, splits, forgiven, fraction)


def _check_dataset(
    path: Path,
    task: str,
    cache_dir: Path,
    where: str,
    splits: tuple[str, ...],
    forgiven: list[str] | None,
    fraction: Fraction,
) -> DataSummary:
    data = read_data(path, task, where=where)
    where = f"{where} ({path})"
    problems: list[str] = []
    datasets: dict[str, PrivateDataset | PrivateClassDataset] = {}
    cache_dir.mkdir(parents=True, exist_ok=True)
    for split in splits:
        try:
            datasets[split] = scan_split(data, task, split, cache_dir, fraction)
        except InputError as error:
            problems += [f"{where}: {split}: {line}" for line in error.problems]
    test_is_unlabelled = False
    if data.get("test") and is_used(fraction, "test"):
        try:
            datasets["test"] = scan_split(data, task, "test", cache_dir, fraction)
        except _NoLabelError:
            test_is_unlabelled = True
        except _NothingThereError:  # ordinary: the test split of COCO is kept elsewhere
            pass
        except InputError as error:
            problems += [f"{where}: test: {line}" for line in error.problems]
    if problems and forgiven is None:
        raise InputError(problems)
    if forgiven is not None:
        forgiven += problems
    return replace(_counted(form_of(data), datasets), test_is_unlabelled=test_is_unlabelled)


def _counted(
    form: DataSummary, datasets: Mapping[str, PrivateDataset | PrivateClassDataset]
) -> DataSummary:
    """Return the form with the contents of the splits: images, labels of each class, classes."""
    numbers = {split: len(dataset) for split, dataset in datasets.items()}
    counts = {
        split: np.bincount(_labels(dataset), minlength=len(form.names)).tolist()
        for split, dataset in datasets.items()
    }
    classes = {
        split: tuple(name for name, count in zip(form.names, found, strict=True) if count)
        for split, found in counts.items()
    }
    return replace(
        form,
        num_train=numbers.get("train", 0),
        num_val=numbers.get("val", 0),
        num_test=numbers.get("test", 0),
        class_counts=tuple(counts.get("train", form.class_counts)),
        val_classes=classes.get("val", ()),
        test_classes=classes.get("test", ()),
    )


def _labels(dataset: PrivateDataset | PrivateClassDataset) -> np.ndarray:
    """Return the class of each label of a data set: (labels,) int64."""
    if isinstance(dataset, PrivateClassDataset):
        return np.array([label for _, label, *_ in dataset.samples], int)
    return np.concatenate([label["cls"].astype(int).ravel() for label in dataset.labels])


def open_split(
    data: dict[str, Any], task: str, split: str, cache_dir: Path, fraction: Fraction = 1.0
) -> PrivateDataset | PrivateClassDataset:
    """Read every image header and label of one split; damaged files are left out and counted.

    fraction: Ultralytics' `fraction`; it must leave some images (`is_used`).
    Raises InputError if no image is left, and for a list with lines that name no image.
    """
    from ultralytics.cfg import get_cfg

    if split not in data:  # a data.yaml has it, or was refused
        raise InputError(f"no such folder; expected {split}/CLASS/*.jpg")
    places = data[split] if isinstance(data[split], list) else [data[split]]
    lists = [Path(place) for place in places]
    if problems := list(_lines_of_no_image(lists)) or list(_lines_of_absent_images(lists)):
        raise InputError(problems)
    overrides = {"task": task, "mode": "train", "imgsz": 32, "split": split, "fraction": fraction}
    args = get_cfg(overrides=overrides)
    with _plain_errors(task):
        return build_dataset(args, data[split], 1, data, "val", 32, cache_dir)


@contextmanager
def _plain_errors(task: str) -> Iterator[None]:
    """Raise InputError for each error that Ultralytics raises about a split that it cannot use."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        cause = one_line(error.__cause__ or error).split(". Supported")[0]
        raise _NothingThereError(f"{cause}; expected at least one image") from error
    except (RuntimeError, ValueError, AssertionError) as error:  # e.g. all files are damaged
        lines = str(error).splitlines()
        text = one_line(error)
        if text.startswith("No labels found in"):  # the text names its cache
            raise _NoLabelError(
                f"none of the images has a label file; {LABELS_EXPECTED}"
            ) from error
        # unstable: ultralytics.data.dataset.YOLODataset.verify_labels says 'Please supply'
        if "Please supply" in text:  # labels of another task
            text += f" (base_model is of the task {task}; take one of the labels' task)"
        raise InputError(damaged_files(lines) or text) from error


def scan_split(
    data: dict[str, Any], task: str, split: str, cache_dir: Path, fraction: Fraction = 1.0
) -> PrivateDataset | PrivateClassDataset:
    """Read every image header and label of one split.

    Raises InputError with a line for each damaged file, for an empty split, and for one without
    any label.
    """
    dataset = open_split(data, task, split, cache_dir, fraction)
    damaged = damaged_files(dataset.messages)
    if damaged:
        raise InputError(damaged)
    _refuse_useless(dataset, split)
    return dataset


def usable_dataset(
    args: Any,
    img_path: str | list[str],
    batch: int | None,
    data: dict[str, Any],
    mode: str,
    *settings: Any,
) -> PrivateDataset | PrivateClassDataset:
    """Call `build_dataset` on the files that exist now; damaged files are left out and logged.

    Raises InputError if nothing is left to train or to score on.
    """
    split = "train" if mode == "train" else args.split
    places = img_path if isinstance(img_path, list) else [img_path]
    try:
        if problems := list(_lines_of_no_image(Path(place) for place in places)):
            raise InputError(problems)
        with _plain_errors(args.task):
            dataset = build_dataset(args, img_path, batch, data, mode, *settings)
        _refuse_useless(dataset, split)
    except InputError as error:
        raise InputError(f"{split}: {line}" for line in error.problems) from error
    for line in damaged_files(dataset.messages):
        logging.getLogger(__name__).warning("left out: %s: %s", split, line)
    return dataset


def _refuse_useless(dataset: PrivateDataset | PrivateClassDataset, split: str) -> None:
    """Raise InputError for a split without images, or without a label."""
    if isinstance(dataset, PrivateClassDataset) and not dataset.samples:
        raise _NothingThereError("no images in the folders of its classes; expected at least one")
    if not len(_labels(dataset)):
        why = "" if split == "train" else ", so that every model would score 0"
        raise _NoLabelError(
            f"none of the {len(dataset)} images has a label{why}; {LABELS_EXPECTED}, one of them "
            f"with a label; searched {label_folder(dataset)}"
        )


def label_folder(dataset: PrivateDataset | PrivateClassDataset) -> Path:
    """Return the folder where the first image's label is expected; links in it are resolved."""
    assert isinstance(dataset, PrivateDataset)
    return Path(img2label_paths(dataset.im_files[:1])[0]).parent


def _lines_of_no_image(places: Iterable[Path]) -> Iterator[str]:
    """Describe wrong lines of lists of images by number; their text must not leave a site.

    places: Folders, which are skipped, and lists. A blank at the end of a line belongs to the
    file's name.
    """
    for path, lines in image_lists(places):
        wrong = [number for number, line in lines if not is_image_name(line)]
        if wrong:
            more = f", and {len(wrong) - 1} more" if wrong[1:] else ""
            yield (
                f"{path}: line {wrong[0]} does not end as an image that Ultralytics reads "
                f"({ENDINGS}){more}; correct or remove them, and blanks at their ends"
            )
            continue
        lost = [number for number, line in lines if _is_out_of_reach(line)]
        if lost:
            more = f" (and {len(lost) - 1} more)" if lost[1:] else ""
            yield (
                f"{path}: line {lost[0]}{more} is no whole path, so it is looked for in the "
                "working directory, where it is not; begin the lines with a dot and a slash, which "
                "stand for the folder of the list, or write whole paths"
            )


def _lines_of_absent_images(places: Iterable[Path]) -> Iterator[str]:
    """Count listed images that do not exist. places: As for `_lines_of_no_image`."""
    for path, lines in image_lists(places):
        absent = [
            number
            for number, line in lines
            if not (path.parent / line if line.startswith("./") else Path(line)).exists()
        ]
        if absent:
            yield (
                f"{path}: {len(absent)} of {len(lines)} listed images are not there, the first in "
                f"line {absent[0]}; correct or remove the lines (a dot and a slash at their "
                f"beginning stand for {path.parent})"
            )


def _is_out_of_reach(line: str) -> bool:
    """Whether a line of a list names an image that Ultralytics would not find with its label.

    Lines that begin with ./ start at the folder of their list, others at the working directory. For
    a bare file name Ultralytics finds no folder of labels.
    """
    if line.startswith("./") or Path(line).is_absolute():
        return False
    return "/" not in line or not Path(line).is_file()


def move_caches(source: Path, target: Path) -> None:
    """Move label caches that the checks made into the run directory."""
    target.mkdir(parents=True, exist_ok=True)
    for cache in source.glob("*.cache"):
        shutil.move(str(cache), target / cache.name)
