"""Differential privacy of the clients' updates: what is clipped, the noise, and its epsilon.

Central: the server adds noise to the mean of the clipped updates, for those who see its models.
Local: each client clips its update and adds the noise itself, for a server that is not trusted.
docs/privacy.md says what that protects, from whom, and what it does not.

Flower's wrappers are not used, but its accountant is: in Flower 1.41 they draw noise from NumPy's
global generator, which training seeds from the run's seed; they weigh updates by images, which the
noise does not account for; they add noise behind a server optimiser, and to BatchNorm's counters;
an update that did not move ends in ZeroDivisionError; and adaptive clipping lowers the clipping
norm when too many updates are clipped, without end.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from federated_yolo.common.arrays import Arrays, to_double
from federated_yolo.common.files import write_atomically
from federated_yolo.config.schema import PrivacyConfig
from federated_yolo.protocol.clipping import clipped_change, noise_source

# Strategies that need no more of the updates than their mean, so that the noisy one serves them.
STRATEGIES_OF_THE_MEAN = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox")
# Adaptive clipping: the share of updates that are to be left as they are, and how fast the norm
# moves there; both as recommended by Andrew et al. 2021, arXiv 1905.03871, section 3.
CLIPPING_QUANTILE, CLIPPING_RATE = 0.5, 0.2
SPENT = "privacy.json"  # in the server's folder
BATCHNORM_PROTECTED = "local, or to frozen with shared.freeze_after 0"


class ServerPrivacy:
    """The server's part: counts each client's updates, releases noisy means, states epsilon.

    Holds what must outlive the process, since what has left cannot be taken back: how many updates
    of each client have arrived, and the clipping norm, which adaptive clipping moves. Both are
    written to `path` before anything that depends on an update goes anywhere, with the settings
    that they were protected by.
    """

    def __init__(
        self,
        config: PrivacyConfig,
        names: Iterable[str],
        path: Path,
        random: np.random.Generator | None = None,
    ) -> None:
        """names: of the shared arrays that training moves. random: of the noise."""
        assert config.clipping_norm is not None
        assert config.noise_multiplier is not None
        self.config = config
        self.names = list(names)
        self.path = path
        self.random = random or noise_source()
        self.clipping_norm = config.clipping_norm
        self.noise_multiplier = config.noise_multiplier
        self.num_updates: dict[str, int] = {}

    def restore(self, last_round: int) -> None:
        """Go on from what was spent before.

        Raises ValueError when that cannot be known, or was protected otherwise than what is to
        come, so that one epsilon would not hold for both.
        """
        if not self.path.exists() and not last_round:
            return
        try:
            spent = json.loads(self.path.read_text())
            self.num_updates = {str(n): int(k) for n, k in spent["num_updates"].items()}
            self.clipping_norm = float(spent["clipping_norm"])
            before = dict(spent["settings"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{self.path}: not readable ({error}), so what the rounds before have spent is not "
                "known; put it back, or start a new run"
            ) from error
        for name, value in self._settings().items():
            if before.get(name) != value:
                raise ValueError(
                    f"{self.path}: the rounds before had privacy.{name} {before.get(name)}, found "
                    f"{value}; set it to what it was, or start a new run"
                )

    def _settings(self) -> dict[str, str | float | None]:
        """What epsilon depends on, but for delta, which any epsilon can be stated at."""
        return self.config.model_dump(
            include={"mode", "clipping", "clipping_norm", "noise_multiplier"}
        )

    def count(self, client: str) -> None:
        """An update of a client has arrived. It counts even if the round is not finished."""
        self.num_updates[client] = self.num_updates.get(client, 0) + 1
        self._save()

    def release(self, models: Iterable[Mapping[str, np.ndarray]], origin: Arrays) -> Arrays:
        """origin + (sum of the clipped changes + noise) / number of models, in float64.

        models: trained arrays, of which one at a time is needed. Each counts the same: the noise
        hides a client's share of a mean of equal weights. Arrays that training does not move stay.
        """
        total: Arrays = {name: np.zeros(origin[name].shape) for name in self.names}
        within = []
        for arrays in models:
            change, is_within = clipped_change(arrays, origin, self.names, self.clipping_norm)
            within.append(is_within)
            for name in self.names:
                total[name] += change[name]
        multiplier = self.noise_multiplier
        if self.config.clipping == "adaptive":
            multiplier /= math.sqrt(1 - (multiplier / (2 * self._count_deviation(within))) ** 2)
        deviation = multiplier * self.clipping_norm
        result = to_double(origin)
        for name, value in total.items():
            noise = self.random.normal(0.0, deviation, value.shape)
            result[name] = result[name] + (value + noise) / len(within)
        if self.config.clipping == "adaptive":
            self._move_clipping_norm(within)
        return result

    def _count_deviation(self, within: list[bool]) -> float:
        """Standard deviation of the noise on the number of updates within the clipping norm.

        A twentieth of them (Andrew et al.); with fewer than 20 z updates z, which costs 15 % more
        noise on the updates, where a twentieth would cost more than any.
        """
        return max(len(within) / 20, self.noise_multiplier)

    def _move_clipping_norm(self, within: list[bool]) -> None:
        """Move the clipping norm towards the quantile of the updates' norms, by a noisy count.

        C <- C exp(-rate (b - quantile)), b the noisy share of updates within C (Andrew et al. 2021,
        arXiv 1905.03871, algorithm 1). The noise of count and mean together is that of one Gaussian
        mechanism with the noise multiplier of the config (theorem 1 there).
        """
        noise = self.random.normal(0.0, self._count_deviation(within))
        share = (sum(within) + noise) / len(within)
        self.clipping_norm *= math.exp(-CLIPPING_RATE * (share - CLIPPING_QUANTILE))
        self._save()

    def row(self) -> dict[str, float]:
        """Columns of results.csv after a round."""
        spent = {"epsilon": epsilon(self.config, max(self.num_updates.values(), default=0))}
        if self.config.clipping == "adaptive":
            spent["clipping_norm"] = self.clipping_norm
        return spent

    def _save(self) -> None:
        spent = {
            "num_updates": self.num_updates,
            "clipping_norm": self.clipping_norm,
            "settings": self._settings(),
        }
        text = json.dumps(spent, indent=2)
        write_atomically(self.path, lambda file: file.write(text.encode()))


def epsilon(config: PrivacyConfig, num_updates: int) -> float:
    """Epsilon at `config.delta` of a client that has given this many updates.

    Composition of Gaussian mechanisms by Renyi differential privacy (Mironov 2017, arXiv
    1702.07476; the conversion is dp-accounting's), without amplification by sampling: who trains in
    a round follows from the run's seed, so nobody's taking part is secret. It is an upper bound,
    about 8 % above the exact value of one release with a noise multiplier of 1.

    Central privacy hides whether a client's change or none went into the sum, which moves it by the
    clipping norm C. Local privacy hides any change behind any other, which are 2 C apart, so it
    counts as half the noise multiplier.
    """
    from flwr import serverapp as flower

    if not num_updates:
        return 0.0
    assert config.noise_multiplier is not None
    multiplier = config.noise_multiplier / (2 if config.mode == "local" else 1)
    accountant = flower.RdpAccountant(
        flower.PrivacyConfig(
            target_delta=config.delta,
            population_size=1,  # without amplification it has no effect
            neighboring_relation=flower.NeighboringRelation.ADD_OR_REMOVE_ONE,
            sampling_method=flower.SamplingMethod.NO_AMPLIFICATION,
        )
    )
    accountant.compose(flower.GaussianPrivacyEvent(multiplier, 1, 1), num_updates)
    return accountant.get_epsilon(config.delta)
