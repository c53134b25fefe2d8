"""What has changed in a client's data since its last rounds.

A data set may gain, lose and replace images while a run goes on. Whoever keeps one in memory
compares its signature before each use; what is to be told of it compares with the last round's,
which a file in the client's private folder has, so that every process tells the same.
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
KEPT_ROUNDS = 2  # of each split: the last round, and the one before it for one that is tried again


@dataclass(frozen=True)
class SplitState:
    """What a split was in a round.

    signature: as of `split_signature`. num_images: that were used. classes: the federation's
    indices of the data set's own classes, in their order; None where they are the same.
    """

    signature: str
    num_images: int
    classes: list[int] | None


def split_signature(images: str | list[str]) -> str:
    """A digest of which images and labels a split has now, of their sizes and times of change.

    It is what Ultralytics' label caches go by. Files are asked for and not read, but for lists of
    images: 0.07 s of CPU time for 10,000 images with labels.

    images: a folder, a list of images, or several of them, as of `read_data`.
    """
    places = images if isinstance(images, list) else [images]
    files: Any = sorted(file for place in places for file in _image_files(Path(place)))
    return get_hash([*files, *img2label_paths(files)])


def _image_files(place: Path) -> Iterator[str]:
    """Paths of the images in a folder or a list; that of the place itself where it is neither."""
    if place.is_dir():
        for folder, _, names in os.walk(place, followlinks=True):
            yield from (f"{folder}{os.sep}{name}" for name in names if is_image_name(name))
    elif place.is_file():
        text = place.read_text(encoding="utf-8-sig", errors="replace")
        for line in text.strip().splitlines():
            # As Ultralytics finds it.
            yield str(place.parent / line[2:]) if line.startswith("./") else line
    else:
        yield str(place)


def told_changes(
    folder: Path, split: str, round_number: int, now: SplitState, num_left_out: int
) -> list[str]:
    """What to tell of a split's changes since the last round before this one, which is kept.

    Only numbers: what its files are called may not leave a site.

    folder: the client's private one. num_left_out: images that cannot be used.
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
        yield "it lists its classes otherwise than before"


def one_note(notes: Iterable[str]) -> str:
    """Notes on a client as one text, each once."""
    return "; ".join(dict.fromkeys(note for note in notes if note))
