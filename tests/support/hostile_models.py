"""Wrong and hostile checkpoints, model YAMLs, archives of rounds, and run directories."""

import pickle
import zipfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hostile_recipes import (
    EXPORT,
    FEDERATED,
    MARKER,
    SPECIAL,
    Touch,
    case,
    config,
    evil,
    exported,
    laughs,
    round_file,
    settings,
)
from recipes import make_checkpoint

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
