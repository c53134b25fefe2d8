"""Ultralytics' data sets for a client's data, which check every file and change none.

For classification the data is a folder, with a folder of images for each class of each split.

Clients may list different classes, or the same in another order. The federation's classes are
matched by name, and labels are renumbered when they are read; weights and files never change.

The data folder is only read, never written. Ultralytics would write label caches beside the labels,
.npy caches and repaired JPEGs beside the images, and would execute a `download:` entry; here a
private folder holds the caches and a cleaned copy of the data.yaml, and damaged images are
reported.
"""

import glob
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from ultralytics.data.dataset import DATASET_CACHE_VERSION, ClassificationDataset, YOLODataset
from ultralytics.data.utils import (
    get_hash,
    get_split_fraction,
    img2label_paths,
    load_dataset_cache_file,
    save_dataset_cache_file,
    verify_image,
    verify_image_label,
)
from ultralytics.models.rtdetr.val import RTDETRDataset
from ultralytics.utils import NUM_THREADS, colorstr
from ultralytics.utils.patches import imread

from federated_yolo.common.errors import InputError
from federated_yolo.common.files import special_files
from federated_yolo.common.torchvision_nms import ensure_torchvision_nms
from federated_yolo.data.data_yaml import CLASS_MAP, is_image_name
from federated_yolo.data.messages import DAMAGED, MAX_LINES_PER_SPLIT, PREFIX


class PrivateDataset(YOLODataset):
    """Ultralytics' data set for detect, segment, pose and obb, with its caches in `cache_dir`.

    cache_dir: Folder of this client, never shared with another process that may write.
    split: Name of the cache file. messages: Ultralytics' messages about files during its scan.
    shapes: Height and width in pixels by image file. num_outlines: Number of objects with an
    outline; if other objects have none, Ultralytics itself drops all outlines.
    """

    def __init__(self, *args: Any, cache_dir: Path, split: str, **kwargs: Any) -> None:
        self.cache_dir = cache_dir
        self.split = split
        self.messages: list[str] = []
        self.shapes: dict[str, tuple[int, int]] = {}
        self.num_outlines = 0
        super().__init__(*args, **kwargs)
        self._ignore_foreign_npy()

    def get_img_files(self, img_path: str | list[str]) -> list[str]:
        """List the images; refuse special files, which would block Ultralytics as it reads them."""
        _refuse_special(_images_in(img_path))
        return super().get_img_files(img_path)

    @property
    def num_damaged(self) -> int:
        """Number of images that were left out because they or their labels are damaged."""
        return sum(DAMAGED in message for message in self.messages)

    def _ignore_foreign_npy(self) -> None:
        # An .npy beside an image would be read, refreshed or removed by Ultralytics.
        self.npy_files = [
            self.cache_dir / f"{self.split}-{i}.npy" for i in range(len(self.im_files))
        ]

    def check_cache_ram(self, safety_margin: float = 1.0) -> bool:
        """Redirect .npy paths before `__init__` reads images; return whether `cache: ram` fits."""
        self._ignore_foreign_npy()
        return super().check_cache_ram(safety_margin)

    def get_labels(self) -> list[dict]:
        """Read the labels with the files' own classes, then renumber them to the federation's."""
        _refuse_special(img2label_paths(self.im_files))  # else they would count as missing
        data = self.data
        if CLASS_MAP not in data:
            return self._with_shapes(super().get_labels())
        class_map = np.array(data[CLASS_MAP], np.float32)
        self.data = {**data, "names": dict(enumerate(data[CLASS_MAP]))}  # its own, for checks
        try:
            labels = super().get_labels()
        finally:
            self.data = data
        for label in labels:
            label["cls"] = class_map[label["cls"].astype(int)]
        return self._with_shapes(labels)

    def verify_labels(self, labels: list[dict], cache_path: Path) -> None:
        """Refuse a mix of boxes and outlines, which gets another message than boxes alone."""
        self.num_outlines = sum(len(label["segments"]) for label in labels)
        num_boxes = sum(len(label["cls"]) for label in labels) - self.num_outlines
        if self.num_outlines and num_boxes and (self.use_segments or self.use_obb):
            raise ValueError(
                f"labels mix boxes ({num_boxes}) and outlines ({self.num_outlines}); give each "
                "object an outline, or train a model of the task detect"
            )
        super().verify_labels(labels, cache_path)

    def _with_shapes(self, labels: list[dict]) -> list[dict]:
        """Store the shapes and return the labels; rectangular batches then remove the shapes."""
        self.shapes = {label["im_file"]: label["shape"] for label in labels}
        return labels

    # unstable: ultralytics.data.dataset.YOLODataset._load_or_scan_cache
    def _load_or_scan_cache(self, cache_path: Path, cache_hash: str) -> tuple[dict, bool]:
        # The file beside the labels is a pickle from a folder we do not own: never read it.
        path = self.cache_dir / f"{self.split}.cache"
        cache, exists = super()._load_or_scan_cache(path, cache_hash)
        self.messages = cache["msgs"]
        return cache, exists

    def verify_args(self) -> tuple:
        """Use Ultralytics' check of an image and its label, but never let it repair a file."""
        _, arguments = super().verify_args()
        return partial(_verify_read_only, self.channels), arguments


