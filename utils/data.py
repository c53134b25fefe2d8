"""A client's data: what its data.yaml says, whether every file is sound, and reading it.

For classification the data is a folder, with a folder of images for each class of each split.

Clients may list different classes, or the same in another order. The federation's classes are
counted by name, and labels are renumbered when they are read; weights and files never are.

The data folder is only ever read. Ultralytics would write label caches beside the labels, .npy
caches and repaired JPEGs beside the images, and would execute a `download:` entry; here a private
folder holds the caches and a cleaned copy of the data.yaml, and damaged images are reported.
"""

import glob
import logging
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml
from ultralytics.data.dataset import DATASET_CACHE_VERSION, ClassificationDataset, YOLODataset
from ultralytics.data.utils import (
    IMG_FORMATS,
    check_det_dataset,
    get_hash,
    get_split_fraction,
    img2label_paths,
    load_dataset_cache_file,
    save_dataset_cache_file,
    verify_image,
    verify_image_label,
)
from ultralytics.models.rtdetr.val import RTDETRDataset
from ultralytics.utils import NUM_THREADS, YAML, colorstr
from ultralytics.utils.metrics import OKS_SIGMA
from ultralytics.utils.patches import imread
from yaml.parser import ParserError
from yaml.scanner import ScannerError

from utils.config import InputError, nearest
from utils.environment import ensure_torchvision_nms
from utils.files import read_yaml, special_files, special_kind

# Keys of a data.yaml that training and validation read.
DATA_KEYS = ("train", "val", "test", "names", "nc", "channels")
OF_KEYPOINTS = ("kpt_names", "kpt_oks_sigmas", "flip_idx")  # mean nothing without kpt_shape
DATA_KEYS += ("kpt_shape", *OF_KEYPOINTS)
# Keys that `in_label_space` adds to private data.yaml files.
CLASS_MAP, NOT_ANNOTATED = "federated_class_map", "federated_not_annotated"
DATA_KEYS += (CLASS_MAP, NOT_ANNOTATED)
# Folders of a classification data set by split; those that Ultralytics looks for, in its order.
SPLIT_FOLDERS = {"train": ("train",), "val": ("val", "validation", "valid"), "test": ("test",)}
MAX_LINES_PER_SPLIT = 5
LABELS_EXPECTED = "expected .txt files in a 'labels' folder beside 'images'"
PREFIX = colorstr("val: ")  # before the messages of a scan
TRAIN_PREFIX = colorstr("train: ")  # the same, where a trainer scans
ENDINGS = ", ".join(sorted(IMG_FORMATS))  # of the file names of images
# unstable: ultralytics.data.utils.verify_image says '{prefix}{im_file}: ignoring corrupt image'
# unstable: ultralytics.data.utils.verify_image_label says 'ignoring corrupt image/label: '
DAMAGED = "ignoring corrupt image/label: "  # in Ultralytics' messages about files it leaves out
# unstable: ultralytics.utils.patches says 'pi_heif'
# unstable: ultralytics.data.utils.verify_image_label says 'non-normalized or out of bounds coo'
# unstable: ultralytics.data.utils.verify_image_label says 'negative label values'
# unstable: ultralytics.data.utils.verify_image_label says 'non-integer class labels'
# Ultralytics' messages that would lead a user astray -> what they mean.
PLAIN_WORDS = {
    # It tries what Pillow cannot read as HEIF, and reports the failure of that.
    "No module named 'pi_heif'": "not readable as an image (HEIC needs the package pi-heif)",
}


class _NothingThereError(InputError):
    """A split has no images."""


class _NoLabelError(InputError):
    """None of the images of a split has a label."""


