"""Split one data set into clients, for experiments before there are any.

    python utils/partition.py SOURCE --clients 5 --scheme dirichlet -o DIR
        [--alpha 0.3] [--group-by folder|REGEX] [--val split|shared] [--copy] [--seed 0]

SOURCE is a data.yaml (detect, segment, pose, obb), a folder of classification data
(train/CLASS/1.jpg), or a folder of COCO or Pascal VOC data as utils/other_formats.py reads it. The
source is only read. DIR gets

    client_0/data.yaml ...   usable under `datasets:` of a config; for classification, folders
    federated.yaml           a config with all of them, ready to start
    partitions.json          scheme, seed, and how many images and objects of each class they have
    partitions.png           the same as a picture

Each train image goes to exactly one client, by one of these schemes (utils/partition_schemes.py):

    iid         equal numbers of images, at random
    dirichlet   equal numbers, a mix of classes of each client's own; a smaller alpha: more unlike
    quantity    the same mix, very different numbers; a smaller alpha: more unlike
    class       each class belongs to one client, or to as few as possible
    group       all images of a folder, camera, ... stay together: those with the same first group
                of REGEX, or match if it has none, in their path; `folder` takes their folder

An image counts under the one of its classes that is on the fewest images. The val split is shared
out likewise, so that each client is scored on data like its own, while the server (`evaluate.data`)
has all of it; with `--val shared` every client has all of it. Clients have lists of images, which
stay where they are (classification: links); `--copy` makes folders that can be moved to other
machines. Near-duplicates at different clients, and in train and val, are counted.

Exit codes: 0 done, 1 failed while writing, 2 wrong input (nothing was written), 130 interrupted.
"""

import argparse
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

if __name__ == "__main__":
    if not __package__:
        sys.path[0] = str(Path(__file__).resolve().parents[1])
    from utils.environment import exit_on_interrupt, prepare_environment

    exit_on_interrupt()  # the imports below take seconds; main() has Python's own handler again
    prepare_environment()  # before Ultralytics is imported, which the modules below do

from ultralytics.data.utils import img2label_paths

from utils.command import Parser, show_problems
from utils.config import InputError, nearest
from utils.data import (
    PrivateClassDataset,
    PrivateDataset,
    class_names,
    read_class_folders,
    read_data_yaml,
    scan_split,
)
from utils.duplicates import near_duplicates, nearest_duplicate, perceptual_hashes
from utils.environment import remove_private_settings
from utils.other_formats import convert_coco, convert_voc, is_coco, is_voc
from utils.partition_picture import draw_partitions
from utils.partition_schemes import (
    DRAWN_SCHEMES,
    SCHEMES,
    SCHEMES_WITH_ALPHA,
    Images,
    rarest_classes,
)

DEFAULT_ALPHA = 0.3
ALPHA_RANGE = (0.001, 1000.0)  # about: one class a client, all alike
# A model of the task to start from, which needs no download.
BASE_MODELS = {
    "detect": "yolo11n.yaml",
    "segment": "yolo11n-seg.yaml",
    "pose": "yolo11n-pose.yaml",
    "obb": "yolo11n-obb.yaml",
    "classify": "yolo11n-cls.yaml",
}
# Folders that say nothing of where an image comes from.
COMMON_FOLDERS = {"images", "train", "val", "valid", "validation", "test"}
MAX_LINES = 5
MAX_CLASSES = 8  # in the table on the terminal; partitions.json and the picture have more


@dataclass(frozen=True)
class Split:
    """images: absolute paths, each once. labels: the class indices of each one's objects."""

    images: list[str]
    labels: list[np.ndarray]


@dataclass(frozen=True)
class Source:
    """A data set. path: its data.yaml, or its folder for classification.

    task: given, or as far as the labels tell, and then why. names: of the classes, by index.
    data: what else a data.yaml has to say, such as `kpt_shape`. splits: "train" and "val".
    folders: of each split of the data set, those in which images are looked for at any depth; none
    for lists of images.
    """

    path: Path
    task: str
    names: tuple[str, ...]
    data: dict[str, Any]
    splits: dict[str, Split]
    folders: dict[str, tuple[Path, ...]]
    why: str = ""


