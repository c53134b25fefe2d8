"""An export's content written as an Ultralytics data set: label files, links to the images, lists.

Images are never copied. Labels lie beside links to the images, where Ultralytics looks for them:

    FOLDER/images/train/a.jpg -> the user's image
    FOLDER/labels/train/a.txt
    FOLDER/data.yaml
"""

import os
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import yaml
from ultralytics.data.converter import merge_multi_segment

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import is_image_name
from federated_yolo.data.exports.content import (
    Content,
    LeftOut,
    Object,
    Picture,
    Point,
    first_problems,
    split_in,
)
from federated_yolo.data.exports.sizes import image_size
from federated_yolo.data.messages import ENDINGS

OUTSIDE = "outside of the image"
FLAT = "a box without width or height"
NO_PLACE = "neither a box nor an outline"
UNLABELLED = "no labelled keypoint, as in COCO's scores"


def task_of(content: Content) -> tuple[str | None, str]:
    """The task that the labels are for, and why; None where label files are taken as they are."""
    pictures = list(content.pictures)
    if any(picture.labels for picture in pictures):
        return None, ""
    objects = [o for picture in pictures for o in picture.objects]
    num = len(objects)
    with_points = sum(bool(o.keypoints) for o in objects)
    if with_points and with_points == num:
        return "pose", f"all {num} objects have keypoints"
    but = f"; not all have keypoints ({with_points} of {num})" if with_points else ""
    if num and all(o.corners for o in objects):
        return "obb", f"all {num} objects have rotated boxes{but}"
    with_outline = sum(bool(o.outline) for o in objects)
    if not with_outline:
        return "detect", f"no object has a polygon{but}"
    if with_outline < num:
        few = f"not all objects have polygons ({with_outline} of {num})"
        return "detect", f"{few}, so all are taken as boxes{but}"
    return "segment", f"all {num} objects have polygons{but}"


@dataclass(frozen=True)
class Written:
    """Numbers of objects by class: written ones by split, those left out by reason."""

    objects: dict[str, dict[str, int]]
    left_out: dict[str, dict[str, int]]


def write(content: Content, folder: Path, task: str) -> Written:
    """Write labels, links and data.yaml; `folder` must not exist.

    Args:
        content: What the export holds.
        folder: The new folder.
        task: Ultralytics' task; labels hold what it needs: boxes, outlines, corners, keypoints.

    Returns:
        How many objects were written and left out.

    Raises:
        InputError: With all problems of the content.
    """
    left_out = LeftOut()
    objects: dict[str, Counter[str]] = {split: Counter() for split in content.splits}
    problems = list(_task_problems(content, task))
    for split, pictures in content.splits.items():
        (folder / "images" / split).mkdir(parents=True)
        taken: set[Path] = set()
        for picture in pictures:
            link = _free_name(_below(picture.path, content.root, split), taken)
            try:
                objects[split] += _write_picture(
                    picture, folder, split, link, content, task, left_out
                )
            except ValueError as error:
                problems.append(f"{content.file}: {picture.entry or picture.path}: {error}")
    if problems:
        raise InputError(first_problems(problems))
    data = {
        "train": "images/train",
        **{split: f"images/{split}" for split in content.splits},
        "names": dict(enumerate(content.names)),
        **content.form,
    }
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    (folder / "data.yaml").write_text(text, encoding="utf-8")
    lost = {reason: dict(counts) for reason, counts in left_out.counts.items()}
    return Written({split: dict(counts) for split, counts in objects.items()}, lost)


def _write_picture(
    picture: Picture,
    folder: Path,
    split: str,
    link: Path,
    content: Content,
    task: str,
    left_out: LeftOut,
) -> Counter[str]:
    """Link an image and write or link its labels; gives the number of its objects by class.

    Raises ValueError for what cannot be an image of a data set.
    """
    if not is_image_name(picture.path.name):
        raise ValueError(
            f"'{picture.path.name}' is no image that Ultralytics reads ({ENDINGS}); convert it, or "
            "remove its entry"
        )
    target = folder / "images" / split / link
    label = (folder / "labels" / split / link).with_suffix(".txt")
    for path in (target, label):
        path.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(picture.path.absolute())
    if picture.labels:
        label.symlink_to(picture.labels.absolute())
        return _count_lines(picture.labels, content.names)
    if not picture.objects:
        return Counter()
    size = picture.size or image_size(picture.path)  # the first has been compared with the second
    if size is None:
        raise ValueError(
            f"{picture.path}: not readable as an image; repair it, or remove its entry"
        )
    index_of = {name: index for index, name in enumerate(content.names)}
    lines = list(_lines(picture.objects, size, index_of, task, left_out))
    label.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return Counter(content.names[int(line.split()[0])] for line in lines)


