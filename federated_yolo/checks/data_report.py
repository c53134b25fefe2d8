"""Reports on each data set of a federation: images, classes, sizes of boxes, near-duplicates.

It uses the label caches of checks/federation.py if they exist, so that no label is read twice.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from ultralytics.data.utils import img2label_paths
from ultralytics.utils import DEFAULT_CFG_DICT

from federated_yolo.checks.resolve import fraction_of
from federated_yolo.checks.stages import SERVER_CACHES
from federated_yolo.common.errors import InputError
from federated_yolo.common.text import counted
from federated_yolo.config.schema import Config
from federated_yolo.data.data_yaml import Fraction, class_names, is_used, read_data
from federated_yolo.data.datasets import PrivateClassDataset, PrivateDataset
from federated_yolo.data.duplicates import (
    exact_duplicates,
    near_duplicates,
    nearest_duplicate,
    perceptual_hashes,
)
from federated_yolo.data.exports.made import named
from federated_yolo.data.label_space import selected_classes
from federated_yolo.data.scan import open_split
from federated_yolo.storage.run_dir import SERVER
from federated_yolo.yolo.checkpoint import LoadedBase, is_rtdetr

# COCO's size classes: the area of a small and of a medium box, in pixels, is below these limits.
SIZE_LIMITS = (32**2, 96**2)
SIZE_NAMES = ("small", "medium", "large")
HELD_OUT = ("val", "test")
# Where an image of a data set can have a twin (a near-duplicate), in the order of the columns.
RELATIONS = {
    "within_train": "train, in the same train",
    "held_out_in_train": "val, in its train",
    "train_elsewhere": "train, in others' train",
    "held_out_elsewhere": "val, in others' train",
}
MAX_LINES = 5  # for one kind of finding


@dataclass(frozen=True)
class SplitReport:
    """Counts of one split. images: Paths of its usable images, with links resolved.

    num_background: Images without an object. num_unlabelled: Background images without a label
    file. num_elsewhere: Unlabelled images whose label file is in another folder, such as
    `found_in`, and not where Ultralytics looks, such as `searched`. num_damaged: Images that cannot
    be used. class_counts: (classes,) int, objects of each of the data set's own classes; for a
    classifier, images. size_counts: (3,) int, small, medium and large boxes, measured in pixels of
    the image that the model gets: its longer side scaled to imgsz, for RT-DETR both sides; zeros
    for a classifier.
    """

    images: tuple[str, ...]
    num_background: int
    num_unlabelled: int
    num_damaged: int
    class_counts: np.ndarray
    size_counts: np.ndarray
    num_elsewhere: int = 0
    found_in: Path = Path()
    searched: Path = Path()


@dataclass(frozen=True)
class DataReport:
    """One data set. where: Its name in messages. names: Its classes by index.

    splits: Splits that can be read; names and splits are empty if its data.yaml cannot be read.
    says_all: Whether a class that it does not list counts as absent, as for a classifier.
    """

    name: str
    where: str
    names: tuple[str, ...] = ()
    not_annotated: tuple[str, ...] = ()
    splits: Mapping[str, SplitReport] = field(default_factory=dict)
    says_all: bool = False

    @property
    def objects_split(self) -> SplitReport | None:
        """The split whose objects are shown: train, or the server's val; None if unread."""
        return self.splits.get("val" if self.name == SERVER else "train")

    def objects(self, names: Sequence[str]) -> list[int | None]:
        """Return the number of objects of each class; None if the class is not annotated."""
        split = self.objects_split
        if split is None:
            return [None] * len(names)
        own = dict(zip(self.names, split.class_counts.tolist(), strict=True))
        unknown = 0 if self.says_all else None
        return [None if name in self.not_annotated else own.get(name, unknown) for name in names]


@dataclass(frozen=True)
class Twins:
    """Images that look nearly alike. unreadable: Images that OpenCV cannot decode.

    num_images: Number of images compared. near, exact: Number of a data set's images that have a
    twin, by relation (RELATIONS) and data set; exact twins are equal byte for byte, and count as
    near too. totals: Images with a twin by relation, each counted once. examples: An image and its
    twin, by relation.
    """

    num_images: int
    near: Mapping[str, Mapping[str, int]]
    exact: Mapping[str, Mapping[str, int]]
    totals: Mapping[str, int]
    examples: Mapping[str, tuple[str, str]]
    unreadable: tuple[str, ...]


