"""Suppression of overlapping boxes, where torchvision's operator cannot be loaded."""

import numpy as np
import torch

BLOCK = 64  # boxes that are compared at a time


def nms(boxes: torch.Tensor, scores: torch.Tensor, iou_threshold: float) -> torch.Tensor:
    """Greedy non-maximum suppression, as torchvision's operator.

    Ultralytics' own version takes a Python step for each box that stays, which made up half of an
    evaluation. Here one step takes BLOCK boxes; the arithmetic, and so the choice, is the same.

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
    """Intersection over union of each of a with each of b: (4, n), (4, m) -> (n, m) float32."""
    left, top = np.maximum(a[:2, :, None], b[:2, None])
    right, bottom = np.minimum(a[2:, :, None], b[2:, None])
    shared = (right - left).clip(0) * (bottom - top).clip(0)
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    with np.errstate(invalid="ignore"):  # of empty boxes, which overlap nothing
        return shared / (area_a[:, None] + area_b - shared)
