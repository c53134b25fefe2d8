"""The data sets of the benchmark of quality: found, pooled, split, and known by a digest."""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federated_yolo.common.errors import InputError, nearest
from federated_yolo.config.schema import CLIENT_NAME

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"  # data and weights that the examples are of


@dataclass(frozen=True)
class Data:
    """What is compared on. Paths are what Ultralytics' `data=` takes.

    names: of all classes, by index. clients: of each split, by the client's name. pooled: by split
    too, under "all" where it is the same for all. test: its split `scored` is what all are scored
    on. pooled and test count classes as `names` does, clients as they like.
    """

    task: str
    names: tuple[str, ...]
    clients: dict[str, dict[str, str]]
    pooled: dict[str, str]
    test: str
    scored: str


def with_whole_paths(options: argparse.Namespace) -> argparse.Namespace:
    """The same, with absolute paths."""
    for name in ("shared", "data", "out", "pooled", "test"):
        if getattr(options, name, None):
            setattr(options, name, getattr(options, name).resolve())
    return options


def find_data(options: argparse.Namespace) -> Data:
    """The data sets that the options name. Raises InputError where they do not go together."""
    given = getattr(options, "clients", None)
    data = options.data or options.shared / "data/bccd"
    if not given and not data.exists():
        raise InputError(f"{data}: not found; give --shared or --data")
    is_federated = (data / "fed").is_dir()
    pooled = getattr(options, "pooled", None)
    if given:
        clients = {"clients": name_clients(given)}
    elif is_federated:
        clients = {split: client_data(data, split) for split in splits_of(data, options)}
        pooled = pooled or next(filter(Path.exists, layouts(data / "all")), None)
    else:
        pooled = pooled or next(filter(Path.exists, layouts(data)), data)
        clients = {
            f"{scheme}{options.num_clients}": partitioned(pooled, scheme, options)
            for scheme in options.splits or ["iid"]
        }
    first = next(iter(clients.values()))
    task = task_of_data(pooled or Path(next(iter(first.values()))), options)
    return aligned(clients, pooled, getattr(options, "test", None), task, options.out)


def layouts(folder: Path) -> tuple[Path, Path]:
    """Where the data set of a folder may be: its data.yaml, or the folder itself."""
    return folder / "data.yaml", folder


def splits_of(data: Path, options: argparse.Namespace) -> list[str]:
    """Splits below fed/, those asked for or all. Raises InputError for one that is not there."""
    there = sorted(path.name for path in (data / "fed").iterdir() if path.is_dir())
    there.sort(key=lambda name: not name.startswith("iid"))
    chosen = getattr(options, "splits", None) or there
    if unknown := [name for name in chosen if name not in there]:
        raise InputError(f"--splits {' '.join(unknown)}: found {', '.join(there)} in {data}")
    return chosen


def client_data(data: Path, split: str) -> dict[str, str]:
    """The data set of each client of a split below fed/."""
    folders = sorted(path for path in (data / "fed" / split).iterdir() if path.is_dir())
    return {f.name: str(next(filter(Path.exists, layouts(f)))) for f in folders}


def name_clients(paths: Sequence[Path]) -> dict[str, str]:
    """Clients by the names of their folders, or by numbers where these are not told apart."""
    names = [
        path.absolute().name if path.is_dir() else path.absolute().parent.name for path in paths
    ]
    if len(set(names)) < len(names) or not all(map(CLIENT_NAME.fullmatch, names)):
        names = [f"client_{number}" for number in range(len(paths))]
    return {name: str(path.absolute()) for name, path in zip(names, paths, strict=True)}


def task_of_data(path: Path, options: argparse.Namespace) -> str:
    """The task of --base, or else what the labels are for."""
    from federated_yolo.partitioning.source import read_source
    from federated_yolo.yolo.checkpoint import task_of

    if options.base:
        return task_of(options.base)
    scratch = options.out / "caches" / "task"
    scratch.mkdir(parents=True, exist_ok=True)
    return read_source(path, scratch).task


