"""Wrong and hostile input, each to be refused with exit code 2 and one clear line.

CASES: name -> what makes it in a folder, and gives the command's arguments. Those that hold code
would make `folder / MARKER` if it ran.
"""

import os
import pickle
import socket
import sys
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from processes import ROOT
from recipes import make_checkpoint, make_class_folders, make_dataset

from federated_yolo.storage.archive import RoundMeta, save_arrays
from federated_yolo.yolo.model import build_model, to_arrays

FEDERATED, EXPORT = "federated.py", "utils/export_federated.py"
MARKER = "executed"
Case = Callable[[Path], list[str]]
CASES: dict[str, Case] = {}


def case(name: str) -> Callable[[Case], Case]:
    """Add a case."""

    def add(make: Case) -> Case:
        assert name not in CASES
        CASES[name] = make
        return make

    return add


class Touch:
    """Unpickling this makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def settings(folder: Path, **changes: Any) -> dict[str, Any]:
    """A config that would run, with changes; None leaves a setting out."""
    if not (folder / "site").exists():
        make_dataset(folder / "site", num_train=2, num_val=1)
    whole = {
        "base_model": "yolov8n.yaml",
        "datasets": [{"name": "north", "data": str(folder / "site" / "data.yaml")}],
        "num_rounds": 1,
        "save_dir": str(folder / "runs"),
        "train": {"imgsz": 32, "batch": 2},
    }
    return {k: v for k, v in {**whole, **changes}.items() if v is not None}


def config(folder: Path, **changes: Any) -> list[str]:
    """The command for such a config."""
    return text(folder, yaml.safe_dump(settings(folder, **changes)))


def text(folder: Path, content: str | bytes) -> list[str]:
    """The command for a config file of this content."""
    path = folder / "config.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return [FEDERATED, str(path)]


def laughs(key: str) -> str:
    """YAML in which ten lines, each of which repeats the one before, stand for 10^10 values."""
    lines = ["  - &l0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"  - &l{i} [{', '.join([f'*l{i - 1}'] * 10)}]" for i in range(1, 10)]
    return "\n".join([f"{key}:", *lines, ""])


def fifo(path: Path) -> Path:
    """A FIFO in the place of a file, which blocks whoever opens it."""
    path.unlink(missing_ok=True)
    os.mkfifo(path)
    return path


def endless(path: Path) -> Path:
    """A link to a device that never ends in the place of a file."""
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")
    return path


def a_socket(path: Path) -> Path:
    """A socket in the place of a file."""
    path.unlink(missing_ok=True)
    here = Path.cwd()
    os.chdir(path.parent)  # names of sockets may have 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as bound:
            bound.bind(path.name)
    finally:
        os.chdir(here)
    return path


SPECIAL = {"a FIFO": fifo, "a device": endless, "a socket": a_socket}

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


def data(folder: Path, change: Callable[[Path], Any]) -> list[str]:
    """The command for a data set that was changed."""
    command = config(folder)
    change(folder / "site")
    return command


def rewrite(site: Path, **changes: Any) -> None:
    """Write another data.yaml; None leaves a key out."""
    whole = {"train": "images/train", "val": "images/val", "names": ["a", "b", "c"]}
    whole = {k: v for k, v in {**whole, **changes}.items() if v is not None}
    (site / "data.yaml").write_text(yaml.safe_dump(whole))


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


# Checkpoints.


@cache
def checkpoint(folder: Path) -> bytes:
    """An Ultralytics checkpoint."""
    return make_checkpoint(folder / "sound.pt").read_bytes()


def spoilt_checkpoint(folder: Path, spoil: Callable[[bytes], bytes]) -> list[str]:
    path = folder / "base.pt"
    path.write_bytes(spoil(checkpoint(folder.parent)))
    return config(folder, base_model=str(path))


for _part in (0.0, 0.001, 0.1, 0.5, 0.9, 0.9999):
    case(f"checkpoint: cut off at {_part:.2%}")(
        lambda folder, part=_part: spoilt_checkpoint(folder, lambda b: b[: int(part * len(b))])
    )


def flipped(content: bytes, position: int) -> bytes:
    """The same but for one bit."""
    changed = bytearray(content)
    changed[position] ^= 0x10
    return bytes(changed)


for _offset in (0, 2, -20, -22):  # where a zip archive says what it is
    case(f"checkpoint: a bit flipped at {_offset}")(
        lambda folder, offset=_offset: spoilt_checkpoint(folder, lambda b: flipped(b, offset))
    )


def evil(folder: Path, *, legacy: bool) -> str:
    path = folder / "evil.pt"
    torch.save({"model": Touch(folder / MARKER)}, path, _use_new_zipfile_serialization=not legacy)
    return str(path)


for _legacy in (False, True):
    _form = "an old archive" if _legacy else "an archive"
    case(f"checkpoint: code in {_form}")(
        lambda folder, legacy=_legacy: config(folder, base_model=evil(folder, legacy=legacy))
    )
    case(f"checkpoint: code in {_form} of pretrained weights")(
        lambda folder, legacy=_legacy: config(
            folder, train={"pretrained": evil(folder, legacy=legacy)}
        )
    )


@case("checkpoint: a bare pickle with code")
def _(folder: Path) -> list[str]:
    (folder / "evil.pt").write_bytes(pickle.dumps(Touch(folder / MARKER)))
    return config(folder, base_model=str(folder / "evil.pt"))


@case("checkpoint: code in a base to export from")
def _(folder: Path) -> list[str]:
    return [EXPORT, evil(folder, legacy=False), str(round_file(folder))]


@case("model: code in a model YAML")
def _(folder: Path) -> list[str]:
    code = f"__import__('pathlib').Path({str(folder / MARKER)!r}).touch()"
    head = f"nc: 3\nscales: {{n: [0.33, 0.25, 1024]}}\nactivation: {code}\n"
    layers = "backbone:\n  - [-1, 1, Conv, [64, 3, 2]]\nhead:\n  - [[0], 1, Detect, [nc]]\n"
    (folder / "yolov8n-evil.yaml").write_text(head + layers)
    return config(folder, base_model=str(folder / "yolov8n-evil.yaml"))


@case("model: aliases without end")
def _(folder: Path) -> list[str]:
    (folder / "yolov8n-big.yaml").write_text(laughs("backbone") + "head: []\n")
    return config(folder, base_model=str(folder / "yolov8n-big.yaml"))


@case("model: aliases without end, under another size")
def _(folder: Path) -> list[str]:
    (folder / "yolov8-big.yaml").write_text(laughs("backbone") + "head: []\n")
    return config(folder, base_model=str(folder / "yolov8n-big.yaml"))


# Archives of a round.


@cache
def _arrays() -> dict[str, np.ndarray]:
    names = {"names": dict(enumerate("abc")), "nc": 3}
    return to_arrays(build_model("yolov8n.yaml", "detect", names))


def round_file(folder: Path, **changes: np.ndarray) -> Path:
    """A sound round, but for the arrays given."""
    path = folder / "round1.npz"
    arrays = {**_arrays(), **changes}
    save_arrays(path, arrays, RoundMeta(1, ("a", "b", "c"), "detect", "yolov8n.yaml"))
    return path


def exported(folder: Path, path: Path) -> list[str]:
    return [EXPORT, "yolov8n.yaml", str(path), "-o", str(folder / "out.pt")]


def spoilt_round(folder: Path, spoil: Callable[[bytes], bytes]) -> list[str]:
    path = round_file(folder)
    path.write_bytes(spoil(path.read_bytes()))
    return exported(folder, path)


for _part in (0.0, 0.001, 0.25, 0.5, 0.75, 0.9999):
    case(f"round: cut off at {_part:.2%}")(
        lambda folder, part=_part: spoilt_round(folder, lambda b: b[: int(part * len(b))])
    )
for _place in (0.02, 0.11, 0.37, 0.73, 0.98):
    case(f"round: a bit flipped at {_place:.0%}")(
        lambda folder, place=_place: spoilt_round(
            folder, lambda b: flipped(b, int(place * len(b)) + 7)
        )
    )
WEIGHT = "model.0.conv.weight"
ARRAYS: dict[str, np.ndarray] = {
    "values that are none": np.full((16, 3, 3, 3), np.nan, "f4"),
    "another shape": np.zeros((16, 3, 3), "f4"),
    "another type": np.zeros((16, 3, 3, 3), "f8"),
    "a scalar": np.array(1.0, "f4"),
}
for _name, _array in ARRAYS.items():
    case(f"round: {_name}")(
        lambda folder, array=_array: exported(folder, round_file(folder, **{WEIGHT: array}))
    )


@case("checkpoint: weights that are none")
def _(folder: Path) -> list[str]:
    module = torch.load(make_checkpoint(folder / "nan.pt"), map_location="cpu", weights_only=False)
    module["model"].model[0].conv.weight.fill_(float("nan"))
    torch.save(module, folder / "nan.pt")
    return config(folder, base_model=str(folder / "nan.pt"))


@case("round: an array too many")
def _(folder: Path) -> list[str]:
    return exported(folder, round_file(folder, backdoor=np.zeros(3, "f4")))


@case("round: pickled arrays with code")
def _(folder: Path) -> list[str]:
    path = folder / "round1.npz"
    with path.open("wb") as file:
        np.savez(file, evil=np.array([Touch(folder / MARKER)], dtype=object))
    return exported(folder, path)


@case("round: a pickle with code")
def _(folder: Path) -> list[str]:
    path = folder / "round1.npz"
    path.write_bytes(pickle.dumps(Touch(folder / MARKER)))
    return exported(folder, path)


def promising(folder: Path, shape: tuple[int, ...], *, packed: bool) -> Path:
    """An archive whose header promises float32 values that are not there."""
    path = folder / "round1.npz"
    how = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", how) as archive, archive.open(f"{WEIGHT}.npy", "w") as member:
        about = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(member, about)
        member.write(bytes(1 << 20))
    return path


for _packed in (False, True):
    for _shape in ((1 << 40,), (1 << 62, 1 << 62), (16, 3, 3, 3, 1 << 30)):
        case(f"round: {_shape} values in {'a packed' if _packed else 'a'} megabyte")(
            lambda folder, shape=_shape, packed=_packed: exported(
                folder, promising(folder, shape, packed=packed)
            )
        )


@case("round: aliases without end in its data.yaml")
def _(folder: Path) -> list[str]:
    (folder / "data.yaml").write_text(laughs("names"))
    return [*exported(folder, round_file(folder)), "--data", str(folder / "data.yaml")]


# Directories of runs that somebody else has made.


def run_directory(folder: Path, **changes: Any) -> Path:
    """What a run that has not finished a round has left, elsewhere than this one would."""
    path = folder / "theirs" / "train"
    for part in ("weights", "clients/north/caches", "server"):
        (path / part).mkdir(parents=True)
    whole = settings(folder, save_dir=str(folder / "theirs"), **changes)
    (path / "args.yaml").write_text(yaml.safe_dump(whole))
    return path


def resumed(folder: Path, **changes: Any) -> list[str]:
    return [FEDERATED, f"resume={run_directory(folder, **changes)}"]


def class_with_code(folder: Path) -> str:
    """A client's class, whose file makes the mark."""
    (folder / "theirs.py").write_text(
        f"from pathlib import Path\nPath({str(folder / MARKER)!r}).touch()\n"
        "from federated_yolo import YoloClient as Mine\n"
    )
    return f"{folder / 'theirs.py'}:Mine"


