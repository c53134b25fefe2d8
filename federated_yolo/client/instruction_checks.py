"""What a site is told by a server, checked before anything is done about it.

The code at a site is what the site has reviewed; what it is told comes with each message, from
whoever runs the server now. It is taken as the server takes a user's config, and what this
project's own server would never say is refused.
"""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import ultralytics.nn.modules

from federated_yolo.common.text import in_one_line
from federated_yolo.common.torchvision_nms import ensure_torchvision_nms
from federated_yolo.config.schema import CLIENT_NAME, MAX_LOCAL_EPOCHS, MAX_ROUNDS
from federated_yolo.config.train_arguments import train_problems
from federated_yolo.protocol.handshake import ClientAssignment
from federated_yolo.protocol.instructions import UnsoundInstructionsError
from federated_yolo.yolo.checkpoint import TASKS, TEXT_HEADS

if TYPE_CHECKING:
    from federated_yolo.protocol.instructions import Instructions

MAX_BYTES = 8 << 20  # of the instructions as JSON
MAX_CLASSES = 100_000
MAX_CLIENTS = 1_000_000  # of a federation; an index makes a seed, which has 32 bits
MAX_NAME = 1000  # characters of a class name
MAX_TIMEOUT_S = 366 * 86400
SPLITS = ("val", "test")  # that may be scored; the train split is for training
MAX_PICTURES = 4  # the server sends two models to draw with
MAX_LINE, MAX_LINES = 500, 5
# Of a model YAML: far beyond all that Ultralytics has, so that building it cannot take for ever.
MAX_LAYERS, MAX_REPEATS, MAX_NUMBER, MAX_TEXT, MAX_DEPTH = 1000, 100, 1_000_000, 4096, 8
MAX_WEIGHTS = 100_000_000  # of one array of a class branch; those of 1000 classes have 10^7
ACTIVATION = re.compile(r"(?:torch\.)?nn\.\w+\([\w\s=.,+-]*\)")


def refuse_unsound(
    instructions: "Instructions",
    assignment: ClientAssignment,
    config: Mapping[str, Any],
    kind: str,
    root: Path,
) -> None:
    """Raise UnsoundInstructionsError, a line each, for what no server of this project tells a site.

    config: of the message. kind: its type, such as "train". root: folder of the reviewed bundle.
    """
    problems = [
        *instruction_problems(instructions, root),
        *_message_problems(config, assignment, kind, instructions.num_rounds),
    ]
    if problems:
        lines = [in_one_line(problem)[:MAX_LINE] for problem in problems[:MAX_LINES]]
        more = len(problems) - MAX_LINES
        raise UnsoundInstructionsError(
            [f"told by the server: {line}; refused" for line in lines]
            + ([f"... and {more} more"] if more > 0 else [])
        )


def instruction_problems(told: "Instructions", root: Path) -> Iterator[str]:
    """Say what a site does not take of the instructions."""
    for name in ("run_id", "start_id"):
        if not CLIENT_NAME.fullmatch(getattr(told, name)):
            found = getattr(told, name)
            yield f"{name}: found {found!r}, expected letters, digits, '.', '_' and '-'"
    if told.task not in TASKS:
        yield f"task: found {told.task!r}, expected one of {', '.join(TASKS)}"
    if not re.fullmatch("[0-9a-f]{64}", told.digest):
        yield f"digest: found {told.digest!r}, expected a SHA-256 in hexadecimal"
    names = told.names
    if not 0 < len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        yield f"names: found {len(names)}, expected 1 to {MAX_CLASSES} different class names"
    elif not all(name.strip() and len(name) <= MAX_NAME for name in names):
        yield f"names: found an empty one, or one of more than {MAX_NAME} characters"
    for name, least, most in (
        ("num_rounds", 1, MAX_ROUNDS),
        ("local_epochs", 1, MAX_LOCAL_EPOCHS),
        ("seed", 0, 2**31 - 1),
        ("num_clients", 0, MAX_CLIENTS),
    ):
        if not least <= getattr(told, name) <= most:
            yield f"{name}: found {getattr(told, name)}, expected {least} to {most}"
    limit = told.round_timeout_s
    if limit is not None and not 0 < limit <= MAX_TIMEOUT_S:
        yield f"round_timeout_s: found {limit}, expected more than 0 and at most a year"
    yield from train_problems(told.train)
    if isinstance(told.train.get("pretrained"), str):
        yield "train.pretrained: found a path, expected none, since weights come with a message"
    yield from client_problems(told.client, root)
    yield from model_yaml_problems(told.architecture.yaml)
    yield from class_branch_problems(told.architecture.class_branch)


def client_problems(name: str, root: Path) -> Iterator[str]:
    """Say why `client` names no class of the bundle in this folder; empty is YoloClient."""
    file = Path(name.rpartition(":")[0])
    try:
        found = (root / file).resolve()
        is_inside = not file.is_absolute() and found.is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # what no path can be
        is_inside = False
    if name and not is_inside:
        yield f"client: found {name!r}, expected FILE.py:CLASS of the bundle that was reviewed"


