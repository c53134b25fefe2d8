"""Where tools put COCO's annotation files and the images of these.

COCO, CVAT     annotations/instances_train2017.json, instances_Train.json, instances_default.json;
               images in train2017, images/train2017, images/Train, images/default, images
Roboflow       train/_annotations.coco.json, valid/..., test/..., beside the images
FiftyOne       data and labels.json, or these in folders train, validation, test
Label Studio   result.json and images, whose names begin with "images/" or "images" and a
               backslash
others         .json files beside a folder of images
"""

import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

from federated_yolo.common.errors import InputError
from federated_yolo.data.exports.content import split_in
from federated_yolo.data.exports.json_files import edges_of, has_list

ROBOFLOW = "_annotations.coco.json"
FIFTYONE = "labels.json"
MAX_FILES = 32  # .json files beside each other that may be COCO's; of others there is one an image
OBJECTS = ("instances_", "person_keypoints_")  # the first kind of these that is there is read
OTHER_KINDS = ("captions_", "panoptic_", "image_info_", "stuff_")
OF_IMAGES = "labels_"


def annotation_files(path: Path) -> list[Path]:
    """The COCO files of a folder, or the file itself; empty where it is of another format."""
    if path.is_file():
        named = path.name == ROBOFLOW or path.name.startswith(OBJECTS)
        return [path] if path.suffix.lower() == ".json" and (named or _is_coco_file(path)) else []
    if not path.is_dir() or (path / "data.yaml").is_file():  # which has labels of its own
        return []
    annotations = path / "annotations"
    if annotations.is_dir():
        files = [p for p in _json_files(annotations) if p.name.startswith(OBJECTS)]
        if files := files or _coco_files(annotations):
            return files
    if files := list(_files_of_split_folders(path)):
        return files
    return _coco_files(path)


def _coco_files(folder: Path) -> list[Path]:
    files = _json_files(folder)
    if len(files) > MAX_FILES:
        return []
    return [p for p in files if p.name == ROBOFLOW or _is_coco_file(p)]


def _json_files(folder: Path) -> list[Path]:
    return sorted(
        p
        for p in folder.iterdir()
        if p.suffix.lower() == ".json"
        and not p.name.startswith((".", *OTHER_KINDS))
        # Datumaro's are of whole images; makesense.ai calls its boxes so.
        and not (p.name.startswith(OF_IMAGES) and '"bbox"' not in edges_of(p))
    )


def _files_of_split_folders(path: Path) -> Iterator[Path]:
    for folder in sorted(p for p in path.iterdir() if split_in(p.name) and p.is_dir()):
        if (folder / ROBOFLOW).is_file():
            yield folder / ROBOFLOW
        elif (folder / "data").is_dir() and _is_coco_file(folder / FIFTYONE):
            yield folder / FIFTYONE


def _is_coco_file(path: Path) -> bool:
    """Whether a file has COCO's lists, as far as its beginning and end tell."""
    text = edges_of(path)
    if not text.lstrip().startswith("{"):
        return False
    if has_list(text, "images") and (has_list(text, "categories") or has_list(text, "annotations")):
        return '"file_name"' in text or has_list(text, "annotations")
    return has_list(text, "annotations") and '"image_id"' in text and '"category_id"' in text


def by_split(path: Path) -> tuple[dict[str, Path], list[str]]:
    """The annotation file of each split, and notes about files that are not read.

    A file that is alone, and names no split, is all train images.

    Raises:
        InputError: Where it is not clear which file is of which split.
    """
    files = annotation_files(path)
    first = next((kind for kind in OBJECTS if any(p.name.startswith(kind) for p in files)), "")
    read = [p for p in files if p.name.startswith(first)]
    notes = [
        f"{p.name} is not read; to read it, name the file itself" for p in files if p not in read
    ]
    found: dict[str, Path] = {}
    problems = []
    for file in read:
        split = _split_of(file)
        if split is None and len(read) > 1:
            problems.append(
                f"{file}: found no split in its name, and {len(read) - 1} more files; expected "
                "'train', 'val' or 'test' in each, e.g. instances_train.json; rename it, remove "
                "it, or name one file itself"
            )
        elif split in found:
            problems.append(
                f"{file}: found two files of the split {split}, this and {found[split].name}; "
                "remove one, or name one file itself"
            )
        else:
            found[split or "train"] = file
    if not read:
        problems.append(f"{path}: found no COCO annotation file, expected one")
    if problems:
        raise InputError(problems)
    return {split: found[split] for split in ("train", "val", "test") if split in found}, notes


def _split_of(file: Path) -> str | None:
    """By the name of the file, or of its folder where all files have the same name."""
    if file.name in (ROBOFLOW, FIFTYONE):
        return split_in(file.parent.name)
    return split_in(file.stem)


def base_of(file: Path) -> Path:
    """The folder of the export that an annotation file is in."""
    return file.parent.parent if file.parent.name == "annotations" else file.parent


def find_images(
    file: Path, split: str, names: Sequence[str]
) -> tuple[list[Path | None], list[Path]]:
    """The image files of an annotation file, all in one of the folders where tools put them.

    Args:
        file: The annotation file.
        split: Its split.
        names: The names of the images in it.

    Returns:
        The file of each name, None where there is none; and the folders that were searched.
    """
    folders = list(dict.fromkeys(_image_folders(file, split)))
    best: list[Path | None] = [None] * len(names)
    for inside in (_as_named, _by_base_name):
        for folder in folders:
            found = [inside(folder, name) for name in names]
            if None not in found:
                return found, folders
            if _num_found(found) > _num_found(best):
                best = found
    return best, folders


def _num_found(found: Sequence[Path | None]) -> int:
    return sum(path is not None for path in found)


def _image_folders(file: Path, split: str) -> Iterator[Path]:
    """The most special first: one split's images may have the same names as another's."""
    base = base_of(file)
    suffix = file.stem.rpartition("_")[2].lower()
    holders = [base, base / "images", base / "data"]
    folders = [p for h in holders if h.is_dir() for p in sorted(h.iterdir()) if p.is_dir()]
    yield from (p for p in folders if p.name.lower() == suffix)
    yield from (p for p in folders if split_in(p.name) == split)
    yield from (p for p in holders[1:] if p.is_dir())
    yield base
    yield file.parent


def _as_named(folder: Path, name: str) -> Path | None:
    """The file of this name below a folder; a name that leads out of it has none."""
    for text in _spellings(name):
        path = PurePosixPath(text)
        if not path.is_absolute() and ".." not in path.parts and _is_file(folder / path):
            return folder / path
    return None


def _by_base_name(folder: Path, name: str) -> Path | None:
    """The file of the same last part in a folder."""
    bases = [PurePosixPath(name).name, PureWindowsPath(name).name]
    return next((path for base in bases if (path := _as_named(folder, base))), None)


def _spellings(name: str) -> Iterator[str]:
    """The same name as other systems write it: backslashes of Windows, split letters of macOS."""
    for text in dict.fromkeys([name, name.replace("\\", "/")]):
        yield from dict.fromkeys([text, *(unicodedata.normalize(f, text) for f in ("NFC", "NFD"))])


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that no file can have
        return False
