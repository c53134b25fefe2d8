"""A data.yaml whose meaning is plain, but which Ultralytics does not read as it is.

    no val split                             val_fraction makes one
    CVAT's `path: .`, lists of images/train/x.jpg   seen from the folder of the data.yaml
    paths of another machine                 folders of the same last parts beside the data.yaml

One that Ultralytics reads, from where it looks, is none of these: it stays the user's own file.
"""

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from ultralytics.data.utils import img2label_paths
from ultralytics.utils import DATASETS_DIR

from federated_yolo.common.errors import InputError
from federated_yolo.common.files import read_yaml
from federated_yolo.data.data_yaml import OF_KEYPOINTS, data_yaml_problems
from federated_yolo.data.exports.content import SPLIT_WORDS, Content, Format, split_in
from federated_yolo.data.exports.yolo_files import (
    SAMPLE,
    Reading,
    below,
    ends_of,
    images_in,
    inside,
    label_of,
    labels_in,
    list_lines,
    signature,
)

NAME = "YOLO (data.yaml)"
# unstable: ultralytics.data.utils.check_det_dataset says 'data["val"] = data.pop("validation")'
OWN_KEYS = {"train": ("train",), "val": ("val", "validation"), "test": ("test",)}
Places = dict[str, list[Path]]


def find_yaml(path: Path) -> Path | None:
    """The data.yaml of a folder, whatever its name, or the path if it is such a file.

    A folder's data.yaml comes first, then dataset.yaml (FiftyOne), then the only other one.
    """
    if path.is_file():
        return path if path.suffix.lower() in (".yaml", ".yml") else None
    if not path.is_dir():
        return None
    if (path / "data.yaml").is_file():
        return path / "data.yaml"
    try:
        found = [p for p in sorted(path.iterdir()) if p.suffix.lower() in (".yaml", ".yml")]
    except OSError:
        return None
    found = [p for p in found if p.is_file() and _read(p)]
    named = [p for p in found if p.name == "dataset.yaml"]
    return next(iter(named or found), None) if named or len(found) == 1 else None


def _read(path: Path) -> dict[str, Any] | None:
    """What a data.yaml holds; None for another file, or one that cannot be read."""
    try:
        raw = read_yaml(path)
    except Exception:  # YAML's constructors of numbers, dates, ... raise errors of any kind
        return None
    if not isinstance(raw, dict) or not isinstance(raw.get("path"), str | None):
        return None
    return raw if raw.get("names") and _entries(raw) else None


def _entries(raw: Mapping[Any, Any]) -> dict[str, list[str]] | None:
    """The places that a data.yaml names for each split; None where it has no train, or odd ones.

    Other tools write the splits as they call them: `valid`, or CVAT's `Train` and `Validation`.
    """
    found = {}
    for split, own in OWN_KEYS.items():
        known = [*own, *(k for k in raw if str(k).lower() in SPLIT_WORDS[split])]
        value = next((raw[key] for key in known if raw.get(key)), None)
        if value is not None:
            found[split] = value if isinstance(value, list) else [value]
    odd = any(not isinstance(entry, str) for entries in found.values() for entry in entries)
    return None if odd or "train" not in found else found


@signature
def is_data_yaml(path: Path) -> bool:
    """Whether this is, or a folder has, a data.yaml that Ultralytics does not read but we do."""
    file = find_yaml(path)
    raw = _read(file) if file else None
    if file is None or raw is None:
        return False
    entries = _entries(raw) or {}
    if any(data_yaml_problems({**raw, "val": "val", **entries})):  # read_data_yaml says them
        return False
    if _is_read(_their_places(raw, file, entries)):
        return not any(raw.get(key) for key in OWN_KEYS["val"]) or not raw.get("train")
    return _our_places(raw, file, entries) is not None