@dataclass(frozen=True)
class DataSummary:
    """What one data set holds.

    names: class names by index. num_train, num_val, num_test: images that Ultralytics will use; no
    test images where there are none with labels.
    class_counts: boxes of each class in the train split, in the order of `names`; for classify,
    images.
    test_is_unlabelled: there are test images, but none with a label.
    channels, kpt_shape: of the images and the keypoints (None without any); they shape the model.
    flip_idx, kpt_oks_sigmas, kpt_names: what else a data.yaml can say of keypoints, empty where it
    does not: which each one is in a mirrored image, how exactly it can be placed, and, by index of
    the class, their names.
    val_classes, test_classes: names of the classes that have a label there.
    """

    names: tuple[str, ...]
    num_train: int
    num_val: int
    num_test: int
    class_counts: tuple[int, ...]
    test_is_unlabelled: bool = False
    channels: int = 3
    kpt_shape: tuple[int, ...] | None = None
    flip_idx: tuple[int, ...] = ()
    kpt_oks_sigmas: tuple[float, ...] = ()
    kpt_names: tuple[tuple[str, ...], ...] = ()
    val_classes: tuple[str, ...] = ()
    test_classes: tuple[str, ...] = ()

    @property
    def keypoint_lists(self) -> dict[str, tuple[Any, ...]]:
        """What each keypoint is: a list by its name in messages, independent of indices."""
        lists: dict[str, tuple[Any, ...]] = {"flip_idx": self.flip_idx}
        lists |= {f"kpt_names of '{name}'": p for name, p in self.kpt_names_by_class.items()}
        return {name: values for name, values in lists.items() if values}

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Of each keypoint, by which Ultralytics trains and scores: said, or its default."""
        if self.kpt_oks_sigmas or self.kpt_shape is None:
            return self.kpt_oks_sigmas
        num_points = self.kpt_shape[0]
        is_of_coco = self.kpt_shape == (17, 3)
        return tuple(OKS_SIGMA.tolist()) if is_of_coco else (1 / num_points,) * num_points

    @property
    def kpt_names_by_class(self) -> dict[str, tuple[str, ...]]:
        """Names of keypoints by name of the class, of those that have any."""
        pairs = zip(self.names, self.kpt_names, strict=False)  # empty if nothing is said
        return {name: points for name, points in pairs if points}


def selected_classes(train: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...] | None:
    """Names of the classes that `train.classes` leaves; None without it, for all.

    train: Ultralytics train arguments. names: the federation's classes.
    """
    classes = train.get("classes")
    if classes is None:
        return None
    indices = classes if isinstance(classes, list) else [classes]
    return tuple(name for index, name in enumerate(names) if index in indices)


def class_problems(
    summary: DataSummary, classes: Sequence[str] | None, splits: Sequence[str] = ("train", "val")
) -> list[str]:
    """Say which of these splits have no label of any of these classes: nothing to be scored by.

    classes: as of `selected_classes`.
    """
    if classes is None:
        return []
    counts = zip(summary.names, summary.class_counts, strict=True)
    found = {"train": {name for name, count in counts if count}, "val": {*summary.val_classes}}
    return [
        f"{split}: no label is of [{', '.join(classes)}], the classes that train.classes leaves; "
        "do without this data set, or label some"
        for split in splits
        if found[split].isdisjoint(classes)
    ]


def without_unlabelled_test(summary: DataSummary, classes: Sequence[str] | None) -> DataSummary:
    """The same, with the test split left out if it has no label of any of these classes.

    classes: as of `selected_classes`.
    """
    is_scored = classes is None or not set(classes).isdisjoint(summary.test_classes)
    if is_scored or not summary.num_test:
        return summary
    return replace(summary, num_test=0, test_is_unlabelled=True)


def form_problems(found: DataSummary, others: Mapping[str, DataSummary]) -> list[str]:
    """Say in what a data set differs from others of a federation, each thing once.

    Channels and kpt_shape shape the model. What a keypoint is has to agree where two say it: else
    the model would learn two meanings of one. Sigmas have to agree everywhere: where none are said,
    Ultralytics has its own.

    others: by how messages name them.
    """
    problems: dict[str, str] = {}
    for other, expected in others.items():
        for key in ("channels", "kpt_shape"):
            ours, theirs = getattr(found, key), getattr(expected, key)
            if ours != theirs:
                text = f"{key} {ours}, {other} has {theirs}; all data sets need the same, since it"
                problems.setdefault(key, f"{text} shapes the model")
        if found.kpt_shape != expected.kpt_shape:
            continue
        theirs = expected.keypoint_lists
        for key, ours in found.keypoint_lists.items():
            said = theirs.get(key, ours)
            if said != ours:
                i = [a == b for a, b in zip(ours, said, strict=True)].index(False)
                text = f"{key}: {ours[i]} for keypoint {i}, {other} has {said[i]}; all data sets"
                problems.setdefault(key, f"{text} that say it need the same")
        pairs = zip(found.sigmas, expected.sigmas, strict=True)
        different = [i for i, (a, b) in enumerate(pairs) if not math.isclose(a, b, rel_tol=1e-2)]
        if different:  # also to one who writes 0.333 for a third
            i = different[0]
            text = f"kpt_oks_sigmas: {_sigma(found, i)} for keypoint {i}, {other} has"
            text += f" {_sigma(expected, i)}; all data sets need the same"
            problems.setdefault("kpt_oks_sigmas", text)
    return list(problems.values())


def _sigma(summary: DataSummary, keypoint: int) -> str:
    default = "" if summary.kpt_oks_sigmas else " (Ultralytics' default, since it says none)"
    return f"{summary.sigmas[keypoint]:.3g}{default}"


def model_data(summaries: Iterable[DataSummary], names: Sequence[str]) -> dict[str, Any]:
    """What `build_model` needs of a data.yaml, for all clients together.

    summaries: at least one, without `form_problems`. names: the federation's classes.
    """
    summaries = list(summaries)
    data: dict[str, Any] = {"names": dict(enumerate(names)), "nc": len(names)}
    data["channels"] = summaries[0].channels
    if summaries[0].kpt_shape is None:
        return data
    data["kpt_shape"] = list(summaries[0].kpt_shape)
    sigmas = next((s.kpt_oks_sigmas for s in summaries if s.kpt_oks_sigmas), ())
    points = {name: list(p) for s in summaries for name, p in s.kpt_names_by_class.items()}
    points = {i: points[name] for i, name in enumerate(names) if name in points}
    # Where no client says it, neither does what `yolo train` would read.
    if sigmas:
        data["kpt_oks_sigmas"] = list(sigmas)
    if points:
        data["kpt_names"] = points
    return data


class PrivateDataset(YOLODataset):
    """Ultralytics' data set for detect, segment, pose and obb, with its caches in `cache_dir`.

    cache_dir: folder of this client, never shared with another process that may write.
    split: names the cache file. messages: what Ultralytics says about files while it scans them.
    shapes: height and width in pixels by image file. num_outlines: of objects that have one, also
    where others have none, so that Ultralytics leaves them out.
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
        """List the images; refuse what would block whoever reads it, as Ultralytics then does."""
        _refuse_special(_images_in(img_path))
        return super().get_img_files(img_path)

    @property
    def num_damaged(self) -> int:
        """How many images were left out, because they or their labels are damaged."""
        return sum(DAMAGED in message for message in self.messages)

    def _ignore_foreign_npy(self) -> None:
        # An .npy beside an image would be read, refreshed or removed by Ultralytics.
        self.npy_files = [
            self.cache_dir / f"{self.split}-{i}.npy" for i in range(len(self.im_files))
        ]

    def check_cache_ram(self, safety_margin: float = 1.0) -> bool:
        """Say whether memory suffices for `cache: ram`; the first to read images, in `__init__`."""
        self._ignore_foreign_npy()
        return super().check_cache_ram(safety_margin)

    def get_labels(self) -> list[dict]:
        """Read the labels as the files have them, then count classes as the federation does."""
        _refuse_special(img2label_paths(self.im_files))  # else they would pass for missing ones
        data = self.data
        if CLASS_MAP not in data:
            return self._with_shapes(super().get_labels())
        class_map = np.array(data[CLASS_MAP], np.float32)
        self.data = {**data, "names": dict(enumerate(data[CLASS_MAP]))}  # checked against their own
        try:
            labels = super().get_labels()
        finally:
            self.data = data
        for label in labels:
            label["cls"] = class_map[label["cls"].astype(int)]
        return self._with_shapes(labels)

    def verify_labels(self, labels: list[dict], cache_path: Path) -> None:
        """Refuse boxes among outlines with other words than boxes alone, which may be meant."""
        self.num_outlines = sum(len(label["segments"]) for label in labels)
        num_boxes = sum(len(label["cls"]) for label in labels) - self.num_outlines
        if self.num_outlines and num_boxes and (self.use_segments or self.use_obb):
            raise ValueError(
                f"labels mix boxes ({num_boxes}) and outlines ({self.num_outlines}); give each "
                "object an outline, or train a model of the task detect"
            )
        super().verify_labels(labels, cache_path)

    def _with_shapes(self, labels: list[dict]) -> list[dict]:
        """The labels; rectangular batches, which come next, take the shapes away from them."""
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
    """Paths of images as Ultralytics' `get_img_files` takes them: of folders, and of lists."""
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
    """`verify_image_label`, which overwrites JPEGs that do not end in their end marker.

    Some cameras pad their files so. Such a file is verified through a copy, and trained on as it
    is; one that is really cut off fails on the copy too. What is wrong in a label is told by line,
    without what it holds, which may not leave a site.

    channels: that each image has to have. Read as grey (1) or colour (3), every image has.
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
    """What an image has instead of these channels, as Ultralytics reads it; empty if it has."""
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
    """The first line of a label that Ultralytics cannot take, by its own rules (8.4).

    Empty for what is not wrong in a single line, and for a class that there is not.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeError):
        return ""
    rows = [(number, line.split()) for number, line in enumerate(lines, 1) if line.strip()]
    width = 5 + num_points * dim
    if not keypoints:  # of a row with keypoints, the box is taken
        rows = [(n, row[:5] if num_points and len(row) == width else row) for n, row in rows]
    outlines = not keypoints and any(len(row) > 6 for _, row in rows)
    for number, row in rows:
        reason = _wrong_row(row, width if keypoints else 0 if outlines else 5, dim)
        if reason:
            return f"line {number} of its label {reason}"
    return ""