@case("run: a class with code")
def _(folder: Path) -> list[str]:
    return resumed(folder, client=class_with_code(folder))


@case("run: a class with code behind a reference")
def _(folder: Path) -> list[str]:
    return resumed(folder, vars={"x": class_with_code(folder)}, client="${vars.x}")


@case("run: trust in a checkpoint with code")
def _(folder: Path) -> list[str]:
    base = evil(folder, legacy=False)
    return resumed(folder, trust_checkpoint=True, base_model=base)


@case("run: a checkpoint with code")
def _(folder: Path) -> list[str]:
    return resumed(folder, base_model=evil(folder, legacy=False))


@case("run: trust in words")
def _(folder: Path) -> list[str]:
    return resumed(folder, trust_checkpoint="true")


RUNS: dict[str, dict[str, Any]] = {
    "a cluster elsewhere": {"ray": {"address": "203.0.113.7:6379"}},
    "a logger over the network": {"loggers": ["wandb", "mlflow"]},
}
for _name, _changes in RUNS.items():
    case(f"run: {_name}")(lambda folder, changes=_changes: resumed(folder, **changes))


@case("run: aliases without end")
def _(folder: Path) -> list[str]:
    path = run_directory(folder)
    (path / "args.yaml").write_text(laughs("datasets"))
    return [FEDERATED, f"resume={path}"]