@dataclass(frozen=True)
class Partition:
    """Which client each image belongs to.

    owners: (n,) int for each split, indices of clients; None for a shared val split.
    groups: of each image of each split; empty but for the scheme that goes by them.
    """

    clients: tuple[str, ...]
    owners: dict[str, np.ndarray | None]
    groups: dict[str, list[str]]

    def indices(self, source: Source, split: str, client: int) -> np.ndarray:
        """Which images of a split a client has, in their order."""
        owners = self.owners[split]
        if owners is None:
            return np.arange(len(source.splits[split].images))
        return np.flatnonzero(owners == client)


def read_source(path: Path, scratch: Path, task: str | None = None) -> Source:
    """Read a data.yaml, and check every image and label, or a folder of classification data.

    scratch: folder for label caches. task: of a data.yaml; None goes by its labels. Raises
    InputError with all problems.
    """
    if not path.is_dir():
        return _read_detection(path, scratch, task)
    has_yaml = (path / "data.yaml").is_file()
    if (path / "train").is_dir() and not has_yaml and not _has_label_folders(path):
        return _read_classification(path, scratch)
    hint = f"; did you mean {path / 'data.yaml'}?" if has_yaml else ""
    raise InputError(
        f"{path}: found a folder that is not of train/CLASS/*.jpg, expected a data.yaml, or a "
        f"folder of classification, COCO or Pascal VOC data{hint}"
    )


def _has_label_folders(path: Path) -> bool:
    """Whether a folder has the images and labels of a data.yaml: images/train or train/images."""
    train = path / "train"
    return (path / "images").is_dir() or all((train / n).is_dir() for n in ("images", "labels"))


def _read_detection(path: Path, scratch: Path, task: str | None) -> Source:
    data = read_data_yaml(path, where="SOURCE")
    splits: dict[str, Split] = {}
    outlines: list[np.ndarray] = []
    num_outlines = 0
    problems: list[str] = []
    for name in ("train", "val"):
        try:
            # As detect, every kind of label can be read; here only classes are asked for.
            scanned = scan_split(data, "detect", name, scratch)
            assert isinstance(scanned, PrivateDataset)  # classify is read elsewhere
        except InputError as error:
            problems += [f"{path}: {name}: {line}" for line in error.problems]
            continue
        relative = [image for image in scanned.im_files if not Path(image).is_absolute()]
        if relative:  # where their labels are looked for would change with the path
            problems.append(
                f"{path}: {name}: lists {relative[0]}, which starts at the working directory; "
                "begin such lines with ./, to start at the list, or with /"
            )
        labels = {label["im_file"]: label["cls"].astype(int).ravel() for label in scanned.labels}
        splits[name] = Split(list(labels), list(labels.values()))
        outlines += [o for label in scanned.labels for o in label["segments"]]
        num_outlines += scanned.num_outlines
    problems = problems or list(_in_both(path, splits))
    if problems:
        raise InputError(problems[:MAX_LINES] + _more(problems))
    num_objects = sum(len(labels) for split in splits.values() for labels in split.labels)
    task, why = (task, "") if task else _guess_task(data, outlines, num_outlines, num_objects)
    form = {key: value for key, value in data.items() if key not in ("train", "val", "test")}
    return Source(path, task, class_names(data), form, splits, _folders_of(data), why)


def _in_both(path: Path, splits: Mapping[str, Split]) -> Iterator[str]:
    """Images that are in train and in val, also by two paths."""
    train = {os.path.realpath(image): image for image in splits["train"].images}
    for image in splits["val"].images:
        twin = train.get(os.path.realpath(image))
        if twin is not None:
            where = "" if twin == image else f" (as {twin})"
            yield f"{path}: {image} is in train{where} and in val; list it in one"


def _guess_task(
    data: dict[str, Any], outlines: Sequence[np.ndarray], num_outlines: int, num_objects: int
) -> tuple[str, str]:
    """The task that labels are most likely for, and why; a label file does not say.

    num_outlines: also those of splits with boxes, where `outlines` has none.
    """
    if data.get("kpt_shape"):
        return "pose", "the data.yaml has kpt_shape"
    if not num_outlines:
        return "detect", "all are boxes"
    if num_outlines < num_objects:
        few = f"not all objects have outlines ({num_outlines} of {num_objects})"
        return "detect", f"{few}, so all are taken as boxes"
    if all(len(outline) == 4 for outline in outlines):
        return "obb", "all outlines have 4 corners"
    return "segment", "not all outlines have 4 corners"


def _folders_of(data: dict[str, Any]) -> dict[str, tuple[Path, ...]]:
    """The folders among the places of the splits. data: as of `read_data`."""
    found = {}
    for split in ("train", "val", "test"):
        places = data.get(split) or []
        places = [Path(place) for place in (places if isinstance(places, list) else [places])]
        found[split] = tuple(place for place in places if place.is_dir())
    return found


