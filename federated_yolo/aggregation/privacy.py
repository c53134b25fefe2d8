"""Differential privacy of the clients' updates: clipping, noise, and the resulting epsilon.

Central: the server adds noise to the mean of the clipped updates, against those who see its models.
Local: each client clips its update and adds the noise itself, so it need not trust the server.
docs/privacy.md explains what that protects, from whom, and what it does not protect.

Flower's accountant is used, but its wrappers are not. In Flower 1.41 the wrappers draw noise from
NumPy's global generator, which training seeds from the run's seed; they weight updates by images,
which the noise does not account for; they add noise after a server optimiser, and to BatchNorm's
counters; an update without any change raises ZeroDivisionError; and adaptive clipping lowers the
clipping norm without end if too many updates are clipped.
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

# Strategies that need only the mean of the updates, so that they work with the noisy mean.
STRATEGIES_OF_THE_MEAN = ("fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox")
# Adaptive clipping: the share of updates that should stay unclipped, and how fast the norm moves
# there; both as recommended by Andrew et al. 2021, arXiv 1905.03871, section 3.
CLIPPING_QUANTILE, CLIPPING_RATE = 0.5, 0.2
SPENT = "privacy.json"  # in the server's folder
BATCHNORM_PROTECTED = "local, or to frozen with shared.freeze_after 0"


class ServerPrivacy:
    """The server's part: counts each client's updates, releases noisy means, computes epsilon.

    Holds how many updates have arrived from each client, and the clipping norm, which adaptive
    clipping changes. Both must outlive the process, because a release cannot be taken back. They
    are written to `path`, with the settings that protect the updates, before anything that depends
    on an update is released.
    """

    def __init__(
        self,
        config: PrivacyConfig,
        names: Iterable[str],
        path: Path,
        random: np.random.Generator | None = None,
    ) -> None:
        """names: Names of the shared arrays that training changes. random: Source of the noise."""
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
        """Continue from the updates that were counted before.

        Raises ValueError if these are not known, or if the earlier rounds had other privacy
        settings, so that one epsilon would not hold for all rounds.
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
        """Return the settings that epsilon depends on, except delta: it can be stated at any."""
        return self.config.model_dump(
            include={"mode", "clipping", "clipping_norm", "noise_multiplier"}
        )

    def count(self, client: str) -> None:
        """Count an update that has arrived from a client, even if the round is never finished."""
        self.num_updates[client] = self.num_updates.get(client, 0) + 1
        self._save()

    def release(self, models: Iterable[Mapping[str, np.ndarray]], origin: Arrays) -> Arrays:
        """Return origin + (sum of the clipped changes + noise) / number of models, in float64.

        models: Trained arrays of each client, needed one at a time. All have the same weight: the
        noise hides a client's share of a mean with equal weights. Arrays that training does not
        change stay the same.
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
        """Return the standard deviation of the noise on the number of updates within the norm.

        It is a twentieth of all updates (Andrew et al.). With fewer than 20 z updates, for a noise
        multiplier z, it is z, which costs 15 % more noise on the updates; a twentieth would cost
        more, without limit.
        """
        return max(len(within) / 20, self.noise_multiplier)

    def _move_clipping_norm(self, within: list[bool]) -> None:
        """Move the clipping norm towards the quantile of the updates' norms, using a noisy count.

        C <- C exp(-rate (b - quantile)), where b is the noisy share of updates within C (Andrew et
        al. 2021, arXiv 1905.03871, algorithm 1). The noise of count and mean together equals that
        of one Gaussian mechanism with the config's noise multiplier (theorem 1 there).
        """
        noise = self.random.normal(0.0, self._count_deviation(within))
        share = (sum(within) + noise) / len(within)
        self.clipping_norm *= math.exp(-CLIPPING_RATE * (share - CLIPPING_QUANTILE))
        self._save()

    def row(self) -> dict[str, float]:
        """Return the privacy columns of a round's row in results.csv."""
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
    """Return epsilon at `config.delta` for a client that has sent this many updates.

    Composition of Gaussian mechanisms by Renyi differential privacy (Mironov 2017, arXiv
    1702.07476; the conversion is dp-accounting's), without amplification by sampling: the clients
    of a round follow from the run's seed, so taking part is not secret. It is an upper bound, about
    8 % above the exact value of one release with a noise multiplier of 1.

    Central privacy hides whether a client's change is in the sum, which changes the sum by at most
    the clipping norm C. Local privacy hides which of any two changes was made; these can be 2 C
    apart, so the noise multiplier counts as half.
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