def _wrong_row(row: Sequence[str], width: int, dim: int) -> str:
    """What is wrong with a row. width: its columns, 0 for an outline. dim: of keypoints."""
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
    if not (places <= 1.01).all():  # also those that are no number
        return "has coordinates that are not from 0 to 1"
    if values.min() < -0.01 or (width and values[3:5].min() < 0):
        return "has a negative number"
    if values[0] % 1:
        return "begins with a class that is no whole number"
    return ""


@contextmanager
def _left_alone(image: str) -> Iterator[str]:
    """A path to verify an image by: its own, or that of a copy if it would be overwritten."""
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
    except OSError:  # unreadable: `verify_image_label` will say so
        return False


class PrivateSquareDataset(PrivateDataset, RTDETRDataset):
    """The same for RT-DETR, which takes images stretched to squares."""


class PrivateClassDataset(ClassificationDataset):
    """Ultralytics' data set for classify, with its cache in `cache_dir`.

    The folders of a split are classes by name: their indices are those of `names`.
    split: names the cache file. messages: what Ultralytics says about files while it scans them.
    num_damaged: images that cannot be used.
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
        """Do as Ultralytics, but with the cache in the private folder, and never repair a file.

        It has no smaller method to replace: the one beside the images is a pickle from a folder
        that we do not own.
        """
        _refuse_special(file for file, _ in self.samples)
        path = self.cache_dir / f"{self.split}.cache"
        cache_hash = get_hash([file for file, _ in self.samples] + self.base.classes)
        try:
            cache = load_dataset_cache_file(path)
            if (cache["version"], cache["hash"]) != (DATASET_CACHE_VERSION, cache_hash):
                raise ValueError("stale")
        except Exception:  # there is none, or it is stale or damaged, in any way a pickle can be
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
    """The sample, whether its image is sound, and what Ultralytics says about it if it is not."""
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

    That function names its class, so its call stands here again; a test compares the two.
    For classify it is what the task's trainer and validator build.

    args: Ultralytics train arguments. batch: images per batch (rectangular batches need it).
    mode: "train" augments, "val" does not. stride: largest stride of the model, pixels.
    squares: for RT-DETR, as its own trainer and validator build it.
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


# Ultralytics' `fraction`, of train or [train, val, test]: shares, or whole numbers of images.
Fraction = int | float | list[int | float]


def is_used(fraction: Fraction, split: str) -> bool:
    """Whether `fraction` leaves anything of a split; of train and val it always does."""
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

    The classes are the folders in train, in the order of their names; those in val where there is
    no train, which a server that only evaluates need not have. (Ultralytics would take train and
    val out of a folder that has none, and copy the images.)

    Returns the splits that are there, and names, nc and channels, as of a data.yaml.
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
    """Say what to do with data that Ultralytics would unpack, into folders of its own choice."""
    suffix = "" if path.is_dir() else path.suffix.lower()
    if suffix == ".ndjson":
        raise InputError(
            f"{where}: NDJSON, which Ultralytics makes a data set of, with downloads; do so once, "
            'by python -c "import asyncio; from ultralytics.data.converter import '
            "convert_ndjson_to_yolo as c; print(asyncio.run(c('FILE', 'FOLDER')))\", and give "
            "what it prints"
        )
    if suffix in (".zip", ".tar", ".gz", ".tgz", ".xz", ".txz", ".bz2", ".tbz2"):
        raise InputError(f"{where}: an archive; unpack it, and give what is in it")


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
        raise InputError(f"{where}: not a readable YAML file: {_yaml_error(error)}") from error
    if not isinstance(raw, dict):
        raise InputError(f"{where}: expected 'train', 'val' and 'names' lines as in a data.yaml")
    problems = [f"{where}: {problem}" for problem in _yaml_problems(raw)]
    if problems:
        raise InputError(problems)
    try:
        data = check_det_dataset(str(path), autodownload=False)
    except OSError as error:  # not found, or a name that no file can have
        raise InputError(
            f"{where}: {_one_line(error)}; correct 'path', 'train' or 'val'"
        ) from error
    except (SyntaxError, TypeError, ValueError, KeyError, AssertionError) as error:
        text = _one_line(error).removeprefix(f"{path} ")
        raise InputError(f"{where}: {text}; correct it as in a data.yaml of Ultralytics") from error
    for key in OF_KEYPOINTS:
        if not (data.get("kpt_shape") and data.get(key)):
            data.pop(key, None)
    if data.get("kpt_names"):
        data["kpt_names"] = keypoint_names(data["kpt_names"])
    # As written, since Ultralytics turns codes of ImageNet into words; a mapping may list its
    # indices in any order, and from here on they ascend.
    names = raw["names"]
    names = dict(enumerate(names)) if isinstance(names, list) else names
    data["names"] = {
        index: str(name) for index, name in sorted((int(k), v) for k, v in names.items())
    }
    return {key: data[key] for key in DATA_KEYS if data.get(key) is not None}


def _yaml_problems(raw: dict[str, Any]) -> Iterator[str]:
    """Say what a data.yaml lacks, or has in a form that Ultralytics would stumble over later."""
    raw = {"val": raw.get("validation"), **raw}  # Ultralytics takes either name
    for key in ("train", "val", "names"):
        if not raw.get(key):
            yield f"no '{key}'; a data.yaml has train, val and names"
    for key in ("train", "val", "test"):
        folders = raw.get(key) or ""
        for entry in folders if isinstance(folders, list) else [folders]:
            if not isinstance(entry, str):  # what it holds may be names, which may not leave a site
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
    """Say which names stand for two classes. names: of classes, by their indices or other ids."""
    first: dict[str, Any] = {}
    for index, name in names.items():
        other = first.setdefault(str(name), index)
        if other != index and str(name).strip():
            yield (
                f"'{name}' is listed twice ({other} and {index}); classes are told apart by their "
                "names; rename one"
            )


def keypoint_problems(raw: Mapping[str, Any], num_classes: int) -> Iterator[str]:
    """What is wrong with what a data.yaml says of keypoints; Ultralytics hardly looks at it."""
    shape = raw.get("kpt_shape")
    if shape is None:
        return
    if not (
        isinstance(shape, list)
        and len(shape) == 2
        and all(type(n) is int for n in shape)
        and shape[0] >= 1
        and shape[1] in (2, 3)
    ):
        yield f"kpt_shape: found {shape!r}, expected [number of keypoints, 2 or 3], e.g. [17, 3]"
        return
    num_points = shape[0]
    flip, sigmas = raw.get("flip_idx") or [], raw.get("kpt_oks_sigmas") or []
    if flip and not (
        isinstance(flip, list)
        and all(type(n) is int for n in flip)
        and sorted(flip) == list(range(num_points))
    ):
        yield f"flip_idx: found {flip!r}, expected each number from 0 to {num_points - 1} once"
    if sigmas and not (
        isinstance(sigmas, list)
        and len(sigmas) == num_points
        and all(type(s) in (int, float) and 0 < s < math.inf for s in sigmas)
    ):
        yield f"kpt_oks_sigmas: found {sigmas!r}, expected {num_points} positive numbers"
    points = raw.get("kpt_names") or {}
    if not isinstance(points, dict):
        yield (
            f"kpt_names: found {points!r}, expected a list of {num_points} names for the index of "
            f"each class, e.g. {{0: [{', '.join(f'name{i}' for i in range(min(num_points, 3)))}]}}"
        )
        return
    for index, names in points.items():
        if str(index) not in map(str, range(num_classes)):
            yield f"kpt_names: found class {index!r}, expected 0 to {num_classes - 1}"
        elif not (
            isinstance(names, list)
            and len(names) == num_points
            and all(isinstance(n, str | int | float) and str(n).strip() for n in names)
        ):
            yield f"kpt_names: {index}: found {names!r}, expected {num_points} names"


def keypoint_names(listed: Mapping[Any, Sequence[Any]]) -> dict[int, list[str]]:
    """`kpt_names` by ascending index of the class, which may be written 0 or "0", as of names."""
    points = {int(index): [*map(str, names)] for index, names in listed.items()}
    return dict(sorted(points.items()))


def class_names(data: dict[str, Any]) -> tuple[str, ...]:
    """Class names by index."""
    return tuple(str(data["names"][i]) for i in range(len(data["names"])))


def label_space(clients: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Union of the clients' class names, in order of appearance.

    clients: class names by client. Raises InputError for names that differ only in case or spaces,
    which are one class written in two ways more often than two classes.
    """
    first: dict[str, tuple[str, str]] = {}
    problems = []
    for client, names in clients.items():
        for name in names:
            other, where = first.setdefault("".join(name.casefold().split()), (name, client))
            if other != name:
                problems.append(
                    f"'{client}': class '{name}' and '{other}' of '{where}' differ only in case or "
                    "spaces; write them alike, or list both under names if they are two classes"
                )
    if problems:
        raise InputError(problems)
    return tuple(name for name, _ in first.values())


