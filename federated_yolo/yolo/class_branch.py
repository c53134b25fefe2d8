"""The class branches of a head: a model YAML and the number of classes do not fix their shapes."""

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from ultralytics.nn.modules import Conv, Detect
from ultralytics.utils.torch_utils import unwrap_model

CLASS_BRANCHES = ("cv3", "one2one_cv3")  # all YOLO heads have the first, end-to-end ones both


@dataclass(frozen=True)
class Architecture:
    """Everything that defines a model but its weights, in plain data; builds it on any machine.

    yaml: Content of a model YAML. class_branch: Shapes of the convolutions of the head's class
    branches, by the names of their arrays; empty if they are the shapes that the YAML gives. A base
    with other classes passes on its own shapes (`BaseModel.load`, Ultralytics 8.4.180 to 8.4.190),
    which no YAML shows. new_class_rows: Whether new class rows were drawn at that time.
    """

    yaml: Mapping[str, Any]
    class_branch: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    new_class_rows: bool = False


def architecture_of(model: torch.nn.Module, weights: torch.nn.Module | None = None) -> Architecture:
    """Return the architecture of a model that `build_model` made.

    weights: The model whose weights it started from, found by `weights_of`; it decides which random
    numbers were drawn.
    """
    unwrapped: Any = unwrap_model(model)
    arrays = {name: tuple(tensor.shape) for name, tensor in unwrapped.state_dict().items()}
    return Architecture(
        json.loads(json.dumps(unwrapped.yaml)),
        class_branch_in(unwrapped, arrays),
        weights is not None and _draws_class_rows(unwrapped, weights),
    )


def _draws_class_rows(model: Any, weights: Any) -> bool:
    """Whether the weights came from a head with another number of classes."""
    layers: list[Any] = [getattr(m, "model", [None]) for m in (weights, model)]
    rows = [x[-1].cv3[0][-1].out_channels for x in layers if isinstance(x[-1], Detect)]
    return len(rows) == 2 and rows[0] != rows[1]


def class_change(
    weights: torch.nn.Module | None, train: Mapping[str, Any], names: Iterable[str]
) -> str:
    """Describe how the classes change from those of the initial weights; empty if they do not.

    Follows `BaseModel._remap_cls_by_names`: rows are matched by name, regardless of case.

    weights: Model found by `weights_of`. train: Ultralytics' train arguments. names: Class names
    of the federation.
    """
    found: Any = getattr(weights, "names", {})
    before, after = (
        list(dict(enumerate(found) if isinstance(found, list) else found).values()),
        [*names],
    )
    if not before or before == after:
        return ""
    text = f"{len(before)} classes before, {len(after)} now"
    if not train.get("cls_remap", True):
        return text
    known = {str(name).strip().lower() for name in before}
    num_kept = sum(name.strip().lower() in known for name in after)
    if any(
        [str(n) for n in names] == [str(i) for i in range(len(names))] for names in (before, after)
    ):
        num_kept = 0  # names that only count are no names to Ultralytics
    if num_kept:
        return f"{text}; {num_kept} of them are known by name, and keep their rows"
    if len(before) == len(after):  # arrays of one shape are copied
        return f"{text}; none of them is known by name, so each takes the row of its index"
    return f"{text}; none of them is known by name, so their rows start anew"


def class_branch_in(
    model: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, tuple[int, ...]]:
    """Select the shapes of the convolutions in this model's class branches, by name.

    shapes: Shapes of arrays by name, which may come from another model.
    """
    head = f"model.{len(unwrap_model(model).model) - 1}."  # pyright: ignore[reportArgumentType]
    starts = tuple(f"{head}{attribute}." for attribute in CLASS_BRANCHES)
    return {n: s for n, s in shapes.items() if n.startswith(starts) and len(s) == 4}


def model_of(architecture: Architecture, trainer: Any) -> Any:
    """Build the model that this Ultralytics trainer trains, with new weights.

    It draws the same random numbers as `yolo train` would draw to make it from its base model
    (copying weights draws none). Raises ValueError for a class branch that does not fit the model.
    """
    model = trainer.get_model(cfg=copy.deepcopy(dict(architecture.yaml)), verbose=False)
    set_class_branch(model, architecture.class_branch, draw_rows=architecture.new_class_rows)
    return model


def set_class_branch(
    model: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]], *, draw_rows: bool = False
) -> None:
    """Give a new model class branches of these shapes if its own differ, as `BaseModel.load` does.

    shapes: Result of `class_branch_in`; if empty, the model stays as it is. draw_rows: Whether to
    draw random numbers for new rows. Raises ValueError if they do not join the neck to the classes.
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
    """Build modules with convolutions of these shapes in a row; return also their output channels.

    shapes: Shapes by name within the branch. channels: Number of input channels. like: Branch whose
    activation and BatchNorm constants new `Conv` modules take.
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


def without_downloads(architecture: Architecture) -> Architecture:
    """Return a copy that builds a TorchVision backbone without downloading its weights."""
    structure = copy.deepcopy(dict(architecture.yaml))
    for layer in structure["backbone"] + structure["head"]:
        if layer[2] == "TorchVision":
            layer[3] = [*layer[3][:2], None, *layer[3][3:]]
    return replace(architecture, yaml=structure)