@signature
def is_own(path: Path) -> bool:
    """Whether a folder has a data.yaml of any name that Ultralytics reads with train and val."""
    file = find_yaml(path)
    raw = _read(file) if file else None
    if file is None or raw is None or not path.is_dir() or not raw.get("val"):
        return False
    return _is_read(_their_places(raw, file, _entries(raw) or {}))


def _their_places(raw: Mapping[str, Any], file: Path, entries: Mapping[str, list[str]]) -> Places:
    """Where Ultralytics looks for the images of each split."""
    # unstable: ultralytics.data.utils.check_det_dataset
    root = Path(raw.get("path") or file.parent)
    if not root.exists() and not root.is_absolute():
        root = DATASETS_DIR / root
    found: Places = {}
    for split, listed in entries.items():
        found[split] = [(root / entry).resolve() for entry in listed]
        entry = listed[0]
        if not found[split][0].exists() and entry.startswith("../") and len(listed) == 1:
            found[split] = [(root / entry[3:]).resolve()]
    return found


def _is_read(places: Places) -> bool:
    """Whether Ultralytics finds train and val there; a test split may be kept elsewhere."""
    needed = [place for split, found in places.items() if split != "test" for place in found]
    return all(p.is_dir() or (p.is_file() and _list_is_read(p)) for p in needed)


def _list_is_read(path: Path) -> bool:
    """Whether Ultralytics finds images of a list, and labels of them."""
    lines = [line for _, line in islice(list_lines(path), SAMPLE)]
    images = [str(path.parent / line[2:]) if line.startswith("./") else line for line in lines]
    images = [image for image in images if Path(image).is_file()]
    if all(os.path.isabs(image) for image in images):  # noqa: PTH117 (text of a list)
        return bool(images)
    # Of an image whose path begins with "images/", it looks for the label beside the image.
    return any(Path(label).is_file() for label in img2label_paths([*images]))


def _our_places(
    raw: Mapping[str, Any], file: Path, entries: Mapping[str, list[str]]
) -> Places | None:
    """The same places below the folder of the data.yaml; None unless all of train and val are.

    A test split that is not there is passed over, as Ultralytics does.
    """
    found: Places = {}
    for split, listed in entries.items():
        places = [_our_place(raw, file.parent, split, entry) for entry in listed]
        if None in places:
            if split == "test":
                continue
            return None
        found[split] = [place for place in places if place]
    lists = [p for split, places in found.items() if split != "test" for p in places if p.is_file()]
    return found if all(_has_any(p, file.parent) for p in lists) else None


def _our_place(raw: Mapping[str, Any], root: Path, split: str, entry: str) -> Path | None:
    path = raw.get("path")
    full = entry if not isinstance(path, str) or entry.startswith("/") else f"{path}/{entry}"
    ends = list(ends_of(full))

    def is_enough(end: tuple[str, ...]) -> bool:
        # A single folder such as "images" may be that of any split.
        return len(end) > 1 or [end] == ends[:1] or split_in("/".join(end)) == split

    return below(full, root, Path.exists, is_enough)


def _has_any(path: Path, root: Path) -> bool:
    """Whether images or labels of a list are below the root."""
    lines = [line for _, line in islice(list_lines(path), SAMPLE)]
    return any(_image(line, path, root) or _label_alone(line, root) for line in lines)


def _image(line: str, path: Path, root: Path, *, as_theirs: bool = False) -> Path | None:
    """The image that a line of a list names: below the folder of the list, or else the root.

    as_theirs: Look where Ultralytics does, first.
    """
    if as_theirs:
        found = path.parent / line[2:] if line.startswith("./") else Path(line).absolute()
        if found.is_file():
            return found
    return below(line, path.parent) or below(line, root)


def _label_alone(line: str, root: Path) -> Path | None:
    """The label file of an image that need not be there."""
    for end in ends_of(line):
        label = label_of(root.joinpath(*end), root)
        if label.is_file():
            return label
    return None