def in_label_space(
    data: Mapping[str, Any], names: Sequence[str], not_annotated: Iterable[str] = ()
) -> dict[str, Any]:
    """The same data set with the federation's classes; the label files stay as they are.

    data: as of `read_data_yaml`. names: the federation's, which have all of the data set's.
    not_annotated: of the data set's own classes. Where something differs, two keys are added:
    CLASS_MAP, the federation's index of each own class, and NOT_ANNOTATED, the federation's
    indices of classes whose absence from the labels says nothing.
    """
    own = class_names(dict(data))
    result = {**data, "names": dict(enumerate(names)), "nc": len(names)}
    result.pop(CLASS_MAP, None)
    result.pop(NOT_ANNOTATED, None)
    if own != tuple(names):
        result[CLASS_MAP] = class_map = [list(names).index(name) for name in own]
        if "kpt_names" in data:
            result["kpt_names"] = {class_map[i]: p for i, p in data["kpt_names"].items()}
    annotated = set(own) - set(not_annotated)
    missing = [index for index, name in enumerate(names) if name not in annotated]
    if missing:
        result[NOT_ANNOTATED] = missing
    return result


def write_private_yaml(data: dict[str, Any], folder: Path) -> Path:
    """Write `data` with absolute paths and nothing that Ultralytics could execute."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "data.yaml"
    YAML.save(str(path), data)
    return path


def check_dataset(
    path: Path,
    task: str,
    cache_dir: Path,
    *,
    where: str,
    splits: tuple[str, ...],
    forgiven: list[str] | None = None,
    fraction: Fraction = 1.0,
) -> DataSummary:
    """Read every image header and label of a data set once; the caches serve the training.

    path: as of `read_data`. splits: that have to be there. A test split is read if there is one.
    fraction: of the images, which are the ones that are looked at and counted.
    Raises InputError with a line for each damaged file, up to 5 a split, and for an empty split;
    they are added to `forgiven` instead if it is given, and such a split counts as empty.
    """
    data = read_data(path, task, where=where)
    where = f"{where} ({path})"
    problems: list[str] = []
    datasets: dict[str, PrivateDataset | PrivateClassDataset] = {}
    cache_dir.mkdir(parents=True, exist_ok=True)
    for split in splits:
        try:
            datasets[split] = scan_split(data, task, split, cache_dir, fraction)
        except InputError as error:
            problems += [f"{where}: {split}: {line}" for line in error.problems]
    test_is_unlabelled = False
    if data.get("test") and is_used(fraction, "test"):
        try:
            datasets["test"] = scan_split(data, task, "test", cache_dir, fraction)
        except _NoLabelError:
            test_is_unlabelled = True
        except _NothingThereError:  # ordinary: the test split of COCO is kept elsewhere
            pass
        except InputError as error:
            problems += [f"{where}: test: {line}" for line in error.problems]
    if problems and forgiven is None:
        raise InputError(problems)
    if forgiven is not None:
        forgiven += problems
    form = form_of(data)
    numbers = {split: len(dataset) for split, dataset in datasets.items()}
    counts = {
        split: np.bincount(_labels(dataset), minlength=len(form.names)).tolist()
        for split, dataset in datasets.items()
    }
    classes = {
        split: tuple(name for name, count in zip(form.names, found, strict=True) if count)
        for split, found in counts.items()
    }
    return replace(
        form,
        num_train=numbers.get("train", 0),
        num_val=numbers.get("val", 0),
        num_test=numbers.get("test", 0),
        class_counts=tuple(counts.get("train", form.class_counts)),
        test_is_unlabelled=test_is_unlabelled,
        val_classes=classes.get("val", ()),
        test_classes=classes.get("test", ()),
    )


def form_of(data: dict[str, Any]) -> DataSummary:
    """What a data.yaml alone says of its data set; nothing is counted."""
    names = class_names(data)
    points = data.get("kpt_names")
    return DataSummary(
        names,
        num_train=0,
        num_val=0,
        num_test=0,
        class_counts=(0,) * len(names),
        channels=data.get("channels", 3),
        kpt_shape=tuple(data["kpt_shape"]) if data.get("kpt_shape") else None,
        flip_idx=tuple(data.get("flip_idx", ())),
        kpt_oks_sigmas=tuple(float(sigma) for sigma in data.get("kpt_oks_sigmas", ())),
        kpt_names=tuple(tuple(points.get(i, ())) for i in range(len(names))) if points else (),
    )


def _labels(dataset: PrivateDataset | PrivateClassDataset) -> np.ndarray:
    """Class of each label of a data set, int64."""
    if isinstance(dataset, PrivateClassDataset):
        return np.array([label for _, label, *_ in dataset.samples], int)
    return np.concatenate([label["cls"].astype(int).ravel() for label in dataset.labels])


def open_split(
    data: dict[str, Any], task: str, split: str, cache_dir: Path, fraction: Fraction = 1.0
) -> PrivateDataset | PrivateClassDataset:
    """Read every image header and label of one split; damaged files are left out, and counted.

    fraction: of the images; some have to be left (`is_used`).
    Raises InputError where nothing is left, and for a list with lines that name no image.
    """
    from ultralytics.cfg import get_cfg

    if split not in data:  # a data.yaml has it, or was refused
        raise InputError(f"no such folder; expected {split}/CLASS/*.jpg")
    places = data[split] if isinstance(data[split], list) else [data[split]]
    lists = [Path(place) for place in places]
    if problems := list(_lines_of_no_image(lists)) or list(_lines_of_absent_images(lists)):
        raise InputError(problems)
    overrides = {"task": task, "mode": "train", "imgsz": 32, "split": split, "fraction": fraction}
    args = get_cfg(overrides=overrides)
    with _plain_errors(task):
        return build_dataset(args, data[split], 1, data, "val", 32, cache_dir)


@contextmanager
def _plain_errors(task: str) -> Iterator[None]:
    """Raise InputError for what Ultralytics says of a split that it cannot use."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        cause = _one_line(error.__cause__ or error).split(". Supported")[0]
        raise _NothingThereError(f"{cause}; expected at least one image") from error
    except (RuntimeError, ValueError, AssertionError) as error:  # e.g. all files are damaged
        lines = str(error).splitlines()
        text = _one_line(error)
        if text.startswith("No labels found in"):  # it names its cache
            raise _NoLabelError(
                f"none of the images has a label file; {LABELS_EXPECTED}"
            ) from error
        # unstable: ultralytics.data.dataset.YOLODataset.verify_labels says 'Please supply'
        if "Please supply" in text:  # labels of another task
            text += f" (base_model is of the task {task}; take one of the labels' task)"
        raise InputError(_damaged_files(lines) or text) from error