def _read_classification(path: Path, scratch: Path) -> Source:
    # Read as the training reads it, which also finds images behind linked folders.
    data = read_class_folders(path, where="SOURCE")
    splits: dict[str, Split] = {}
    problems: list[str] = []
    for name in ("train", "val"):
        try:
            scanned = scan_split(data, "classify", name, scratch)
            assert isinstance(scanned, PrivateClassDataset)
        except InputError as error:
            problems += [f"{path}: {name}: {line}" for line in error.problems]
            continue
        files, classes = zip(*((file, label) for file, label, *_ in scanned.samples), strict=True)
        splits[name] = Split(list(files), [np.array([label]) for label in classes])
    problems = problems or list(_in_both(path, splits))
    if problems:
        raise InputError(problems[:MAX_LINES] + _more(problems))
    return Source(path, "classify", class_names(data), {}, splits, _folders_of(data))


def divide(source: Source, options: argparse.Namespace) -> Partition:
    """Share out the images by the scheme. Raises InputError where a client could not be trained."""
    for split, content in source.splits.items():
        if len(content.images) < options.clients and (split == "train" or options.val == "split"):
            remedy = ", or --val shared" if split == "val" else ""
            raise InputError(
                f"--clients: found {options.clients}, but there are {len(content.images)} {split} "
                f"images, and each client needs one; use fewer{remedy}"
            )
    rng = np.random.default_rng(options.seed)
    groups = _groups(source, options.group_by or "folder") if options.scheme == "group" else {}
    train_labels = source.splits["train"].labels
    images = {
        split: Images(
            rarest_classes(train_labels, content.labels, len(source.names)), groups.get(split, [])
        )
        for split, content in source.splits.items()
    }
    alpha = DEFAULT_ALPHA if options.alpha is None else options.alpha
    assign = SCHEMES[options.scheme](images["train"], options.clients, alpha, rng)
    owners: dict[str, np.ndarray | None] = {"train": assign(images["train"]), "val": None}
    if options.val == "split":
        owners["val"] = assign(images["val"])
    clients = tuple(f"client_{number}" for number in range(options.clients))
    partition = Partition(clients, owners, groups)
    problems = list(_useless_clients(source, partition, options.scheme))
    if problems:
        raise InputError(problems[:MAX_LINES] + _more(problems))
    return partition


def _groups(source: Source, group_by: str) -> dict[str, list[str]]:
    """The group of each image of each split. Raises InputError for images without one."""
    everything = [image for split in source.splits.values() for image in split.images]
    root = os.path.commonpath([str(Path(image).parent) for image in everything])

    def group_of(image: str) -> str | None:
        if group_by == "folder":
            parts = Path(os.path.relpath(image, root)).parts[:-1]
            return "/".join(part for part in parts if part not in COMMON_FOLDERS) or "."
        found = re.search(group_by, Path(image).as_posix())
        return found and (found.group(1) if found.re.groups else found.group())

    groups = {s: [group_of(image) for image in c.images] for s, c in source.splits.items()}
    lost = [
        image
        for split, content in source.splits.items()
        for image, group in zip(content.images, groups[split], strict=True)
        if group is None
    ]
    if lost:
        raise InputError(
            f"--group-by: '{group_by}' matches nothing in the path of {len(lost)} of "
            f"{len(everything)} images, e.g. {lost[0]}; it has to match all"
        )
    return {split: [str(name) for name in names] for split, names in groups.items()}


def _useless_clients(source: Source, partition: Partition, scheme: str) -> Iterator[str]:
    """Clients that the checks before round 1 would refuse."""
    remedies = "use fewer clients" + (" or another --seed" if scheme in DRAWN_SCHEMES else "")
    for split, content in source.splits.items():
        if partition.owners[split] is None:
            continue
        remedy = remedies + (", or --val shared" if split == "val" else "")
        for number, client in enumerate(partition.clients):
            mine = partition.indices(source, split, number)
            if not len(mine):
                yield (
                    f"{client}: gets none of the {len(content.images)} {split} images, expected at "
                    f"least one; {remedy}"
                )
            elif not any(len(content.labels[i]) for i in mine):
                yield (f"{client}: none of its {len(mine)} {split} images has a label; {remedy}")