@dataclass(frozen=True)
class _Fed:
    """How images are fed to the model. imgsz: Pixels. squares: Whether all become squares.

    fraction: Share of the images that is used. classes: Classes whose labels count; None for all.
    """

    imgsz: int
    squares: bool
    fraction: Fraction
    classes: tuple[str, ...] | None

    def size(self, height: int, width: int) -> tuple[float, float]:
        """Return the width and height of a scaled image in pixels, without its padding."""
        if self.squares:
            return self.imgsz, self.imgsz
        scale = self.imgsz / max(height, width)
        return width * scale, height * scale


def look_at(config: Config, base: LoadedBase | None, caches: Path) -> list[DataReport]:
    """Read the data sets of the clients and of the server, as far as they can be read.

    base: Base model, which decides the task and how images are scaled; None is taken as detect.
    caches: Label caches from `check`, one folder per data set.
    """
    task = base.task if base else "detect"
    squares = base is not None and is_rtdetr(base.structure)  # RT-DETR stretches images to squares
    imgsz: Any = config.train.get("imgsz", DEFAULT_CFG_DICT["imgsz"])
    names = tuple(config.names or _names_of(config, task))
    classes = selected_classes(config.train, names)
    fed = _Fed(imgsz, squares, fraction_of(config), classes)
    reports = []
    for index, data in enumerate([] if config.has_sites else config.clients):
        path = Path(data.data or "")
        where = f"datasets[{index}] '{data.name}' ({named(path)})"
        report = DataReport(data.name, where, (), data.not_annotated)
        folder = caches / data.name
        reports.append(_read(report, path, ("train", *HELD_OUT), task, fed, folder))
    if config.evaluate.data is not None:
        path = Path(config.evaluate.data)
        report = DataReport(SERVER, f"evaluate.data ({named(path)})")
        reports.append(_read(report, path, HELD_OUT, task, fed, caches / SERVER_CACHES))
    return reports


def _names_of(config: Config, task: str) -> list[str]:
    """Return the union of the classes of all clients whose data.yaml can be read."""
    names: dict[str, None] = {}
    for data in [] if config.has_sites else config.clients:
        with suppress(InputError):  # the checks have said why
            names |= dict.fromkeys(class_names(read_data(Path(data.data or ""), task, where="")))
    return list(names)


def _read(
    empty: DataReport, path: Path, splits: Sequence[str], task: str, fed: _Fed, caches: Path
) -> DataReport:
    try:
        data = read_data(path, task, where=empty.where)
    except InputError:  # the checks have said why
        return empty
    names = class_names(data)
    caches.mkdir(parents=True, exist_ok=True)
    found: dict[str, SplitReport] = {}
    for split in (s for s in splits if data.get(s) and is_used(fed.fraction, s)):
        try:
            dataset = open_split(data, task, split, caches, fed.fraction)
        except InputError:
            continue
        if isinstance(dataset, PrivateClassDataset):
            found[split] = _report_class_split(dataset, len(names))
            continue
        report = _report_split(dataset, names, fed, path.parent, split)
        if split == "test" and report.num_background == len(report.images):
            continue  # a run leaves it out too: without labels nothing can be scored
        found[split] = report
    is_classes = task == "classify"
    return DataReport(empty.name, empty.where, names, empty.not_annotated, found, is_classes)


def _report_class_split(dataset: PrivateClassDataset, num_classes: int) -> SplitReport:
    return SplitReport(
        tuple(str(Path(file).resolve()) for file, *_ in dataset.samples),
        num_background=0,
        num_unlabelled=0,
        num_damaged=dataset.num_damaged,
        class_counts=np.bincount([c for _, c, *_ in dataset.samples], minlength=num_classes),
        size_counts=np.zeros(len(SIZE_NAMES), int),
    )