def partitioned(source: Path, scheme: str, options: argparse.Namespace) -> dict[str, str]:
    """Clients that utils/partition.py makes, once. Raises InputError with what it says."""
    task = task_of_data(source, options)
    number = fingerprint(str(source), task, "train", options.out / "caches")
    folder = options.out / "data" / f"{scheme}{options.num_clients}-{digest_of(number)}"
    done = folder / ".done"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        command = [sys.executable, ROOT / "utils/partition.py", source, "-o", folder]
        command += ["--clients", options.num_clients, "--scheme", scheme, "--val", "shared"]
        told = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if told.returncode:
            lines = [line.removeprefix("error: ") for line in told.stderr.splitlines()]
            raise InputError([f"{source}: {line}" for line in lines if line])
        done.touch()
    return {
        path.name: str(next(filter(Path.exists, layouts(path))))
        for path in sorted(folder.glob("client_*"), key=lambda path: (len(path.name), path.name))
    }


def aligned(
    clients: dict[str, dict[str, str]], pooled: Path | None, test: Path | None, task: str, out: Path
) -> Data:
    """Find the classes of all, and make what was not given of the clients' data."""
    from federated_yolo.data.data_yaml import class_names, read_data
    from federated_yolo.data.label_space import label_space

    def names_of(path: Any) -> tuple[str, ...]:
        return class_names(read_data(Path(path), task, where="data"))

    sources = {f"{s}/{c}": names_of(p) for s, group in clients.items() for c, p in group.items()}
    names = names_of(pooled) if pooled else label_space(sources)
    source = "pooled" if pooled else "clients'"
    if test:
        sources["--test"] = names_of(test)
    problems = [
        f"{where}: class '{name}' is not among {', '.join(names)} of the {source} data"
        f"{nearest(name, names)}; rename it, or give --pooled with all classes"
        for where, own in sources.items()
        for name in sorted(set(own) - set(names))
    ]
    if problems:
        raise InputError(problems)
    for where, own in sources.items():
        if where != "--test" and (lacking := [name for name in names if name not in own]):
            what = "in plain trainings its images show none of it"
            print(f"note: {where} has no class {', '.join(lacking)}: {what}", flush=True)
    if pooled:
        whole = {"all": merged([str(pooled)], names, task, out)}
    else:
        whole = {s: merged(list(group.values()), names, task, out) for s, group in clients.items()}
    tested = merged([str(test)], names, task, out) if test else next(iter(whole.values()))
    scored = "test" if read_data(Path(tested), task, where="data").get("test") else "val"
    return Data(task, names, clients, whole, tested, scored)


def merged(paths: Sequence[str], names: tuple[str, ...], task: str, out: Path) -> str:
    """One data set of several, which counts classes by `names`.

    It names the same files as they do; where one counts classes in another way, links to its images
    beside labels that are renumbered. A split that not all have is left out.
    """
    from federated_yolo.data.data_yaml import class_names, read_data, write_private_yaml

    read = [read_data(Path(path), task, where="data") for path in paths]
    if len(paths) == 1 and class_names(read[0]) == names:
        return paths[0]
    folder = out / "data" / f"merged-{digest_of([paths, names])}"
    shutil.rmtree(folder, ignore_errors=True)
    splits = [s for s in ("train", "val", "test") if all(data.get(s) for data in read)]
    if task == "classify":
        for split in splits:
            link_classes([Path(data[split]) for data in read], names, folder / split)
        return str(folder)
    form = {k: read[0].get(k) for k in ("channels", "kpt_shape", "flip_idx", "kpt_oks_sigmas")}
    for path, data in zip(paths, read, strict=True):
        if different := [key for key in form if data.get(key) != form[key]]:
            raise InputError(f"{path}: {different[0]} differs from that of {paths[0]}")
    result: dict[str, Any] = {key: value for key, value in form.items() if value is not None}
    for split in splits:
        places: list[str] = []
        for number, data in enumerate(read):
            found = data[split]
            if class_names(data) != names:
                found = str(renumbered(data, split, names, folder / str(number)))
            places += found if isinstance(found, list) else [found]
        result[split] = list(dict.fromkeys(places))
    return str(write_private_yaml({**result, "names": dict(enumerate(names))}, folder))


def link_classes(sources: Iterable[Path], names: Iterable[str], folder: Path) -> None:
    """Make folder/CLASS with links to the images of each source's."""
    from federated_yolo.data.data_yaml import is_image_name

    for name in names:
        (folder / name).mkdir(parents=True)
    links: dict[Path, str] = {}
    for number, source in enumerate(dict.fromkeys(sources)):
        for image in sorted(source.glob("*/*")):
            if is_image_name(image.name):  # one that several have is taken once
                links.setdefault(image.resolve(), f"{image.parent.name}/{number}_{image.name}")
    for image, link in links.items():
        (folder / link).symlink_to(image)


