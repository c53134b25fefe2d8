"""What a training of the benchmark of quality is, and the digest of all that it depends on."""

import functools
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quality_data import ROOT, Data, digest_of, file_digest, fingerprint
from federated_yolo.common.errors import InputError

KINDS = ("centralised", "local", "federated")  # in the order of the table


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
        Its defaults, and what is decided from the data, are in it by their values.
        """
        contents = self.contents(setup)
        if self.kind != "federated":
            return digest_of(contents)
        try:
            return digest_of([*contents, decided(self, setup)])
        except InputError:  # `refuse_wrong` tells it
            return digest_of(contents)

    def contents(self, setup: Setup) -> list[Any]:
        """What is the same for all code: data, arguments and settings as they are given."""
        data = [
            [client, fingerprint(path, setup.data.task, "train", setup.caches)]
            for client, path in self.data.items()
        ]
        values = [setting.partition("=")[2].partition(":")[0] for setting in self.settings]
        files = [file_digest(Path(value)) for value in values if Path(value).is_file()]
        batch = self.batch or setup.batch
        return [setup.frame, self.kind, data, self.settings, files, batch]

    def digest(self, setup: Setup) -> str:
        """The same with the seed."""
        return digest_of([self.recipe(setup), self.seed])

    def __str__(self) -> str:
        return f"{self.name}, {self.split}, seed {self.seed}"


def share_of(batch: int, num_clients: int) -> int:
    """What each of so many clients takes of a batch, as checks/federation.py decides."""
    from federated_yolo.checks.resolve import MIN_BATCH

    return max(MIN_BATCH, round(batch / num_clients))


def num_rounds_of(job: Job, setup: Setup) -> int:
    """Rounds in which each image is seen `setup.epochs` times, on average if not all train.

    Raises InputError for numbers that do not go together.
    """
    values = {name: value for name, _, value in (s.partition("=") for s in job.settings)}
    epochs = values.get("local_epochs", "1")
    if not epochs.isdigit() or setup.epochs % max(int(epochs), 1):
        raise InputError(
            f"local_epochs={epochs}: found --epochs {setup.epochs}, expected a multiple of it"
        )
    fraction = yaml.safe_load(values.get("fraction_train", "1"))
    if not isinstance(fraction, int | float) or not 0 < fraction <= 1:
        fraction = 1  # federated.py refuses it
    num_training = max(1, round(fraction * len(job.data)))
    return round(setup.epochs // max(int(epochs), 1) * len(job.data) / num_training)


def write_config(job: Job, folder: Path, setup: Setup) -> Path:
    """A config of federated.py for this job; `job.settings` come on top."""
    train = {"imgsz": setup.imgsz, **setup.train}
    config: dict[str, Any] = {
        "base_model": setup.base,
        "datasets": [{"name": name, "data": path} for name, path in job.data.items()],
        "names": list(setup.data.names),
        "num_rounds": num_rounds_of(job, setup),
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


# Settings that do not change what is learned, and those that a digest has in another form.
NOT_LEARNED = (
    "base_model datasets names client client_resources evaluate loggers name ray save_dir seed "
    "verbose"
).split()


def decided(job: Job, setup: Setup) -> dict[str, Any]:
    """What federated.py makes of a federation's settings, defaults too. Raises InputError.

    Checking a federation takes seconds, so that it is kept as long as the package is as it is.
    """
    key = digest_of([*job.contents(setup), package_digest()])
    if key not in _decided:
        path = setup.caches / "decided" / f"{key}.json"
        if path.exists():
            _decided[key] = json.loads(path.read_text())
        else:
            _decided[key] = decide(job, setup)
            keep(_decided[key], path)
    return _decided[key]


_decided: dict[str, dict[str, Any]] = {}


def decide(job: Job, setup: Setup) -> dict[str, Any]:
    """`decided`, anew."""
    from federated_yolo.checks.federation import checked
    from federated_yolo.config.loading import load_config

    path = write_config(job, setup.out / "data" / "config", setup)
    config = load_config(path, [*job.settings, *evaluation_of(path, job)])
    with checked(config) as federation:
        found = federation.config.model_dump(mode="json", exclude=set(NOT_LEARNED))
    if setup.pretrained:
        del found["train"]["pretrained"]  # a path, whose content is in the frame
    return found


@functools.cache
def package_digest() -> str:
    """Digest of the package's code."""
    paths = sorted((ROOT / "federated_yolo").rglob("*.py"))
    return digest_of([file_digest(path) for path in paths])


def keep(record: dict[str, Any], path: Path) -> None:
    """Write a result; it is there as a whole or not at all."""
    from federated_yolo.common.files import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(json.dumps(record, indent=1).encode()))


def record_path(job: Job, setup: Setup) -> Path:
    """Where the result of a run is kept."""
    return setup.out / "results" / f"{job.digest(setup)}.json"


def refuse_wrong(jobs: Iterable[Job], setup: Setup) -> None:
    """Check the federations that are to be run as federated.py would. Raises InputError."""
    problems: list[str] = []
    for job in jobs:
        if job.kind == "federated" and not record_path(job, setup).exists():
            try:
                decided(job, setup)
            except InputError as error:
                problems += [f"{job.name}, {job.split}: {line}" for line in error.problems]
    if problems:
        raise InputError(list(dict.fromkeys(problems)))