def scan_split(
    data: dict[str, Any], task: str, split: str, cache_dir: Path, fraction: Fraction = 1.0
) -> PrivateDataset | PrivateClassDataset:
    """Read every image header and label of one split.

    Raises InputError with a line for each damaged file, for an empty split, and for one without
    any label.
    """
    dataset = open_split(data, task, split, cache_dir, fraction)
    damaged = _damaged_files(dataset.messages)
    if damaged:
        raise InputError(damaged)
    _refuse_useless(dataset, split)
    return dataset


def usable_dataset(
    args: Any,
    img_path: str | list[str],
    batch: int | None,
    data: dict[str, Any],
    mode: str,
    *settings: Any,
) -> PrivateDataset | PrivateClassDataset:
    """`build_dataset` of what is there now: damaged files are left out, and logged.

    Raises InputError where nothing is left to train or to score on.
    """
    split = "train" if mode == "train" else args.split
    places = img_path if isinstance(img_path, list) else [img_path]
    try:
        if problems := list(_lines_of_no_image(Path(place) for place in places)):
            raise InputError(problems)
        with _plain_errors(args.task):
            dataset = build_dataset(args, img_path, batch, data, mode, *settings)
        _refuse_useless(dataset, split)
    except InputError as error:
        raise InputError(f"{split}: {line}" for line in error.problems) from error
    for line in _damaged_files(dataset.messages):
        logging.getLogger(__name__).warning("left out: %s: %s", split, line)
    return dataset


