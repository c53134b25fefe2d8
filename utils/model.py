"""The global model: built in one place from a base, turned into named arrays and back, saved.

On the server, `build_model` goes Ultralytics' own way from a base model and a list of class names
to the model that `yolo train` would start from. Clients and the exporter build the same model from
its `Architecture`.
"""

import copy
import json
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ultralytics
from ultralytics.cfg import get_cfg
from ultralytics.nn.modules import Conv, Detect
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.nn.tasks import guess_model_task, torch_safe_load, yaml_model_load
from ultralytics.utils import DEFAULT_CFG_DICT, SAFE_LOAD
from ultralytics.utils.torch_utils import init_seeds, unset_deterministic, unwrap_model

from utils.arrays import Arrays, Layout, layout_problems
from utils.config import InputError, SharedConfig
from utils.environment import ensure_torchvision_nms
from utils.files import read_yaml, special_kind
from utils.run_dir import write_atomically

Freeze = int | list[int | str] | None  # a number of layers, or layers and names of parts of them
TASKS = ("detect", "segment", "pose", "obb", "classify")
CLASSIFY_IMGSZ = 224  # pixels; Ultralytics' default for this task
MODEL_YAML = "model.yaml"  # stands for a base model that is no file
# Heads that take their classes from texts, of YOLO-World and YOLOE.
TEXT_HEADS = ("WorldDetect", "YOLOEDetect", "YOLOESegment", "YOLOESegment26")
CLASS_BRANCHES = ("cv3", "one2one_cv3")  # of all YOLO heads; the second of end-to-end ones


@dataclass(frozen=True)
class Architecture:
    """What a model is built from on any machine: all of it but its weights, without a pickle.

    yaml: what a model YAML holds. class_branch: shapes of the convolutions of the head's class
    branches by the names of their arrays; empty for those that the YAML alone gives. A base of
    other classes passes on its own (`BaseModel.load`, Ultralytics 8.4.180 to 8.4.190), and no YAML
    shows that. new_class_rows: whether the rows of the classes were drawn anew then.
    """

    yaml: Mapping[str, Any]
    class_branch: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    new_class_rows: bool = False


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


def load_checkpoint_module(
    path: str, *, where: str, is_trusted: bool | None = None
) -> torch.nn.Module:
    """The module inside an Ultralytics checkpoint, read by the restricted loader.

    is_trusted: whether to read it by one that runs what it holds; None is as `trust_checkpoint` has
    it for this process, see utils/environment.py. Raises InputError; `where` starts its line.
    """
    checkpoint = _load_checkpoint(path, where, is_trusted)
    module = checkpoint.get("ema") or checkpoint.get("model")
    if not isinstance(module, torch.nn.Module):
        raise InputError(f"{where}: the file holds no model; expected an Ultralytics checkpoint")
    return module


def train_args_of_base(base_model: str) -> dict[str, Any]:
    """Train arguments that `yolo train` takes from a base model where it is not told others.

    They are those of `Model._reset_ckpt_args` (Ultralytics 8.4) that shape training: none of a
    model YAML. Raises InputError.
    """
    if Path(base_model).suffix.lower() != ".pt":
        return {}
    checkpoint = _load_checkpoint(base_model, f"base_model '{base_model}'")
    found = checkpoint.get("train_args")
    found = {**DEFAULT_CFG_DICT, **(found if isinstance(found, dict) else {})}
    return {name: found[name] for name in ("imgsz", "single_cls")}


def _load_checkpoint(path: str, where: str, is_trusted: bool | None = None) -> dict[str, Any]:
    """What a checkpoint holds; arguments as of `load_checkpoint_module`."""
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
            # PyTorch's remarks on the pickle's version; what cannot be loaded raises.
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
        # As yaml_model_load looks for it: a size is taken out of the name where no file has it.
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


