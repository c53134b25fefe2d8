"""Read Ultralytics' checkpoints and model YAMLs, trusted or not, and write checkpoints."""

import copy
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import ultralytics
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import guess_model_task, torch_safe_load, yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT, SAFE_LOAD
from ultralytics.utils.torch_utils import unwrap_model

from federated_yolo.common.errors import InputError
from federated_yolo.common.files import read_yaml, special_kind, write_atomically
from federated_yolo.common.torchvision_nms import ensure_torchvision_nms

TASKS = ("detect", "segment", "pose", "obb", "classify")
CLASSIFY_IMGSZ = 224  # pixels; Ultralytics' default for this task
MODEL_YAML = "model.yaml"  # name given to Ultralytics for a model that comes from no file
# Heads of YOLO-World and YOLOE, which take their classes from texts.
TEXT_HEADS = ("WorldDetect", "YOLOEDetect", "YOLOESegment", "YOLOESegment26")


@dataclass(frozen=True)
class LoadedBase:
    """A base model, read once: a checkpoint, or a model YAML, which has no weights.

    name: The path or model YAML as the config gives it. structure: Content of the model YAML.
    train_args: Arguments that the checkpoint was trained with. module: The checkpoint's model with
    its weights; None for a model YAML.
    """

    name: str
    structure: dict[str, Any]
    train_args: dict[str, Any] = field(default_factory=dict)
    module: torch.nn.Module | None = None

    @property
    def task(self) -> str:
        """Ultralytics' task, one of TASKS."""
        return task_of_structure(self.structure)


def load_base(base_model: str) -> LoadedBase:
    """Read a base model (a .pt or a model YAML), and check that it can be used.

    Raises InputError if the file is missing, is not a checkpoint, is not safe to load, or has a
    task that this package does not train.
    """
    where = f"base_model '{base_model}'"
    base = _read_base(base_model, where)
    if head_of(base.structure) in TEXT_HEADS:
        raise InputError(
            f"{where}: its classes come from text prompts (YOLO-World, YOLOE), which are not "
            "trained here; use a model that has its own, e.g. yolo11n.yaml"
        )
    if base.task not in TASKS:
        raise InputError(f"{where}: task '{base.task}'; expected one of {', '.join(TASKS)}")
    return base


def task_of(base_model: str) -> str:
    """Return the task of a base model. Raises InputError like `load_base`."""
    return load_base(base_model).task


def structure_of(base_model: str, *, where: str) -> dict[str, Any]:
    """Return the content of a model YAML, or of the YAML in a checkpoint. Raises InputError."""
    return _read_base(base_model, where).structure


def _read_base(base_model: str, where: str) -> LoadedBase:
    suffix = Path(base_model).suffix.lower()
    if suffix in {".yaml", ".yml"}:
        return LoadedBase(base_model, _load_model_yaml(base_model, where))
    if suffix != ".pt":
        raise InputError(f"{where}: expected a .pt checkpoint or a model YAML, e.g. yolo11n.yaml")
    checkpoint = _load_checkpoint(base_model, where)
    module: Any = _module_in(checkpoint, where)
    if not isinstance(getattr(module, "yaml", None), dict):
        raise InputError(f"{where}: not a model of Ultralytics' own; it has no YAML")
    args = checkpoint.get("train_args")
    return LoadedBase(base_model, module.yaml, args if isinstance(args, dict) else {}, module)


def weights_of(base: LoadedBase | None, pretrained: Any) -> torch.nn.Module | None:
    """Return the model whose weights training starts from; None for new weights.

    base: The base model; None if it could not be read. pretrained: Ultralytics' argument; if it is
    a path, that checkpoint is read. Raises InputError.
    """
    if isinstance(pretrained, str):
        return load_checkpoint_module(pretrained, where=f"train.pretrained '{pretrained}'")
    return base.module if base and pretrained is not False else None


def head_of(structure: Mapping[str, Any]) -> str:
    """Return the name of the module that predicts, the last in a model YAML; "" if it has none."""
    try:
        return str(structure["head"][-1][-2])
    except (KeyError, IndexError, TypeError):  # building the model reports the reason
        return ""


def is_rtdetr(structure: Mapping[str, Any]) -> bool:
    """Whether a model is an RT-DETR: a detector with its own trainer, validator and data set.

    structure: Content of the model YAML.
    """
    return head_of(structure) == "RTDETRDecoder"


def task_of_structure(structure: Mapping[str, Any]) -> str:
    """Return Ultralytics' task of a model by its YAML; "unknown" if it has none."""
    return "detect" if is_rtdetr(structure) else guess_model_task(dict(structure)) or "unknown"


def load_checkpoint_module(
    path: str, *, where: str, is_trusted: bool | None = None
) -> torch.nn.Module:
    """Read the module inside an Ultralytics checkpoint.

    is_trusted: Whether to use the loader that can run code in the file, or else the restricted one;
    None for this process's `trust_checkpoint`, see common/environment.py.
    Raises InputError; `where` starts its line.
    """
    return _module_in(_load_checkpoint(path, where, is_trusted), where)


