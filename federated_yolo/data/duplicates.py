"""Finds images that look nearly alike, such as frames of one video, by perceptual hashes.

A model that was trained on one of two such images has in effect seen the other: across a train and
a val split they make scores too high, and across clients they make data more alike than it seems.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import imagehash
import numpy as np
from PIL import Image
from ultralytics.utils.patches import imread

from federated_yolo.common.environment import num_cpus

NUM_BITS = 64
# Most bits in which the hashes of two near-duplicates may differ. On 800 blood cell, food and
# street images: after saving as a poor JPEG, halving the size, brightening or adding noise, 99 %
# differ in at most 4; after a shift by 2 % of the width, 90 % in at most 6. Of 66,000 pairs of
# different photographs of blood cells, which are much alike, none differs in fewer than 14.
MAX_DISTANCE = 6
ROWS_AT_ONCE = 256  # rows of the distance matrix that are computed at once


def perceptual_hashes(paths: Sequence[Path | str]) -> np.ndarray:
    """Return the pHash of each image, from ImageHash: signs of its lowest spatial frequencies.

    Returns (n, 64) float32 of -1 and 1; a row of 0 for an image that OpenCV cannot read.
    """
    with ThreadPoolExecutor(num_cpus()) as pool:  # decoding an image lets other threads run
        rows = list(pool.map(_perceptual_hash, paths))
    return np.array(rows, np.float32).reshape(-1, NUM_BITS)


def _perceptual_hash(path: Path | str) -> np.ndarray:
    try:
        pixels = imread(str(path), cv2.IMREAD_GRAYSCALE)  # also reads 16 bits per channel
    except (OSError, cv2.error):
        pixels = None
    if pixels is None:
        return np.zeros(NUM_BITS)
    bits = imagehash.phash(Image.fromarray(pixels.reshape(pixels.shape[:2]))).hash
    return np.where(bits.ravel(), 1, -1)


def near_duplicates(hashes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Find which images have a near-duplicate in which group, other than themselves.

    Two are near-duplicates if their hashes differ in at most MAX_DISTANCE bits. No list of pairs is
    made: all frames of a camera that does not move can be alike.

    hashes: (n, 64) float32, from `perceptual_hashes`. groups: (g, n) bool, the images of each
    group. Returns (g, n) bool.
    """
    found = np.zeros(groups.shape, bool)
    members = groups.T.astype(np.float32)
    for start in range(0, len(hashes), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(hashes)))
        # Counts of near-duplicates; those of an image that has any are at least 1.
        found[:, rows] = (_near(hashes, rows).astype(np.float32) @ members > 0).T
    return found


def near_pairs(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs that link all near-duplicates of each other, directly or through others.

    hashes: (n, 64) float32, from `perceptual_hashes`. Returns two (pairs,) int, first and second.
    """
    firsts, seconds = [], []
    for start in range(0, len(hashes), ROWS_AT_ONCE):
        rows = np.arange(start, min(start + ROWS_AT_ONCE, len(hashes)))
        near = _near(hashes, rows)
        row, column = np.nonzero(near)
        firsts.append(rows[row])
        seconds.append(column)
    return np.concatenate([*firsts, []]).astype(int), np.concatenate([*seconds, []]).astype(int)


def nearest_duplicate(hashes: np.ndarray, image: int, group: np.ndarray) -> int:
    """Return the nearest near-duplicate of an image in a group; the image itself if none exists.

    hashes: As for `near_duplicates`. group: (n,) bool, the images of the group.
    """
    others = np.flatnonzero(_near(hashes, np.array([image]))[0] & group)
    return int(others[(hashes[others] @ hashes[image]).argmax()]) if len(others) else image


def _near(hashes: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return which images are near-duplicates of these rows, without themselves: (rows, n) bool."""
    # Rows of -1 and 1 that differ in d of 64 places have the product 64 - 2 d.
    near = hashes[rows] @ hashes.T >= NUM_BITS - 2 * MAX_DISTANCE
    near[np.arange(len(rows)), rows] = False
    return near


def exact_duplicates(contents: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Find which images have one with the same content in which group, other than themselves.

    contents: (n,) int, from 0, equal for equal content; -1 for an image without duplicates.
    groups: (g, n) bool. Returns (g, n) bool.
    """
    found = np.zeros(groups.shape, bool)
    known = contents >= 0
    for row, group in zip(found, groups, strict=True):
        counts = np.bincount(contents[group & known], minlength=contents.max(initial=0) + 1)
        row[known] = counts[contents[known]] > group[known]
    return found
