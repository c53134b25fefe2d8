"""Detects changes in a client's data between rounds.

A data set may gain, lose and replace images during a run. Code that keeps a data set in memory
compares its signature before each use. Notes about changes compare with the last round, whose
state is stored in the client's private folder, so that every process reports the same.
"""

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ultralytics.data.utils import get_hash, img2label_paths

from federated_yolo.common.files import write_atomically
from federated_yolo.data.data_yaml import is_image_name

SPLITS_FILE = "splits.json"
KEPT_ROUNDS = 2  # per split: the last round, and the one before, in case the last is tried again


@dataclass(frozen=True)
class SplitState:
    """State of a split in one round.

    signature: Result of `split_signature`. num_images: Number of images that were used. classes:
    The federation's index of each of the data set's own classes; None if they are the same.
    """

    signature: str
    num_images: int
    classes: list[int] | None


def split_signature(images: str | list[str]) -> str:
    """Return a digest of the images and labels of a split: paths, sizes and modification times.

    Ultralytics' label caches use the same hash. Only lists of images are read; other files are only
    examined: 0.07 s of CPU time for 10,000 images with labels.

    images: Folder, list of images, or several of these, from `read_data`.
    """
    places = images if isinstance(images, list) else [images]
    files: Any = sorted(file for place in places for file in _image_files(Path(place)))
    return get_hash([*files, *img2label_paths(files)])


def _image_files(place: Path) -> Iterator[str]:
    """Yield the paths of the images in a folder or a list; for other places, the place itself."""
    if place.is_dir():
        for folder, _, names in os.walk(place, followlinks=True):
            yield from (f"{folder}{os.sep}{name}" for name in names if is_image_name(name))
    elif place.is_file():
        text = place.read_text(encoding="utf-8-sig", errors="replace")
        for line in text.strip().splitlines():
            # Resolve it as Ultralytics does.
            yield str(place.parent / line[2:]) if line.startswith("./") else line
    else:
        yield str(place)


def told_changes(
    folder: Path, split: str, round_number: int, now: SplitState, num_left_out: int
) -> list[str]:
    """Return notes on a split's changes since the last earlier round, and store its state.

    Notes contain only numbers: names of files must not leave a site.

    folder: The client's private folder. num_left_out: Number of images that cannot be used.
    """
    path = folder / SPLITS_FILE
    splits = _read(path)
    rounds = {int(number): state for number, state in splits.get(split, {}).items()}
    earlier = sorted(number for number in rounds if number < round_number)
    before = SplitState(**rounds[earlier[-1]]) if earlier else None
    kept = {str(number): rounds[number] for number in earlier[-KEPT_ROUNDS + 1 :]}
    splits[split] = {**kept, str(round_number): asdict(now)}
    text = json.dumps(splits)
    write_atomically(path, lambda file: file.write(text.encode()))
    told = [] if before is None else list(_differences(split, before, now))
    if num_left_out and (told or before is None):
        told.append(f"{num_left_out} more cannot be used and are left out")
    return told


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, ValueError):  # nothing is known of earlier rounds
        return {}


def _differences(split: str, before: SplitState, now: SplitState) -> Iterator[str]:
    images = f"{now.num_images} image{'' if now.num_images == 1 else 's'}"
    if now.num_images != before.num_images:
        yield f"its {split} split has {images} now, {before.num_images} before"
    elif now.signature != before.signature:
        yield f"its {split} split has changed, and has {images} as before"
    if now.classes != before.classes:
        yield "it lists its classes differently than before"


def one_note(notes: Iterable[str]) -> str:
    """Return notes on a client as one text, each note once."""
    return "; ".join(dict.fromkeys(note for note in notes if note))
