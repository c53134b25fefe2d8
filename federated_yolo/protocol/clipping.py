"""Clipping and noise for differential privacy, on the client and on the server."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from federated_yolo.common.arrays import Arrays, Layout, cast_to, distance
from federated_yolo.config.schema import PrivacyConfig


def noise_source() -> np.random.Generator:
    """Return a generator seeded by the operating system: noise that is known can be subtracted."""
    return np.random.default_rng()


def clipped_change(
    arrays: Mapping[str, np.ndarray],
    origin: Mapping[str, np.ndarray],
    names: Iterable[str],
    clipping_norm: float,
) -> tuple[Arrays, bool]:
    """Return the change of the named arrays, float64, scaled down to an L2 norm within the limit.

    All arrays together have one norm ("flat clipping", McMahan et al. 2018, arXiv 1710.06963).
    Returns also whether the change was within the limit before scaling.
    """
    names = list(names)
    norm = distance(arrays, origin, names)
    factor = clipping_norm / norm if norm > clipping_norm else 1.0
    change = {n: factor * (arrays[n].astype(np.float64) - origin[n]) for n in names}
    return change, norm <= clipping_norm


def privatised(
    arrays: Arrays,
    origin: Arrays,
    names: Iterable[str],
    config: PrivacyConfig,
    random: np.random.Generator,
) -> Arrays:
    """Return a client's trained arrays, clipped and noisy for local privacy, in origin's layout.

    names: Names of the arrays that training changes. The others are returned as in `origin`.
    """
    assert config.clipping_norm is not None
    assert config.noise_multiplier is not None
    change, _ = clipped_change(arrays, origin, names, config.clipping_norm)
    deviation = config.noise_multiplier * config.clipping_norm
    noisy = {n: origin[n] + c + random.normal(0.0, deviation, c.shape) for n, c in change.items()}
    return cast_to({**origin, **noisy}, Layout.of(origin))


def noise_of_mean(config: PrivacyConfig, num_clients: int) -> float:
    """Return the noise's standard deviation on each number of a mean of updates, in round 1.

    num_clients: Number of updates in the mean.
    """
    assert config.clipping_norm is not None
    assert config.noise_multiplier is not None
    shares = math.sqrt(num_clients) if config.mode == "local" else num_clients
    return config.noise_multiplier * config.clipping_norm / shares