def read_data_yaml_export(path: Path) -> Content:
    """Read such a data.yaml. Raises InputError with all problems."""
    file = find_yaml(path)
    raw = _read(file) if file else None
    if file is None or raw is None:
        raise InputError(f"{path}: no data.yaml with train and names")
    entries = _entries(raw) or {}
    names = raw["names"]
    names = dict(enumerate(names)) if isinstance(names, list) else names
    names = [str(name) for _, name in sorted((int(k), v) for k, v in names.items())]
    reading = Reading(file, file.parent, names, file, has_keypoints=bool(raw.get("kpt_shape")))
    reading.problems["yaml"] += _form_problems(raw, file, len(names))
    places = _their_places(raw, file, entries)
    as_theirs = _is_read(places)
    if not as_theirs:
        places = _our_places(raw, file, entries) or {}
        reading.notes += _moved(entries, places, file.parent)
    for split, found in places.items():
        for place in found:
            if place.is_dir():
                for image in images_in(place):
                    reading.add(split, image, _label(image, file.parent, as_theirs=as_theirs))
            elif place.is_file():
                _add_list(reading, split, place, as_theirs=as_theirs)
    labels = (_label(p.path, file.parent, as_theirs=as_theirs) for _, p in reading.pictures)
    reading.count_unused(labels_in({label.parent for label in labels}))
    keys = ("kpt_shape", *OF_KEYPOINTS) if raw.get("kpt_shape") else ()
    form = {key: raw[key] for key in (*keys, "channels") if raw.get(key) is not None}
    return reading.content(NAME, form)


def _label(image: Path, root: Path, *, as_theirs: bool) -> Path:
    """The label file of an image. as_theirs: As Ultralytics looks for it, also above the root."""
    return Path(img2label_paths([str(image)])[0]) if as_theirs else label_of(image, root)


def _form_problems(raw: Mapping[Any, Any], file: Path, num_names: int) -> Iterator[str]:
    if raw.get("nc") is not None and raw["nc"] != num_names:
        yield f"{file}: nc: found {raw['nc']}, but {num_names} names; correct one of them"
    known = {"path", "download", *(word for words in SPLIT_WORDS.values() for word in words)}
    for key, value in raw.items():
        other = isinstance(value, str) and value.endswith(".txt") and str(key).lower() not in known
        if other and below(value, file.parent):
            yield (
                f"{file}: {key}: {value} lists images of a subset that is none of train, val and "
                "test, and would be left out; rename the subset, or remove the line"
            )


def _moved(entries: Mapping[str, list[str]], places: Places, root: Path) -> Iterator[str]:
    """Say where splits are read from, if it is elsewhere than written."""
    for split, found in places.items():
        for entry, place in zip(entries[split], found, strict=True):
            if inside(place, root) != os.path.normpath(entry):
                yield f"{split}: '{entry}' is taken as {inside(place, root)} beside the data.yaml"


def _add_list(reading: Reading, split: str, path: Path, *, as_theirs: bool) -> None:
    """Add the images of a list."""
    absent: list[tuple[int, str]] = []
    lines = list_lines(path)
    for number, line in lines:
        image = _image(line, path, reading.root, as_theirs=as_theirs)
        if image is None:
            absent.append((number, line))
        else:
            entry = f"{inside(path, reading.root)}: line {number}"
            label = _label(image, reading.root, as_theirs=as_theirs)
            reading.add(split, image, label, entry)
    if not absent:
        return
    number, line = absent[0]
    if len(absent) == len(lines) and _label_alone(line, reading.root):
        reading.problems["images"].append(
            f"{path}: the labels are there, but none of the {len(lines)} listed images; export "
            "with 'Save images', or put the images where the list says"
        )
        return
    reading.problems["images"].append(
        f"{path}: {len(absent)} of {len(lines)} listed images are not below {reading.root}, the "
        f"first in line {number} ({line}); put them there, or remove the lines"
    )


FORMATS = (Format(NAME, is_data_yaml, read_data_yaml_export),)
