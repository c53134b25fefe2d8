"""A site's checks of the server's instructions, made before the site acts on them.

A site has reviewed the code that it runs, but the instructions come with each message, from whoever
runs the server now. They are checked as the server checks a user's config, and anything that this
project's own server would never send is refused.
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
from federated_yolo.config.schema import CLIENT_NAME, MAX_AVERAGES, MAX_LOCAL_EPOCHS, MAX_ROUNDS
from federated_yolo.config.train_arguments import train_problems
from federated_yolo.protocol.handshake import ClientAssignment
from federated_yolo.protocol.instructions import UnsoundInstructionsError
from federated_yolo.yolo.checkpoint import TASKS, TEXT_HEADS

if TYPE_CHECKING:
    from federated_yolo.protocol.instructions import Instructions

MAX_BYTES = 8 << 20  # size of the instructions as JSON
MAX_CLASSES = 100_000
MAX_CLIENTS = 1_000_000  # in a federation; a client's index is part of its seed, which has 32 bits
MAX_NAME = 1000  # characters of a class name
MAX_TIMEOUT_S = 366 * 86400
SPLITS = ("val", "test")  # splits that may be scored; the train split is for training
MAX_PICTURES = 4  # the server sends two models to draw with
MAX_LINE, MAX_LINES = 500, 5
# Limits of a model YAML: far above all of Ultralytics' own; building one must not take for ever.
MAX_LAYERS, MAX_REPEATS, MAX_NUMBER, MAX_TEXT, MAX_DEPTH = 1000, 100, 1_000_000, 4096, 8
MAX_WEIGHTS = 100_000_000  # in one array of a class branch; with 1000 classes it has 10^7
ACTIVATION = re.compile(r"(?:torch\.)?nn\.\w+\([\w\s=.,+-]*\)")


def refuse_unsound(
    instructions: "Instructions",
    assignment: ClientAssignment,
    config: Mapping[str, Any],
    kind: str,
    root: Path,
) -> None:
    """Raise UnsoundInstructionsError for what no server of this project sends, a line for each.

    config: The message's "config" record. kind: The message's type, such as "train". root: Folder
    of the reviewed bundle.
    """
    problems = [
        *instruction_problems(instructions, root),
        *_message_problems(config, assignment, kind, instructions),
    ]
    if problems:
        lines = [in_one_line(problem)[:MAX_LINE] for problem in problems[:MAX_LINES]]
        more = len(problems) - MAX_LINES
        raise UnsoundInstructionsError(
            [f"told by the server: {line}; refused" for line in lines]
            + ([f"... and {more} more"] if more > 0 else [])
        )


def instruction_problems(told: "Instructions", root: Path) -> Iterator[str]:
    """Yield a line for each instruction that a site refuses."""
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
        ("averages_per_round", 1, MAX_AVERAGES),
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
    """Yield a line if the class's file is not in the folder `root`; an empty name is YoloClient."""
    file = Path(name.rpartition(":")[0])
    try:
        found = (root / file).resolve()
        is_inside = not file.is_absolute() and found.is_relative_to(root.resolve())
    except (OSError, ValueError, RuntimeError):  # not a possible path
        is_inside = False
    if name and not is_inside:
        yield f"client: found {name!r}, expected FILE.py:CLASS of the bundle that was reviewed"


def _message_problems(
    config: Mapping[str, Any], assignment: ClientAssignment, kind: str, told: "Instructions"
) -> Iterator[str]:
    num_rounds, parts = told.num_rounds, told.averages_per_round
    if not 0 <= assignment.index < MAX_CLIENTS:
        yield f"assignment: found index {assignment.index}, expected 0 to {MAX_CLIENTS - 1}"
    if not 0 <= assignment.trained <= num_rounds * parts:
        yield f"assignment: found trained {assignment.trained}, expected 0 to {num_rounds * parts}"
    split = config.get("split", "val")
    if split not in SPLITS:
        yield f"split: found {split!r}, expected {' or '.join(SPLITS)}"
    first = 1 if kind.startswith("train") else 0
    number = config.get("server-round", first)
    if type(number) is not int or not first <= number <= num_rounds:
        yield f"server-round: found {number!r}, expected {first} to {num_rounds}"
    part = config.get("part", 1)
    if type(part) is not int or not 1 <= part <= parts:
        yield f"part: found {part!r}, expected 1 to {parts}"
    mu = config.get("proximal-mu", 0.0)
    if type(mu) not in (int, float) or not 0 <= mu <= MAX_NUMBER:
        yield f"proximal-mu: found {mu!r}, expected a number from 0 to {MAX_NUMBER}"
    for name in ("keep-local", "on-test"):
        if type(config.get(name, False)) is not bool:
            yield f"{name}: found {config[name]!r}, expected true or false"
    epochs, lr0 = config.get("epochs", 1), config.get("lr0", 1.0)
    if type(epochs) is not int or not 1 <= epochs <= MAX_LOCAL_EPOCHS:
        yield f"epochs: found {epochs!r}, expected 1 to {MAX_LOCAL_EPOCHS}"
    if type(lr0) not in (int, float) or not 0 < lr0 <= 1:
        yield f"lr0: found {lr0!r}, expected a number above 0, at most 1"


def model_yaml_problems(structure: Mapping[str, Any]) -> Iterator[str]:
    """Yield why a site refuses to build a model: it could run code or download, or is malformed.

    Ultralytics looks up a layer by its name among all names of its module, and calls or evaluates
    what it finds; some of that reads files, or downloads weights.
    structure: Contents of a model YAML.
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
    """Yield a line if these class branches are too large; building them checks all else.

    shapes: As in `Architecture.class_branch`.
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
    """Whether Ultralytics has a layer of this name; whole models and text heads do not count."""
    if re.fullmatch(r"torchvision\.ops\.[A-Z]\w*", name):
        return True
    if name.startswith("nn."):
        found = getattr(torch.nn, name.removeprefix("nn."), None)
        return isinstance(found, type) and issubclass(found, torch.nn.Module)
    return name in ultralytics.nn.modules.__all__ and name not in TEXT_HEADS


def _torchvision_problem(arguments: list[Any]) -> str | None:
    """Return why a TorchVision backbone is refused. arguments: Channels, name, weights, ..."""
    ensure_torchvision_nms()
    import torchvision

    if len(arguments) < 3 or arguments[2] is not None:
        return "a backbone of TorchVision would download its weights; expected null for them"
    # Models of other kinds contain a backbone, which has weights of its own.
    if arguments[1] not in torchvision.models.list_models(module=torchvision.models):
        return f"found {arguments[1]!r}, expected a classifier of TorchVision"
    return None


def _no_plain_value(value: Any, depth: int) -> Iterator[str]:
    """Yield what a plain value must not be: a huge number, a long text, or nested too deeply."""
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
    elif isinstance(value, int | float) and not abs(value) <= MAX_NUMBER:  # nor is NaN
        yield f"found {value}, expected numbers up to {MAX_NUMBER}"
