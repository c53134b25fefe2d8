"""Pascal VOC's lists of images: ImageSets/Main/train.txt and others, a name without ending a line.

A number may follow the name, as in lists of a class: whether the image has it. Names with blanks
may be in quotes (Datumaro), and may have an ending (VoTT).
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import is_image_name
from federated_yolo.data.exports.content import split_in
from federated_yolo.data.exports.files import clean_name, read_text

OF_CLASS = re.compile(r".+_(train|val|trainval|test|default)")
TRAINVAL = "trainval"


def read_lists(
    root: Path, is_known: Callable[[str], bool], problems: list[str]
) -> dict[str, list[str]]:
    """The names of the images of each split; none where there are no lists.

    Args:
        root: The folder that has ImageSets.
        is_known: Whether there is an image or annotation of a name.
        problems: To which what is wrong with a list is added.
    """
    folder = root / "ImageSets" / "Main"
    folder = folder if folder.is_dir() else folder.parent
    if not folder.is_dir():
        return {}
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".txt")
    plain = [path for path in paths if not OF_CLASS.fullmatch(path.stem.lower())]
    lists: dict[str, list[str]] = {}
    for path in plain or paths:
        split = _split(path.stem.lower())
        if split is None:
            problems.append(
                f"{path}: a list that is neither of train, val nor test; rename it, or remove it"
            )
            continue
        try:
            names = _names(path, is_known)
        except InputError as error:
            problems += error.problems
            continue
        lists[split] = list(dict.fromkeys([*lists.get(split, []), *names]))
    return _without_trainval(lists, folder, problems)


def _split(stem: str) -> str | None:
    """The split of a list: train, val, test or trainval."""
    if match := OF_CLASS.fullmatch(stem):
        stem = match[1]
    if stem == "default":  # of CVAT and Datumaro, where an image is of no subset
        return "train"
    return TRAINVAL if stem == TRAINVAL else split_in(stem)


def _names(path: Path, is_known: Callable[[str], bool]) -> list[str]:
    """The names in a list. Of a line with blanks, the first word, if the whole is no name."""
    names = []
    for line in read_text(path).splitlines():
        text = line.strip()
        quoted = re.match(r'"([^"]+)"', text)
        if not text:
            continue
        # A name with blanks ends as a line with a number does, if at all.
        name = quoted[1] if quoted else text
        if not quoted and not is_known(clean_name(name)):
            name = re.sub(r"\s+-?\d+$", "", text)
        if not quoted and not is_known(clean_name(name)):
            name = text.split()[0]
        name = clean_name(name)
        names.append(name.rpartition(".")[0] if is_image_name(name) else name)
    return names


def _without_trainval(
    lists: dict[str, list[str]], folder: Path, problems: list[str]
) -> dict[str, list[str]]:
    """trainval is what train and val have together; it stands for train where one is missing."""
    both = lists.pop(TRAINVAL, None)
    if both is None:
        return lists
    if "train" not in lists:
        rest = _without(both, lists.get("val", []))
        return {"train": rest, **lists}
    rest = _without(both, [*lists["train"], *lists.get("val", [])])
    if rest:
        problems.append(
            f"{folder / 'trainval.txt'}: '{rest[0]}' (and {len(rest) - 1} more) is neither in "
            "train.txt nor in val.txt; add it to one, or remove trainval.txt"
        )
    return lists


def _without(names: Sequence[str], others: Sequence[str]) -> list[str]:
    gone = set(others)
    return [name for name in names if name not in gone]