def class_counts(source: Source, partition: Partition, split: str) -> np.ndarray:
    """Objects of each class that each client has: (clients, classes) int."""
    labels = source.splits[split].labels
    counts = np.zeros((len(partition.clients), len(source.names)), int)
    for number in range(len(partition.clients)):
        for i in partition.indices(source, split, number):
            counts[number] += np.bincount(labels[i], minlength=len(source.names))
    return counts


def count_duplicates(source: Source, partition: Partition) -> tuple[dict[str, Any], list[str]]:
    """How many images have near-duplicates where they matter, and what to say of them."""
    train, val = source.splits["train"].images, source.splits["val"].images
    images = train + val
    hashes = perceptual_hashes(images)
    owners = partition.owners["train"]
    assert owners is not None
    of_client = np.zeros((len(partition.clients), len(images)), bool)  # its train images
    of_client[owners, np.arange(len(train))] = True
    near = near_duplicates(hashes, of_client)
    is_train = np.arange(len(images)) < len(train)
    apart = np.flatnonzero(is_train & np.logical_or.reduce(near & ~of_client)).tolist()
    leaks = np.flatnonzero(~is_train & np.logical_or.reduce(near)).tolist()
    found = {"between_clients": len(apart), "train_and_val": len(leaks)}
    unread = int((hashes == 0).all(axis=1).sum())
    warnings = []
    if apart:
        elsewhere = is_train & ~of_client[owners[apart[0]]]
        twin = nearest_duplicate(hashes, apart[0], elsewhere)
        warnings.append(
            f"{len(apart)} of {len(train)} train images have a near-duplicate at another client, "
            f"e.g. {images[apart[0]]} and {images[twin]}; frames of one video stay together with "
            "--scheme group"
        )
    if leaks:
        twin = nearest_duplicate(hashes, leaks[0], is_train)
        warnings.append(
            f"{len(leaks)} of {len(val)} val images have a near-duplicate in train, e.g. "
            f"{images[leaks[0]]} and {images[twin]}; they make scores too good: split train and "
            "val anew"
        )
    if unread:
        warnings.append(f"{unread} of {len(images)} images could not be compared")
    return found, warnings


def write(source: Source, partition: Partition, output: Path, *, copy: bool) -> None:
    """Write the data set of each client."""
    for number, client in enumerate(partition.clients):
        folder = output / client
        folder.mkdir(parents=True)
        for split, content in source.splits.items():
            images = [content.images[i] for i in partition.indices(source, split, number)]
            if source.task == "classify":
                _write_class_folders(source, images, folder, split, copy=copy)
            elif copy:
                _copy_with_labels(images, folder / "images" / split, content.images)
            else:
                text = "".join(f"{image}\n" for image in images)
                (folder / f"{split}.txt").write_text(text, encoding="utf-8")
        if source.task != "classify":
            where = {s: f"images/{s}" if copy else f"{s}.txt" for s in source.splits}
            _write_yaml(folder / "data.yaml", {**where, **source.data})


def _write_class_folders(
    source: Source, images: Sequence[str], folder: Path, split: str, *, copy: bool
) -> None:
    (root,) = source.folders[split]
    for name in source.names:  # all of them: Ultralytics counts classes by the folders there are
        (folder / split / name).mkdir(parents=True)
    for image in images:
        target = folder / split / Path(image).relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if copy:
            shutil.copyfile(image, target)
        else:
            target.symlink_to(image)


def _copy_with_labels(images: Sequence[str], folder: Path, of_split: Sequence[str]) -> None:
    """Copy images and their labels, with the folders below the one that all images share.

    Folders named `images` are left out: Ultralytics looks for labels where the last of them is.
    """
    root = os.path.commonpath([str(Path(image).parent) for image in of_split])
    folder.mkdir(parents=True)
    taken: dict[Path, Path] = {}
    for image in images:
        parts = Path(os.path.relpath(image, root)).parts
        target = folder.absolute().joinpath(*(part for part in parts if part != "images"))
        label, label_target = (Path(p) for p in img2label_paths([image, str(target)]))
        other = taken.setdefault(label_target, label)
        if other != label:
            raise InputError(
                f"--copy: the labels {other} and {label} would get the same name; rename one with "
                "its image"
            )
        for found, place in ((Path(image), target), (label, label_target)):
            if found.is_file():  # a background has no label
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, place)