def _report_split(
    dataset: PrivateDataset, names: Sequence[str], fed: _Fed, root: Path, split: str
) -> SplitReport:
    """Count objects and box sizes from the labels and image shapes that Ultralytics has read.

    root: Folder of the data.yaml.
    """
    counts, sizes = np.zeros(len(names), int), np.zeros(len(SIZE_NAMES), int)
    background = []
    taken = np.array([fed.classes is None or name in fed.classes for name in names])
    for label in dataset.labels:
        classes = label["cls"].astype(int).ravel()
        mask = taken[classes]
        counts += np.bincount(classes[mask], minlength=len(names))
        pixels = label["bboxes"][mask, 2:4] * fed.size(*dataset.shapes[label["im_file"]])
        # A box exactly at a limit belongs to the larger size: fractions are rounded, so round here.
        kinds = np.digitize(pixels.prod(axis=1).round(1), SIZE_LIMITS)
        sizes += np.bincount(kinds, minlength=len(sizes))
        if not mask.any():
            background.append(label["im_file"])
    pairs = zip(background, map(Path, img2label_paths(background)), strict=True)
    unlabelled = [(Path(image), label) for image, label in pairs if not label.is_file()]
    others = [(_label_elsewhere(image, root, split), label) for image, label in unlabelled]
    elsewhere = [(found.parent, label.parent) for found, label in others if found]
    return SplitReport(
        tuple(str(Path(label["im_file"]).resolve()) for label in dataset.labels),
        len(background),
        len(unlabelled),
        dataset.num_damaged,
        counts,
        sizes,
        len(elsewhere),
        *(elsewhere[0] if elsewhere else ()),
    )


def _label_elsewhere(image: Path, root: Path, split: str) -> Path | None:
    """Return the image's label file from a usual place where Ultralytics does not look, or None."""
    here, above = image.parent, image.parent.parent
    folders = (here, here / "labels", above / "labels", above / "labels" / here.name)
    folders += (root / "labels" / split, root / split / "labels", root / "labels")
    paths = (folder / f"{image.stem}.txt" for folder in folders)
    return next((path for path in paths if path.is_file()), None)


def all_classes(config: Config, reports: Sequence[DataReport]) -> tuple[str, ...]:
    """Return the classes of the config, or all classes of the clients in order of appearance.

    Only the classes that `train.classes` selects are returned.
    """
    clients = [report for report in reports if report.name != SERVER] or reports
    names = tuple(config.names or dict.fromkeys(n for report in clients for n in report.names))
    return selected_classes(config.train, names) or names


def find_twins(reports: Sequence[DataReport]) -> Twins:
    """Compare all images of all data sets with each other.

    Only twins among train images count: two held-out images that are alike do no harm.
    """
    images = sorted({i for r in reports for split in r.splits.values() for i in split.images})
    index = {image: number for number, image in enumerate(images)}
    train = np.zeros((len(reports), len(images)), bool)
    held_out = np.zeros_like(train)
    for row, report in enumerate(reports):
        for name, split in report.splits.items():
            mask = train if name == "train" else held_out
            mask[row, [index[image] for image in split.images]] = True
    hashes = perceptual_hashes(images)
    everything = np.ones((1, len(images)), bool)
    # The last row marks the images that have any twin: only these are read again.
    near_in = near_duplicates(hashes, np.concatenate([train, everything]))
    near_in, has_any = near_in[:-1], near_in[-1]
    same_in = exact_duplicates(_contents(images, has_any), train)
    near: dict[str, dict[str, int]] = {relation: {} for relation in RELATIONS}
    exact: dict[str, dict[str, int]] = {relation: {} for relation in RELATIONS}
    everywhere = {relation: np.zeros(len(images), bool) for relation in RELATIONS}
    examples: dict[str, tuple[str, str]] = {}
    for row, report in enumerate(reports):
        here, elsewhere = np.arange(len(reports)) == row, np.arange(len(reports)) != row
        for relation, mine, places in zip(
            RELATIONS,
            (train[row], held_out[row], train[row], held_out[row]),
            (here, here, elsewhere, elsewhere),
            strict=True,
        ):
            theirs = np.logical_or.reduce(train[places])
            # The other split can list the same file, which then is its own twin.
            itself = np.zeros_like(theirs) if relation == "within_train" else theirs
            found = mine & (itself | np.logical_or.reduce(near_in[places]))
            everywhere[relation] |= found
            near[relation][report.name] = int(found.sum())
            found_same = mine & (itself | np.logical_or.reduce(same_in[places]))
            exact[relation][report.name] = int(found_same.sum())
            if found.any() and relation not in examples:
                image = int(np.flatnonzero(found)[0])
                twin = nearest_duplicate(hashes, image, theirs)
                examples[relation] = images[image], images[twin]
    unread = np.flatnonzero((hashes == 0).all(axis=1))
    totals = {relation: int(found.sum()) for relation, found in everywhere.items()}
    return Twins(len(images), near, exact, totals, examples, tuple(images[i] for i in unread))


def _contents(paths: Sequence[str], which: np.ndarray) -> np.ndarray:
    """Number the files so that equal bytes have equal numbers; -1 for files that were not read.

    which: (n,) bool, the files to read. Returns (n,) int.
    """
    numbers: dict[bytes, int] = {}
    contents = np.full(len(paths), -1)
    for index in np.flatnonzero(which).tolist():
        with Path(paths[index]).open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").digest()
        contents[index] = numbers.setdefault(digest, len(numbers))
    return contents


