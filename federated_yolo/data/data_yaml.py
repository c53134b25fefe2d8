"""Reads a data.yaml, or a folder of class folders, as Ultralytics does, and checks it."""

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ultralytics.data.utils import IMG_FORMATS, check_det_dataset, get_split_fraction
from ultralytics.utils import YAML

from federated_yolo.common.errors import InputError, nearest
from federated_yolo.common.files import read_yaml, special_kind
from federated_yolo.data.keypoints import keypoint_names, keypoint_problems
from federated_yolo.data.messages import one_line, yaml_error

# Keys of a data.yaml that training and validation read.
DATA_KEYS = ("train", "val", "test", "names", "nc", "channels")
OF_KEYPOINTS = ("kpt_names", "kpt_oks_sigmas", "flip_idx")  # have no meaning without kpt_shape
DATA_KEYS += ("kpt_shape", *OF_KEYPOINTS)
# Keys that `in_label_space` adds to private data.yaml files.
CLASS_MAP, NOT_ANNOTATED = "federated_class_map", "federated_not_annotated"
DATA_KEYS += (CLASS_MAP, NOT_ANNOTATED)
# Folder names that Ultralytics looks for in a classification data set, by split, in its order.
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}

# Ultralytics' `fraction`, for train or as [train, val, test]: shares, or whole numbers of images.
Fraction = int | float | list[int | float]


def is_used(fraction: Fraction, split: str) -> bool:
    """Whether `fraction` leaves any image of a split; train and val always keep some."""
    return split != "test" or get_split_fraction(fraction, split) != 0


def read_data(path: Path, task: str, *, where: str) -> dict[str, Any]:
    """Read what Ultralytics' `data=` names: a data.yaml, or for classify a folder.

    Raises InputError; `where` starts each of its lines.
    """
    return (
        read_class_folders(path, where=where)
        if task == "classify"
        else read_data_yaml(path, where=where)
    )


def read_class_folders(path: Path, *, where: str) -> dict[str, Any]:
    """Read train/CLASS, val/CLASS and test/CLASS as Ultralytics does; nothing is downloaded.

    The classes are the folders in train, in the order of their names; or those in val if there is
    no train, which a server that only evaluates does not need. (From a folder without both,
    Ultralytics would make train and val itself, and copy the images.)

    Returns the paths of the splits that exist, and names, nc and channels, as in a data.yaml.
    Raises InputError; `where` starts each of its lines.
    """
    where = f"{where} ({path})"
    _refuse_packed(path, where)
    layout = "a folder with train/CLASS/*.jpg and val/CLASS/*.jpg, as a classifier's data is"
    if not path.is_dir():
        found = "a file" if path.is_file() else "no such folder"
        raise InputError(f"{where}: {found}; expected {layout}")
    folders = {
        split: next((path / name for name in names if (path / name).is_dir()), None)
        for split, names in SPLIT_FOLDERS.items()
    }
    classes = {
        split: sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
        for split, folder in folders.items()
        if folder
    }
    if not classes.get("train") and not classes.get("val"):
        raise InputError(f"{where}: no folder of a class in train or val; expected {layout}")
    source = "train" if "train" in classes else "val"
    problems = [
        f"{where}: {split}: class '{name}' has no folder in {source} [{', '.join(classes[source])}]"
        f"{nearest(name, classes[source])}; make one (it may be empty), or remove it"
        for split in classes
        for name in classes[split]
        if name not in classes[source]
    ]
    problems += [
        f"{where}: {split}: found a hidden folder '{name}', which would be a class; remove it"
        for split in classes
        for name in classes[split]
        if name.startswith(".")
    ]
    if (path / ".ndjson.yaml").exists():
        problems.append(f"{where}: .ndjson.yaml: class folders of NDJSON data are not supported")
    if problems:
        raise InputError(problems)
    splits = {split: str(folder.absolute()) for split, folder in folders.items() if folder}
    names = dict(enumerate(classes[source]))
    return {**splits, "names": names, "nc": len(names), "channels": 3}


def _refuse_packed(path: Path, where: str) -> None:
    """Raise InputError for data that Ultralytics would unpack into folders of its own choice."""
    suffix = "" if path.is_dir() else path.suffix.lower()
    if suffix == ".ndjson":
        raise InputError(
            f"{where}: NDJSON, which Ultralytics converts to a data set, with downloads; convert "
            f"it once, with {ndjson_command(path)}, and give what it prints"
        )
    if suffix in (".zip", ".tar", ".gz", ".tgz", ".xz", ".txz", ".bz2", ".tbz2"):
        raise InputError(f"{where}: an archive; unpack it, and give what is in it")


def ndjson_command(path: Path) -> str:
    """A command that downloads the images of an NDJSON beside it and prints the data set's path.

    It needs aiohttp, which is no requirement of Ultralytics.
    """
    file, folder = path.absolute().as_posix(), path.absolute().parent.as_posix()
    code = (
        "import asyncio, sys; from ultralytics.data.converter import convert_ndjson_to_yolo as c; "
        "print(asyncio.run(c(*sys.argv[1:])))"
    )
    return f'pip install aiohttp && python -c "{code}" {shlex.quote(file)} {shlex.quote(folder)}'