def _refuse_special(paths: Iterable[str]) -> None:
    found = [*special_files(paths)]
    if found:
        more = len(found) - MAX_LINES_PER_SPLIT
        raise InputError(
            found[:MAX_LINES_PER_SPLIT] + ([f"... and {more} more such files"] if more > 0 else [])
        )


def _images_in(places: str | list[str]) -> Iterator[str]:
    """Yield the paths of images in folders and lists, as Ultralytics' `get_img_files` does."""
    for place in map(Path, places if isinstance(places, list) else [places]):
        if place.is_dir():
            files = glob.iglob(str(Path(glob.escape(str(place))) / "**" / "*.*"), recursive=True)  # noqa: PTH207 (as there: it follows links to folders)
        elif place.is_file():
            lines = place.read_text(encoding="utf-8-sig", errors="replace").strip().splitlines()
            files = (
                str(place.parent / line[2:]) if line.startswith("./") else line for line in lines
            )
        else:
            yield str(place)
            continue
        yield from (file for file in files if is_image_name(file))


def _verify_read_only(channels: int, arguments: tuple) -> tuple | list:
    """Run `verify_image_label` without letting it overwrite JPEGs that lack their end marker.

    Some cameras pad their files in this way. Such a file is verified through a copy, and used for
    training unchanged; one that is really cut off fails on the copy too. An error in a label is
    reported by its line number, without the content, which must not leave a site.

    channels: Number that each image must have. Read as grey (1) or colour (3), every image has it.
    """
    image, label_file, prefix = arguments[:3]
    with _left_alone(image) as twin:
        *found, message = verify_image_label((twin, *arguments[1:]))
    is_labelled = bool(found[6])
    if found[0] is None:
        reason = _wrong_label(Path(label_file), *arguments[3:7]) if is_labelled else ""
        if reason:
            return [*found, f"{prefix}{image}: {DAMAGED}{reason}"]
        return [*found, message.replace(twin, image)]
    reason = "" if channels in (1, 3) else _wrong_channels(image, channels)
    if reason:
        return [*[None] * 5, 0, int(is_labelled), 0, 1, f"{prefix}{image}: {DAMAGED}{reason}"]
    return (image, *found[1:], message if twin == image else "")


