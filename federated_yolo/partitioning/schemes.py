"""Schemes, by name, that divide images among clients; NumPy only.

A scheme draws its shares from the train split and returns a function that divides any split, so
that the val split is divided in the same way as the train split.

An image may show objects of several classes, and cannot be divided. Schemes that use classes count
an image under its class that is on the fewest images of the train split, as iterative
stratification does (Sechidis et al. 2011): one platelet beside fifty red blood cells decides.
The partitioners of flwr-datasets do not fit: they use one label for each row of a Hugging Face
data set, and would add 18 packages.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from federated_yolo.common.errors import InputError

NO_CLASS = -1  # class of images without labels; `dirichlet` treats it like others
MAX_SHOWN = 5


@dataclass(frozen=True)
class Images:
    """Facts about the images of a split that the schemes use.

    classes: (n,) int, the class under which each image counts. groups: n names, e.g. of cameras.
    """

    classes: np.ndarray
    groups: Sequence[str]

    def __len__(self) -> int:
        return len(self.classes)


# Returns the client of each image of a split: (n,) int.
Assign = Callable[[Images], np.ndarray]


def iid(train: Images, num_clients: int, alpha: float, rng: np.random.Generator) -> Assign:
    """Divide shuffled images into equal shares: independent and identically distributed."""
    equal = np.full(num_clients, 1 / num_clients)
    return lambda images: _deal(len(images), equal, rng)


def quantity(train: Images, num_clients: int, alpha: float, rng: np.random.Generator) -> Assign:
    """Divide shuffled images into shares drawn from Dir(alpha) (Li et al. 2022, arXiv 2102.02079).

    Unlike in the paper, each client has at least one image.
    """
    shares = rng.dirichlet(np.full(num_clients, alpha))
    return lambda images: _deal(len(images), shares, rng)


def dirichlet(train: Images, num_clients: int, alpha: float, rng: np.random.Generator) -> Assign:
    """Give clients equal numbers of images, each with its own mix of classes (Hsu et al. 2019).

    As in arXiv 1909.06335, a mix is drawn from Dir(alpha * the mix of all clients together), and
    images are drawn by that mix without replacement. Unlike in the paper, clients take turns image
    by image, so that the last client does not always get what the others have left.
    """
    classes, counts = np.unique(train.classes, return_counts=True)
    mixes = rng.dirichlet(alpha * counts / counts.sum(), size=num_clients)

    def assign(images: Images) -> np.ndarray:
        # A class that only the val split has is in no client's mix; it is used after all others.
        present = np.union1d(classes, images.classes)
        mix = np.zeros((num_clients, len(present)))
        mix[:, np.searchsorted(present, classes)] = mixes
        waiting = [list(rng.permutation(np.flatnonzero(images.classes == c))) for c in present]
        owners = np.empty(len(images), int)
        for turn in range(len(images)):
            client = turn % num_clients
            left = np.array([len(indices) for indices in waiting])
            weights = mix[client] * (left > 0)
            # Use what is left once the client's own classes have run out.
            weights = weights if weights.sum() > 0 else left
            drawn = rng.choice(len(present), p=weights / weights.sum())
            owners[waiting[drawn].pop()] = client
        return owners

    return assign


def by_class(train: Images, num_clients: int, alpha: float, rng: np.random.Generator) -> Assign:
    """Give each class to one client or, with more clients than classes, to as few as possible.

    Images without labels are divided equally.
    """
    counts = Counter(c for c in train.classes.tolist() if c != NO_CLASS)
    ranked = sorted(counts, key=lambda c: (-counts[c], c))
    if len(ranked) >= num_clients:
        owners_of = {c: [client] for c, client in _pack(counts, [0] * num_clients).items()}
    else:
        owners_of = {c: list(range(i, num_clients, len(ranked))) for i, c in enumerate(ranked)}

    def assign(images: Images) -> np.ndarray:
        owners = np.empty(len(images), int)
        for c in np.unique(images.classes):
            clients = np.array(owners_of.get(int(c), range(num_clients)))
            here = np.flatnonzero(images.classes == c)
            dealt = _deal(len(here), np.full(len(clients), 1 / len(clients)), rng)
            owners[here] = clients[dealt]
        return owners

    return assign


def by_group(train: Images, num_clients: int, alpha: float, rng: np.random.Generator) -> Assign:
    """Assign whole groups, the largest first, each to the client with the fewest images.

    Raises InputError if there are fewer groups than clients.
    """
    counts = Counter(train.groups)
    if len(counts) < num_clients:
        shown = ", ".join(sorted(counts)[:MAX_SHOWN]) + (", ..." if len(counts) > MAX_SHOWN else "")
        raise InputError(
            f"--clients: found {num_clients}, but the train images are of {len(counts)} group"
            f"{'s' * (len(counts) != 1)} ({shown}); use at most as many clients, or another "
            "--group-by, e.g. --group-by 'cam(\\d+)_' for names like cam3_0001.jpg"
        )
    owner_of = _pack(counts, [0] * num_clients)

    def assign(images: Images) -> np.ndarray:
        load = [0] * num_clients
        for group in images.groups:
            if group in owner_of:
                load[owner_of[group]] += 1
        new = Counter(group for group in images.groups if group not in owner_of)
        owners = {**_pack(new, load), **owner_of}
        return np.array([owners[group] for group in images.groups], int)

    return assign


Scheme = Callable[[Images, int, float, np.random.Generator], Assign]
SCHEMES: dict[str, Scheme] = {
    "iid": iid,
    "dirichlet": dirichlet,
    "quantity": quantity,
    "class": by_class,
    "group": by_group,
}
SCHEMES_WITH_ALPHA = ("dirichlet", "quantity")
DRAWN_SCHEMES = ("iid", *SCHEMES_WITH_ALPHA)  # results of the others hardly depend on the seed


def rarest_classes(
    train: Sequence[np.ndarray], images: Sequence[np.ndarray], num_classes: int
) -> np.ndarray:
    """Return the class under which each image counts: its class on the fewest images of `train`.

    train, images: Class indices of the objects on each image. Returns (n,) int, NO_CLASS without
    objects.
    """
    num_images = np.zeros(num_classes, int)
    for classes in train:
        num_images[np.unique(classes).astype(int)] += 1
    return np.array(
        [
            min((int(c) for c in classes), key=lambda c: (num_images[c], c), default=NO_CLASS)
            for classes in images
        ],
        int,
    )


def _deal(num_images: int, shares: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Divide shuffled images by shares, rounded; each client gets an image if there are enough.

    shares: (clients,) float, with sum 1. Returns the client of each image: (num_images,) int.
    """
    exact = shares * num_images
    counts = np.floor(exact).astype(int)
    most_lost = np.argsort(counts - exact, kind="stable")
    counts[most_lost[: num_images - counts.sum()]] += 1
    while counts.min() == 0 and counts.max() > 1:
        counts[counts.argmin()] += 1
        counts[counts.argmax()] -= 1
    return rng.permutation(np.repeat(np.arange(len(shares)), counts))


def _pack(counts: Counter[Any], load: list[int]) -> dict[Any, int]:
    """Assign each key to a client, the largest count first, to the client with the smallest load.

    load: Count that each client has before.
    """
    load = list(load)
    owner_of = {}
    for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        client = load.index(min(load))
        load[client] += count
        owner_of[key] = client
    return owner_of