def build_model(
    base_model: str | Architecture,
    task: str,
    data: Mapping[str, Any],
    train: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> torch.nn.Module:
    """Build the model that `yolo train` would start from: base, adapted to the data's classes.

    The task's trainer builds it, so class rows are carried over by name, `pretrained` and
    `cls_remap` are obeyed, and new weights are drawn from `seed` as in a plain training.

    base_model: a .pt or a model YAML; or an architecture, whose weights are new.
    data: `names` (index -> name), `nc`, and what else the task needs of a data.yaml.
    train: Ultralytics train arguments.
    Returns the float32 model on the CPU.
    """
    ensure_torchvision_nms()
    if isinstance(base_model, str):
        structure = structure_of(base_model, where=f"base_model '{base_model}'")
    else:
        structure = base_model.yaml
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
            trainer.model = model_of(base_model, trainer)
    finally:
        unset_deterministic()
    trainer.set_model_attributes()
    model: Any = trainer.model
    return model.float()


def architecture_of(
    model: torch.nn.Module, base_model: str = "", train: Mapping[str, Any] | None = None
) -> Architecture:
    """What a model that `build_model` made is built from.

    base_model, train: as it was made with; they say which random numbers were drawn.
    """
    unwrapped: Any = unwrap_model(model)
    arrays = {name: tuple(tensor.shape) for name, tensor in unwrapped.state_dict().items()}
    return Architecture(
        json.loads(json.dumps(unwrapped.yaml)),
        class_branch_in(unwrapped, arrays),
        _draws_class_rows(unwrapped, base_model, (train or {}).get("pretrained", True)),
    )


def _weights_of(base_model: str, pretrained: Any) -> str:
    """The checkpoint whose weights training starts from; empty for new ones."""
    source = pretrained if isinstance(pretrained, str) else base_model
    return source if pretrained is not False and source.lower().endswith(".pt") else ""


def _draws_class_rows(model: Any, base_model: str, pretrained: Any) -> bool:
    """Whether weights came from a head of another number of classes."""
    source = _weights_of(base_model, pretrained)
    if not source:
        return False
    module: Any = load_checkpoint_module(source, where=f"'{source}'")
    layers: list[Any] = [getattr(m, "model", [None]) for m in (module, model)]
    rows = [x[-1].cv3[0][-1].out_channels for x in layers if isinstance(x[-1], Detect)]
    return len(rows) == 2 and rows[0] != rows[1]


def class_change(base_model: str, train: Mapping[str, Any], names: Iterable[str]) -> str:
    """What becomes of the classes of the weights that training starts from; empty if nothing.

    By `BaseModel._remap_cls_by_names`: rows go by name, upper and lower case being the same.
    """
    source = _weights_of(base_model, train.get("pretrained", True))
    found = (
        getattr(load_checkpoint_module(source, where=f"'{source}'"), "names", {}) if source else {}
    )
    before, after = (
        list(dict(enumerate(found) if isinstance(found, list) else found).values()),
        [*names],
    )
    if not before or before == after:
        return ""
    text = f"{len(before)} classes before, {len(after)} now"
    if train.get("cls_remap", True):
        known = {str(name).strip().lower() for name in before}
        num_kept = sum(name.strip().lower() in known for name in after)
        text += f"; {num_kept} of them are known by name" + (
            ", and keep their rows" if num_kept else ", so their rows start anew"
        )
    return text


def class_branch_in(
    model: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Those of the shapes that are of the convolutions of this model's class branches, by name.

    shapes: of arrays by name; they may be of another model.
    """
    head = f"model.{len(unwrap_model(model).model) - 1}."  # pyright: ignore[reportArgumentType]
    starts = tuple(f"{head}{attribute}." for attribute in CLASS_BRANCHES)
    return {n: s for n, s in shapes.items() if n.startswith(starts) and len(s) == 4}


def model_of(architecture: Architecture, trainer: Any) -> Any:
    """The model that this Ultralytics trainer trains, with new weights.

    The random numbers are those that `yolo train` would have drawn to get it from its base model:
    copying weights draws none. Raises ValueError for a class branch that fits no such model.
    """
    model = trainer.get_model(cfg=copy.deepcopy(dict(architecture.yaml)), verbose=False)
    set_class_branch(model, architecture.class_branch, draw_rows=architecture.new_class_rows)
    return model


def set_class_branch(
    model: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]], *, draw_rows: bool = False
) -> None:
    """Give a new model class branches of these shapes, if it has others, as `BaseModel.load` does.

    shapes: as of `class_branch_in`; none leave the model as it is. draw_rows: draw the random
    numbers of new rows. Raises ValueError for shapes that do not join the neck to the classes.
    """
    unwrapped: Any = unwrap_model(model)
    found = class_branch_in(unwrapped, {n: tuple(t.shape) for n, t in model.state_dict().items()})
    if not shapes or {n: tuple(s) for n, s in shapes.items()} == found:
        return
    index, head = len(unwrapped.model) - 1, unwrapped.model[-1]
    if {name.split(".")[2] for name in shapes} != {name.split(".")[2] for name in found}:
        raise ValueError(f"class branches {sorted(shapes)[:2]}, ... are of another kind of head")
    num_built = 0
    rebuilt: dict[str, list[torch.nn.Module]] = {}
    for attribute in (name for name in CLASS_BRANCHES if getattr(head, name, None) is not None):
        rebuilt[attribute] = []
        for i, (old, box) in enumerate(zip(getattr(head, attribute), head.cv2, strict=True)):
            start = f"model.{index}.{attribute}.{i}."
            own = {n.removeprefix(start): s for n, s in shapes.items() if n.startswith(start)}
            num_built += len(own)
            with torch.random.fork_rng(devices=[]):
                new, channels = _branch(own, box[0].conv.in_channels, old)
            last = new[-1] if isinstance(new, torch.nn.Sequential) else None
            if not isinstance(last, torch.nn.Conv2d) or channels != old[-1].out_channels:
                raise ValueError(
                    f"{start}: ends in {channels} channels, expected {old[-1].out_channels} classes"
                )
            if draw_rows:
                new[-1] = torch.nn.Conv2d(last.in_channels, channels, 1)
            rebuilt[attribute].append(new.train(old.training))
    if num_built != len(shapes):
        raise ValueError(f"{len(shapes) - num_built} arrays of class branches of no feature map")
    for attribute, branches in rebuilt.items():
        setattr(head, attribute, torch.nn.ModuleList(branches))


def _branch(
    shapes: Mapping[str, tuple[int, ...]], channels: int, like: torch.nn.Module
) -> tuple[Any, int]:
    """The modules that have convolutions of these shapes one after another; their channels out.

    shapes: by name within the branch. channels: that come in. like: has the activations and the
    BatchNorm that `Conv` modules get.
    """
    if not shapes:
        raise ValueError("a class branch without convolutions")
    if set(shapes) == {"weight"} or set(shapes) == {"conv.weight"}:
        out, per_group, kernel, width = next(iter(shapes.values()))
        if min(out, per_group, kernel) < 1 or kernel != width or channels % per_group:
            raise ValueError(
                f"a convolution of shape {(out, per_group, kernel, width)} does not take "
                f"{channels} channels"
            )
        if "weight" in shapes:
            return torch.nn.Conv2d(channels, out, kernel, groups=channels // per_group), out
        prototype: Any = next(m for m in like.modules() if isinstance(m, Conv))
        module = Conv(channels, out, kernel, g=channels // per_group, act=prototype.act)
        module.bn.eps, module.bn.momentum = prototype.bn.eps, prototype.bn.momentum
        return module, out
    children = []
    keys = list(dict.fromkeys(name.partition(".")[0] for name in shapes))
    if keys != [str(i) for i in range(len(keys))]:
        raise ValueError(f"a class branch of modules {', '.join(keys[:5])}, expected 0, 1, ...")
    for key in keys:
        own = {n.partition(".")[2]: s for n, s in shapes.items() if n.partition(".")[0] == key}
        child, channels = _branch(own, channels, like)
        children.append(child)
    return torch.nn.Sequential(*children), channels


def architecture_problems(
    architecture: Architecture,
    model: torch.nn.Module,
    task: str,
    data: Mapping[str, Any],
    train: Mapping[str, Any],
) -> list[str]:
    """Say in what clients would build another model than this one, which the server has built.

    Compares all modules that hold something (kernels, groups, activations, BatchNorm's constants).
    """
    try:
        built = build_model(architecture, task, data, train)
    except ValueError as error:
        return [str(error)]
    pairs = (_leaves(model), _leaves(built))
    return [
        f"{name}: clients would build {theirs.get(name, 'nothing')} for {ours.get(name, 'nothing')}"
        for ours, theirs in [pairs]
        for name in dict.fromkeys((*ours, *theirs))
        if ours.get(name) != theirs.get(name)
    ]


def _leaves(model: torch.nn.Module) -> dict[str, str]:
    """What each module without modules in it is, by its name, whether or not it works in place."""
    # Activations are one object in many places, in a copied branch another one.
    modules = unwrap_model(model).named_modules(remove_duplicate=False)
    found = ((name, repr(module)) for name, module in modules if not any(module.children()))
    return {name: re.sub(r"(, )?inplace=True", "", text) for name, text in found}


def without_downloads(architecture: Architecture) -> Architecture:
    """The same, with which building a backbone of TorchVision fetches no weights for it."""
    structure = copy.deepcopy(dict(architecture.yaml))
    for layer in structure["backbone"] + structure["head"]:
        if layer[2] == "TorchVision":
            layer[3] = [*layer[3][:2], None, *layer[3][3:]]
    return replace(architecture, yaml=structure)


def trainer_class(task: str, structure: Mapping[str, Any]) -> type:
    """Ultralytics' trainer of a task. structure: what its YAML holds."""
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
    """Ultralytics' validator of a task. structure: what its YAML holds."""
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


# unstable: torch.nn.modules.batchnorm._BatchNorm
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
