"""Rebuild a model (.pt) from a round's .npz and its base model; refuse arrays that do not fit."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from ultralytics.nn.autobackend import check_class_names

from federated_yolo.common.arrays import (
    Arrays,
    Layout,
    cast_to,
    layout_problems,
    negative_statistics,
)
from federated_yolo.common.errors import InputError
from federated_yolo.common.files import read_yaml, special_kind
from federated_yolo.config.train_arguments import train_problems
from federated_yolo.data.keypoints import keypoint_names, keypoint_problems
from federated_yolo.storage.archive import RoundMeta, load_arrays, load_headers
from federated_yolo.yolo.checkpoint import (
    CLASSIFY_IMGSZ,
    load_base,
    load_checkpoint_module,
    save_checkpoint,
)
from federated_yolo.yolo.class_branch import Architecture, class_branch_in, set_class_branch
from federated_yolo.yolo.convert import first_line, format_problems
from federated_yolo.yolo.model import build_model, load_into, to_arrays

MAX_LINES = 5  # problems shown per archive; a model of another kind has hundreds of misfits
POSITIONAL = re.compile(r"arr_(\d+)")  # the names that np.savez gives to arrays without one

KEYPOINTS = ("kpt_names", "kpt_oks_sigmas")  # attributes that a pose model takes from its data
T = TypeVar("T")


@dataclass(frozen=True)
class Base:
    """Facts that a base model itself contains.

    structure: Content of its YAML. data: `names`, `nc`, `channels`; for pose also `kpt_shape` and,
    from a checkpoint, KEYPOINTS if it has them. imgsz: Image size in pixels.
    """

    task: str
    structure: dict[str, Any]
    data: dict[str, Any]
    imgsz: int


@dataclass(frozen=True)
class Rebuilt:
    """The model of a round.

    imgsz: Image size of the run, or else of the base, in pixels. meta: The archive's description;
    None if another program wrote it. notes: Remarks for the user.
    """

    model: torch.nn.Module
    task: str
    names: tuple[str, ...]
    imgsz: int
    meta: RoundMeta | None
    notes: tuple[str, ...] = ()


def export(
    base: str | Path, arrays_path: str | Path, output: str | Path, data: str | Path | None = None
) -> Path:
    """Write the model of a round as an Ultralytics checkpoint, float32, and return its path.

    base: A checkpoint or model YAML. arrays_path: A `roundN.npz`, or another program's .npz.
    data: A data.yaml with the class names (and `kpt_shape`) for an archive without them; its images
    need not exist. Names of keypoints come from it, or else from the run's `last.pt` beside the
    archive if that can be read.

    Raises InputError with all problems; in that case nothing was written.
    """
    rebuilt = rebuild(str(base), Path(arrays_path), Path(data) if data else None, Path(output))
    return save(rebuilt, Path(output))


def rebuild(
    base: str, arrays_path: Path, data: Path | None, output: Path, format_name: str | None = None
) -> Rebuilt:
    """Check everything, then build the model and load the arrays into it; nothing is written.

    Raises InputError with all problems.
    """
    problems = output_problems(output, base) + format_problems(format_name)
    facts = _attempt(problems, read_base, base)
    classes = _attempt(problems, read_classes, data) if data else {}
    found = _attempt(problems, read_headers, arrays_path)
    if problems or facts is None or classes is None or found is None:
        raise InputError(problems)
    headers, meta = found
    model_data = merge_data(facts, classes, meta, base=base, arrays_path=arrays_path)
    run_imgsz = read_run_imgsz(arrays_path) if meta else None
    notes: list[str] = []
    if facts.task == "pose":
        _settle_keypoints(classes, model_data, data)
    if meta and facts.task == "pose":
        try:
            model_data = {**run_keypoints(arrays_path, model_data), **model_data}
        except InputError as error:  # not fatal: the arrays are sound
            notes = [f"keypoints have no names of the run: {error}; --data can give them"]
    try:
        # All its weights will come from the archive.
        model = build_model(Architecture(facts.structure), facts.task, model_data)
    except Exception as error:  # a model YAML of any shape meets Ultralytics' code here
        raise InputError(f"base '{base}': cannot be built: {error}") from error
    adopt_class_branch(model, headers)
    layout = Layout.of(to_arrays(model))
    try:
        fit(headers, layout, exact=meta is not None)  # before memory is allocated for them
        load_into(model, fit(read_round(arrays_path), layout, exact=meta is not None))
    except InputError as error:
        hint = _misfit_hint(model, headers, layout, meta, has_classes=bool(classes))
        lines = ([f"does not fit base '{base}'; {hint}"] if hint else []) + error.problems
        raise InputError(f"{arrays_path}: {line}" for line in lines) from error
    names = tuple(model_data["names"][index] for index in range(len(model_data["names"])))
    imgsz = run_imgsz or facts.imgsz
    return Rebuilt(model, facts.task, names, imgsz, meta, tuple(notes))


def save(rebuilt: Rebuilt, output: Path) -> Path:
    """Write the .pt completely or not at all. Raises InputError if it cannot be written there."""
    try:
        save_checkpoint(output, rebuilt.model, {"imgsz": rebuilt.imgsz})
    except (OSError, RuntimeError) as error:  # PyTorch reports a full disk as a RuntimeError
        raise InputError(f"{output}: cannot be written: {first_line(error)}") from error
    return output


def _attempt(problems: list[str], function: Callable[[Any], T], argument: object) -> T | None:
    """Call a check; if it raises InputError, record its problems so that other checks still run."""
    try:
        return function(argument)
    except InputError as error:
        problems += error.problems
        return None


def output_problems(output: Path, base: str) -> list[str]:
    """Report why the .pt cannot be written there."""
    parent = output.absolute().parent
    if output.suffix.lower() != ".pt":
        return [f"output '{output}': expected a name that ends in .pt, e.g. saved_model.pt"]
    if not parent.is_dir():
        return [f"output '{output}': no folder {parent}; make it or choose another output"]
    if not os.access(parent, os.W_OK | os.X_OK):
        return [f"output '{output}': {parent} is not writable; choose another output"]
    try:
        if output.is_dir():
            return [f"output '{output}': is a folder; choose another output"]
        if output.exists() and Path(base).exists() and output.samefile(base):
            return [f"output '{output}': would overwrite the base; choose another output"]
    except OSError as error:  # e.g. a name too long for the file system
        return [f"output '{output}': cannot be written: {error.strerror}"]
    return []


def read_base(base: str) -> Base:
    """Read the facts of a base model; its weights are not used."""
    loaded = load_base(base)
    task, structure = loaded.task, loaded.structure
    module: Any = loaded.module
    if module is None:
        names, imgsz = None, CLASSIFY_IMGSZ if task == "classify" else 640
    else:
        names, args = getattr(module, "names", None), getattr(module, "args", {})
        imgsz = (args if isinstance(args, Mapping) else vars(args)).get("imgsz", 640)
    names = check_class_names(names or [str(i) for i in range(structure.get("nc", 80))])
    data = {"names": names, "nc": len(names), "channels": structure.get("channels", 3)}
    if task == "pose":
        data.update({"kpt_shape": list(structure["kpt_shape"]), **keypoints_of(module)})
    return Base(task, structure, data, max(imgsz) if isinstance(imgsz, Sequence) else int(imgsz))


def read_classes(path: Path) -> dict[str, Any]:
    """Read what a data.yaml says about the model; `data/scan.py` would also need its images."""
    where = f"--data ({path})"
    if not path.is_file():
        found = special_kind(path) or "no such file"
        raise InputError(f"{where}: {found}; expected an Ultralytics data.yaml")
    try:
        raw = read_yaml(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{where}: not a readable YAML file: {first_line(error)}") from error
    if not isinstance(raw, dict) or not isinstance(raw.get("names"), (list, dict)):
        raise InputError(f"{where}: no list of class names; a data.yaml has a 'names' line")
    try:
        names = check_class_names(raw["names"])
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{where}: names: {first_line(error)}") from error
    if raw.get("nc", len(names)) != len(names):
        raise InputError(f"{where}: nc: found {raw['nc']}, but there are {len(names)} names")
    if problems := list(keypoint_problems(raw, len(names))):
        raise InputError(f"{where}: {problem}" for problem in problems)
    keys = ("channels", "kpt_shape", *KEYPOINTS)
    optional = {key: raw[key] for key in keys if raw.get(key)}
    return {"names": dict(sorted(names.items())), "nc": len(names), **optional}


def read_headers(path: Path) -> tuple[Arrays, RoundMeta | None]:
    """Return the arrays of an archive by their headers alone (all values are 0), and its meta.

    Raises InputError if it holds no arrays, or arrays that are not of numbers.
    """
    try:
        arrays, meta = load_headers(path)
    except ValueError as error:
        raise InputError(str(error)) from error
    for name, array in arrays.items():
        if array.dtype.kind not in "fiu":
            raise InputError(f"{path}: '{name}' is no array of numbers; expected a round's .npz")
    if not arrays:
        raise InputError(f"{path}: holds no arrays; expected a round's .npz")
    return arrays, meta


def read_round(path: Path) -> Arrays:
    """Read the arrays of an archive after its headers were found to fit. Raises InputError."""
    try:
        return load_arrays(path, may_be_packed=True)[0]
    except ValueError as error:
        raise InputError(str(error).removeprefix(f"{path}: ")) from error


def adopt_class_branch(model: torch.nn.Module, arrays: Arrays) -> None:
    """Give the model class branches as wide as those of the arrays; no base defines their width.

    If the run started from a checkpoint with other classes, they are as wide as in that checkpoint.
    Arrays of another model change nothing here; `fit` reports what is wrong with them.
    """
    names = list(to_arrays(model))
    if all(POSITIONAL.fullmatch(name) for name in arrays):
        arrays = {n: arrays[f"arr_{i}"] for i, n in enumerate(names) if f"arr_{i}" in arrays}
    shapes = {name: array.shape for name, array in arrays.items()}
    with suppress(ValueError):
        set_class_branch(model, class_branch_in(model, shapes))


def read_run_imgsz(arrays_path: Path) -> int | None:
    """Return the run's image size (pixels) from its args.yaml; None for a copied round archive."""
    path = arrays_path.absolute().parent.parent / "args.yaml"
    if not path.is_file():
        return None
    try:
        train = read_yaml(path)["train"]
        found = {key: train[key] for key in ("imgsz",) if train.get(key)}
    except (
        OSError,
        UnicodeDecodeError,
        yaml.YAMLError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise InputError(f"{path}: not the args.yaml of a run: {first_line(error)}") from error
    if problems := train_problems(found):
        raise InputError(f"{path}: {problem}" for problem in problems)
    return found.get("imgsz")


def _settle_keypoints(
    classes: Mapping[str, Any], model_data: dict[str, Any], path: Path | None
) -> None:
    """Put keypoint names from --data into `model_data`; refuse lists that do not fit `kpt_shape`.

    `kpt_shape` may come from the base, which `read_classes` has not seen.
    """
    said = {**classes, "kpt_shape": model_data["kpt_shape"]}
    if problems := list(keypoint_problems(said, model_data["nc"])):
        raise InputError(f"--data ({path}): {problem}" for problem in problems)
    if "kpt_names" in classes:
        model_data["kpt_names"] = keypoint_names(classes["kpt_names"])


def run_keypoints(arrays_path: Path, model_data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the KEYPOINTS of this run's clients, from its saved model `last.pt`.

    Empty for a round that was copied out of its run directory, and for a run without such a model.
    Raises InputError if the file is not readable or has other classes or keypoints.
    """
    path = arrays_path.with_name("last.pt")
    if not path.is_file():
        return {}
    module: Any = load_checkpoint_module(str(path), where=str(path), is_trusted=False)
    found = keypoints_of(module)
    said = {**found, "kpt_shape": model_data["kpt_shape"]}
    if module.names != model_data["names"] or any(keypoint_problems(said, model_data["nc"])):
        raise InputError(f"{path}: is of other classes or keypoints than {arrays_path.name}")
    return found


def keypoints_of(module: Any) -> dict[str, Any]:
    """Return those KEYPOINTS that a pose model has, by their keys in a data.yaml."""
    found = {key: getattr(module, key, None) for key in KEYPOINTS}
    return {key: value for key, value in found.items() if value is not None}


def merge_data(
    facts: Base,
    classes: Mapping[str, Any],
    meta: RoundMeta | None,
    *,
    base: str,
    arrays_path: Path,
) -> dict[str, Any]:
    """Return the model's data with the classes of the round, or else of --data, or of the base.

    Raises InputError if they contradict each other.
    """
    data = {**facts.data, **classes}
    if classes or meta:  # keypoints of the base belong to other classes
        data = {k: v for k, v in data.items() if k not in KEYPOINTS or k in classes}
    if meta is None:
        return data
    if meta.task != facts.task:
        raise InputError(
            f"{arrays_path}: a round of task '{meta.task}', but base '{base}' is of task "
            f"'{facts.task}'; the run started from '{meta.base_model}'"
        )
    given = list(classes["names"].values()) if classes else list(meta.names)
    if given != list(meta.names):
        raise InputError(
            f"--data: classes [{', '.join(given)}]; the federation has "
            f"[{', '.join(meta.names)}]; leave --data out, the round knows its classes"
        )
    return {**data, "names": dict(enumerate(meta.names)), "nc": len(meta.names)}


def fit(arrays: Arrays, layout: Layout, *, exact: bool) -> Arrays:
    """Check arrays against the model and return them by its names, in its dtypes.

    exact: Whether this project wrote the arrays, so that nothing has to be renamed or cast.

    Raises InputError.
    """
    if exact:
        _refuse(layout_problems(arrays, layout))
        return arrays
    if all(POSITIONAL.fullmatch(name) for name in arrays):
        arrays = by_position(arrays, layout)
    as_found = Layout(
        tuple((n, s, arrays[n].dtype.name if n in arrays else d) for n, s, d in layout.entries)
    )
    _refuse(layout_problems(arrays, as_found) + _implausible(arrays, layout))
    with np.errstate(over="ignore"):  # a float64 too large for float32 becomes inf: refused below
        arrays = cast_to(arrays, layout)
    _refuse(layout_problems(arrays, layout))
    return arrays


def _implausible(arrays: Arrays, layout: Layout) -> list[str]:
    """Report signs that arrays of the right shapes are the wrong ones, or in another order."""
    problems = []
    for name, _, dtype in layout.entries:
        array = arrays.get(name)
        if array is None:
            continue
        if array.dtype.kind in "iu" and np.dtype(dtype).kind == "f":
            problems.append(f"{name}: {array.dtype.name}, expected a floating-point array")
    order = "; are the arrays in another order?"
    return problems + [problem + order for problem in negative_statistics(arrays)]


def by_position(arrays: Arrays, layout: Layout) -> Arrays:
    """Name positional arrays `arr_0`, `arr_1`, ... in the order of the layout.

    Only the shapes show whether the order is right, so all must fit. Raises InputError.
    """
    expected = [f"arr_{i}" for i in range(len(layout.entries))]
    if len(arrays) != len(expected):
        raise InputError(
            f"{len(arrays)} arrays by position, expected {len(expected)}: all parameters and "
            "buffers of the model, in the order of its state_dict"
        )
    _refuse([f"no array {name} among {len(arrays)}" for name in expected if name not in arrays])
    _refuse(
        [
            f"position {i}: {key} has shape {arrays[key].shape}, {name} expects {shape}"
            for i, (key, (name, shape, _)) in enumerate(zip(expected, layout.entries, strict=True))
            if arrays[key].shape != shape
        ]
    )
    return {name: arrays[key] for key, name in zip(expected, layout.names, strict=True)}


def _refuse(problems: list[str]) -> None:
    if problems:
        more = len(problems) - MAX_LINES
        tail = [f"... and {more} more problems"] if more > 0 else []
        raise InputError(problems[:MAX_LINES] + tail)


def _misfit_hint(
    model: Any, arrays: Arrays, layout: Layout, meta: RoundMeta | None, *, has_classes: bool
) -> str | None:
    """Suggest what to try if the arrays belong to another model; None if only values are bad."""
    if all(POSITIONAL.fullmatch(name) for name in arrays):
        arrays = {n: arrays[f"arr_{i}"] for i, n in enumerate(layout.names) if f"arr_{i}" in arrays}
    wrong = [n for n, shape, _ in layout.entries if n not in arrays or arrays[n].shape != shape]
    wrong += [name for name in arrays if name not in layout.names]
    if not wrong:
        return None
    if meta is not None and set(arrays) < set(layout.names) and not set(wrong) & set(arrays):
        return (
            "the clients of this run kept the other arrays to themselves (shared.parts, "
            "shared.batchnorm); each has its model in clients/NAME/best.pt"
        )
    if meta is not None:
        return (
            f"the run started from '{meta.base_model}': give that file; for other input channels "
            "or keypoints also pass --data"
        )
    head = f"model.{len(model.yaml['backbone']) + len(model.yaml['head']) - 1}."
    if not all(name.startswith(head) for name in wrong):
        return "give the base that these arrays were trained from"
    if not has_classes:
        return (
            f"only the head differs: it was built for {model.nc} classes; pass --data data.yaml "
            "with the classes that these arrays were trained on"
        )
    return f"only the head differs: it was built for {model.nc} classes; check --data"
