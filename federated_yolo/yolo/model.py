"""Build the global model from a base model, and convert it to named arrays and back.

On the server, `build_model` turns a base model and a list of class names into the model that
`yolo train` would start from, by Ultralytics' own code. Clients and the exporter build the same
model from its `Architecture`.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from ultralytics.cfg import get_cfg
from ultralytics.nn.modules import Detect
from ultralytics.nn.modules.head import RTDETRDecoder
from ultralytics.utils.torch_utils import init_seeds, unset_deterministic, unwrap_model

from federated_yolo.common.arrays import Arrays, Layout, layout_problems
from federated_yolo.common.torchvision_nms import ensure_torchvision_nms
from federated_yolo.config.schema import SharedConfig
from federated_yolo.yolo.checkpoint import MODEL_YAML, LoadedBase, is_rtdetr, load_base
from federated_yolo.yolo.class_branch import Architecture, model_of

Freeze = int | list[int | str] | None  # a number of layers, or a list of layers and names of parts


def build_model(
    base_model: str | LoadedBase | Architecture,
    task: str,
    data: Mapping[str, Any],
    train: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> torch.nn.Module:
    """Build the model that `yolo train` would start from: the base adapted to the data's classes.

    The task's trainer builds it, so class rows are carried over by name, `pretrained` and
    `cls_remap` are obeyed, and new weights are drawn from `seed` as in a plain training.

    base_model: A .pt or a model YAML, as a path or already read; or an architecture, which gets new
    weights.
    data: `names` (index -> name), `nc`, and the other keys of a data.yaml that the task needs.
    train: Ultralytics' train arguments.
    Returns the float32 model on the CPU.
    """
    ensure_torchvision_nms()
    base = load_base(base_model) if isinstance(base_model, str) else base_model
    if isinstance(base, Architecture):
        name, structure = MODEL_YAML, base.yaml
    else:
        name, structure = base.name, base.structure
    # The trainer's own __init__ would make folders and read images; building needs neither.
    trainer: Any = object.__new__(trainer_class(task, structure))
    trainer.args = get_cfg(overrides={**(train or {}), "task": task, "model": name})
    trainer.data = {"channels": 3, **data}
    if trainer.args.single_cls:  # as in `BaseTrainer.get_dataset`
        trainer.data.update(names={0: "item"}, nc=1)
    trainer.model = name
    trainer.resume = False
    init_seeds(seed, deterministic=trainer.args.deterministic)
    try:
        if isinstance(base, Architecture):
            trainer.model = model_of(base, trainer)
        else:  # Ultralytics reads the weights itself, as for `yolo train`
            trainer.setup_model()
    finally:
        unset_deterministic()
    trainer.set_model_attributes()
    model: Any = trainer.model
    return model.float()


def architecture_problems(
    architecture: Architecture,
    model: torch.nn.Module,
    task: str,
    data: Mapping[str, Any],
    train: Mapping[str, Any],
) -> list[str]:
    """List the differences between the server's model and the one that clients would build.

    Compares all modules without submodules (kernels, groups, activations, BatchNorm's constants).
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
    """Return the text of each module without submodules, by its name; `inplace` is ignored."""
    # An activation is one object in many places, but another object in a copied branch.
    modules = unwrap_model(model).named_modules(remove_duplicate=False)
    found = ((name, repr(module)) for name, module in modules if not any(module.children()))
    return {name: re.sub(r"(, )?inplace=True", "", text) for name, text in found}


def trainer_class(task: str, structure: Mapping[str, Any]) -> type:
    """Return Ultralytics' trainer class for a task. structure: Content of the model YAML."""
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
    """Return Ultralytics' validator class for a task. structure: Content of the model YAML."""
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
    """Copy the state of a model into named arrays; dtypes (float32, int64) are kept."""
    state = unwrap_model(model).state_dict()
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}


def part_of_arrays(model: torch.nn.Module) -> dict[str, str]:
    """Return the part of each array by its name: "backbone", "neck" or "head".

    The model's own YAML defines the parts: the backbone section, the last layer (the head, which
    predicts), and the layers between them (the neck).
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
    """Return the names of all arrays of BatchNorm layers: weights, biases, statistics, counters."""
    return frozenset(
        f"{layer}.{name}"
        for layer, module in unwrap_model(model).named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm)
        for name in module.state_dict()
    )


def parameter_names(model: torch.nn.Module) -> frozenset[str]:
    """Return the names of trainable arrays; the rest are buffers and YOLO's constant DFL kernel."""
    return frozenset(
        name for name, _ in unwrap_model(model).named_parameters() if ".dfl." not in name
    )


def moved_names(model: torch.nn.Module, freeze: Freeze) -> frozenset[str]:
    """Return the names of trainable arrays that training changes, given Ultralytics' `freeze`."""
    frozen = _frozen_parts(freeze)
    return frozenset(n for n in parameter_names(model) if not any(part in n for part in frozen))


def freeze_problems(model: torch.nn.Module, freeze: Freeze) -> list[str]:
    """Report a layer in `freeze` that the model does not have, or that nothing is left to train."""
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
    """Return texts that names of frozen arrays contain, as in `BaseTrainer._setup_train` (8.4)."""
    layers = range(freeze) if isinstance(freeze, int) else freeze or ()
    return [f"model.{layer}." for layer in layers]


def class_row_names(model: torch.nn.Module) -> list[str]:
    """Return the names of arrays whose row c belongs to class c: ends of classification branches.

    All YOLO heads have them in `cv3`, and end-to-end heads also in `one2one_cv3`. RT-DETR has them
    after its encoder and after each decoder layer, and in the class embedding of its denoising.
    A classifier has none: each of its images says something about every class.
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
    """Return the names of the shared arrays, in the order of the model's `state_dict`."""
    private = batchnorm_arrays(model) if shared.batchnorm == "local" else frozenset()
    return [
        name
        for name, part in part_of_arrays(model).items()
        if part in shared.parts and name not in private
    ]


def load_into(model: torch.nn.Module, arrays: Arrays, names: Iterable[str] | None = None) -> None:
    """Copy named arrays into a model in place, so that its optimiser continues with them.

    names: Names of the arrays to copy, all of which must be given; None for all of the model. The
    model's other arrays stay as they are.
    Raises ValueError, which names arrays, if they do not fit the model.
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
