"""The global model: built in one place from a base, turned into named arrays and back, saved.

Server, clients and exporter all call `build_model`, which is Ultralytics' own way from a base
model and a list of class names to the model that `yolo train` would start from.
"""

import copy
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ultralytics
from ultralytics.cfg import get_cfg
from ultralytics.nn.modules import Detect
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.nn.tasks import guess_model_task, torch_safe_load, yaml_model_load
from ultralytics.utils import SAFE_LOAD
from ultralytics.utils.torch_utils import init_seeds, unset_deterministic, unwrap_model

from utils.arrays import Arrays, Layout, layout_problems
from utils.config import InputError, SharedConfig
from utils.environment import ensure_torchvision_nms
from utils.run_dir import write_atomically

Freeze = int | list[int | str] | None  # a number of layers, or layers and names of parts of them
TASKS = ("detect", "segment", "pose", "obb", "classify")
CLASSIFY_IMGSZ = 224  # pixels; Ultralytics' default for this task
MODEL_YAML = "model.yaml"  # stands for a base model that is no file
# Heads that take their classes from texts, of YOLO-World and YOLOE.
TEXT_HEADS = ("WorldDetect", "YOLOEDetect", "YOLOESegment", "YOLOESegment26")


def task_of(base_model: str) -> str:
    """Task of a base model (a .pt or a model YAML), after checking that it can be used.

    Raises InputError when the file is missing, no checkpoint, not safe to load, or of a task
    that this toolkit does not train.
    """
    where = f"base_model '{base_model}'"
    structure = structure_of(base_model, where=where)
    if head_of(structure) in TEXT_HEADS:
        raise InputError(
            f"{where}: its classes come from text prompts (YOLO-World, YOLOE), which are not "
            "trained here; use a model that has its own, e.g. yolo11n.yaml"
        )
    task = task_of_structure(structure)
    if task not in TASKS:
        raise InputError(f"{where}: task '{task}'; expected one of {', '.join(TASKS)}")
    return task


def structure_of(base_model: str, *, where: str) -> dict[str, Any]:
    """What a model YAML holds, or a checkpoint says that it was built from. Raises InputError."""
    suffix = Path(base_model).suffix.lower()
    if suffix == ".pt":
        module: Any = load_checkpoint_module(base_model, where=where)
        if not isinstance(getattr(module, "yaml", None), dict):
            raise InputError(f"{where}: not a model of Ultralytics' own; it has no YAML")
        return module.yaml
    if suffix in {".yaml", ".yml"}:
        return _load_model_yaml(base_model, where)
    raise InputError(f"{where}: expected a .pt checkpoint or a model YAML, e.g. yolo11n.yaml")


def head_of(structure: Mapping[str, Any]) -> str:
    """Name of the module that predicts, the last one of a model YAML; "" where there is none."""
    try:
        return str(structure["head"][-1][-2])
    except (KeyError, IndexError, TypeError):  # found when the model is built, with the reason
        return ""


def is_rtdetr(structure: Mapping[str, Any]) -> bool:
    """Whether a model is an RT-DETR: it detects, with a trainer, validator and data set of its own.

    structure: what a model YAML holds.
    """
    return head_of(structure) == "RTDETRDecoder"


def task_of_structure(structure: Mapping[str, Any]) -> str:
    """Ultralytics' task of a model by its YAML; "unknown" for none."""
    return "detect" if is_rtdetr(structure) else guess_model_task(dict(structure)) or "unknown"


def load_checkpoint_module(path: str, *, where: str) -> torch.nn.Module:
    """The module inside an Ultralytics checkpoint, read by the restricted loader.

    (Unless `trust_checkpoint` has switched it off for this process, see utils/environment.py.)
    Raises InputError; `where` starts its line.
    """
    try:
        exists = Path(path).is_file()
    except OSError:  # e.g. the name is too long
        exists = False
    if not exists:
        raise InputError(
            f"{where}: no such file; weights are not downloaded, so put the .pt there or train "
            "from a model YAML such as yolo11n.yaml"
        )
    ensure_torchvision_nms()  # classification checkpoints hold torchvision transforms
    try:
        with warnings.catch_warnings():
            # PyTorch's remarks on the pickle's version; what cannot be loaded raises.
            warnings.simplefilter("ignore")
            checkpoint, _ = torch_safe_load(path, safe_only=SAFE_LOAD)
    except Exception as error:  # any damage to a pickle surfaces as any kind of error
        raise InputError(
            f"{where}: not an Ultralytics checkpoint that is safe to load: {_why_not(error)}"
        ) from error
    checkpoint = checkpoint if isinstance(checkpoint, dict) else {}
    module = checkpoint.get("ema") or checkpoint.get("model")
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"{where}: the file holds no model; expected an Ultralytics checkpoint")
    return module


