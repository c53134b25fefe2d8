"""Non-maximum suppression for machines where torchvision's own operator cannot be loaded."""

import sys
import warnings
from functools import cache
from importlib.metadata import version

import numpy as np
import torch

BLOCK = 64  # boxes compared at a time


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Apply greedy non-maximum suppression, with the result of torchvision's operator.

    Ultralytics' own version takes one Python step for each box that remains, which was half of the
    time of an evaluation. Here one step handles BLOCK boxes; the arithmetic, and so the selection,
    is the same.

    boxes: (n, 4) float32, xyxy. scores: (n,). Returns indices of boxes, int64, best first.
    """
    order = scores.argsort(stable=True, dim=0, descending=True)
    # torchvision compares float32 with a float64: x > threshold is x > the next float32 below it.
    limit = np.float32(iou_threshold)
    if float(limit) > iou_threshold:  # NumPy would compare float32
        limit = np.nextafter(limit, np.float32(0))
    corners = np.ascontiguousarray(boxes[order].numpy().T)
    stays = np.ones(len(order), bool)
    for start in range(0, len(order), BLOCK):
        block = start + np.flatnonzero(stays[start : start + BLOCK])
        overlaps = np.triu(_iou(corners[:, block], corners[:, block]) > limit, 1)
        for row in np.flatnonzero(overlaps.any(1)):
            if stays[block[row]]:
                stays[block[overlaps[row]]] = False
        block = block[stays[block]]
        later = start + BLOCK + np.flatnonzero(stays[start + BLOCK :])
        stays[later] = ~(_iou(corners[:, block], corners[:, later]) > limit).any(0)
    return order[torch.from_numpy(stays)]


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the IoU of each box of a with each of b: (4, n), (4, m) -> (n, m) float32."""
    left, top = np.maximum(a[:2, :, None], b[:2, None])
    right, bottom = np.minimum(a[2:, :, None], b[2:, None])
    shared = (right - left).clip(0) * (bottom - top).clip(0)
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    with np.errstate(invalid="ignore"):  # 0/0 of empty boxes, which overlap nothing
        return shared / (area_a[:, None] + area_b - shared)


OTHER_TORCHVISION = (
    "yolo train, val and predict fail in this environment: its torchvision is built for another "
    "PyTorch; install the torchvision that belongs to this PyTorch, from the same source"
)


@cache
def ensure_torchvision_nms() -> bool:
    """Make `import torchvision` work where its compiled operators do not fit this PyTorch.

    torchvision's Linux wheels on PyPI are CUDA builds. Beside a CPU build of PyTorch (seen with
    torchvision 0.21.0 to 0.29.1 and torch 2.13.0+cpu) its library does not load and the import
    fails with "operator torchvision::nms does not exist". Ultralytics imports torchvision in every
    validator and uses only this operator, which `nms` above replaces.

    The replacement is registered only after a failed import: a torchvision library that does load
    would abort the process if operators of its name already existed.

    Returns whether torchvision works by itself (or is not installed). Raises InputError if it
    cannot be imported for another reason.
    """
    first = _torchvision_trouble()
    if first is None:
        return True
    import torch

    trouble: Exception | None = first
    if not hasattr(torch.ops.torchvision, "nms"):  # the library of its operators did not load
        _declare_nms()
        with warnings.catch_warnings():  # about its image library, which is not used here
            warnings.simplefilter("ignore")
            trouble = _torchvision_trouble()
    if trouble is None:
        # unstable: torchvision.extension says 'def _has_ops'
        import torchvision.extension

        torchvision.extension._has_ops = lambda: True
        return False
    from federated_yolo.common.errors import InputError

    raise InputError(
        f"torchvision {version('torchvision')} cannot be imported beside torch {version('torch')}"
        f": {type(trouble).__name__}: {trouble}; install the torchvision that belongs to it"
    ) from trouble


def _torchvision_trouble() -> Exception | None:
    """Return the error of importing torchvision; None if it imports, or is not installed.

    After a failure its submodules are removed too: Python removes only the module that raised, and
    a second import would find the others without their package. Nothing stays behind in torch,
    since the first operator for which torchvision registers anything is the missing one.
    """
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # code of another package, built for another PyTorch
        if isinstance(error, ModuleNotFoundError) and error.name == "torchvision":
            return None
        for name in [x for x in sys.modules if x.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return error
    return None


def _declare_nms() -> None:
    import torch

    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for operator in ("nms", "qnms"):  # the import only needs both to be declared
        torch.library.define(f"torchvision::{operator}", schema)
    torch.library.impl("torchvision::nms", "CPU")(nms)
