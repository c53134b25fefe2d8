"""How good a federation's model is beside the model of the pooled data and of each client alone.

    python benchmarks/quality.py [--data DIR] [--splits NAME ...] [--num-clients 3]
    python benchmarks/quality.py --clients A/data.yaml B/data.yaml [--pooled P] [--test T]
        [--base MODEL] [--pretrained BACKBONE.pt] [--seeds 0 1 2] [--epochs 25] [--imgsz 160]
        [--batches 16 ...] [--local-epochs 1] [--settings NAME|KEY=VALUE ...]
        [--train KEY=VALUE ...] [--federated] [--masking [CLASS]] [--out runs/quality]

DIR has all/data.yaml and fed/SPLIT/CLIENT/data.yaml, or is a data set of any task (its data.yaml, a
folder with one, class folders), which utils/partition.py then splits by each scheme of --splits.

Every run sees each image `--epochs` times, starts from the same base and is scored on the common
test split (val, where not all have one) after its last epoch, without choosing a best one:

centralised  `yolo train` on the pooled data, with each of --batches and nbs = batch (the default of
             64, which takes a quarter of the steps, learns much less); by default with 16, and with
             a client's share of 16
local        `yolo train` on one client's data, with its share of the first of --batches
federated    `python federated.py` with --local-epochs a round, for each of --settings: a name of
             SETTINGS, or settings of federated.py, such as "strategy=fedprox server_ema=0.5"

OUT/results has a file for each finished run, named by a digest of all that it depends on: a rerun
does what is missing. OUT/results.csv, table.md and quality.png are written in any case: of the runs
so far of this data, base, test split, epochs, imgsz and versions; failed ones are named.
`--masking [CLASS]` trains federations of the first split in which a class (the first) of one client
is not labelled: with it left out of its loss, as background, and without those images; and of two.

Exit codes: 0 done, 1 a run failed, 2 wrong input (nothing was trained), 130 interrupted.
"""

import argparse
import csv
import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    from federated_yolo.common.environment import prepare_environment

    prepare_environment()  # before Ultralytics is imported, which the modules below do

import yaml

from federated_yolo.common.command_line import Parser, show_problems
from federated_yolo.common.environment import remove_private_settings
from federated_yolo.common.errors import InputError, nearest
from federated_yolo.config.schema import CLIENT_NAME

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
BASE = "yolov8n{}.yaml"
SUFFIXES = {"detect": "", "segment": "-seg", "pose": "-pose", "obb": "-obb", "classify": "-cls"}
# What is federated beside the defaults: name -> settings of federated.py. {batch} is the first of
# --batches, {share} a client's share of it.
SETTINGS: dict[str, list[str]] = {
    "defaults": [],
    "batch 16 each": ["train.batch={batch}"],
    "lr0 not scaled": ["train.batch={share}"],
    "optimizer reset": ["local_optimizer=reset"],
    "server_ema 0.5": ["server_ema=0.5"],
    "batchnorm frozen": ["shared.batchnorm=frozen"],
    "fedavgm": ["strategy=fedavgm"],
    "fedadam": ["strategy=fedadam"],
    "fedyogi": ["strategy=fedyogi"],
    "fedprox": ["strategy=fedprox"],
    "fednova": ["strategy=fednova"],
}
# How the data of these clients (by index) differ: name -> variant of `unannotated`, clients.
MASKING: dict[str, tuple[str, tuple[int, ...]]] = {
    "{} left out of its loss": ("masked", (1,)),
    "{} as background": ("background", (1,)),
    "without its images of {}": ("without", (1,)),
    "two clients: {} left out of their loss": ("masked", (1, 2)),
    "two clients: {} as background": ("background", (1, 2)),
}
KINDS = ("centralised", "local", "federated")  # in the order of the table
MAX_CLASS_COLUMNS = 4
ONE_AT_A_TIME = threading.Lock()


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