def renumbered(data: dict[str, Any], split: str, names: Sequence[str], folder: Path) -> Path:
    """Link the images of a split beside labels that count classes by `names`."""
    from ultralytics.data.utils import img2label_paths

    numbers = {str(index): str(names.index(name)) for index, name in data["names"].items()}
    images, labels = folder / "images" / split, folder / "labels" / split
    for made in (images, labels):
        made.mkdir(parents=True)
    found = scanned(data, "detect", split, folder / "caches").im_files
    for number, (image, label) in enumerate(zip(found, img2label_paths(found), strict=True)):
        link = images / f"{number}_{Path(image).name}"
        link.symlink_to(Path(image).resolve())
        if Path(label).exists():
            rows = [line.split(maxsplit=1) for line in Path(label).read_text().splitlines()]
            text = "".join(f"{numbers[row[0]]} {row[1]}\n" for row in rows if row)
            (labels / f"{link.stem}.txt").write_text(text)
    return images


def scanned(data: dict[str, Any], task: str, split: str, caches: Path) -> Any:
    """The data set of a split, all of whose images and labels are sound. Raises InputError."""
    from federated_yolo.data.scan import scan_split

    caches.mkdir(parents=True, exist_ok=True)
    try:
        return scan_split(data, task, split, caches)
    except InputError as error:
        raise InputError([f"{data[split]}: {line}" for line in error.problems]) from error


@dataclass(frozen=True)
class Split:
    """A split of a data set. images: each image's path, and the text of its labels, or its class.

    digest: of the classes, images (names and sizes) and labels, wherever they are.
    """

    images: tuple[tuple[str, str], ...]
    digest: str


def read_split(path: str, task: str, split: str, caches: Path) -> Split:
    """Read a split, once. Raises InputError for what is not sound."""
    from ultralytics.data.utils import img2label_paths

    from federated_yolo.data.data_yaml import read_data

    key = (path, task, split)
    if key not in _splits:
        data = read_data(Path(path), task, where="data")
        found = scanned(data, task, split, caches / digest_of([path, task]))
        if task == "classify":
            files = [(file, str(label)) for file, label, *_ in found.samples]
        else:
            labels = map(Path, img2label_paths(found.im_files))
            texts = [label.read_text() if label.exists() else "" for label in labels]
            files = list(zip(found.im_files, texts, strict=True))
        images = [[Path(f).name, Path(f).stat().st_size, label] for f, label in files]
        form = {k: v for k, v in data.items() if k not in ("train", "val", "test")}
        _splits[key] = Split(tuple(files), digest_of([form, images]))
    return _splits[key]


_splits: dict[tuple[str, str, str], Split] = {}


def fingerprint(path: str, task: str, split: str, caches: Path) -> str:
    """`Split.digest` of a split."""
    return read_split(path, task, split, caches).digest


def digest_of(value: Any) -> str:
    """16 characters that stand for a value of lists, mappings, texts and numbers."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unannotated(source: str, folder: Path, variant: str, masked: str) -> Path:
    """A copy of a client's data without labels of a class, or without the images that have any."""
    from ultralytics.data.utils import img2label_paths

    from federated_yolo.data.data_yaml import read_data_yaml, write_private_yaml

    data = read_data_yaml(Path(source), where="data")
    index = next((str(i) for i, name in data["names"].items() if name == masked), None)
    shutil.rmtree(folder, ignore_errors=True)
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    found = scanned(data, "detect", "train", folder / "caches").im_files
    for image, label in zip(map(Path, found), map(Path, img2label_paths(found)), strict=True):
        rows = label.read_text().splitlines() if label.exists() else []
        others = [row for row in rows if row.split()[:1] != [index]]
        if variant == "without" and len(others) < len(rows):
            continue
        (folder / "images" / image.name).symlink_to(image.resolve())
        (folder / "labels" / label.name).write_text("".join(f"{row}\n" for row in others))
    return write_private_yaml({**data, "train": str(folder / "images")}, folder)