def read_data_yaml(path: Path, *, where: str) -> dict[str, Any]:
    """Read a data.yaml and resolve its paths as Ultralytics does; nothing is downloaded or run.

    Raises InputError; `where` starts each of its lines.
    """
    where = f"{where} ({path})"
    _refuse_packed(path, where)
    try:
        if not path.is_file():
            found = "a folder, as classifiers have" if path.is_dir() else special_kind(path)
            found = found or "no such file"
            raise InputError(f"{where}: {found}; expected an Ultralytics data.yaml")
        raw = read_yaml(path)
    except InputError:
        raise
    except (
        Exception
    ) as error:  # YAML's constructors of numbers, dates, ... raise errors of any kind
        raise InputError(f"{where}: not a readable YAML file: {yaml_error(error)}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected 'train', 'val' and 'names' lines as in a data.yaml")
    problems = [f"{where}: {problem}" for problem in data_yaml_problems(raw)]
    if problems:
        raise InputError(problems)
    try:
        data = check_det_dataset(str(path), autodownload=False)
    except OSError as error:  # not found, or a name that no file can have
        raise InputError(
            f"{where}: {one_line(error)}; correct 'path', 'train' or 'val', or, if there is no val "
            "split, remove 'val' and set val_fraction=0.2"
        ) from error
    except (SyntaxError, TypeError, ValueError, KeyError, AssertionError) as error:
        text = one_line(error).removeprefix(f"{path} ")
        raise InputError(f"{where}: {text}; correct it as in a data.yaml of Ultralytics") from error
    for key in OF_KEYPOINTS:
        if not (data.get("kpt_shape") and data.get(key)):
            data.pop(key, None)
    if data.get("kpt_names"):
        data["kpt_names"] = keypoint_names(data["kpt_names"])
    # Names as written, since Ultralytics turns codes of ImageNet into words. A mapping may list its
    # indices in any order; from here on they ascend.
    names = raw["names"]
    names = dict(enumerate(names)) if isinstance(names, list) else names
    data["names"] = {
        index: str(name) for index, name in sorted((int(k), v) for k, v in names.items())
    }
    return {key: data[key] for key in DATA_KEYS if data.get(key) is not None}


def data_yaml_problems(raw: dict[str, Any]) -> Iterator[str]:
    """Describe what a data.yaml lacks, or has in a form at which Ultralytics would fail later."""
    raw = {"val": raw.get("validation"), **raw}  # Ultralytics accepts both names
    for key in ("train", "val", "names"):
        if not raw.get(key):
            yield f"no '{key}'; a data.yaml has train, val and names"
    for key in ("train", "val", "test"):
        folders = raw.get(key) or ""
        for entry in folders if isinstance(folders, list) else [folders]:
            if not isinstance(entry, str):  # it may contain names, which must not leave a site
                found = entry if isinstance(entry, int | float) else f"a {type(entry).__name__}"
                yield f"{key}: found {found}, expected a folder of images or a list of them"
                break
    download = raw.get("download")
    if download and not re.fullmatch(r"https?://\S+", str(download).strip()):
        yield "download: holds code, which Ultralytics would run; remove it"
    names = raw.get("names") or {}
    names = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(names, dict):
        yield f"names: found {names!r}, expected a list of class names"
        names = {}
    elif sorted(map(str, names)) != sorted(map(str, range(len(names)))):
        indices = ", ".join(map(str, names))
        yield f"names: found indices {indices}, expected 0 to {len(names) - 1} for {len(names)}"
    if not all(str(name).strip() for name in names.values()):
        yield "names: found an empty class name; name each class"
    yield from (f"names: {problem}" for problem in repeated_names(names))
    channels = raw.get("channels", 3)
    if type(channels) is not int or channels < 1:
        yield f"channels: found {channels!r}, expected a whole number, 3 for colour images"
    if names:
        yield from keypoint_problems(raw, len(names))


def repeated_names(names: Mapping[Any, Any]) -> Iterator[str]:
    """Describe names that stand for two classes. names: Class names by index or other id."""
    first: dict[str, Any] = {}
    for index, name in names.items():
        other = first.setdefault(str(name), index)
        if other != index and str(name).strip():
            yield (
                f"'{name}' is listed twice ({other} and {index}); classes are told apart by their "
                "names; rename one"
            )


def class_names(data: dict[str, Any]) -> tuple[str, ...]:
    """Return the class names in the order of their indices."""
    return tuple(str(data["names"][i]) for i in range(len(data["names"])))


def write_private_yaml(data: dict[str, Any], folder: Path) -> Path:
    """Write `data` (absolute paths, nothing to execute) as a data.yaml, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "data.yaml"
    YAML.save(str(path), data)
    return path


def is_image_name(name: str) -> bool:
    """Whether Ultralytics reads a file of this name as an image; it silently skips others."""
    return name.rpartition(".")[-1].lower() in IMG_FORMATS


def image_lists(places: Iterable[Path]) -> Iterator[tuple[Path, list[tuple[int, str]]]]:
    """Yield each list among these places, with number and text of its lines that are not blank."""
    for path in places:
        if not path.is_file() or not os.access(path, os.R_OK):  # Ultralytics will report it
            continue
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        yield path, [(n, x) for n, x in enumerate(text.rstrip().splitlines(), 1) if x.strip()]