@dataclass(frozen=True)
class Setup:
    """What all runs have in common. batch: of a step of all clients together."""

    out: Path
    data: Data
    base: str
    pretrained: str | None
    epochs: int
    imgsz: int
    batch: int = 16
    train: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def frame(self) -> str:
        """Digest of what runs must share to stand in one table."""
        from federated_yolo.protocol.handshake import versions

        base = Path(self.base)
        return digest_of(
            [
                file_digest(base) if base.is_file() else self.base,
                file_digest(Path(self.pretrained)) if self.pretrained else None,
                [self.epochs, self.imgsz, self.train, self.data.task, self.data.names],
                fingerprint(self.data.test, self.data.task, self.data.scored, self.caches),
                versions(),
            ]
        )

    @property
    def caches(self) -> Path:
        """Folder of label caches."""
        return self.out / "caches"

    def share(self, split: str) -> int:
        """A client's share of the batch, as checks/federation.py gives it."""
        return share_of(self.batch, len(self.data.clients[split]))


@dataclass(frozen=True)
class Job:
    """One training. kind: of KINDS. name and split: as the table calls it. data: by client.

    settings: of federated.py. batch: of a step of a plain training, 0 for a federation.
    """

    kind: str
    name: str
    split: str
    seed: int
    data: Mapping[str, str]
    settings: tuple[str, ...] = ()
    batch: int = 0

    def recipe(self, setup: Setup) -> str:
        """What its result depends on but for the seed, in 16 characters.

        The names of run and split are not in it. Batches of a federation are shares of the setup's.
        """
        data = [
            [client, fingerprint(path, setup.data.task, "train", setup.caches)]
            for client, path in self.data.items()
        ]
        values = [setting.partition("=")[2].partition(":")[0] for setting in self.settings]
        files = [file_digest(Path(value)) for value in values if Path(value).is_file()]
        batch = self.batch or setup.batch
        return digest_of([setup.frame, self.kind, data, self.settings, files, batch])

    def digest(self, setup: Setup) -> str:
        """The same with the seed."""
        return digest_of([self.recipe(setup), self.seed])

    def __str__(self) -> str:
        return f"{self.name}, {self.split}, seed {self.seed}"


def main() -> int:
    """Run what is missing, then write the tables and the plot of what there is."""
    if sys.argv[1:2] == ["--job"]:  # a plain training in its own process
        train_plainly(**json.loads(sys.argv[2]))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        options = parse(make_quality_parser())
        setup = make_setup(options, find_data(options))
        jobs = plan(options, setup)
        refuse_wrong(jobs, setup)
        failed: dict[str, str] = {}
        try:
            run_missing(jobs, setup, failed)
        finally:
            write_tables(jobs, setup, failed)
        return int(bool(failed))
    except InputError as error:
        show_problems(error.problems)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        remove_private_settings()


# Arguments.


