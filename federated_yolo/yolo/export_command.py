"""Rebuild a model from a round's global arrays: base.pt + roundN.npz -> .pt -> ONNX, TensorRT, ...

    federated-yolo export BASE ROUND.npz [-o saved_model.pt] [--data data.yaml]
                          [--format onnx|engine|openvino|...] [--imgsz N] [--trust-checkpoint]

BASE is the run's `base_model`, a checkpoint or a model YAML such as yolo11n.yaml. The .pt works in
`YOLO(...)`, `yolo val`, `yolo predict`, `yolo train` and `yolo export`. An archive of another
Flower project works too: named arrays, or arrays by position (`np.savez(file, *arrays)`) in the
order of the model's `state_dict`; its classes come from --data, or else from BASE.

With --format, Ultralytics also exports the .pt, and both are run once and compared.

Exit codes: 0 done, 1 the export failed (the .pt stays), 2 wrong input (nothing was written),
130 interrupted.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from federated_yolo.common.command_line import failed, parser_of
from federated_yolo.common.errors import InputError
from federated_yolo.common.torchvision_nms import OTHER_TORCHVISION, ensure_torchvision_nms
from federated_yolo.yolo.convert import ExportError, convert, first_line
from federated_yolo.yolo.rebuild import Rebuilt, rebuild, save


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises InputError."""
    parser = parser_of("export", __doc__, allow_abbrev=False)
    parser.add_argument("base", help="the run's base_model: a .pt or a model YAML")
    parser.add_argument("arrays", type=Path, help="global arrays of a round, e.g. round10.npz")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("saved_model.pt"),
        help="the .pt to write; saved_model.pt by default",
    )
    parser.add_argument("--data", type=Path, help="data.yaml, for an archive without class names")
    parser.add_argument("--format", type=str.lower, help="also export: onnx, engine, openvino, ...")
    parser.add_argument("--imgsz", type=int, help="image size of the export, pixels")
    parser.add_argument(
        "--trust-checkpoint",
        action="store_true",  # cli.py reads it before Ultralytics is imported
        help="load a base with any content, which can run code of whoever made it",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    try:
        run(parse(arguments))
    except InputError as error:
        return failed(error.problems, 2)
    except (ExportError, OSError) as error:  # e.g. a disk that is full while exporting
        return failed([first_line(error)], 1)
    except KeyboardInterrupt:
        return failed(["interrupted"], 130)
    return 0


def run(options: argparse.Namespace) -> None:
    """Rebuild the model, save it, export it further if asked, and print where the results are."""
    rebuilt = rebuild(options.base, options.arrays, options.data, options.output, options.format)
    imgsz = export_imgsz(options, rebuilt)
    path = save(rebuilt, options.output)
    source = f"round {rebuilt.meta.round}" if rebuilt.meta else options.arrays.name
    classes = f"{len(rebuilt.names)} classes: {', '.join(rebuilt.names[:5])}"
    more = ", ..." if len(rebuilt.names) > 5 else ""
    print(f"{path}  {rebuilt.task}, {source}, {classes}{more}")
    for note in rebuilt.notes:
        print(f"note: {note}", file=sys.stderr)
    started_from = rebuilt.meta.base_model if rebuilt.meta else None
    if started_from not in (None, Path(options.base).name):
        # Arrays do not show activations, for example.
        print(
            f"note: the run started from '{started_from}'; '{options.base}' has the same arrays, "
            "but make sure that it is the same model",
            file=sys.stderr,
        )
    if options.format:
        path, comparison = convert(path, options.format, imgsz)
        print(f"{path}  {comparison}")
    print("Next:")
    if not ensure_torchvision_nms():
        print(f"  ({OTHER_TORCHVISION})")
    print(f"  yolo predict task={rebuilt.task} model={path} imgsz={imgsz} source=IMAGES")
    if not options.format:
        print(f"  yolo export model={path} imgsz={imgsz} format=onnx")


def export_imgsz(options: argparse.Namespace, rebuilt: Rebuilt) -> int:
    """Return the export's image size. Raises InputError if the model cannot take that size."""
    model: Any = rebuilt.model
    stride = max(int(model.stride.max()), 32)
    if options.imgsz is None:
        return math.ceil(rebuilt.imgsz / stride) * stride
    if options.format is None:
        raise InputError("--imgsz: it is the size of an export; add --format, e.g. --format onnx")
    if options.imgsz < stride or options.imgsz % stride:
        near = max(round(options.imgsz / stride), 1) * stride
        raise InputError(
            f"--imgsz: found {options.imgsz}, expected a multiple of {stride}; use {near}"
        )
    return options.imgsz
