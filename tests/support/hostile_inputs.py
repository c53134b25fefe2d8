"""Wrong and hostile configs, settings, data sets, and files that are none."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hostile_recipes import (
    FEDERATED,
    MARKER,
    SPECIAL,
    Touch,
    case,
    config,
    data,
    exported,
    laughs,
    rewrite,
    round_file,
    text,
)
from recipes import make_class_folders

# Config files.

TEXTS: dict[str, str | bytes] = {
    "empty": "",
    "a list": "- a\n- b\n",
    "bytes": bytes(range(256)),
    "an open bracket": "datasets: [",
    "a tab": "base_model: x\n\tnum_rounds: 1\n",
    "a number": "42",
    "nothing but nulls": "base_model:\ndatasets:\n",
    "a reference to itself": "base_model: ${base_model}\ndatasets: [a.yaml]\n",
    "a number that is none": "num_rounds: 0b_\n",
    "a date that is none": "base_model: !!timestamp x\n",
    "3000 brackets": "[" * 3000,
    "aliases without end": laughs("vars") + "base_model: yolov8n.yaml\n",
    "an alias of itself": "vars: &a [*a]\nbase_model: yolov8n.yaml\n",
    "megabytes of blanks": " " * (5 << 20),
    "a resolver that does not exist": "base_model: ${oc.run:ls}\ndatasets: [a.yaml]\n",
}
for _name, _text in TEXTS.items():
    case(f"config: {_name}")(lambda folder, content=_text: text(folder, content))


for _name, _make in SPECIAL.items():
    case(f"config: {_name}")(
        lambda folder, make=_make: [FEDERATED, str(make(folder / "config.yaml"))]
    )
    case(f"data: {_name}")(
        lambda folder, make=_make: data(folder, lambda site: make(site / "data.yaml"))
    )
    case(f"data: {_name} for an image")(
        lambda folder, make=_make: data(folder, lambda site: make(site / "images/train/0.jpg"))
    )
    case(f"data: {_name} for a label")(
        lambda folder, make=_make: data(folder, lambda site: make(site / "labels/train/0.txt"))
    )
    case(f"data: {_name} for a list of images")(
        lambda folder, make=_make: data(
            folder, lambda site: (make(site / "list.txt"), rewrite(site, train="list.txt"))
        )
    )
    case(f"data: {_name} in a list of images")(
        lambda folder, make=_make: data(
            folder,
            lambda site: (
                (site / "list.txt").write_text(f"{make(site / 'odd.jpg')}\n"),
                rewrite(site, val="list.txt"),
            ),
        )
    )
    case(f"checkpoint: {_name}")(
        lambda folder, make=_make: config(folder, base_model=str(make(folder / "base.pt")))
    )
    case(f"checkpoint: {_name} of pretrained weights")(
        lambda folder, make=_make: config(
            folder, train={"pretrained": str(make(folder / "weights.pt"))}
        )
    )
    case(f"model: {_name}")(
        lambda folder, make=_make: config(folder, base_model=str(make(folder / "yolov8n-x.yaml")))
    )
    case(f"round: {_name}")(
        lambda folder, make=_make: exported(folder, make(folder / "round1.npz"))
    )
    case(f"round: {_name} for a data.yaml")(
        lambda folder, make=_make: [
            *exported(folder, round_file(folder)),
            "--data",
            str(make(folder / "data.yaml")),
        ]
    )
    case(f"image of a class: {_name}")(lambda folder, make=_make: classifier(folder, make))


def classifier(folder: Path, make: Callable[[Path], Path]) -> list[str]:
    """The command for a classifier's data, with one image that is none."""
    make_class_folders(folder / "classes")
    make(folder / "classes" / "train" / "a" / "0.jpg")
    datasets = [{"name": "north", "data": str(folder / "classes")}]
    return config(folder, base_model="yolov8n-cls.yaml", datasets=datasets)


@case("config: a python object")
def _(folder: Path) -> list[str]:
    return text(folder, f"base_model: !!python/object/apply:os.mkdir ['{folder / MARKER}']\n")


SETTINGS: dict[str, dict[str, Any]] = {
    "no base model": {"base_model": None},
    "no clients": {"datasets": []},
    "clients that are a text": {"datasets": "sites"},
    "a client name that leaves the folder": {"datasets": [{"name": "../evil", "data": "x.yaml"}]},
    "an absolute client name": {"datasets": [{"name": "/tmp/evil", "data": "x.yaml"}]},
    "a client name with a zero byte": {"datasets": [{"name": "a\0b", "data": "x.yaml"}]},
    "a client of numbers": {"datasets": [1, 2]},
    "a run name that leaves the folder": {"name": "../../evil"},
    "rounds in words": {"num_rounds": "three"},
    "no rounds": {"num_rounds": 0},
    "a seed too large": {"seed": 2**40},
    "an unknown setting": {"num_round": 3},
    "an unknown train argument": {"train": {"imgszz": 32}},
    "a train argument of the federation": {"train": {"project": "/tmp"}},
    "several devices": {"train": {"device": "0,1"}},
    "a learning rate that is no number": {"train": {"lr0": float("nan"), "optimizer": "SGD"}},
    "an image size beyond any": {"train": {"imgsz": 10**400}},
    "a place with a zero byte": {"save_dir": "a\0b"},
    "nodes beyond any": {"strategy": {"name": "krum", "num_malicious_nodes": 10**400}},
    "nearly nothing to trim": {"strategy": {"name": "fedtrimmedavg", "beta": 5e-324}},
    "a time beyond any": {"round_timeout_s": 1e10},
    "a batch of -1": {"train": {"batch": -1}},
    "a cache in the data folder": {"train": {"cache": "disk"}},
    "an unknown strategy": {"strategy": "fedavgg"},
    "an option out of range": {"strategy": {"name": "fedavgm", "server_momentum": 2}},
    "a robust strategy with one client": {"strategy": "fedmedian"},
    "more clients than there are": {"min_clients": 2},
    "no time at all": {"round_timeout_s": 0},
    "an outlier below the median": {"update_norm": {"outliers": "clip", "times_median": 0.5}},
    "more than the whole mean": {"strategy": {"name": "fedavg", "max_share": 2}},
    "a share that no number of clients has": {"strategy": {"name": "fedavg", "max_share": 5e-324}},
    "weights by nothing": {"strategy": {"name": "fedavg", "weights": "boxes"}},
    "statistics that may not move": {"max_statistics_factor": 1},
    "trust in words": {"trust_checkpoint": "sure"},
    "more CPUs than there are": {"client_resources": {"num_cpus": 4096}},
    "more GPUs than there are": {"client_resources": {"num_gpus": 64}},
    "a base model that is not there": {"base_model": "nowhere.pt"},
    "a base model of no kind": {"base_model": "/etc/hostname"},
    "a model YAML that is not there": {"base_model": "yolo99z.yaml"},
    "pretrained weights that are not there": {"train": {"pretrained": "nowhere.pt"}},
    "a server without data": {"evaluate": {"data": "nowhere.yaml"}},
    "a class not annotated that is none": {
        "datasets": [{"name": "n", "data": "site/data.yaml", "not_annotated": ["x"]}]
    },
}
for _name, _changes in SETTINGS.items():
    case(f"setting: {_name}")(lambda folder, changes=_changes: config(folder, **changes))


