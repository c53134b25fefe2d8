"""Clipping and noise of differential privacy, on the client and on the server."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

from federated_yolo.common.arrays import Arrays, Layout, cast_to, distance
from federated_yolo.config.schema import PrivacyConfig


def noise_source() -> np.random.Generator:
    """A generator seeded by the operating system: whoever knows the noise can take it off again."""
    return np.random.default_rng()


def clipped_change(
    arrays: Mapping[str, np.ndarray],
    origin: Mapping[str, np.ndarray],
    names: Iterable[str],
    clipping_norm: float,
) -> tuple[Arrays, bool]:
    """What has changed in the arrays of these names, float64, with an L2 norm within the limit.

    All arrays together have one norm ("flat clipping", McMahan et al. 2018, arXiv 1710.06963).
    Returns also whether the change was within the limit before.
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
    """A client's trained arrays as they may leave it under local privacy, of the layout of origin.

    names: of the arrays that training moves. The others are sent back as they came.
    """
    assert config.clipping_norm is not None
    assert config.noise_multiplier is not None
    change, _ = clipped_change(arrays, origin, names, config.clipping_norm)
    deviation = config.noise_multiplier * config.clipping_norm
    noisy = {n: origin[n] + c + random.normal(0.0, deviation, c.shape) for n, c in change.items()}
    return cast_to({**origin, **noisy}, Layout.of(origin))


def noise_of_mean(config: PrivacyConfig, num_clients: int) -> float:
    """Standard deviation of the noise on each number of the mean of so many updates, in round 1."""
    assert config.clipping_norm is not None
    assert config.noise_multiplier is not None
    shares = math.sqrt(num_clients) if config.mode == "local" else num_clients
    return config.noise_multiplier * config.clipping_norm / shares
