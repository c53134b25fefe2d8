"""Export a checkpoint to another format through Ultralytics, and compare the two."""

import importlib.util
import math
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from ultralytics import YOLO
from ultralytics.engine.exporter import export_formats
from ultralytics.nn.autobackend import AutoBackend

from federated_yolo.common.command_line import install_hint
from federated_yolo.common.errors import InputError, nearest
from federated_yolo.common.torchvision_nms import ensure_torchvision_nms
from federated_yolo.yolo.checkpoint import is_rtdetr, structure_of

# Modules that a format needs -> how to install them; {onnx} is by the extra of this package.
# Ultralytics would run pip itself, which is switched off. Formats that are not listed fail while
# exporting, with the name of the module.
ONNX_MODULES: dict[str, str] = dict.fromkeys(("onnx", "onnxruntime", "onnxslim"), "{onnx}")
FORMAT_MODULES = {
    "onnx": ONNX_MODULES,
    "engine": ONNX_MODULES | {"tensorrt": "pip install tensorrt"},
    "openvino": {"openvino": "pip install openvino"},
}
RUNS_HERE = {".onnx", ".torchscript", ".engine"}  # runtimes that were checked, or PyTorch itself


class ExportError(RuntimeError):
    """The .pt was written, but could not be exported further."""


def format_problems(name: str | None) -> list[str]:
    """Report why a format cannot be exported here: unknown name, no GPU, missing packages."""
    if name is None:
        return []
    table = export_formats()
    known = list(table["Argument"])[1:]
    if name not in known:
        if name in {"pt", "pytorch"}:
            return [f"--format {name}: the .pt is always written; leave --format out"]
        titles = [title.lower() for title in table["Format"]]
        word = table["Argument"][titles.index(name)] if name in titles else name
        near = nearest(word, known) or f"; expected one of {', '.join(known)}"
        return [f"--format {name}: unknown export format{near}"]
    if name == "engine" and not torch.cuda.is_available():
        return [
            "--format engine: TensorRT builds an engine on the GPU that will run it, and there is "
            "no CUDA GPU here; use --format onnx, or run this where the model will run"
        ]
    missing = {
        module: command
        for module, command in FORMAT_MODULES.get(name, {}).items()
        if importlib.util.find_spec(module) is None
    }
    if not missing:
        return []
    commands = " and ".join(dict.fromkeys(missing.values())).format(onnx=install_hint("onnx"))
    return [f"--format {name}: not installed: {', '.join(missing)}; {commands}"]


def convert(saved: Path, format_name: str, imgsz: int) -> tuple[Path, str]:
    """Export a .pt through Ultralytics; return the export's path and a comparison of the two.

    The export is made in a scratch folder and moved beside the .pt, so a failure leaves no part.

    imgsz: Image size in pixels. Raises ExportError, or InputError for a missing package.
    """
    ensure_torchvision_nms()
    scratch = tempfile.TemporaryDirectory(dir=saved.absolute().parent, prefix=".export-")
    with scratch as folder, warnings.catch_warnings():
        # Tracing warns of each branch in Python and of future deprecations in PyTorch; the
        # comparison shows whether the result is right.
        warnings.simplefilter("ignore")
        copy = Path(shutil.copyfile(saved, Path(folder) / saved.name))
        exported = _export_beside(copy, format_name, imgsz, saved)
        comparison = compare(copy, exported, imgsz)
        target = saved.with_name(exported.name)
        if target.is_dir():
            shutil.rmtree(target)
        return exported.replace(target), comparison


def _export_beside(copy: Path, format_name: str, imgsz: int, saved: Path) -> Path:
    try:
        return Path(YOLO(copy).export(format=format_name, imgsz=imgsz))
    except ImportError as error:
        raise InputError(
            f"--format {format_name}: {first_line(error)}; pip install it, then go on with "
            f"'yolo export model={saved} format={format_name} imgsz={imgsz}'"
        ) from error
    except Exception as error:  # each format brings its own converter, with its own errors
        raise ExportError(f"--format {format_name}: {first_line(error)}") from error


def compare(saved: Path, exported: Path, imgsz: int) -> str:
    """Run a .pt and its export on the same random image and describe how far they differ.

    Raises ExportError if the export cannot be run or gives NaN or infinite outputs.
    """
    device = torch.device("cuda:0" if exported.suffix == ".engine" else "cpu")
    try:
        backend: Any = AutoBackend(str(exported), device)
        # YOLO26 has two heads, only one of which needs NMS; compare the one that was exported.
        reference: Any = AutoBackend(
            str(saved), device, verbose=False, end2end=bool(backend.end2end)
        )
        shape = (1, reference.channels, imgsz, imgsz)
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(device)
        with torch.inference_mode():
            expected, found = _tensors(reference(image)), _tensors(backend(image))
    except Exception as error:  # each runtime has its own errors
        if exported.suffix in RUNS_HERE:
            raise ExportError(f"{exported.name}: cannot be run: {first_line(error)}") from error
        return f"cannot be run on this machine, so not compared: {first_line(error)}"
    if not all(torch.isfinite(x).all() for x in found):
        raise ExportError(f"{exported.name}: its outputs on a random image are NaN or infinite")
    pairs = list(zip(expected, found, strict=False))
    if not pairs or any(a.shape != b.shape for a, b in pairs):
        return "runs, but its outputs have another form than those of the .pt: not compared"
    ranked = bool(backend.end2end) or is_rtdetr(structure_of(str(saved), where=saved.name))
    difference = max(_difference(a, b, ranked) for a, b in pairs)
    largest = max(float(a.abs().max()) for a, _ in pairs)
    return (
        f"largest difference from {saved.name}: {difference:.2g}, on outputs up to {largest:.3g} "
        f"(raw outputs, one random image of {imgsz} px)"
    )


def _difference(expected: torch.Tensor, found: torch.Tensor, ranked: bool) -> float:
    """Return the largest difference between two outputs of the same shape.

    ranked: Whether outputs are detections in order of score, (1, n, numbers of each). Rounding can
    swap equal scores, so each detection is compared with the most similar one, both ways.
    """
    if ranked and expected.ndim == 3:
        distances = torch.cdist(expected, found, p=math.inf)
        return float(max(distances.amin(1).max(), distances.amin(2).max()))
    return float((expected - found).abs().max())


def _tensors(output: Any) -> list[torch.Tensor]:
    """Return the raw outputs in order, without the dict for the loss that a .pt also returns."""
    if isinstance(output, torch.Tensor):
        return [output.float()]
    if isinstance(output, (list, tuple)):
        return [tensor for part in output for tensor in _tensors(part)]
    return []


def first_line(error: BaseException) -> str:
    return next((x.strip() for x in str(error).splitlines() if x.strip()), type(error).__name__)