def _wrong_channels(image: str, channels: int) -> str:
    """Describe how an image's channels, as Ultralytics reads it, differ; empty if they do not."""
    pixels = imread(image, cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return "its pixels cannot be decoded"
    found = pixels.shape[2]
    return (
        ""
        if found == channels
        else f"found {found} channels, expected {channels}, as its data.yaml says"
    )


def _wrong_label(path: Path, keypoints: bool, num_classes: int, num_points: int, dim: int) -> str:
    """Describe the first line of a label that Ultralytics would refuse, by its own rules (8.4).

    Empty if no single line is wrong, and for a class index that does not exist.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError):
        return ""
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    width = 5 + num_points * dim
    if not keypoints:  # of a row with keypoints, only the box is used
        rows = [(n, row[:5] if num_points and len(row) == width else row) for n, row in rows]
    outlines = not keypoints and any(len(row) > 6 for _, row in rows)
    for number, row in rows:
        reason = _wrong_row(row, width if keypoints else 0 if outlines else 5, dim)
        if reason:
            return f"line {number} of its label {reason}"
    return ""


def _wrong_row(row: Sequence[str], width: int, dim: int) -> str:
    """Describe a wrong row. width: Expected columns (0: outline). dim: Numbers per keypoint."""
    try:
        values = np.array(row, np.float32)
    except ValueError:
        commas = any("," in word for word in row)
        return "has something that is no number" + "; blanks separate them, not commas" * commas
    if not width and len(row) == 5:
        return "has 5 columns, a box, among outlines; give each object an outline, or each a box"
    if not width and len(row) % 2 == 0:
        return f"has {len(row)} columns, expected a class and pairs of x and y: an odd number"
    if width and len(row) != width:
        points = f" and {(width - 5) // dim} keypoints of {dim} numbers" if width > 5 else ""
        expected = f"expected {width}: class, x, y, width, height{points}"
        return f"has {len(row)} columns, {expected}"
    places = values[5:].reshape(-1, dim)[:, :2] if width > 5 else values[1:]
    if not (places <= 1.01).all():  # also false for NaN
        return "has coordinates that are not from 0 to 1"
    if values.min() < -0.01 or (width and values[3:5].min() < 0):
        return "has a negative number"
    if values[0] % 1:
        return "begins with a class that is no whole number"
    return ""


@contextmanager
def _left_alone(image: str) -> Iterator[str]:
    """Yield a path for verifying an image: its own, or that of a copy if it would be rewritten."""
    if not _would_be_rewritten(image):
        yield image
        return
    with tempfile.TemporaryDirectory() as folder:
        yield shutil.copy(image, folder)


def _would_be_rewritten(path: str) -> bool:
    try:
        with Path(path).open("rb") as file:
            if file.read(2) != b"\xff\xd8":
                return False
            file.seek(-2, 2)
            return file.read() != b"\xff\xd9"
    except OSError:  # unreadable: `verify_image_label` will report it
        return False


class PrivateSquareDataset(PrivateDataset, RTDETRDataset):
    """PrivateDataset for RT-DETR, which takes images stretched to squares."""


class PrivateClassDataset(ClassificationDataset):
    """Ultralytics' data set for classify, with its cache in `cache_dir`.

    Each folder of a split is a class by its name; `names` gives the class indices.
    split: Name of the cache file. messages: Ultralytics' messages about files during its scan.
    num_damaged: Number of images that cannot be used.
    """

    def __init__(
        self,
        root: str,
        args: Any,
        *,
        augment: bool,
        names: Mapping[int, str],
        cache_dir: Path,
        split: str,
    ) -> None:
        ensure_torchvision_nms()
        self.cache_dir = cache_dir
        self.split = split
        self.messages: list[str] = []
        self.num_damaged = 0
        super().__init__(root, args, augment=augment, prefix=split)
        index = {name: i for i, name in names.items()}
        own = [index[name] for name in self.base.classes]
        self.samples = [[file, own[label], *rest] for file, label, *rest in self.samples]

    def verify_images(self) -> list[tuple]:
        """Verify as Ultralytics does, but keep the cache in the private folder and repair no file.

        Ultralytics has no smaller method to override: its cache beside the images is a pickle from
        a folder that we do not own.
        """
        _refuse_special(file for file, _ in self.samples)
        path = self.cache_dir / f"{self.split}.cache"
        cache_hash = get_hash([file for file, _ in self.samples] + self.base.classes)
        try:
            cache = load_dataset_cache_file(path)
            if (cache["version"], cache["hash"]) != (DATASET_CACHE_VERSION, cache_hash):
                raise ValueError("stale")
        except Exception:  # no cache, or stale, or damaged in any way that a pickle can be
            with ThreadPool(NUM_THREADS) as pool:
                found = pool.map(_verify_class_image, self.samples)
            cache = {
                "hash": cache_hash,
                "results": [sample for sample, is_sound, _ in found if is_sound],
                "msgs": [message for *_, message in found if message],
            }
            save_dataset_cache_file(self.prefix, path, cache, DATASET_CACHE_VERSION)
        self.messages = cache["msgs"]
        self.num_damaged = len(self.samples) - len(cache["results"])
        return cache["results"]


def _verify_class_image(sample: Sequence[Any]) -> tuple[Sequence[Any], bool, str]:
    """Return the sample, whether its image is sound, and Ultralytics' message if it is not."""
    image, label = sample
    with _left_alone(image) as twin:
        _, is_sound, _, message = verify_image(((twin, label), PREFIX))
    return sample, bool(is_sound), "" if is_sound else message.replace(twin, image)


def build_dataset(
    args: Any,
    img_path: str | list[str],
    batch: int | None,
    data: dict[str, Any],
    mode: str,
    stride: int,
    cache_dir: Path,
    squares: bool = False,
) -> PrivateDataset | PrivateClassDataset:
    """Build what `ultralytics.data.build_yolo_dataset` builds, as a PrivateDataset.

    That function names its class, so its call is repeated here; a test compares the two.
    For classify, the result is what the task's trainer and validator build.

    args: Ultralytics train arguments. batch: Images per batch (rectangular batches need it).
    mode: "train" augments, "val" does not. stride: Largest stride of the model, in pixels.
    squares: Whether to build for RT-DETR, as its own trainer and validator do.
    """
    train = mode == "train"
    split = "train" if train else args.split
    if args.task == "classify":
        return PrivateClassDataset(
            str(img_path),
            args,
            augment=train,
            names=data["names"],
            cache_dir=cache_dir,
            split=split,
        )
    return (PrivateSquareDataset if squares else PrivateDataset)(
        cache_dir=cache_dir,
        split=split,
        img_path=img_path,
        imgsz=args.imgsz,
        batch_size=batch,
        augment=train,
        hyp=args,
        rect=(args.rect or not train) and not squares,
        cache=args.cache or None,
        single_cls=args.single_cls or False,
        stride=stride,
        pad=0.0 if train and not squares else 0.5,
        prefix=colorstr(f"{mode}: "),
        task=args.task,
        classes=args.classes,
        data=data,
        fraction=get_split_fraction(args.fraction, split),
    )