def write_config(source: Source, partition: Partition, output: Path, options: str) -> Path:
    """Write a config that starts a federation of the clients, and return its path."""
    path = output / "federated.yaml"
    base = BASE_MODELS[source.task]
    file = "" if source.task == "classify" else "data.yaml"
    config = {
        "base_model": base,
        "datasets": [
            {"name": client, "data": str(output.absolute() / client / file)}
            for client in partition.clients
        ],
        "evaluate": {"data": str(source.path.absolute())},
    }
    comment = (
        f"# {options}\n"
        f"# {base} starts from random weights. A checkpoint, e.g. {Path(base).stem}.pt, learns\n"
        "# faster: put it there first. configs/example.yaml has the other settings.\n"
    )
    _write_yaml(path, config, comment)
    return path


def _write_yaml(path: Path, data: dict[str, Any], comment: str = "") -> None:
    text = yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=1000)
    path.write_text(comment + text, encoding="utf-8")


def summary(source: Source, partition: Partition, duplicates: dict[str, int]) -> dict[str, Any]:
    """What partitions.json says of the clients."""
    counts = {split: class_counts(source, partition, split) for split in source.splits}
    clients: dict[str, Any] = {}
    for number, client in enumerate(partition.clients):
        clients[client] = entry = {}
        for split in source.splits:
            mine = partition.indices(source, split, number)
            entry[f"{split}_images"] = len(mine)
            entry[f"{split}_classes"] = dict(
                zip(source.names, counts[split][number].tolist(), strict=True)
            )
            if split in partition.groups:
                names = partition.groups[split]
                entry[f"{split}_groups"] = dict(sorted(Counter(names[i] for i in mine).items()))
    return {"task": source.task, "near_duplicates": duplicates, "clients": clients}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises InputError with all problems that it shows by itself."""
    parser = Parser(
        prog="partition.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="data.yaml or folder")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR")
    parser.add_argument("--clients", type=int, default=5, metavar="N")
    parser.add_argument("--scheme", default="iid", help=f"{', '.join(SCHEMES)}; default: iid")
    parser.add_argument("--alpha", type=float, help=f"default: {DEFAULT_ALPHA}")
    parser.add_argument("--group-by", metavar="folder|REGEX", help="default: folder")
    parser.add_argument("--val", default="split", help="split (default) or shared")
    parser.add_argument("--copy", action="store_true", help="copy images and labels")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    problems = list(_option_problems(options))
    if problems:
        raise InputError(problems)
    return options


def _option_problems(options: argparse.Namespace) -> Iterator[str]:
    scheme = options.scheme
    if scheme not in SCHEMES:
        yield (
            f"--scheme: found '{scheme}', expected one of {', '.join(SCHEMES)}"
            f"{nearest(scheme, SCHEMES)}"
        )
    if options.clients < 1:
        yield f"--clients: found {options.clients}, expected at least 1"
    if options.seed < 0:
        yield f"--seed: found {options.seed}, expected a whole number of at least 0"
    if options.val not in ("split", "shared"):
        yield f"--val: found '{options.val}', expected split or shared"
    if options.alpha is not None:
        if scheme in SCHEMES and scheme not in SCHEMES_WITH_ALPHA:
            yield (
                f"--alpha: has no effect with --scheme {scheme}; use "
                f"{' or '.join(SCHEMES_WITH_ALPHA)}, or leave it out"
            )
        low, high = ALPHA_RANGE
        if not (math.isfinite(options.alpha) and low <= options.alpha <= high):
            yield (
                f"--alpha: found {options.alpha:g}, expected a number from {low:g} (clients "
                f"unlike) to {high:g} (alike)"
            )
    if options.group_by is not None:
        if scheme in SCHEMES and scheme != "group":
            yield f"--group-by: has no effect with --scheme {scheme}; use group, or leave it out"
        try:
            re.compile(options.group_by)
        except re.error as error:
            yield (
                f"--group-by: '{options.group_by}' is no regular expression: {error}; expected "
                "'folder', or e.g. 'cam(\\d+)_'"
            )
    output = options.output
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        yield f"-o {output}: is there and is left as it is; choose a new or empty folder"
    elif output.absolute().parent.exists() and not output.absolute().parent.is_dir():
        yield f"-o {output}: {output.absolute().parent} is not a folder; choose another place"
    if not options.source.exists():
        yield f"{options.source}: no such file or folder; expected a data.yaml or a folder of data"


def _more(problems: Sequence[str]) -> list[str]:
    more = len(problems) - MAX_LINES
    return [f"... and {more} more problems"] if more > 0 else []


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    for interrupt in (signal.SIGINT, signal.SIGTERM):
        signal.signal(interrupt, signal.default_int_handler)
    try:
        run(parse(arguments))
    except InputError as error:
        show_problems(error.problems)
        return 2
    except OSError as error:  # e.g. a disk that is full
        show_problems([str(error)])
        return 1
    except KeyboardInterrupt:
        show_problems(["interrupted"])
        return 130
    return 0


def run(options: argparse.Namespace) -> None:
    """Read -> share out -> compare -> write -> say what came out. Raises InputError.

    What was begun in the output folder is removed if it cannot be finished.
    """
    output: Path = options.output
    was_there = output.exists()
    try:
        with tempfile.TemporaryDirectory(prefix="federated-yolo-partition-") as scratch:
            _run(options, output, Path(scratch))
    except BaseException:
        for path in output.glob("*") if was_there else [output]:
            shutil.rmtree(path, ignore_errors=True)
            path.unlink(missing_ok=True)
        raise


def _run(options: argparse.Namespace, output: Path, scratch: Path) -> None:
    path: Path = options.source
    converted = None
    if path.is_dir() and is_coco(path):
        converted = convert_coco(path, output / "source")
    elif path.is_dir() and is_voc(path):
        converted = convert_voc(path, output / "source")
    if converted:
        source = read_source(converted.path, scratch, converted.task)
    else:
        source = read_source(path, scratch)
    _refuse_inside(source, output)
    if converted:
        print(f"Labels of {source.task}: {converted.why}")
    elif source.why:
        print(
            f"Labels of {source.task}: {source.why}; for another task change base_model in "
            "federated.yaml"
        )
    partition = divide(source, options)
    num_images = sum(len(split.images) for split in source.splits.values())
    print(f"Comparing {num_images} images ...", flush=True)
    duplicates, warnings = count_duplicates(source, partition)
    described = f"{options.source} by {describe(options)}"
    write(source, partition, output, copy=options.copy)
    result = {"partition": described, **summary(source, partition, duplicates)}
    text = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    (output / "partitions.json").write_text(text, encoding="utf-8")
    counts = class_counts(source, partition, "train")
    train_images = {name: entry["train_images"] for name, entry in result["clients"].items()}
    unit = "images" if source.task == "classify" else "objects"
    draw_partitions(output / "partitions.png", train_images, counts, source.names, unit)
    show(source, result, counts)
    for warning in [*(converted.warnings if converted else ()), *warnings]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{output / 'partitions.png'}  {described}")
    print("Next:")
    config = write_config(source, partition, output, described)
    print(f"  python federated.py check {config}")
    print(f"  python federated.py {config}")


def _refuse_inside(source: Source, output: Path) -> None:
    """Raise InputError where what is written would become a part of the source."""
    for split, folders in source.folders.items():
        images = source.splits[split].images if split in source.splits else []
        # Where an image is that was found in a folder, others are looked for, too: it can lie
        # behind a link.
        below = {Path(i).parent for i in images if any(map(Path(i).is_relative_to, folders))}
        for folder in sorted({place.resolve() for place in (*folders, *below)}):
            if output.resolve().is_relative_to(folder):
                raise InputError(
                    f"-o {output}: is inside {folder}, where the {split} images are, and would "
                    "become a part of them; choose a place outside"
                )


def describe(options: argparse.Namespace) -> str:
    """The scheme, and what else decides the result."""
    alpha = DEFAULT_ALPHA if options.alpha is None else options.alpha
    extra = f" (alpha {alpha:g})" if options.scheme in SCHEMES_WITH_ALPHA else ""
    extra = f" ({options.group_by or 'folder'})" if options.scheme == "group" else extra
    return f"scheme {options.scheme}{extra}, val {options.val}, seed {options.seed}"


def show(source: Source, result: dict[str, Any], counts: np.ndarray) -> None:
    """Print a table: a row for each client with its images, and its train objects by class."""
    names = source.names if len(source.names) <= MAX_CLASSES else ()
    widths = [max(len(name), 6) for name in names]
    first = max(len(client) for client in result["clients"])
    heads = [name.rjust(width) for name, width in zip(names, widths, strict=True)]
    print("  ".join([" " * first, " train", "   val", *heads]))
    for row, (client, entry) in zip(counts.tolist(), result["clients"].items(), strict=True):
        cells = [f"{entry['train_images']:6}", f"{entry['val_images']:6}"]
        cells += [f"{row[i]:{width}}" for i, width in enumerate(widths)]
        print("  ".join([client.ljust(first), *cells]))


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    finally:
        remove_private_settings()
