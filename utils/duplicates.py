"""Images that look nearly alike, such as frames of one video, by perceptual hashes.

A model that was trained on one of two such images has seen the other: between a train and a val
split they make scores too good, and between clients they make data more alike than it seems.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import imagehash
import numpy as np
from PIL import Image
from ultralytics.utils.patches import imread

from utils.environment import num_cpus

NUM_BITS = 64
# Bits in which two hashes of near-duplicates may differ. On 800 blood cell, food and street images:
# saved again as a poor JPEG, half the size, brighter or with noise, 99 % differ in at most 4; moved
# by 2 % of the width, 90 % in at most 6. Of 66,000 pairs of different photographs of blood cells,
# which are much alike, none differs in less than 14.
MAX_DISTANCE = 6
ROWS_AT_ONCE = 256  # of the matrix of all distances


def perceptual_hashes(paths: Sequence[Path | str]) -> np.ndarray:
    """The pHash of each image, by ImageHash: signs of its lowest spatial frequencies.

    Returns (n, 64) float32 of -1 and 1; a row of 0 for an image that OpenCV cannot read.
    """
    with ThreadPoolExecutor(num_cpus()) as pool:  # decoding an image lets other threads run
        rows = list(pool.map(_perceptual_hash, paths))
    return np.array(rows, np.float32).reshape(-1, NUM_BITS)


def _perceptual_hash(path: Path | str) -> np.ndarray:
    try:
        pixels = imread(str(path), cv2.IMREAD_GRAYSCALE)  # with 16 bits a channel, too
    except (OSError, cv2.error):
        pixels = None
    if pixels is None:
        return np.zeros(NUM_BITS)
    bits = imagehash.phash(Image.fromarray(pixels.reshape(pixels.shape[:2]))).hash
    return np.where(bits.ravel(), 1, -1)


def near_duplicates(hashes: np.ndarray) -> np.ndarray:
    """All pairs of images whose hashes differ in at most MAX_DISTANCE bits.

    hashes: (n, 64) float32, as of `perceptual_hashes`.
    Returns (pairs, 2) int64, indices of rows, the smaller first.
    """
    found = [np.empty((0, 2), np.int64)]
    for start in range(0, len(hashes), ROWS_AT_ONCE):
        # Rows of -1 and 1 that differ in d of 64 places have the product 64 - 2 d.
        products = hashes[start : start + ROWS_AT_ONCE] @ hashes[start:].T
        pairs = np.argwhere(np.triu(products >= NUM_BITS - 2 * MAX_DISTANCE, k=1))
        found.append(pairs + start)
    return np.concatenate(found)
