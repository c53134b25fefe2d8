"""Assigns images to clients, and counts near-duplicates between them."""

import argparse
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from federated_yolo.common.errors import InputError
from federated_yolo.data.duplicates import near_duplicates, nearest_duplicate, perceptual_hashes
from federated_yolo.data.exports.content import first_problems
from federated_yolo.partitioning.schemes import DRAWN_SCHEMES, SCHEMES, Images, rarest_classes
from federated_yolo.partitioning.source import COMMON_FOLDERS, Source

DEFAULT_ALPHA = 0.3
ALPHA_RANGE = (0.001, 1000.0)  # roughly: one class per client, and all clients alike

MAX_CLASSES = 8  # in the table on the terminal; partitions.json and the picture have more


@dataclass(frozen=True)
class Partition:
    """Assignment of each image to a client.

    owners: (n,) int for each split, indices of clients; None for a shared val split.
    groups: Group of each image of each split; empty except for the scheme `group`.
    """

    clients: tuple[str, ...]
    owners: dict[str, np.ndarray | None]
    groups: dict[str, list[str]]

    def indices(self, source: Source, split: str, client: int) -> np.ndarray:
        """Return the indices of a client's images in a split, ascending: (n,) int."""
        owners = self.owners[split]
        if owners is None:
            return np.arange(len(source.splits[split].images))
        return np.flatnonzero(owners == client)


def divide(source: Source, options: argparse.Namespace) -> Partition:
    """Divide the images by the scheme. Raises InputError if a client could not be trained."""
    for split, content in source.splits.items():
        if len(content.images) < options.clients and (split == "train" or options.val == "split"):
            remedy = ", or --val shared" if split == "val" else ""
            raise InputError(
                f"--clients: found {options.clients}, but there are {len(content.images)} {split} "
                f"images, and each client needs one; use fewer{remedy}"
            )
    rng = np.random.default_rng(options.seed)
    groups = _groups(source, options.group_by or "folder") if options.scheme == "group" else {}
    train_labels = source.splits["train"].labels
    images = {
        split: Images(
            rarest_classes(train_labels, content.labels, len(source.names)), groups.get(split, [])
        )
        for split, content in source.splits.items()
    }
    alpha = DEFAULT_ALPHA if options.alpha is None else options.alpha
    assign = SCHEMES[options.scheme](images["train"], options.clients, alpha, rng)
    owners: dict[str, np.ndarray | None] = {"train": assign(images["train"]), "val": None}
    if options.val == "split":
        owners["val"] = assign(images["val"])
    clients = tuple(f"client_{number}" for number in range(options.clients))
    partition = Partition(clients, owners, groups)
    problems = list(_useless_clients(source, partition, options.scheme))
    if problems:
        raise InputError(first_problems(problems))
    return partition


def _groups(source: Source, group_by: str) -> dict[str, list[str]]:
    """Return the group of each image of each split. Raises InputError for images without one."""
    everything = [image for split in source.splits.values() for image in split.images]
    root = os.path.commonpath([str(Path(image).parent) for image in everything])

    def group_of(image: str) -> str | None:
        if group_by == "folder":
            parts = Path(os.path.relpath(image, root)).parts[:-1]
            return "/".join(part for part in parts if part not in COMMON_FOLDERS) or "."
        found = re.search(group_by, Path(image).as_posix())
        return found and (found.group(1) if found.re.groups else found.group())

    groups = {s: [group_of(image) for image in c.images] for s, c in source.splits.items()}
    lost = [
        image
        for split, content in source.splits.items()
        for image, group in zip(content.images, groups[split], strict=True)
        if group is None
    ]
    if lost:
        raise InputError(
            f"--group-by: '{group_by}' matches nothing in the path of {len(lost)} of "
            f"{len(everything)} images, e.g. {lost[0]}; it has to match all"
        )
    return {split: [str(name) for name in names] for split, names in groups.items()}


def _useless_clients(source: Source, partition: Partition, scheme: str) -> Iterator[str]:
    """Describe clients that the checks before round 1 would refuse."""
    remedies = "use fewer clients" + (" or another --seed" if scheme in DRAWN_SCHEMES else "")
    for split, content in source.splits.items():
        if partition.owners[split] is None:
            continue
        remedy = remedies + (", or --val shared" if split == "val" else "")
        for number, client in enumerate(partition.clients):
            mine = partition.indices(source, split, number)
            if not len(mine):
                yield (
                    f"{client}: gets none of the {len(content.images)} {split} images, expected at "
                    f"least one; {remedy}"
                )
            elif not any(len(content.labels[i]) for i in mine):
                yield (f"{client}: none of its {len(mine)} {split} images has a label; {remedy}")


def class_counts(source: Source, partition: Partition, split: str) -> np.ndarray:
    """Count each client's objects of each class: (clients, classes) int."""
    labels = source.splits[split].labels
    counts = np.zeros((len(partition.clients), len(source.names)), int)
    for number in range(len(partition.clients)):
        for i in partition.indices(source, split, number):
            counts[number] += np.bincount(labels[i], minlength=len(source.names))
    return counts


def count_duplicates(source: Source, partition: Partition) -> tuple[dict[str, Any], list[str]]:
    """Count near-duplicates between clients, and between train and val; return warnings too."""
    train, val = source.splits["train"].images, source.splits["val"].images
    images = train + val
    hashes = perceptual_hashes(images)
    owners = partition.owners["train"]
    assert owners is not None
    of_client = np.zeros((len(partition.clients), len(images)), bool)  # each client's train images
    of_client[owners, np.arange(len(train))] = True
    near = near_duplicates(hashes, of_client)
    is_train = np.arange(len(images)) < len(train)
    apart = np.flatnonzero(is_train & np.logical_or.reduce(near & ~of_client)).tolist()
    leaks = np.flatnonzero(~is_train & np.logical_or.reduce(near)).tolist()
    found = {"between_clients": len(apart), "train_and_val": len(leaks)}
    unread = int((hashes == 0).all(axis=1).sum())
    warnings = []
    if apart:
        elsewhere = is_train & ~of_client[owners[apart[0]]]
        twin = nearest_duplicate(hashes, apart[0], elsewhere)
        warnings.append(
            f"{len(apart)} of {len(train)} train images have a near-duplicate at another client, "
            f"e.g. {images[apart[0]]} and {images[twin]}; frames of one video stay together with "
            "--scheme group"
        )
    if leaks:
        twin = nearest_duplicate(hashes, leaks[0], is_train)
        warnings.append(
            f"{len(leaks)} of {len(val)} val images have a near-duplicate in train, e.g. "
            f"{images[leaks[0]]} and {images[twin]}; they make scores too good: split train and "
            "val anew"
        )
    if unread:
        warnings.append(f"{unread} of {len(images)} images could not be compared")
    return found, warnings
