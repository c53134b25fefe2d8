"""What wrong and hostile input is made of, and CASES, which the modules beside this one fill."""

import os
import socket
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from recipes import Touch, make_dataset

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


def evil(folder: Path, *, legacy: bool) -> str:
    path = folder / "evil.pt"
    torch.save({"model": Touch(folder / MARKER)}, path, _use_new_zipfile_serialization=not legacy)
    return str(path)


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