def _refuse_useless(dataset: PrivateDataset | PrivateClassDataset, split: str) -> None:
    """Raise InputError for a split without images, or without a label."""
    if isinstance(dataset, PrivateClassDataset) and not dataset.samples:
        raise _NothingThereError("no images in the folders of its classes; expected at least one")
    if not len(_labels(dataset)):
        why = "" if split == "train" else ", so that every model would score 0"
        raise _NoLabelError(
            f"none of the {len(dataset)} images has a label{why}; {LABELS_EXPECTED}, one of them "
            f"with a label; searched {label_folder(dataset)}"
        )


def label_folder(dataset: PrivateDataset | PrivateClassDataset) -> Path:
    """Where the labels are looked for, of the first image: links in its path have been followed."""
    assert isinstance(dataset, PrivateDataset)
    return Path(img2label_paths(dataset.im_files[:1])[0]).parent


def is_image_name(name: str) -> bool:
    """Whether Ultralytics reads a file of this name as an image; it passes over others silently."""
    return name.rpartition(".")[-1].lower() in IMG_FORMATS


def _lists(places: Iterable[Path]) -> Iterator[tuple[Path, list[tuple[int, str]]]]:
    """The lists among these places, with the number and text of their lines that are not blank."""
    for path in places:
        if not path.is_file() or not os.access(path, os.R_OK):  # Ultralytics will say so
            continue
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        yield path, [(n, x) for n, x in enumerate(text.rstrip().splitlines(), 1) if x.strip()]