def _why_not(error: Exception) -> str:
    """What keeps a checkpoint from being loaded, in one line."""
    foreign = re.search(r"GLOBAL (\S+)", str(error.__cause__))
    if foreign:
        return (
            f"it refers to {foreign[1]}, which is no part of a model and could run any code; if "
            "you trust whoever made it, set trust_checkpoint (the exporter: --trust-checkpoint)"
        )
    return next((x for x in str(error).splitlines() if x.strip()), type(error).__name__)


def _load_model_yaml(name: str, where: str) -> dict[str, Any]:
    try:
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


def build_model(
    base_model: str | Mapping[str, Any],
    task: str,
    data: Mapping[str, Any],
    train: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> torch.nn.Module:
    """Build the model that `yolo train` would start from: base, adapted to the data's classes.

    The task's trainer builds it, so class rows are carried over by name, `pretrained` and
    `cls_remap` are obeyed, and new weights are drawn from `seed` as in a plain training.

    base_model: a .pt, a model YAML, or what a model YAML holds (see `yaml_of`).
    data: `names` (index -> name), `nc`, and what else the task needs of a data.yaml.
    train: Ultralytics train arguments.
    Returns the float32 model on the CPU.
    """
    ensure_torchvision_nms()
    structure = base_model
    if isinstance(structure, str):
        structure = structure_of(structure, where=f"base_model '{base_model}'")
    # The trainer's own __init__ would make folders and read images; building needs neither.
    trainer: Any = object.__new__(trainer_class(task, structure))
    name = base_model if isinstance(base_model, str) else MODEL_YAML
    trainer.args = get_cfg(overrides={**(train or {}), "task": task, "model": name})
    trainer.data = {"channels": 3, **data}
    if trainer.args.single_cls:  # as in `BaseTrainer.get_dataset`
        trainer.data.update(names={0: "item"}, nc=1)
    trainer.model = base_model
    trainer.resume = False
    init_seeds(seed, deterministic=trainer.args.deterministic)
    try:
        if isinstance(base_model, str):
            trainer.setup_model()
        else:
            trainer.model = trainer.get_model(cfg=copy.deepcopy(dict(base_model)), verbose=False)
    finally:
        unset_deterministic()
    trainer.set_model_attributes()
    model: Any = trainer.model
    return model.float()


def yaml_of(model: torch.nn.Module) -> dict[str, Any]:
    """What the model was built from: all of a model but its weights. Text, numbers and lists."""
    unwrapped: Any = unwrap_model(model)
    return json.loads(json.dumps(unwrapped.yaml))


def trainer_class(task: str, structure: Mapping[str, Any]) -> type:
    """Ultralytics' trainer of a task. structure: of the model, as of `yaml_of`."""
    from ultralytics.models import yolo
    from ultralytics.models.rtdetr.train import RTDETRTrainer

    if is_rtdetr(structure):
        return RTDETRTrainer
    return {
        "detect": yolo.detect.DetectionTrainer,
        "segment": yolo.segment.SegmentationTrainer,
        "pose": yolo.pose.PoseTrainer,
        "obb": yolo.obb.OBBTrainer,
        "classify": yolo.classify.ClassificationTrainer,
    }[task]


def validator_class(task: str, structure: Mapping[str, Any]) -> type:
    """Ultralytics' validator of a task. structure: of the model, as of `yaml_of`."""
    from ultralytics.models import yolo
    from ultralytics.models.rtdetr.val import RTDETRValidator

    if is_rtdetr(structure):
        return RTDETRValidator
    return {
        "detect": yolo.detect.DetectionValidator,
        "segment": yolo.segment.SegmentationValidator,
        "pose": yolo.pose.PoseValidator,
        "obb": yolo.obb.OBBValidator,
        "classify": yolo.classify.ClassificationValidator,
    }[task]


def to_arrays(model: torch.nn.Module) -> Arrays:
    """Copy the state of a model into named arrays, float32 and int64 as they are."""
    state = unwrap_model(model).state_dict()
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}


def part_of_arrays(model: torch.nn.Module) -> dict[str, str]:
    """Part of each array by its name: "backbone", "neck" or "head".

    The model's own YAML says where they are: its backbone section, the last layer (the head that
    predicts), and what lies between them.
    """
    unwrapped: Any = unwrap_model(model)
    num_backbone, num_layers = len(unwrapped.yaml["backbone"]), len(unwrapped.model)
    parts = {}
    for name in unwrapped.state_dict():
        layer = int(name.split(".")[1])  # all are "model.LAYER..."
        is_head = layer == num_layers - 1
        parts[name] = "head" if is_head else "backbone" if layer < num_backbone else "neck"
    return parts


