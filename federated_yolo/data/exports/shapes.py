"""Shapes of annotation tools as boxes, corners and outlines."""

import base64
import binascii
import io
import math
import zlib
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from federated_yolo.data.exports.content import Object, Point

CIRCLE_POINTS = 32  # of an outline of a circle; a multiple of 4, so that its box is exact
MAX_MASK_BYTES = 64 << 20

Box = tuple[float, float, float, float]


def ordered_box(x1: float, y1: float, x2: float, y2: float) -> Box:
    """Left, top, right and bottom of any two opposite corners."""
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def around(points: Sequence[Point]) -> Box:
    """The smallest box around points."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs), max(ys)


def are_fractions(objects: Sequence[Object]) -> bool:
    """Whether boxes seem to be fractions of the image, not pixels: none is larger than one."""
    bounds = [bounds for o in objects if (bounds := o.bounds)]
    return (
        bool(bounds)
        and all(max(box) <= 1 for box in bounds)
        and any(box[2] - box[0] < 1 or box[3] - box[1] < 1 for box in bounds)
    )


def rotated_corners(box: Box, degrees: float) -> tuple[Point, ...]:
    """The corners of a box that is turned clockwise, as seen, about its centre."""
    left, top, right, bottom = box
    x, y = (left + right) / 2, (top + bottom) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    corners = ((left, top), (right, top), (right, bottom), (left, bottom))
    return tuple(
        (x + (px - x) * cos - (py - y) * sin, y + (px - x) * sin + (py - y) * cos)
        for px, py in corners
    )


def ellipse(
    x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0
) -> tuple[Point, ...]:
    """An outline of an ellipse that is turned clockwise, as seen, about its centre."""
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    points = []
    for number in range(CIRCLE_POINTS):
        angle = 2 * math.pi * number / CIRCLE_POINTS
        px, py = radius_x * math.cos(angle), radius_y * math.sin(angle)
        points.append((x + px * cos - py * sin, y + px * sin + py * cos))
    return tuple(points)


def mask_object(name: str, mask: np.ndarray, left: float, top: float) -> tuple[Object | None, bool]:
    """The object of a mask, and whether it has holes, which outlines of Ultralytics cannot have.

    Args:
        name: Class name.
        mask: (height, width) bool, with True where the object is.
        left: Column of the mask's first pixel in the image.
        top: Row of the mask's first pixel in the image.

    Returns:
        None for an empty mask.
    """
    if not mask.any():
        return None, False
    # Contours run through the centres of pixels. In an image of twice the size, they run through
    # the halves of pixels next to an edge, so that rounding outward gives the pixels' edges.
    double = np.kron(mask.astype(np.uint8), np.ones((2, 2), np.uint8))
    contours, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    outer = [
        contour for contour, (_, _, _, parent) in zip(contours, tree[0], strict=True) if parent < 0
    ]
    outline = tuple(
        tuple((left + int(x + 1) // 2, top + int(y + 1) // 2) for x, y in contour[:, 0])
        for contour in outer
    )
    return Object(name, box=around([p for part in outline for p in part]), outline=outline), len(
        outer
    ) < len(contours)


def png_mask(text: str, *, compressed: bool = False) -> np.ndarray:
    """A mask that is written as a base64 PNG: (height, width) bool.

    Args:
        text: The base64 text.
        compressed: Whether the PNG was compressed by zlib once more.

    Raises:
        ValueError: For what is no such mask.
    """
    try:
        content = base64.b64decode(text, validate=False)
        if compressed:
            content = zlib.decompressobj().decompress(content, MAX_MASK_BYTES)
        with Image.open(io.BytesIO(content)) as image:
            if image.width * image.height > MAX_MASK_BYTES:
                raise ValueError(f"is of {image.width} x {image.height} pixels")
            pixels = np.asarray(image.convert("RGBA") if image.mode == "P" else image)
    except (
        binascii.Error,
        zlib.error,
        OSError,
        SyntaxError,
        Image.DecompressionBombError,
    ) as error:
        raise ValueError(f"is no PNG in base64 ({error})") from error
    if pixels.ndim == 3:  # what is transparent is not of the object
        pixels = pixels[..., 3] if pixels.shape[2] == 4 else pixels.max(axis=2)
    return pixels > 0


def runs_mask(runs: Sequence[int], width: int, height: int) -> np.ndarray:
    """A mask of the lengths of its runs, row by row, the first of which is not of the object.

    Raises ValueError for runs that do not fill the box.
    """
    if width <= 0 or height <= 0 or width * height > MAX_MASK_BYTES:
        raise ValueError(f"found a box of {width} x {height} pixels")
    if any(n < 0 for n in runs) or sum(runs) != width * height:
        raise ValueError(f"found runs of {sum(runs)} pixels for {width} x {height}")
    return np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