def _module_in(checkpoint: Mapping[str, Any], where: str) -> torch.nn.Module:
    module = checkpoint.get("ema") or checkpoint.get("model")
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"{where}: the file holds no model; expected an Ultralytics checkpoint")
    return module


def train_args_of_base(base: LoadedBase) -> dict[str, Any]:
    """Return train arguments that `yolo train` takes from a base model if no others are given.

    They are those of `Model._reset_ckpt_args` (Ultralytics 8.4) that affect training; a model YAML
    has none.
    """
    if base.module is None:
        return {}
    found = {**DEFAULT_CFG_DICT, **base.train_args}
    return {name: found[name] for name in ("imgsz", "single_cls")}


def _load_checkpoint(path: str, where: str, is_trusted: bool | None = None) -> dict[str, Any]:
    """Return the content of a checkpoint; arguments are those of `load_checkpoint_module`."""
    try:
        exists = Path(path).is_file()
    except OSError:  # e.g. the name is too long
        exists = False
    if kind := special_kind(path):
        raise InputError(f"{where}: is {kind}, expected a .pt checkpoint")
    if not exists:
        raise InputError(
            f"{where}: no such file; weights are not downloaded, so put the .pt there or train "
            "from a model YAML such as yolo11n.yaml"
        )
    ensure_torchvision_nms()  # classification checkpoints hold torchvision transforms
    try:
        with warnings.catch_warnings():
            # PyTorch warns of the pickle's version; a file that cannot be loaded raises.
            warnings.simplefilter("ignore")
            safe_only = SAFE_LOAD if is_trusted is None else not is_trusted
            checkpoint, _ = torch_safe_load(path, safe_only=safe_only)
    except Exception as error:  # any damage to a pickle surfaces as any kind of error
        raise InputError(
            f"{where}: not an Ultralytics checkpoint that is safe to load: {_why_not(error)}"
        ) from error
    return checkpoint if isinstance(checkpoint, dict) else {}


# unstable: torch._weights_only_unpickler says 'GLOBAL {full_path} was not an allowed'
def _why_not(error: Exception) -> str:
    """Return in one line why a checkpoint cannot be loaded."""
    foreign = re.search(r"GLOBAL (\S+)", str(error.__cause__))
    if foreign:
        return (
            f"it refers to {foreign[1]}, which is no part of a model and could run any code; if "
            "you trust whoever made it, set trust_checkpoint (the exporter: --trust-checkpoint)"
        )
    return next((x for x in str(error).splitlines() if x.strip()), type(error).__name__)


def _load_model_yaml(name: str, where: str) -> dict[str, Any]:
    try:
        # Like yaml_model_load: if no file has this name, the size is removed from the name.
        for file in (name, re.sub(r"(\d+)([nslmx])(.+)?$", r"\1\3", name)):
            if Path(file).exists():
                read_yaml(Path(file))
                break
        loaded = yaml_model_load(name)
    except FileNotFoundError as error:
        raise InputError(
            f"{where}: no such file, and no model of that name comes with Ultralytics"
        ) from error
    except Exception as error:  # a YAML of any shape meets Ultralytics' parser here
        text = next((x for x in str(error).splitlines() if x.strip()), type(error).__name__)
        raise InputError(f"{where}: not a model YAML: {text}") from error
    if not isinstance(loaded, dict) or "backbone" not in loaded or "head" not in loaded:
        raise InputError(f"{where}: not a model YAML; expected 'backbone' and 'head'")
    return loaded


def save_checkpoint(
    path: Path, model: torch.nn.Module, train_args: Mapping[str, Any] | None = None
) -> None:
    """Write a model as an Ultralytics checkpoint with its float32 weights, atomically.

    `YOLO(path)` can predict, validate, export and continue training with it. (Ultralytics' own
    `YOLO.save` would round the weights to half precision.)
    """
    module: Any = copy.deepcopy(unwrap_model(model)).float().eval()
    module.task = task_of_structure(module.yaml)
    default = {"imgsz": CLASSIFY_IMGSZ} if module.task == "classify" else {}
    module.args = vars(get_cfg(overrides={**default, **(train_args or {}), "task": module.task}))
    module.criterion = None  # the loss is rebuilt when training starts
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    checkpoint = {
        "epoch": -1,  # training is complete: `resume` has nothing to continue
        "best_fitness": None,
        "model": module,
        "ema": None,
        "updates": None,
        "optimizer": None,
        "train_args": module.args,
        "date": datetime.now(UTC).isoformat(),
        "version": ultralytics.__version__,
        "license": "AGPL-3.0 (https://ultralytics.com/license)",
        "docs": "https://docs.ultralytics.com",
    }
    write_atomically(path, lambda file: torch.save(checkpoint, file))