@case("setting: a place that is a file")
def _(folder: Path) -> list[str]:
    (folder / "file").write_text("")
    return config(folder, save_dir=str(folder / "file" / "runs"))


OVERRIDES = {
    "an option": "--epochs",
    "no value": "num_rounds=",
    "an index too far": "datasets.7.name=x",
    "a run to go on with that is none": "resume=nowhere",
    "a run of a name too long": "resume=" + "x" * 300,
}
for _name, _override in OVERRIDES.items():
    case(f"command: {_name}")(lambda folder, word=_override: [*config(folder), word])


# Data sets.


def label(content: str | bytes) -> Callable[[Path], Any]:
    content = content if isinstance(content, bytes) else content.encode()
    return lambda site: (site / "labels" / "train" / "0.txt").write_bytes(content)


def image(content: bytes) -> Callable[[Path], Any]:
    return lambda site: (site / "images" / "train" / "0.jpg").write_bytes(content)


def half_an_image(site: Path) -> None:
    path = site / "images" / "train" / "0.jpg"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def pickle_beside_labels(site: Path) -> None:
    """A label cache with code, and a label that has to be refused without it."""
    code = pickle.dumps(Touch(site.parent / MARKER))
    for name in ("train.cache", "val.cache"):
        (site / "labels" / name).write_bytes(code)
    label("0 0.5 0.5 9 9\n")(site)


DATA: dict[str, Callable[[Path], Any]] = {
    "gone": lambda site: (site / "data.yaml").unlink(),
    "bytes": lambda site: (site / "data.yaml").write_bytes(bytes(range(128, 256))),
    "a folder": lambda site: ((site / "data.yaml").unlink(), (site / "data.yaml").mkdir()),
    "a python object": lambda site: (site / "data.yaml").write_text(
        f"train: !!python/object/apply:os.mkdir ['{site.parent / MARKER}']\n"
    ),
    "a number that is none": lambda site: (site / "data.yaml").write_text("nc: 0b_\n"),
    "a date that is none": lambda site: (site / "data.yaml").write_text("date: 2024-13-45\n"),
    "3000 brackets": lambda site: (site / "data.yaml").write_text("[" * 3000),
    "a path too long": lambda site: rewrite(site, path="x" * 300),
    "aliases without end": lambda site: (site / "data.yaml").write_text(
        f"train: images/train\nval: images/val\n{laughs('names')}"
    ),
    "no names": lambda site: rewrite(site, names=None),
    "names with a gap": lambda site: rewrite(site, names={0: "a", 2: "b"}),
    "no val split": lambda site: rewrite(site, val=None),
    "a train folder that is not there": lambda site: rewrite(site, train="images/nowhere"),
    "a number for a folder": lambda site: rewrite(site, train=7),
    "python to download": lambda site: rewrite(
        site, val="nowhere", download=f"open('{site.parent / MARKER}', 'w')"
    ),
    "a shell command to download": lambda site: rewrite(
        site, val="nowhere", download=f"bash -c 'touch {site.parent / MARKER}'"
    ),
    "no channels": lambda site: rewrite(site, channels=0),
    "an image of nothing": image(b""),
    "an image of text": image(b"no image"),
    "half an image": half_an_image,
    "a class out of range": label("7 0.5 0.5 0.1 0.1\n"),
    "a class below 0": label("-1 0.5 0.5 0.1 0.1\n"),
    "a box outside the image": label("0 0.5 0.5 0.1 7\n"),
    "a box of words": label("0 a b c d\n"),
    "a box without a height": label("0 0.5 0.5 0.1\n"),
    "rows of different lengths": label("0 0.5 0.5 0.1 0.1\n0 0.5 0.5\n"),
    "a box of nothings": label("0 nan nan nan nan\n"),
    "bytes for a label": label(bytes(range(128, 256))),
    "no labels at all": lambda site: [p.unlink() for p in (site / "labels" / "train").iterdir()],
    "a pickle for a label cache": pickle_beside_labels,
}
for _name, _change in DATA.items():
    case(f"data: {_name}")(lambda folder, change=_change: data(folder, change))
