"""Masks as polygons: COCO's run lengths are decoded, and the edges of the pixels followed.

pycocotools would decode them too, but gives uninitialised memory for a text that ends too early
(2.0.11), and would hold the mask of the whole image, where here only the columns with the object
are made.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from federated_yolo.data.exports.content import Point

MAX_PIXELS = 1 << 28  # of an image with a mask; Pillow refuses images of more than 179 million


def rle_outline(segmentation: Any, size: tuple[float, float]) -> tuple[tuple[Point, ...], ...]:
    """Polygons around a mask that is given as COCO's run lengths, in pixels.

    Args:
        segmentation: `{"size": [height, width], "counts": ...}`; counts as a list, or as a text,
            which COCO calls compressed.
        size: Width and height that the file gives for the image.

    Returns:
        Polygons as of `mask_outline`; none for an empty mask.

    Raises:
        ValueError: With what was found in place of run lengths of such an image.
    """
    given = segmentation.get("size")
    width, height = size
    if not isinstance(given, list) or given != [height, width]:
        raise ValueError(
            f"found a mask of the size {given}, expected [{height:g}, {width:g}], the height and "
            "width of its image"
        )
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"found a mask of {width * height:g} pixels, expected {MAX_PIXELS} or less"
        )
    counts = segmentation.get("counts")
    if not counts:
        return ()
    runs = np.array(_decoded(counts) if isinstance(counts, str) else _whole(counts), np.int64)
    if runs.min() < 0 or runs.sum() != width * height:
        raise ValueError(
            f"found run lengths of {runs.sum()} pixels, expected those of the image, "
            f"{width * height:g}; export again"
        )
    return _outline_of_runs(runs, int(height))


def _whole(counts: Any) -> list[int]:
    if not isinstance(counts, list) or not all(type(n) is int and n >= 0 for n in counts):
        raise ValueError("found counts that are no run lengths; export again")
    return counts


def _decoded(text: str) -> list[int]:
    """Run lengths of COCO's text: 5 bits a letter, and from the fourth on differences to those
    two before (cocoapi, maskApi.c, rleFrString)."""
    counts: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > 55:
            raise ValueError("found counts that are no text of run lengths; export again")
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:  # it goes on in the next letter
            continue
        if bits & 0x10:
            value -= 1 << shift
        counts.append(value + counts[-2] if len(counts) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError("found a text of run lengths that ends too early; export again")
    return counts


def _outline_of_runs(runs: np.ndarray, height: int) -> tuple[tuple[Point, ...], ...]:
    """Run lengths go down the columns, and begin with the background."""
    ends = np.cumsum(runs)
    starts, ends = (ends - runs)[1::2], ends[1::2]
    filled = ends > starts
    if not filled.any():
        return ()
    starts, ends = starts[filled], ends[filled]
    left = int(starts[0] // height)
    width = int((ends[-1] - 1) // height) - left + 1
    changes = np.zeros(width * height + 1, np.int8)
    np.add.at(changes, starts - left * height, 1)
    np.add.at(changes, ends - left * height, -1)
    mask = np.cumsum(changes[:-1], dtype=np.int8).reshape(width, height).T
    rows = np.flatnonzero(mask.any(axis=1))
    top = int(rows[0])
    return mask_outline(mask[top : rows[-1] + 1], (left, top))


def mask_outline(mask: np.ndarray, corner: tuple[int, int]) -> tuple[tuple[Point, ...], ...]:
    """Polygons along the edges of a mask's pixels, one for each part that hangs together.

    A hole is cut out by a slit of no width, since a label of Ultralytics is a single line.

    Args:
        mask: (height, width) of 0 and 1.
        corner: Left and top of the mask in the image, in pixels.

    Returns:
        Polygons in pixels, where pixel 0 goes from 0 to 1: their bounds are the mask's.
    """
    # OpenCV goes through the centres of the outer pixels. With each pixel made 3 x 3 dots that it
    # shares with its neighbours, these are the pixels' edges, two dots apart.
    dots = np.pad(mask.astype(np.uint8), 1).repeat(2, axis=0).repeat(2, axis=1)
    dots[1:] = dots[1:] | dots[:-1]
    dots[:, 1:] = dots[:, 1:] | dots[:, :-1]
    rings, tree = cv2.findContours(dots, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    lines = [ring.reshape(-1, 2) / 2 - 1 + np.array(corner) for ring in rings]
    parents = tree.reshape(-1, 4)[:, 3]
    outlines = []
    for index in np.flatnonzero(parents < 0):
        holes = [lines[hole] for hole in np.flatnonzero(parents == index)]
        outlines.append(_with_holes(lines[index], holes))
    return tuple(tuple((float(x), float(y)) for x, y in line) for line in outlines)


def _with_holes(line: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """One ring that goes in and out of each hole at the two points that are nearest; (n, 2)."""
    for hole in holes:
        distances = np.abs(line[:, None] - hole[None]).sum(axis=2)
        at, to = np.unravel_index(distances.argmin(), distances.shape)
        inner = np.concatenate([hole[to:], hole[: to + 1]])
        line = np.concatenate([line[: at + 1], inner, line[at:]])
    return line
