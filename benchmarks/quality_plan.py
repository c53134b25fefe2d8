"""What the benchmark of quality has to train, by its arguments."""

import argparse
from pathlib import Path

import yaml

from benchmarks.quality_data import Data, merged, read_split, unannotated
from benchmarks.quality_jobs import Job, Setup
from federated_yolo.common.errors import InputError, nearest

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
    backbone = options.shared / "weights/yolov8n-cls-imagenet-ft.pt"
    pretrained = options.pretrained
    if pretrained is None and Path(base).name.startswith("yolov8n") and base.endswith("yaml"):
        pretrained = str(backbone)
    pretrained = None if pretrained in (None, "none") else str(Path(pretrained).absolute())
    if pretrained and not Path(pretrained).is_file():
        raise InputError(f"--pretrained {pretrained}: no such file; give one, or 'none'")
    base = str(Path(base).absolute()) if Path(base).is_file() else base
    batch = (getattr(options, "batches", None) or [16])[0]
    return Setup(options.out, data, base, pretrained, options.epochs, options.imgsz, batch, train)


def plan_jobs(options: argparse.Namespace, setup: Setup) -> list[Job]:
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
            for client, path in largest(clients, options.alone, setup).items():
                own = {client: merged([path], data.names, data.task, setup.out)}
                name, share = f"{client} alone", setup.share(split)
                jobs.append(Job("local", name, split, seed, own, (), share))
            for name, settings in runs.items():
                places = {"batch": setup.batch, "share": setup.share(split)}
                filled = tuple(setting.format(**places) for setting in settings)
                jobs.append(
                    Job("federated", name, split, seed, clients, (*options.always, *filled))
                )
    return [job for job in jobs if job.kind == "federated" or not options.federated]


def largest(clients: dict[str, str], number: int | None, setup: Setup) -> dict[str, str]:
    """As many clients as asked for, those with the most train images; None is all."""
    if number is None or number >= len(clients):
        return clients
    data = setup.data
    counts = {
        client: len(read_split(path, data.task, "train", setup.caches).images)
        for client, path in clients.items()
    }
    chosen = sorted(counts, key=lambda client: -counts[client])[:number]
    return {client: path for client, path in clients.items() if client in chosen}


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
        masked_clients, settings = dict(clients), [*options.always]
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