def _lines_of_no_image(places: Iterable[Path]) -> Iterator[str]:
    """What is wrong with lists of images, without the lines themselves, which may not leave a site.

    places: folders, which are passed over, and lists. A blank at the end of a line belongs to the
    file's name.
    """
    for path, lines in _lists(places):
        wrong = [number for number, line in lines if not is_image_name(line)]
        if wrong:
            more = f", and {len(wrong) - 1} more" if wrong[1:] else ""
            yield (
                f"{path}: line {wrong[0]} does not end as an image that Ultralytics reads "
                f"({ENDINGS}){more}; correct or remove them, and blanks at their ends"
            )
            continue
        lost = [number for number, line in lines if _is_out_of_reach(line)]
        if lost:
            more = f" (and {len(lost) - 1} more)" if lost[1:] else ""
            yield (
                f"{path}: line {lost[0]}{more} is no whole path, so it is looked for in the "
                "working directory, where it is not; begin the lines with a dot and a slash, which "
                "stand for the folder of the list, or write whole paths"
            )


def _lines_of_absent_images(places: Iterable[Path]) -> Iterator[str]:
    """What lists name that is not there; places as of `_lines_of_no_image`."""
    for path, lines in _lists(places):
        absent = [
            number
            for number, line in lines
            if not (path.parent / line if line.startswith("./") else Path(line)).exists()
        ]
        if absent:
            yield (
                f"{path}: {len(absent)} of {len(lines)} listed images are not there, the first in "
                f"line {absent[0]}; correct or remove the lines (a dot and a slash at their "
                f"beginning stand for {path.parent})"
            )