@case("run: references without end")
def _(folder: Path) -> list[str]:
    ten = "[" + ", ".join([r"'\\${vars.l%d}'"] * 10) + "]"  # two backslashes escape each other
    lines = [f"  l{i}: {ten % ((i - 1,) * 10)}" for i in range(1, 10)]
    path = run_directory(folder)
    text = (path / "args.yaml").read_text()
    (path / "args.yaml").write_text("\n".join([f"{text}vars:", "  l0: x", *lines, ""]))
    return [FEDERATED, f"resume={path}"]


@case("run: a link to a folder elsewhere")
def _(folder: Path) -> list[str]:
    path = run_directory(folder)
    (folder / "mine").mkdir()
    (path / "clients" / "south").symlink_to(folder / "mine")
    return [FEDERATED, f"resume={path}"]


@case("run: a link to a file elsewhere")
def _(folder: Path) -> list[str]:
    path = run_directory(folder)
    (folder / "mine.txt").write_text("mine")
    (path / "clients" / "north" / "stack.txt").symlink_to(folder / "mine.txt")
    return [FEDERATED, f"resume={path}"]


for _name, _make in SPECIAL.items():

    @case(f"run: {_name} among its files")
    def _(folder: Path, make: Callable[[Path], Path] = _make) -> list[str]:
        path = run_directory(folder)
        make(path / "results.csv")
        return [FEDERATED, f"resume={path}"]


@case("round: not there")
def _(folder: Path) -> list[str]:
    return exported(folder, folder / "nowhere.npz")


def command(case_name: str, folder: Path) -> list[str]:
    """What to execute for a case, made in this folder."""
    script, *arguments = CASES[case_name](folder)
    return [sys.executable, str(ROOT / script), *arguments]


def verdict(folder: Path, exit_code: int, output: str, errors: str) -> str:
    """What is wrong with how a case ended; empty when it was refused as it should be."""
    lines = errors.splitlines()
    problems = {
        f"exit code {exit_code}": exit_code != 2,
        "code was run": (folder / MARKER).exists(),
        "a traceback": "Traceback" in output + errors,
        "no line that begins with 'error: '": not lines,
        "lines beside those of errors": not all(line.startswith("error: ") for line in lines),
        "something was printed": bool(output),
        "a run directory": (folder / "runs").exists(),
        "a model was written": (folder / "out.pt").exists(),
    }
    return ", ".join(problem for problem, is_so in problems.items() if is_so)
