"""What a user names as a data set, as one that Ultralytics reads: itself, or what is made of it.

An export of an annotation tool is recognised, read and written as an Ultralytics data set below a
folder of ours. What was made is used again while nothing has changed in the export.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import SPLIT_FOLDERS
from federated_yolo.data.exports.classification import write_classes
from federated_yolo.data.exports.content import Content, Format, first_problems
from federated_yolo.data.exports.made import MADE, Made, read_made
from federated_yolo.data.exports.recognise import recognise, unknown_folder
from federated_yolo.data.exports.sizes import rescaled, size_problems
from federated_yolo.data.exports.split import with_val
from federated_yolo.data.exports.write import remove, task_of, write
from federated_yolo.data.exports.yolo import find_yaml

VERSION = 1  # of what is written; a change makes everything anew


@dataclass(frozen=True)
class Prepared:
    """A data set for Ultralytics. path: Its data.yaml or folder. made: None if it is the user's."""

    path: Path
    made: Made | None = None


@dataclass(frozen=True)
class Options:
    """How an export is converted.

    Attributes:
        task: Ultralytics' task that the labels are for; None goes by the labels.
        val_fraction: Share of the train images that becomes a val split where there is none.
        seed: Of that choice.
        rescale: Multiply coordinates where all images are larger than the export says.
        needs_train: Whether a train split has to be there.
    """

    task: str | None = None
    val_fraction: float | None = None
    seed: int = 0
    rescale: bool = False
    needs_train: bool = True


def prepare(path: Path, folder: Path, name: str, options: Options, *, where: str) -> Prepared:
    """Make an Ultralytics data set of an export, or find one made before.

    Args:
        path: What the user names: a data.yaml, a folder, a file of annotations.
        folder: Where to write: FOLDER/NAME-DIGEST.
        name: Of the client.
        options: How to convert.
        where: Starts each line of an error.

    Returns:
        The same path for an ordinary Ultralytics data set.

    Raises:
        InputError: With all problems, or with the next step for a format that is not read.
    """
    found = _recognised(path, options, where)
    if found is None:
        return Prepared(own_data(path))
    target = folder / f"{name}-{_digest(path, options)}"
    if not (target / MADE).is_file():
        with _naming(where):
            _make(found, path, target, options)
    return prepared_in(target)


def make(path: Path, target: Path, options: Options, *, where: str) -> Prepared:
    """Make an Ultralytics data set of an export in this new folder; arguments as for `prepare`."""
    found = _recognised(path, options, where)
    if found is None:
        return Prepared(own_data(path))
    with _naming(where):
        _make(found, path, target, options)
    return prepared_in(target)


def _recognised(path: Path, options: Options, where: str) -> Format | None:
    """The format of an export; None for what Ultralytics reads, or what has no such thing there.

    Raises InputError for a folder that is nothing known.
    """
    found = recognise(path)
    if found or not path.is_dir() or own_data(path) != path or options.task == "classify":
        return found
    if not any((path / name).is_dir() for names in SPLIT_FOLDERS.values() for name in names):
        start = f"{where} ({path})" if where else str(path)
        raise InputError(f"{start}: {unknown_folder(path)}")
    return None


def own_data(path: Path) -> Path:
    """The YAML file in a folder that Ultralytics reads; or else the path itself."""
    return find_yaml(path) or path


def prepared_in(folder: Path) -> Prepared:
    """The data set that was made in a folder."""
    made = read_made(folder)
    return Prepared(folder if made.task == "classify" else folder / "data.yaml", made)


def _make(found: Format, path: Path, target: Path, options: Options) -> None:
    if found.read is None:
        raise InputError(f"{path}: this is {found.name}, which is not read; {found.advice}")
    content = found.read(path)
    if problem := _task_problem(content, options.task):
        raise InputError(problem)
    problems = list(size_problems(content, rescale=options.rescale))
    if options.val_fraction is not None and not problems:
        content = with_val(content, options.val_fraction, options.seed)
    problems += _split_problems(content, options)
    if problems:
        raise InputError(first_problems(problems))
    content = rescaled(content) if options.rescale else content
    task, why = (options.task, "") if options.task else task_of(content)
    if content.task == "classify":
        task, why = content.task, f"{content.format} have a class for each image"
    building = target.with_name(f"{target.name}.{os.getpid()}")
    try:
        if task == "classify":
            written = write_classes(content, building)
        else:
            written = write(content, building, task or "detect")
        made = Made(
            source=str(path),
            format=content.format,
            task=task or "",
            why=why,
            images={split: len(pictures) for split, pictures in content.splits.items()},
            objects=written.objects,
            left_out=_merged(content.left_out, written.left_out),
            notes=content.notes,
        )
        text = json.dumps(asdict(made), indent=1, ensure_ascii=False)
        (building / MADE).write_text(text, encoding="utf-8")
        building.rename(target)
    except BaseException:
        remove(building)
        raise


def _task_problem(content: Content, task: str | None) -> str | None:
    """Say that a model of this task learns nothing from such data."""
    if content.task == "classify" and task not in (None, "classify"):
        return (
            f"{content.file}: {content.format}, which have a class for each image and no places, "
            f"but base_model is of the task {task}; take a base_model of the task classify, such "
            "as yolo11n-cls.pt, or annotate the objects"
        )
    if task == "classify" and content.task != "classify":
        return (
            f"{content.file}: {content.format}, which has objects with places, but base_model is "
            "of the task classify; take a base_model of the labels' task, such as yolo11n.pt, or "
            "give folders of train/CLASS/*.jpg and val/CLASS/*.jpg"
        )
    return None


def _split_problems(content: Content, options: Options) -> list[str]:
    """Say which split there is not, and what makes one."""
    problems = []
    if not content.splits.get("train") and options.needs_train:
        problems.append(
            f"{content.file}: {content.format} without train images; found "
            f"{', '.join(content.splits) or 'no images'}"
        )
    if not content.splits.get("val"):
        problems.append(
            f"{content.file}: {content.format} without a val split; val_fraction=0.2 "
            "(federated-yolo partition: --val-fraction 0.2) makes one of a fifth of its images"
        )
    return problems


def _merged(
    first: Mapping[str, Mapping[str, int]], second: Mapping[str, Mapping[str, int]]
) -> dict[str, dict[str, int]]:
    total: dict[str, Counter[str]] = {}
    for counts in (first, second):
        for reason, of_classes in counts.items():
            total.setdefault(reason, Counter()).update(of_classes)
    return {reason: dict(of_classes) for reason, of_classes in total.items()}


@contextmanager
def _naming(where: str) -> Iterator[None]:
    """Start each line of an error with this."""
    try:
        yield
    except InputError as error:
        raise InputError(
            f"{where}: {line}" if where else line for line in error.problems
        ) from error


def _digest(path: Path, options: Options) -> str:
    """A digest of the export's files (their names, sizes and times) and with the options."""
    digest = hashlib.sha256(repr((VERSION, str(path.absolute()), options)).encode())
    files = [path]
    if path.is_dir():
        for folder, folders, names in os.walk(path, followlinks=True):
            folders.sort()
            files += [Path(folder, name) for name in sorted(names)]
    for file in files:
        try:
            stat = file.stat()
        except OSError:  # it goes, or leads nowhere; reading it will say so
            continue
        digest.update(repr((str(file), stat.st_size, stat.st_mtime_ns)).encode())
    return digest.hexdigest()[:12]
