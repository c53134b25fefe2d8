"""Images that are the same, or nearly so."""

import tracemalloc
from pathlib import Path

import cv2
import numpy as np

from federated_yolo.data.duplicates import (
    MAX_DISTANCE,
    exact_duplicates,
    near_duplicates,
    nearest_duplicate,
    perceptual_hashes,
)


def pairs_of(hashes: np.ndarray) -> list[list[int]]:
    """Pairs of near-duplicates, the smaller index first: each image is a group of its own."""
    found = near_duplicates(hashes, np.eye(len(hashes), dtype=bool))
    np.testing.assert_array_equal(found, found.T)
    assert not found.diagonal().any()
    return np.argwhere(np.triu(found)).tolist()


def test_hashes_that_differ_in_few_bits_are_near_duplicates() -> None:
    first = np.ones(64, np.float32)
    near, far = first.copy(), first.copy()
    near[:MAX_DISTANCE] = -1
    far[-MAX_DISTANCE - 1 :] = -1
    unread = np.zeros(64, np.float32)
    hashes = np.array([first, unread, far, near, unread, first])
    assert pairs_of(hashes) == [[0, 3], [0, 5], [3, 5]]
    many = np.concatenate([np.resize(hashes[1], (700, 64)), hashes])  # over several blocks
    assert pairs_of(many) == [[700, 703], [700, 705], [703, 705]]


def test_near_and_exact_duplicates_are_found_in_groups_but_not_in_oneself() -> None:
    """Images 0, 1 and 2 are alike, 1 less than 2 to 0; 0 and 2 are the same file twice."""
    hashes = np.ones((5, 64), np.float32)
    hashes[1, 0] = -1
    hashes[3, :32] = -1
    hashes[4] = 0
    groups = np.array([[1, 0, 0, 1, 1], [0, 1, 1, 0, 0], [0, 0, 0, 0, 0]], bool)
    assert near_duplicates(hashes, groups).astype(int).tolist() == [
        [0, 1, 1, 0, 0],  # 0 is alone there
        [1, 1, 1, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    assert [nearest_duplicate(hashes, 0, group) for group in groups] == [0, 2, 0]
    assert nearest_duplicate(hashes, 3, groups[1]) == 3
    contents = np.array([7, 3, 7, -1, -1])
    assert exact_duplicates(contents, groups).astype(int).tolist() == [
        [0, 0, 1, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 0, 0, 0],
    ]
    nothing = np.zeros((1, 0), bool)
    assert near_duplicates(hashes[:0], nothing).shape == nothing.shape
    assert exact_duplicates(contents[:0], nothing).shape == nothing.shape


def test_of_a_camera_that_stands_still_no_pairs_are_kept() -> None:
    """3000 frames that are all alike are 4.5 million pairs."""
    hashes = np.ones((3000, 64), np.float32)
    groups = np.arange(3000) % 2 == np.array([[0], [1]])
    tracemalloc.start()
    try:
        assert near_duplicates(hashes, groups).all()
        assert exact_duplicates(np.zeros(3000, int), groups).all()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 20e6  # a block of 256 rows has 3 MB; all pairs as int64 72 MB


def test_an_image_saved_smaller_brighter_and_poorer_is_found_and_another_is_not(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    scene, other = (
        cv2.resize(rng.integers(0, 200, (9, 9, 3), dtype=np.uint8), (320, 240)) for _ in range(2)
    )
    poor = cv2.convertScaleAbs(cv2.resize(scene, (160, 120)), alpha=1.1, beta=10)
    deep = scene.astype(np.uint16) * 256
    pictures = {"scene.png": scene, "other.png": other, "poor.jpg": poor, "deep.png": deep}
    for name, image in pictures.items():
        options = [cv2.IMWRITE_JPEG_QUALITY, 30] if name.endswith("jpg") else []
        cv2.imwrite(str(tmp_path / name), image, options)
    (tmp_path / "broken.png").write_bytes(b"no image")
    names = [*pictures, "broken.png", "lost.png"]
    hashes = perceptual_hashes([tmp_path / name for name in names])
    assert pairs_of(hashes) == [[0, 2], [0, 3], [2, 3]]
    assert (hashes[-2:] == 0).all()