def _count_lines(labels: Path, names: Sequence[str]) -> Counter[str]:
    """Objects by class of a label file; what is wrong in one is said when it is scanned."""
    found: Counter[str] = Counter()
    for line in labels.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        first = line.split()[:1]
        if first and first[0].isdigit() and int(first[0]) < len(names):
            found[names[int(first[0])]] += 1
    return found


def remove(folder: Path) -> None:
    """Remove what `write` began and could not finish."""
    shutil.rmtree(folder, ignore_errors=True)


def _task_problems(content: Content, task: str) -> Iterator[str]:
    """Say what the labels lack for the task."""
    needs = {"segment": "outline", "obb": "corners", "pose": "keypoints"}.get(task)
    if needs is None:
        return
    objects = [o for p in content.pictures if not p.labels for o in p.objects]
    lacking = [o for o in objects if not getattr(o, needs)]
    if lacking:
        word = {"outline": "outline", "corners": "rotated box", "keypoints": "keypoints"}[needs]
        yield (
            f"{content.file}: {len(lacking)} of {len(objects)} objects have no {word}, which the "
            f"task {task} needs; take a base_model for boxes, or annotate them"
        )


def _below(path: Path, root: Path, split: str) -> Path:
    """Where the link of an image lies below the folder of its split.

    Folders that only say "images", where Ultralytics would look for labels, or the split are
    dropped.
    """
    # Without following links, and without what leads up and down again.
    absolute, top = (Path(os.path.normpath(place.absolute())) for place in (path, root))
    relative = absolute.relative_to(top) if absolute.is_relative_to(top) else Path(absolute.name)
    folders = (f for f in relative.parts[:-1] if f != "images" and split_in(f) != split)
    return Path(*folders, relative.name)


def _free_name(link: Path, taken: set[Path]) -> Path:
    """The same name, or one with a number, so that no two images share a label file."""
    stem, number = link.stem, 2
    while link.with_suffix("") in taken:
        link = link.with_name(f"{stem}~{number}{link.suffix}")
        number += 1
    taken.add(link.with_suffix(""))
    return link


def _lines(
    objects: Sequence[Object],
    size: tuple[float, float],
    index_of: dict[str, int],
    task: str,
    left_out: LeftOut,
) -> Iterator[str]:
    """Ultralytics' label lines. size: width and height of the image in pixels."""
    for o in objects:
        numbers = _numbers(o, size, task)
        if isinstance(numbers, str):
            left_out.add(numbers, o.name)
        else:
            yield " ".join([str(index_of[o.name]), *(f"{number:.10g}" for number in numbers)])


def _numbers(o: Object, size: tuple[float, float], task: str) -> list[float] | str:
    """The numbers of a label line after the class, or why the object is left out."""
    bounds = o.bounds
    if bounds is None:
        return NO_PLACE
    left, top, right, bottom = bounds
    if right <= left or bottom <= top:
        return FLAT
    width, height = size
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        return OUTSIDE
    if task in ("segment", "obb"):
        parts = o.outline if task == "segment" else (o.corners,)
        return _outline(parts, size)
    box = _box(bounds, size)
    if task != "pose":
        return box
    if not any(v for _, _, v in o.keypoints):
        return UNLABELLED
    points = [n for x, y, v in o.keypoints for n in (x / width, y / height, v)]
    inside = [min(max(n, 0.0), 1.0) if i % 3 < 2 else n for i, n in enumerate(points)]
    return [*box, *inside]


def _box(bounds: tuple[float, float, float, float], size: tuple[float, float]) -> list[float]:
    """Centre, width and height as fractions of the image.

    A box beyond the edge is cut only where Ultralytics would refuse it: a centre or size above 1.
    """
    left, top, right, bottom = bounds
    width, height = size

    def numbers() -> list[float]:
        return [
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        ]

    if min(numbers()) < 0 or max(numbers()) > 1:
        left, top = max(left, 0.0), max(top, 0.0)
        right, bottom = min(right, width), min(bottom, height)
    return numbers()


def _outline(parts: Sequence[Sequence[Point]], size: tuple[float, float]) -> list[float]:
    """One line as fractions of the image; parts are joined as Ultralytics' converter does."""
    scaled = [np.clip(np.array(part, float) / size, 0.0, 1.0) for part in parts]
    if len(scaled) == 1:
        return scaled[0].ravel().tolist()
    joined = merge_multi_segment([part.ravel().tolist() for part in scaled])
    return np.concatenate(joined).ravel().tolist()