def _is_out_of_reach(line: str) -> bool:
    """Whether a line of a list names no image that Ultralytics would find, and a label with it.

    Lines that begin with ./ start at the folder of their list, others at the working directory. Of
    a bare name it finds no folder for the label.
    """
    if line.startswith("./") or Path(line).is_absolute():
        return False
    return "/" not in line or not Path(line).is_file()


def _damaged_files(messages: Iterable[str]) -> list[str]:
    """One line for each file that Ultralytics would leave out without a word, up to 5."""
    lines = []
    for message in sorted(m for m in messages if DAMAGED in m):
        path, reason = _without_prefix(" ".join(message.split())).split(DAMAGED)
        reason = next((plain for found, plain in PLAIN_WORDS.items() if found in reason), reason)
        lines.append(f"{path}{reason}; repair or remove the image or its label")
    more = len(lines) - MAX_LINES_PER_SPLIT
    return lines[:MAX_LINES_PER_SPLIT] + (
        [f"... and {more} more damaged files"] if more > 0 else []
    )


def _yaml_error(error: Exception) -> str:
    """What is wrong and where, without what the file holds, which may not leave a site."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark, problem = error.problem_mark, error.problem or ""
        # Scanner and parser quote signs; but for this one of theirs, others quote names and values.
        if not isinstance(error, ScannerError | ParserError) or "tag handle" in problem:
            problem = re.sub(r"(['\"]).*\1", "'...'", problem, flags=re.DOTALL)
        return f"{problem}, line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(error, yaml.YAMLError | UnicodeError | OSError):
        return " ".join(str(error).split())
    return f"a value that cannot be read ({type(error).__name__})"


def _one_line(error: BaseException) -> str:
    """The first line of an Ultralytics error, without its colours and signs."""
    text = str(error.args[0] if isinstance(error, KeyError) else error).strip()
    text = (text.splitlines() or [type(error).__name__])[0]
    return _without_prefix(text).replace(" ❌", "").rstrip(".")


def _without_prefix(message: str) -> str:
    return message.removeprefix(PREFIX).removeprefix(TRAIN_PREFIX)


def move_caches(source: Path, target: Path) -> None:
    """Move label caches made while checking into the run directory."""
    target.mkdir(parents=True, exist_ok=True)
    for cache in source.glob("*.cache"):
        shutil.move(str(cache), target / cache.name)
