"""A val split out of the train images, for exports that have none."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from federated_yolo.common.errors import InputError
from federated_yolo.data.duplicates import near_pairs, perceptual_hashes
from federated_yolo.data.exports.content import Content


def with_val(content: Content, fraction: float, seed: int) -> Content:
    """Move about this share of the train images to a val split, if there is none.

    Near-duplicates, such as frames of one video, stay on one side: else the model would be scored
    on what it has seen. Folders stay whole where there are enough of them for such a share; those
    of classes are divided, so that each class keeps a train image.

    Args:
        content: An export.
        fraction: Share of the train images, above 0 and below 1.
        seed: The same seed and images give the same split.

    Raises:
        InputError: When all images are near-duplicates of each other.
    """
    if content.splits.get("val") or not content.splits.get("train"):
        return content
    pictures = sorted(content.splits["train"], key=lambda picture: str(picture.path))
    paths = [picture.path for picture in pictures]
    if content.task == "classify":
        labels = np.array([content.names.index(picture.objects[0].name) for picture in pictures])
        chosen = _choose_by_class(_near_groups(paths), labels, fraction, seed)
        by = ", of each class alike, near-duplicates together"
    else:
        groups, by = _groups(paths, fraction)
        chosen = _choose(groups, fraction, seed)
    if not chosen.any() or chosen.all():
        raise InputError(
            f"{content.file}: no val split can be made of its {len(pictures)} images, which are "
            "near-duplicates of each other: the model would be scored on what it has seen; add "
            "other images as a val split"
        )
    splits = {
        "train": [p for p, is_val in zip(pictures, chosen, strict=True) if not is_val],
        "val": [p for p, is_val in zip(pictures, chosen, strict=True) if is_val],
        **{split: found for split, found in content.splits.items() if split == "test"},
    }
    note = f"{int(chosen.sum())} of {len(pictures)} images become the val split (seed {seed}{by})"
    return replace(content, splits=splits, notes=(*content.notes, note))


def _groups(paths: Sequence[Path], fraction: float) -> tuple[np.ndarray, str]:
    """Which images stay together: (n,) int; and a text that says by what."""
    folders = {folder: i for i, folder in enumerate(dict.fromkeys(p.parent for p in paths))}
    rows, columns = near_pairs(perceptual_hashes(paths))
    by = ", near-duplicates together"
    if len(folders) * fraction >= 1:
        first = dict.fromkeys(folders, -1)
        pairs = []
        for index, path in enumerate(paths):
            if first[path.parent] < 0:
                first[path.parent] = index
            pairs.append((first[path.parent], index))
        rows = np.concatenate([rows, np.array(pairs, int)[:, 0]])
        columns = np.concatenate([columns, np.array(pairs, int)[:, 1]])
        by = f", near-duplicates and each of {len(folders)} folders together"
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(paths),) * 2)
    _, labels = connected_components(links, directed=False)
    return labels, by


def _near_groups(paths: Sequence[Path]) -> np.ndarray:
    """Which images are near-duplicates of each other: (n,) int."""
    rows, columns = near_pairs(perceptual_hashes(paths))
    links = coo_array((np.ones(len(rows)), (rows, columns)), shape=(len(paths),) * 2)
    return connected_components(links, directed=False)[1]


def _choose_by_class(
    groups: np.ndarray, labels: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """Which images are val, about the share of each class; (n,) bool.

    groups: (n,) int, images that stay together. labels: (n,) int, their classes.
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(groups), bool)
    for label in np.unique(labels):
        is_class = labels == label
        wanted = max(round(fraction * is_class.sum()), 1)
        for group in rng.permutation(np.unique(groups[is_class])):
            after = chosen | (groups == group)
            missing = wanted - (chosen & is_class).sum()
            emptied = np.setdiff1d(labels, labels[~after]).size
            # As in `_choose`; and no class loses its last train image.
            if missing > 0 and (after & is_class).sum() - wanted <= missing and not emptied:
                chosen = after
    return chosen


def _choose(groups: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Which images are val: whole groups in random order, until the share is reached; (n,) bool."""
    rng = np.random.default_rng(seed)
    sizes = np.bincount(groups)
    wanted = max(round(fraction * len(groups)), 1)
    chosen = np.zeros(len(sizes), bool)
    for group in rng.permutation(len(sizes)):
        # A group that would lead further past the share than it is short of it stays in train.
        if sizes[chosen].sum() + sizes[group] - wanted <= wanted - sizes[chosen].sum():
            chosen[group] = True
        if sizes[chosen].sum() >= wanted:
            break
    return chosen[groups]