def _message_problems(
    config: Mapping[str, Any], assignment: ClientAssignment, kind: str, num_rounds: int
) -> Iterator[str]:
    if not 0 <= assignment.index < MAX_CLIENTS:
        yield f"assignment: found index {assignment.index}, expected 0 to {MAX_CLIENTS - 1}"
    if not 0 <= assignment.trained <= num_rounds:
        yield f"assignment: found trained {assignment.trained}, expected 0 to {num_rounds}"
    split = config.get("split", "val")
    if split not in SPLITS:
        yield f"split: found {split!r}, expected {' or '.join(SPLITS)}"
    first = 1 if kind == "train" else 0
    number = config.get("server-round", first)
    if type(number) is not int or not first <= number <= num_rounds:
        yield f"server-round: found {number!r}, expected {first} to {num_rounds}"
    mu = config.get("proximal-mu", 0.0)
    if type(mu) not in (int, float) or not 0 <= mu <= MAX_NUMBER:
        yield f"proximal-mu: found {mu!r}, expected a number from 0 to {MAX_NUMBER}"
    if type(config.get("keep-local", False)) is not bool:
        yield f"keep-local: found {config['keep-local']!r}, expected true or false"


def model_yaml_problems(structure: Mapping[str, Any]) -> Iterator[str]:
    """Say why a site does not build a model from this: it would run or fetch something, or is none.

    Ultralytics takes a layer by its name from all that its module knows, and evaluates what it
    finds; some of it reads files, or downloads weights.
    structure: what a model YAML holds.
    """
    where = "architecture.yaml"
    if wrong := next(_no_plain_value(structure, 0), None):
        yield f"{where}: {wrong}"
        return
    parts = [structure.get("backbone"), structure.get("head")]
    if not all(isinstance(part, list) and part for part in parts):
        yield f"{where}: expected 'backbone' and 'head'"
        return
    layers = [layer for part in parts if part for layer in part]
    if len(layers) > MAX_LAYERS:
        yield f"{where}: found {len(layers)} layers, expected at most {MAX_LAYERS}"
        return
    activation = structure.get("activation")
    if activation and not (isinstance(activation, str) and ACTIVATION.fullmatch(activation)):
        yield f"{where}: activation: found {activation!r}, expected one of PyTorch, nn.NAME(...)"
    for index, layer in enumerate(layers):
        problem = _layer_problem(layer)
        if problem:
            yield f"{where}: layer {index}: {problem}"


def class_branch_problems(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """Say why a site does not build these class branches, whose form building them checks.

    shapes: as of `Architecture`.
    """
    sizes = [math.prod(shape) for shape in shapes.values()]
    if len(sizes) > MAX_LAYERS or not all(0 < size <= MAX_WEIGHTS for size in sizes):
        yield (
            f"class_branch: found {len(sizes)} arrays of up to {max(sizes)} numbers, expected at "
            f"most {MAX_LAYERS} of {MAX_WEIGHTS}"
        )


def _layer_problem(layer: Any) -> str | None:
    if not (isinstance(layer, list) and len(layer) == 4 and isinstance(layer[3], list)):
        return f"found {layer!r}, expected [from, repeats, module, arguments]"
    _, repeats, module, arguments = layer
    if type(repeats) is not int or not 1 <= repeats <= MAX_REPEATS:
        return f"found {repeats!r} repeats, expected 1 to {MAX_REPEATS}"
    if not isinstance(module, str) or not _is_layer(module):
        return f"found {module!r}, expected a layer of Ultralytics or PyTorch"
    if module == "TorchVision":
        return _torchvision_problem(arguments)
    return None


def _is_layer(name: str) -> bool:
    """Whether Ultralytics takes this for a layer; whole models and heads of texts are none."""
    if re.fullmatch(r"torchvision\.ops\.[A-Z]\w*", name):
        return True
    if name.startswith("nn."):
        found = getattr(torch.nn, name.removeprefix("nn."), None)
        return isinstance(found, type) and issubclass(found, torch.nn.Module)
    return name in ultralytics.nn.modules.__all__ and name not in TEXT_HEADS


def _torchvision_problem(arguments: list[Any]) -> str | None:
    """Why a backbone of TorchVision would be fetched; arguments: channels, name, weights, ..."""
    ensure_torchvision_nms()
    import torchvision

    if len(arguments) < 3 or arguments[2] is not None:
        return "a backbone of TorchVision would download its weights; expected null for them"
    # Others have a backbone of their own, with weights of its own.
    if arguments[1] not in torchvision.models.list_models(module=torchvision.models):
        return f"found {arguments[1]!r}, expected a classifier of TorchVision"
    return None


def _no_plain_value(value: Any, depth: int) -> Iterator[str]:
    """Say where something is no number, short text or list of them, or nested too deeply."""
    if depth > MAX_DEPTH:
        yield "nested too deeply"
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _no_plain_value(key, depth + 1)
            yield from _no_plain_value(entry, depth + 1)
    elif isinstance(value, list):
        for entry in value:
            yield from _no_plain_value(entry, depth + 1)
    elif isinstance(value, str):
        if len(value) > MAX_TEXT:
            yield f"a text of {len(value)} characters, expected at most {MAX_TEXT}"
    elif isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:  # as NaN is
        yield f"found {value}, expected numbers up to {MAX_NUMBER}"
