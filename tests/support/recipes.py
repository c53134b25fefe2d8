"""Small real data sets and checkpoints, made where a test wants them: `import recipes`."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import read_csv
from federated_yolo.yolo.checkpoint import load_checkpoint_module, save_checkpoint, task_of
from federated_yolo.yolo.model import build_model, to_arrays


def make_dataset(
    folder: Path,
    num_train: int = 6,
    num_val: int = 3,
    names: Sequence[str] = ("a", "b", "c"),
    size: int = 64,
    seed: int = 0,
) -> Path:
    """Write an Ultralytics detection data set and return the path of its data.yaml.

    Images are `images/{train,val}/NUMBER.jpg`, square, `size` pixels: noise with 1 to 3 bright
    rectangles, whose brightness is their class. The same arguments give the same files.
    """
    rng = np.random.default_rng(seed)
    for split, num_images in (("train", num_train), ("val", num_val)):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for number in range(num_images):
            image, rows = _draw(rng, len(names), size)
            cv2.imwrite(str(folder / "images" / split / f"{number}.jpg"), image)
            (folder / "labels" / split / f"{number}.txt").write_text("".join(rows))
    path = folder / "data.yaml"
    path.write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(names)}]\n")
    return path


def _draw(rng: np.random.Generator, num_classes: int, size: int) -> tuple[np.ndarray, list[str]]:
    """An image, (size, size, 3) uint8, and its label lines: class and xywh in fractions."""
    image = rng.integers(0, 60, (size, size, 3), dtype=np.uint8)
    rows = []
    for _ in range(int(rng.integers(1, 4))):
        label = int(rng.integers(num_classes))
        width, height = (int(x) for x in rng.integers(size // 5, size // 2, 2))
        left, top = int(rng.integers(size - width)), int(rng.integers(size - height))
        image[top : top + height, left : left + width] = 255 - 120 * label // num_classes
        box = (left + width / 2, top + height / 2, width, height)
        rows.append(f"{label} {' '.join(f'{x / size:.6f}' for x in box)}\n")
    return image, rows


def make_data(folder: Path, task: str, **settings: Any) -> Path:
    """Write a data set of any task and return what Ultralytics' `data=` takes of it.

    The objects are those of `make_dataset`, to segment and obb as polygons of their corners, to
    pose with two opposite corners as keypoints. To classify it is `make_class_folders`.
    settings: arguments of these.
    """
    if task == "classify":
        return make_class_folders(folder, **settings)
    path = make_dataset(folder, **settings)
    if task in ("segment", "obb"):
        write_polygons(folder)
    if task == "pose":
        write_keypoints(path)
    return path


def make_class_folders(
    folder: Path,
    num_train: int = 6,
    num_val: int = 3,
    names: Sequence[str] = ("a", "b", "c"),
    size: int = 64,
    seed: int = 0,
) -> Path:
    """Write `{train,val}/CLASS/NUMBER.jpg`, noise that is brighter from class to class.

    num_train, num_val: images of all classes, which take turns. Returns `folder`.
    """
    rng = np.random.default_rng(seed)
    for split, num_images in (("train", num_train), ("val", num_val)):
        for name in names:
            (folder / split / name).mkdir(parents=True)
        for number in range(num_images):
            label = number % len(names)
            image = rng.integers(0, 60, (size, size, 3)) + 180 * label // len(names)
            path = folder / split / names[label] / f"{number}.jpg"
            cv2.imwrite(str(path), image.astype(np.uint8))
    return folder


def write_polygons(folder: Path) -> None:
    """Turn the boxes of all labels of a data set into polygons of their four corners."""
    corners = [(-1, -1), (1, -1), (1, 1), (-1, 1)]
    for path in (folder / "labels").rglob("*.txt"):
        lines = []
        for label, x, y, w, h in np.loadtxt(path, ndmin=2):
            shape = [value for i, j in corners for value in (x + i * w / 2, y + j * h / 2)]
            lines.append(f"{int(label)} " + " ".join(f"{min(max(c, 0), 1):.6f}" for c in shape))
        path.write_text("\n".join(lines))


def write_keypoints(data: Path) -> None:
    """Give the boxes of all labels of a data.yaml two visible keypoints, opposite corners."""
    for path in (data.parent / "labels").rglob("*.txt"):
        lines = []
        for label, x, y, w, h in np.loadtxt(path, ndmin=2):
            points = (x - w / 2, y - h / 2, 2, x + w / 2, y + h / 2, 2)
            numbers = " ".join(f"{min(max(c, 0), 2):.6f}" for c in (x, y, w, h, *points))
            lines.append(f"{int(label)} {numbers}")
        path.write_text("\n".join(lines))
    data.write_text(data.read_text() + "kpt_shape: [2, 3]\nflip_idx: [1, 0]\n")


def make_checkpoint(
    path: Path,
    names: Sequence[str] = ("a", "b", "c"),
    base: str = "yolov8n.yaml",
    seed: int = 0,
    *,
    as_trained: bool = False,
) -> Path:
    """Write an Ultralytics checkpoint with random weights drawn from `seed`, and return its path.

    base: a model YAML that comes with Ultralytics; its name also tells the task, e.g.
    "yolov8n-seg.yaml". as_trained: as `yolo train` leaves it, an EMA in half precision.
    """
    task = task_of(base)
    data = {"names": dict(enumerate(names)), "nc": len(names)}
    if task == "pose":
        data["kpt_shape"] = [17, 3]
    path.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(path, build_model(base, task, data, seed=seed))
    if as_trained:
        checkpoint = torch.load(path, weights_only=False)
        checkpoint.update(ema=checkpoint["model"].half(), model=None)
        torch.save(checkpoint, path)
    return path


def file_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by relative path."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def outcome(run_dir: Path) -> dict[str, Any]:
    """All that must be the same: arrays of every round, checkpoints, tables but for the times."""
    found: dict[str, Any] = {}
    for path in sorted(run_dir.rglob("*.npz")):
        found.update({f"{path.name}/{n}": a for n, a in load_arrays(path)[0].items()})
    for path in sorted(run_dir.rglob("best.pt")) + sorted(run_dir.rglob("last.pt")):
        arrays = to_arrays(load_checkpoint_module(str(path), where="test"))
        name = path.relative_to(run_dir).as_posix()
        found.update({f"{name}/{n}": a for n, a in arrays.items()})
    for path in sorted(run_dir.glob("*.csv")):
        rows = read_csv(path)
        found[path.name] = [
            {k: v for k, v in row.items() if not k.endswith("seconds")} for row in rows
        ]
    return found


def assert_same_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """The same but for what travels: a site is sent what it lacks, a client of a simulation all."""
    assert_same(
        {name: value for name, value in _without_traffic(found).items() if name in expected},
        _without_traffic(expected),
    )


def _without_traffic(outcome: dict[str, Any]) -> dict[str, Any]:
    tables = {
        name: [{k: v for k, v in row.items() if not k.endswith("load_bytes")} for row in rows]
        for name, rows in outcome.items()
        if name.endswith(".csv")
    }
    return {**outcome, **tables}


def assert_same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert list(found) == list(expected)
    different = [n for n in expected if not np.array_equal(found[n], expected[n])]
    assert not different, f"{len(different)} of {len(expected)} differ, e.g. {different[:5]}"


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def names_of(num_classes: int, prefix: str = "thing") -> list[str]:
    return [f"{prefix} {i}" for i in range(num_classes)]


def data_of(names: list[str], task: str) -> dict[str, Any]:
    data: dict[str, Any] = {"names": dict(enumerate(names)), "nc": len(names), "channels": 3}
    return data | ({"kpt_shape": [17, 3]} if task == "pose" else {})