def pixel_problems(reports: Sequence[DataReport], unreadable: Sequence[str]) -> list[str]:
    """Return a line for each image whose header is sound but whose pixels cannot be decoded."""
    lines = [
        f"{report.where}: {name}: {image}: its pixels cannot be decoded; repair or remove the "
        "image and its label"
        for report in reports
        for name, split in report.splits.items()
        for image in sorted(set(unreadable) & set(split.images))
    ]
    return list(_first(lines, "more such images"))


def findings(
    reports: Sequence[DataReport], names: Sequence[str], twins: Twins, *, single_cls: bool = False
) -> list[str]:
    """Return one line for each oddity of the data that does not stop a run.

    single_cls: Whether all classes are trained as one; then lines about classes are left out.
    """
    clients = [report for report in reports if report.names and report.name != SERVER]
    clients = [] if single_cls else clients
    kinds = (
        _order_findings(clients),
        _missing_class_findings(clients, names),
        _empty_class_findings(clients, names),
        _unlabelled_findings(reports),
        _twin_findings(twins),
    )
    return [line for kind in kinds for line in _first(list(kind), "more like that")]


def _first(lines: Sequence[str], more: str) -> Iterator[str]:
    yield from lines[:MAX_LINES]
    if len(lines) > MAX_LINES:
        yield f"... and {len(lines) - MAX_LINES} {more}"


def _order_findings(clients: Sequence[DataReport]) -> Iterator[str]:
    for client in clients[1:]:
        first = clients[0]
        if client.names != first.names and set(client.names) == set(first.names):
            yield (
                f"'{client.name}' lists the classes of '{first.name}' in another order: "
                f"[{', '.join(client.names)}]; they are matched by name"
            )


def _missing_class_findings(clients: Sequence[DataReport], names: Sequence[str]) -> Iterator[str]:
    for client in clients:
        missing = [n for n in names if n not in client.names or n in client.not_annotated]
        if missing and not client.says_all:
            yield (
                f"'{client.name}' does not annotate [{', '.join(missing)}]: left out of its "
                "classification loss"
            )


def _empty_class_findings(clients: Sequence[DataReport], names: Sequence[str]) -> Iterator[str]:
    counts = {c.name: dict(zip(names, c.objects(names), strict=True)) for c in clients}
    thing = "image" if any(client.says_all for client in clients) else "object"
    nowhere = [name for name in names if not any(count[name] for count in counts.values())]
    if nowhere and clients and all(client.objects_split for client in clients):
        yield f"no client has an {thing} of [{', '.join(nowhere)}] in train: it cannot be learned"
    for client, count in counts.items():
        empty = [name for name in names if count[name] == 0 and name not in nowhere]
        if empty and thing == "image":
            yield f"'{client}' has no image of [{', '.join(empty)}] in train"
        elif empty:
            yield (
                f"'{client}' lists [{', '.join(empty)}], but has no object of it in train: it "
                "teaches that there are none; if nobody has looked for them, put them under "
                "not_annotated"
            )


def _unlabelled_findings(reports: Sequence[DataReport]) -> Iterator[str]:
    for report in reports:
        for name, split in report.splits.items():
            has_others = bool(split.num_elsewhere)
            if split.num_unlabelled:
                elsewhere = (
                    f"; {split.num_elsewhere} of them have one in {split.found_in}, and it is "
                    f"looked for in {split.searched}"
                )
                yield (
                    f"{report.where}: {split.num_unlabelled} of {len(split.images)} {name} images "
                    f"have no label file, and count as background{elsewhere * has_others}"
                )


def _twin_findings(twins: Twins) -> Iterator[str]:
    split_and_place = {
        "within_train": ("train", "the same train split"),
        "held_out_in_train": ("val or test", "the train split beside it: scores may be too good"),
        "train_elsewhere": ("train", "the train split of another client"),
        "held_out_elsewhere": (
            "val or test",
            "the train split of a client: scores may be too good",
        ),
    }
    for relation, (image, twin) in twins.examples.items():
        split, place = split_and_place[relation]
        example = f"{image} and {twin}" if image != twin else f"{image}, which both list"
        number = counted(twins.totals[relation], f"{split} image")
        yield f"Near-duplicates of {number} in {place}, e.g. {example}"