def make_parser(description: str, out: Path) -> argparse.ArgumentParser:
    """The arguments of all benchmarks that train. description: a module's docstring."""
    parser = Parser(description=description.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED / "data/bccd", metavar="DIR")
    parser.add_argument("--base", help="model YAML or checkpoint; default: yolov8n of the task")
    parser.add_argument(
        "--pretrained",
        help="checkpoint that a base without weights takes over what fits from, or 'none'; "
        "default: the shared backbone, for a yolov8n",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--out", type=Path, default=out)
    return parser


def make_quality_parser() -> argparse.ArgumentParser:
    """The arguments of this benchmark."""
    parser = make_parser(__doc__ or "", Path("runs/quality"))
    parser.add_argument("--clients", type=Path, nargs="+", help="data of each client, for --data")
    parser.add_argument("--pooled", type=Path, help="data of all; default: that of the clients")
    parser.add_argument("--test", type=Path, help="what to score on; default: the pooled data")
    parser.add_argument("--splits", nargs="+", help="below fed/; or schemes of utils/partition.py")
    parser.add_argument("--num-clients", type=int, default=3, help="where --data is one data set")
    parser.add_argument("--batches", type=int, nargs="+", help="default: 16 and a client's share")
    parser.add_argument("--local-epochs", type=int, default=1)
    parser.add_argument("--settings", nargs="+", default=["defaults"])
    parser.add_argument("--train", nargs="+", default=[], help="train arguments of all runs")
    parser.add_argument("--masking", nargs="?", const="", metavar="CLASS")
    parser.add_argument("--federated", action="store_true", help="leave out the plain trainings")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with absolute paths. Raises InputError."""
    options = parser.parse_args()
    for name in ("data", "out", "pooled", "test"):
        if getattr(options, name, None):
            setattr(options, name, getattr(options, name).resolve())
    if options.epochs < 1 or options.imgsz < 1:
        raise InputError(f"found --epochs {options.epochs} --imgsz {options.imgsz}, expected >= 1")
    options.out.mkdir(parents=True, exist_ok=True)
    return options


def make_setup(options: argparse.Namespace, data: Data) -> Setup:
    """What all runs have in common. Raises InputError for a base that does not fit the data."""
    from federated_yolo.config.train_arguments import train_problems
    from federated_yolo.yolo.checkpoint import task_of

    base = options.base or BASE.format(SUFFIXES[data.task])
    if task_of(base) != data.task:
        raise InputError(f"--base {base} is of task {task_of(base)}, the data of {data.task}")
    train = {}
    for item in getattr(options, "train", []):
        key, _, value = item.partition("=")
        train[key] = yaml.safe_load(value)
    if problems := [f"--train: {problem}" for problem in train_problems(train)]:
        raise InputError(problems)
    if fixed := {"batch", "epochs", "imgsz", "nbs", "seed", "data", "pretrained"} & set(train):
        raise InputError(f"--train: {', '.join(sorted(fixed))}: has an option of its own, or none")
    backbone = SHARED / "weights/yolov8n-cls-imagenet-ft.pt"
    pretrained = options.pretrained
    if pretrained is None and Path(base).name.startswith("yolov8n") and base.endswith("yaml"):
        pretrained = str(backbone)
    pretrained = None if pretrained in (None, "none") else str(Path(pretrained).absolute())
    if pretrained and not Path(pretrained).is_file():
        raise InputError(f"--pretrained {pretrained}: no such file; give one, or 'none'")
    base = str(Path(base).absolute()) if Path(base).is_file() else base
    batch = (getattr(options, "batches", None) or [16])[0]
    return Setup(options.out, data, base, pretrained, options.epochs, options.imgsz, batch, train)


# Data.


def find_data(options: argparse.Namespace) -> Data:
    """The data sets that the options name. Raises InputError where they do not go together."""
    given = getattr(options, "clients", None)
    is_federated = (options.data / "fed").is_dir()
    pooled = getattr(options, "pooled", None)
    if given:
        clients = {"clients": name_clients(given)}
    elif is_federated:
        clients = {split: client_data(options.data, split) for split in splits_of(options)}
        pooled = pooled or next(filter(Path.exists, layouts(options.data / "all")), None)
    else:
        pooled = pooled or next(filter(Path.exists, layouts(options.data)), options.data)
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


def splits_of(options: argparse.Namespace) -> list[str]:
    """Splits below fed/, those asked for or all. Raises InputError for one that is not there."""
    there = sorted(path.name for path in (options.data / "fed").iterdir() if path.is_dir())
    there.sort(key=lambda name: not name.startswith("iid"))
    chosen = getattr(options, "splits", None) or there
    if unknown := [name for name in chosen if name not in there]:
        raise InputError(
            f"--splits {' '.join(unknown)}: found {', '.join(there)} in {options.data}"
        )
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


def fingerprint(path: str, task: str, split: str, caches: Path) -> str:
    """Digest of the classes, images (names and sizes) and labels of a split, wherever they are."""
    from ultralytics.data.utils import img2label_paths

    from federated_yolo.data.data_yaml import read_data

    key = (path, task, split)
    if key not in _fingerprints:
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
        _fingerprints[key] = digest_of([form, images])
    return _fingerprints[key]


_fingerprints: dict[tuple[str, str, str], str] = {}


def digest_of(value: Any) -> str:
    """16 characters that stand for a value of lists, mappings, texts and numbers."""
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def file_digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def share_of(batch: int, num_clients: int) -> int:
    """What each of so many clients takes of a batch, as checks/federation.py decides."""
    from federated_yolo.checks.resolve import MIN_BATCH

    return max(MIN_BATCH, round(batch / num_clients))


# What is to be run.


def plan(options: argparse.Namespace, setup: Setup) -> list[Job]:
    """What the options ask for; what is the same by two names, once."""
    make = quality_jobs if options.masking is None else masking_jobs
    return list({job.digest(setup): job for job in reversed(make(options, setup))}.values())[::-1]


def quality_jobs(options: argparse.Namespace, setup: Setup) -> list[Job]:
    """Everything that the table needs."""
    data = setup.data
    shares = [setup.share(split) for split in data.clients]
    batches = options.batches or list(dict.fromkeys([setup.batch, *shares]))
    runs = {item: settings_of(item, options) for item in options.settings}
    jobs = []
    for seed in options.seeds:
        for split, pooled in data.pooled.items():
            for batch in batches:
                name = f"centralised, batch {batch}"
                jobs.append(Job("centralised", name, split, seed, {"all": pooled}, (), batch))
        for split, clients in data.clients.items():
            for client, path in clients.items():
                own = {client: merged([path], data.names, data.task, setup.out)}
                name, share = f"{client} alone", setup.share(split)
                jobs.append(Job("local", name, split, seed, own, (), share))
            for name, settings in runs.items():
                places = {"batch": setup.batch, "share": setup.share(split)}
                filled = tuple(setting.format(**places) for setting in settings)
                jobs.append(Job("federated", name, split, seed, clients, filled))
    return [job for job in jobs if job.kind == "federated" or not options.federated]


def settings_of(item: str, options: argparse.Namespace) -> list[str]:
    """Settings of federated.py by a name of SETTINGS, or as they are, with --local-epochs."""
    settings = SETTINGS.get(item, item.split())
    if wrong := [setting for setting in settings if "=" not in setting]:
        raise InputError(
            f"--settings '{item}': found '{wrong[0]}'{nearest(item, SETTINGS)}; expected "
            f"key=value, or one of: {', '.join(SETTINGS)}"
        )
    names = [setting.partition("=")[0] for setting in settings]
    if options.local_epochs > 1 and "local_epochs" not in names:
        settings = [*settings, f"local_epochs={options.local_epochs}"]
    return settings


def masking_jobs(options: argparse.Namespace, setup: Setup) -> list[Job]:
    """Federations of the first split in which one client or two did not annotate a class."""
    data = setup.data
    split, clients = next(iter(data.clients.items()))
    masked = options.masking or data.names[0]
    if data.task == "classify" or masked not in data.names or len(clients) < 3:
        raise InputError(
            f"--masking {masked}: found {data.task}, classes {', '.join(data.names)}, "
            f"{len(clients)} clients; expected objects, one of the classes, 3 clients"
        )
    jobs = []
    for name, (variant, indices) in MASKING.items():
        masked_clients, settings = dict(clients), []
        for index in indices:
            client = list(clients)[index]
            folder = setup.out / "data" / f"{variant}-{masked}-{split}-{client}"
            masked_clients[client] = str(unannotated(clients[client], folder, variant, masked))
            if variant == "masked":
                settings.append(f"datasets.{index}.not_annotated=[{masked}]")
        jobs += [
            Job("federated", name.format(masked), split, seed, masked_clients, tuple(settings))
            for seed in options.seeds
        ]
    return jobs


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


def refuse_wrong(jobs: Iterable[Job], setup: Setup) -> None:
    """Check the federations that are to be run as federated.py would. Raises InputError."""
    from federated_yolo.checks.federation import checked
    from federated_yolo.config.loading import load_config

    problems: list[str] = []
    seen = set()
    for job in jobs:
        what = (job.split, job.settings, str(job.data))
        if job.kind != "federated" or what in seen or record_path(job, setup).exists():
            continue
        seen.add(what)
        try:
            path = write_config(job, setup.out / "data" / "config", setup)
            with checked(load_config(path, [*job.settings, *evaluation_of(path, job)])):
                pass
        except InputError as error:
            problems += [f"{job.name}, {job.split}: {line}" for line in error.problems]
    if problems:
        raise InputError(list(dict.fromkeys(problems)))


# Running.


def run_missing(jobs: Iterable[Job], setup: Setup, failed: dict[str, str]) -> None:
    """Run plain trainings two at a time, one thread each, then federations, of two workers.

    failed: gets the reason of each that failed, by its digest.
    """
    missing = [job for job in jobs if not record_path(job, setup).exists()]
    running: set[subprocess.Popen[bytes]] = set()
    is_stopping = threading.Event()

    def attempt(job: Job) -> None:
        try:
            run_job(job, setup, running)
        except Exception as error:  # of any kind: the others are run all the same
            if not is_stopping.is_set():
                failed[job.digest(setup)] = f"{job}: {error}"
                print(f"failed: {job}: {error}", flush=True)

    pool = ThreadPoolExecutor(2)
    try:
        list(pool.map(attempt, [job for job in missing if job.kind != "federated"]))
        for job in missing:
            if job.kind == "federated":
                attempt(job)
    finally:  # also interrupted: then what runs ends, and what waits is not begun
        is_stopping.set()
        for process in running.copy():
            process.terminate()
        pool.shutdown(cancel_futures=True)


def record_path(job: Job, setup: Setup) -> Path:
    """Where the result of a run is kept."""
    return setup.out / "results" / f"{job.digest(setup)}.json"


def run_job(job: Job, setup: Setup, running: set[subprocess.Popen[bytes]]) -> None:
    """Train in a process of its own, score the weights, keep the result."""
    started = time.perf_counter()
    digest = job.digest(setup)
    label = f"{job.name}-{job.split}-{job.seed}"[:80]
    label = "".join(c if c.isalnum() or c in ".-" else "_" for c in label)
    folder = setup.out / "runs" / f"{label}-{digest}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = federated_command if job.kind == "federated" else plain_command
    log = folder / "log.txt"
    with log.open("w") as file:
        # A plain training may leave files where it runs; settings may name files from here.
        where = None if job.kind == "federated" else folder
        arguments = command(job, folder, setup)
        process = subprocess.Popen(arguments, stdout=file, stderr=file, cwd=where)
        running.add(process)
        try:
            code = process.wait()
        finally:
            running.discard(process)
    if code:
        raise RuntimeError(f"exit code {code}, see {log}")
    seconds = time.perf_counter() - started
    with ONE_AT_A_TIME:  # libraries set themselves up on first use
        metrics, per_class = mean_score(models_of(folder / "run"), setup, folder)
    record = {
        **{k: v for k, v in asdict(job).items() if k != "data"},
        **{"digest": digest, "recipe": job.recipe(setup)},
        **{"frame": setup.frame, "folder": folder.name},
        **{"metrics": metrics, "per_class": per_class, "seconds": round(seconds, 1)},
    }
    keep(record, record_path(job, setup))
    tidy(folder / "run")
    print(json.dumps({"name": str(job), **metrics, "seconds": record["seconds"]}), flush=True)


def keep(record: dict[str, Any], path: Path) -> None:
    """Write a result; it is there as a whole or not at all."""
    from federated_yolo.common.files import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(json.dumps(record, indent=1).encode()))


def tidy(run: Path) -> None:
    """Delete what takes room in a run directory: rounds, and what clients keep but last.pt."""
    for path in [*run.rglob("*.npz"), *(run / "clients").glob("*/*")]:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "last.pt":
            path.unlink(missing_ok=True)


def write_config(job: Job, folder: Path, setup: Setup) -> Path:
    """A config of federated.py for this job; `job.settings` come on top."""
    epochs = next((s for s in job.settings if s.startswith("local_epochs=")), "=1").split("=")[1]
    if not epochs.isdigit() or setup.epochs % max(int(epochs), 1):
        raise InputError(
            f"local_epochs={epochs}: found --epochs {setup.epochs}, expected a multiple of it"
        )
    train = {"imgsz": setup.imgsz, **setup.train}
    config: dict[str, Any] = {
        "base_model": setup.base,
        "datasets": [{"name": name, "data": path} for name, path in job.data.items()],
        "names": list(setup.data.names),
        "num_rounds": setup.epochs // int(epochs),
        "save_dir": str(folder),
        "name": "run",
        "seed": job.seed,
        "train": {**train, "pretrained": setup.pretrained} if setup.pretrained else train,
        "evaluate": {"every": 0},
    }
    if not any(setting.startswith(("train.batch=", "global_batch=")) for setting in job.settings):
        config["global_batch"] = setup.batch
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def evaluation_of(config: Path, job: Job) -> list[str]:
    """Where clients have models of their own, they keep them when they are evaluated."""
    from federated_yolo.config.loading import load_config

    is_said = any(setting.startswith("evaluate.") for setting in job.settings)
    is_partial = not is_said and load_config(config, job.settings).shared.is_partial
    return ["evaluate.every=1000"] if is_partial else []


def federated_command(job: Job, folder: Path, setup: Setup) -> list[str]:
    """`python federated.py` with a config for this job."""
    path = write_config(job, folder, setup)
    settings = [*job.settings, *evaluation_of(path, job)]
    return [sys.executable, str(ROOT / "federated.py"), str(path), *settings]


def plain_command(job: Job, folder: Path, setup: Setup) -> list[str]:
    """`train_plainly` in a process of its own."""
    arguments = {
        "base": setup.base,
        "task": setup.data.task,
        "pretrained": setup.pretrained,
        "arguments": {
            **setup.train,
            "data": next(iter(job.data.values())),
            "epochs": setup.epochs,
            "imgsz": setup.imgsz,
            "seed": job.seed,
            "batch": job.batch,
            "nbs": job.batch,
            "project": str(folder),
        },
    }
    return [sys.executable, __file__, "--job", json.dumps(arguments)]


def train_plainly(base: str, task: str, pretrained: str | None, arguments: dict[str, Any]) -> None:
    """`yolo train` as it is, but for the private label caches of its data set."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    from ultralytics import YOLO

    from federated_yolo.common.torchvision_nms import ensure_torchvision_nms

    ensure_torchvision_nms()
    model = YOLO(base, task=task)
    model.add_callback("on_train_start", lambda _: torch.set_num_threads(1))
    model.train(
        trainer=private_trainer(base, task, Path(arguments["project"]) / "caches"),
        **({"pretrained": pretrained} if pretrained else {}),
        **arguments,
        val=False,  # only after the last epoch: no choice of a best one
        plots=False,
        name="run",
        exist_ok=True,
    )
    remove_private_settings()


def private_trainer(base: str, task: str, caches: Path) -> type:
    """Ultralytics' trainer, which writes its label caches to this folder and not beside the data.

    Several trainings read the same data at once here, and each would rewrite the other's cache.
    """
    from federated_yolo.data.datasets import build_dataset
    from federated_yolo.yolo.checkpoint import is_rtdetr, structure_of
    from federated_yolo.yolo.model import trainer_class

    structure = structure_of(base, where="--base")
    caches.mkdir(exist_ok=True)
    parent: Any = trainer_class(task, structure)

    class Trainer(parent):
        def build_dataset(self, img_path: Any, mode: str = "train", batch: Any = None) -> Any:
            stride = max(int(self.model.stride.max()), 32)
            squares = is_rtdetr(structure)
            return build_dataset(
                self.args, img_path, batch, self.data, mode, stride, caches, squares
            )

    return Trainer


# Scores.


def models_of(run: Path) -> list[Path]:
    """The last model of a run; where parts of it stay with the clients, that of each."""
    weights = run / "weights" / "last.pt"
    return [weights] if weights.exists() else sorted(run.glob("clients/*/last.pt"))


def mean_score(
    models: list[Path], setup: Setup, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Means of the metrics of several models, and of those of the classes that were tested."""
    if not models:
        raise RuntimeError(f"no last.pt in {folder}")
    scores = [score(path, setup, folder) for path in models]
    means = [
        {name: round(statistics.mean(s[name] for s in part), 4) for name in part[0]}
        for part in zip(*scores, strict=True)
    ]
    return means[0], means[1]


def score(weights: Path, setup: Setup, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of a .pt as `yolo val` gives them, the judged one first; and those of each class."""
    from federated_yolo.data.data_yaml import read_data, write_private_yaml
    from federated_yolo.reporting.run_numbers import output_of
    from federated_yolo.reporting.run_record import PRIMARY
    from federated_yolo.runtime.run_tables import short_name
    from federated_yolo.yolo.checkpoint import load_checkpoint_module
    from federated_yolo.yolo.evaluator import Evaluator

    task = setup.data.task
    data = read_data(Path(setup.data.test), task, where="data")
    data["val"] = data[setup.data.scored]
    write_private_yaml(data, folder / "test")
    evaluator = Evaluator(data, task, {"imgsz": setup.imgsz, **setup.train}, folder / "test")
    result = evaluator(load_checkpoint_module(str(weights), where="weights").float())
    judged = next(name for name in PRIMARY if name in result.metrics)
    kept = [name for name in result.metrics if "mAP" in name or "accuracy" in name]
    kept.sort(key=lambda name: (output_of(name) != output_of(judged), name != judged))
    per_class = {n.removeprefix("class/"): value for n, value in result.per_class.items()}
    return {short_name(name): result.metrics[name] for name in kept}, per_class


# Tables.


def read_records(jobs: Sequence[Job], setup: Setup) -> list[dict[str, Any]]:
    """All results that may stand in one table with those of these jobs, by their names.

    Others stand beside them, such as those of other settings; but not those that go by the name of
    a job and are of other data, settings or batches.
    """
    paths = sorted((setup.out / "results").glob("*.json"))
    records = [json.loads(path.read_text()) for path in paths]
    records = [record for record in records if record["frame"] == setup.frame]
    names = {job.digest(setup): (job.split, job.name) for job in jobs}
    recipes = {(job.split, job.name): job.recipe(setup) for job in jobs}
    for record in records:
        label = (record["split"], record["name"])
        record["split"], record["name"] = names.get(record["digest"], label)
    records = [
        record
        for record in records
        if recipes.get((record["split"], record["name"]), record["recipe"]) == record["recipe"]
    ]
    order = {kind: number for number, kind in enumerate(KINDS)}
    records.sort(key=lambda r: (r["split"], order[r["kind"]], r["name"], r["recipe"], r["seed"]))
    return records


def write_tables(jobs: Sequence[Job], setup: Setup, failed: Mapping[str, str]) -> None:
    """Write results.csv, table.md and quality.png, and print the table."""
    names = {job.digest(setup): job for job in jobs}
    records = read_records(jobs, setup)
    done = {record["digest"] for record in records}
    missing = [str(job) for digest, job in names.items() if digest not in {*done, *failed}]
    lines = [describe(setup), "", markdown(records, setup.batch)]
    lines += [f"failed: {reason}" for reason in failed.values()]
    lines += [f"not run yet: {name}" for name in missing]
    text = "\n".join(lines)
    (setup.out / "table.md").write_text(f"{text}\n")
    print(text, flush=True)
    write_csv(records, setup.out / "results.csv")
    if any(record["split"] != "all" for record in records):
        plot(records, setup.out / "quality.png")


def describe(setup: Setup) -> str:
    """What is the same for all rows of a table."""
    start = f" from {Path(setup.pretrained).name}" if setup.pretrained else ""
    arguments = "".join(f", {key}={value}" for key, value in setup.train.items())
    return (
        f"{Path(setup.base).name}{start} ({setup.data.task}), imgsz {setup.imgsz}, {setup.epochs} "
        f"epochs{arguments}, scored on the {setup.data.scored} split of {setup.data.test}"
    )


def write_csv(records: Iterable[Mapping[str, Any]], path: Path) -> None:
    """A row for each run."""
    rows = [
        {k: v for k, v in {**r, **r["metrics"], **r["per_class"]}.items() if k not in HIDDEN}
        for r in records
    ]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


HIDDEN = ("metrics", "per_class", "frame")


def markdown(records: Sequence[Mapping[str, Any]], batch: int) -> str:
    """Mean and standard deviation over seeds, and the ratio to centralised with this batch."""
    if not records:
        return "no run is finished yet"
    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = defaultdict(list)
    pooled: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["split"], record["name"], record["recipe"]].append(record)
        if record["name"] == f"centralised, batch {batch}":
            pooled[record["split"]].append(record)
    metrics = list(records[0]["metrics"])
    classes = list(dict.fromkeys(name for record in records for name in record["per_class"]))
    classes = [name for name in classes if name.rpartition("/")[2] in ("mAP50", "accuracy_top1")]
    classes = classes if len(classes) <= MAX_CLASS_COLUMNS else []
    head = ["data", "run", *metrics, "× centralised", *map(class_title, classes)]
    head += ["seeds", "s"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for (split, name, _), group in groups.items():
        fields = [split, name, *(spread(group, "metrics", metric) for metric in metrics)]
        reference = pooled.get(split) or pooled.get("all") or []
        fields.append(ratio(group, reference, metrics[0]))
        fields += [spread(group, "per_class", name) for name in classes]
        seconds = statistics.median(record["seconds"] for record in group)
        fields += [str(len(group)), f"{seconds:.0f}"]
        lines.append(f"| {' | '.join(field.replace('|', '/') for field in fields)} |")
    return "\n".join(lines)


def class_title(column: str) -> str:
    """`NAME/accuracy_top1` -> `NAME top1`."""
    name, _, metric = column.rpartition("/")
    return f"{name} {metric.removeprefix('accuracy_')}".replace("|", "/")


def ratio(
    group: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], metric: str
) -> str:
    """`1.036`: of the means; empty without a reference that has learned anything."""
    means = [statistics.mean(r["metrics"][metric] for r in g) for g in (group, reference) if g]
    return f"{means[0] / means[1]:.3f}" if len(means) == 2 and means[1] else ""


def spread(group: Sequence[Mapping[str, Any]], part: str, column: str) -> str:
    """`0.801 ± 0.004`: mean and sample standard deviation, which one run does not have."""
    values = [record[part][column] for record in group if column in record[part]]
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean


def plot(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A dot for each run, a bar at their mean; lines are the means of the centralised ones."""
    from federated_yolo.common.figures import new_figure, save_figure

    metric = next(iter(records[0]["metrics"]))
    splits = [s for s in dict.fromkeys(record["split"] for record in records) if s != "all"]
    figure = new_figure(3.4 * len(splits), 3.6)
    axes_of = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axes, split in zip(axes_of, splits, strict=True):
        groups: dict[str, list[float]] = defaultdict(list)
        lines: dict[str, list[float]] = defaultdict(list)
        for record in records:
            is_line = record["kind"] == "centralised" and record["split"] in ("all", split)
            if is_line or (record["split"] == split and record["kind"] != "centralised"):
                (lines if is_line else groups)[record["name"]].append(record["metrics"][metric])
        for position, (name, y) in enumerate(groups.items()):
            color = "C7" if name.endswith(" alone") else "C0"
            axes.plot([position] * len(y), y, "o", color=color, alpha=0.7)
            axes.plot(position, statistics.mean(y), "_", color=color, ms=22, mew=2.5)
        for number, (name, values) in enumerate(lines.items()):
            y = statistics.mean(values)
            axes.axhline(y, color="black", lw=1.2, ls=("--", ":", "-.")[number % 3])
            middle = max(len(groups) - 1, 0) / 2
            axes.annotate(name, (middle, y), ha="center", va="bottom", fontsize=8)
        labels = ["federated" if name == "defaults" else name for name in groups]
        axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=8)
        axes.set_xlim(-0.5, max(len(labels), 1) - 0.5)
        axes.set_title(split, fontsize=10)
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    axes_of[0].set_ylabel(f"test {metric}", fontsize=9)
    save_figure(path, figure)


if __name__ == "__main__":
    sys.exit(main())