def batchnorm_arrays(model: torch.nn.Module) -> frozenset[str]:
    """Names of all arrays of BatchNorm layers: weights, biases, statistics and counters."""
    return frozenset(
        f"{layer}.{name}"
        for layer, module in unwrap_model(model).named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        for name in module.state_dict()
    )


def parameter_names(model: torch.nn.Module) -> frozenset[str]:
    """Names of the trainable arrays; the rest are buffers (and YOLO's constant DFL kernel)."""
    return frozenset(
        name for name, _ in unwrap_model(model).named_parameters() if ".dfl." not in name
    )


def moved_names(model: torch.nn.Module, freeze: Freeze) -> frozenset[str]:
    """Names of the trainable arrays that training moves, by Ultralytics' argument `freeze`."""
    frozen = _frozen_parts(freeze)
    return frozenset(n for n in parameter_names(model) if not any(part in n for part in frozen))


def freeze_problems(model: torch.nn.Module, freeze: Freeze) -> list[str]:
    """Say what `freeze` names that the model does not have, or that it leaves nothing to train."""
    unwrapped: Any = unwrap_model(model)
    names, last = list(unwrapped.state_dict()), len(unwrapped.model) - 1
    where = f"found {freeze!r}, but the model has layers 0 to {last}"
    for layer in freeze if isinstance(freeze, list) else ():
        is_there = layer <= last if isinstance(layer, int) else _is_in(names, layer)
        if not is_there:
            return [f"train.freeze: {where}, and no {layer!r}; correct it"]
    if freeze and not moved_names(model, freeze):
        return [f"train.freeze: {where}, of which nothing is left to train; freeze fewer"]
    return []


def _is_in(names: Iterable[str], layer: str) -> bool:
    (part,) = _frozen_parts([layer])
    return any(part in name for name in names)


def _frozen_parts(freeze: Freeze) -> list[str]:
    """What the name of a frozen array has in it, as in `BaseTrainer._setup_train` (8.4)."""
    layers = range(freeze) if isinstance(freeze, int) else freeze or ()
    return [f"model.{layer}." for layer in layers]


def class_row_names(model: torch.nn.Module) -> list[str]:
    """Names of the arrays whose row c belongs to class c: ends of the classification branches.

    All YOLO heads keep these in `cv3`, and end-to-end ones a second time in `one2one_cv3`. RT-DETR
    has them after its encoder and each decoder layer, and learns what boxes of a class look like
    with noise. A classifier has none: each of its images says something about every class.
    """
    names = []
    for head, module in unwrap_model(model).named_modules():
        if isinstance(module, RTDETRDecoder):
            names += [
                f"{head}.{name}"
                for name in module.state_dict()
                if name.startswith(("enc_score_head.", "dec_score_head.", "denoising_class_embed."))
            ]
        if isinstance(module, Detect):
            for attribute in ("cv3", "one2one_cv3"):
                branches: Any = getattr(module, attribute, None) or ()
                for index, branch in enumerate(branches):
                    last = f"{head}.{attribute}.{index}.{len(branch) - 1}"
                    names += [f"{last}.{name}" for name in branch[-1].state_dict()]
    return names


def shared_names(model: torch.nn.Module, shared: SharedConfig) -> list[str]:
    """Names of the arrays that travel, in the order of the model's."""
    private = batchnorm_arrays(model) if shared.batchnorm == "local" else frozenset()
    return [
        name
        for name, part in part_of_arrays(model).items()
        if part in shared.parts and name not in private
    ]


def load_into(model: torch.nn.Module, arrays: Arrays, names: Iterable[str] | None = None) -> None:
    """Copy named arrays into a model in place, so that its optimiser goes on with them.

    names: of the arrays that there must be; None is all of the model. The others stay.
    Raises ValueError, naming arrays, when they are not the model's.
    """
    state = unwrap_model(model).state_dict()
    if names is not None:
        state = {name: state[name] for name in names}
    layout = Layout(
        tuple((n, tuple(t.shape), str(t.dtype).removeprefix("torch.")) for n, t in state.items())
    )
    problems = layout_problems(arrays, layout)
    if problems:
        raise ValueError("the arrays do not fit the model: " + "; ".join(problems[:5]))
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(torch.from_numpy(np.require(arrays[name], requirements=["C", "W"])))


def save_checkpoint(
    path: Path, model: torch.nn.Module, train_args: Mapping[str, Any] | None = None
) -> None:
    """Write a model as an Ultralytics checkpoint with its float32 weights, atomically.

    `YOLO(path)` predicts, validates, exports and trains on from it. (Ultralytics' own
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
        "epoch": -1,  # training is over: nothing for `resume` to go on from
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
