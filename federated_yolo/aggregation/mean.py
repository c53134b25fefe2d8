"""The weighted mean of updates that arrive one after the other. NumPy only.

It needs the memory of one sum in float64, however many updates there are.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from federated_yolo.common.arrays import Arrays, add_scaled


@dataclass(frozen=True)
class Share:
    """The weight of an update, e.g. its training images, and its number of optimiser steps.

    absent: Indices of the classes whose rows it does not contribute to.
    """

    weight: float
    num_steps: int
    absent: frozenset[int] = frozenset()


def limited(weights: Sequence[float], max_share: float | None) -> list[float]:
    """Return these weights, with the largest lowered until none exceeds this share of their sum.

    The other weights stay the same, so their shares grow in proportion. If there are too few
    weights for all to be within the limit, they become equal, which is nearest to it.
    """
    if max_share is None:
        return list(weights)
    if len(weights) * max_share <= 1:
        return [1.0] * len(weights)
    order = sorted(weights, reverse=True)
    rest = math.fsum(order)
    for number, weight in enumerate(order):  # all weights before it are lowered to the limit
        limit = max_share * rest / (1 - number * max_share) if number * max_share < 1 else 0.0
        if weight <= limit:
            return [min(w, limit) if number else w for w in weights]
        rest -= weight
    raise AssertionError("the smallest weights are within every possible limit")


class RunningMean:
    """Weighted mean of models in float64. Holds the sum, and the `Share` of each update in it.

    n_k w_k is exact for float32 models w_k and whole weights n_k below 2^29, and the sum is divided
    once, at the end. So the mean of equal models is that model, and the mean of one client is its
    own model, to the last bit.

    Rows of classes that some clients do not annotate are means over the clients that do; if there
    are none, they stay as in `origin`.

    FedNova: for arrays named in `per_step` each client's change is divided by its number of steps,

        w + tau * sum_k p_k (w_k - w) / tau_k,   tau = sum_k p_k tau_k

    with p_k a client's share of the weights and tau_k its steps, so that a client that takes more
    steps does not pull the model towards its own optimum (Wang et al. 2020, arXiv 2007.07481,
    equations 8 and 9, with a_k = tau_k: exact for SGD without momentum, and the steps themselves
    for optimisers that normalise theirs, such as Adam). With c_k = n_k / tau_k and C, N the sums of
    c_k and n_k this is w + (tau C / N) * (sum_k c_k w_k / C - w), where each term of the
    sum depends on one client only.
    """

    def __init__(
        self, origin: Arrays, class_rows: Collection[str] = (), per_step: Collection[str] = ()
    ) -> None:
        """Start without updates.

        origin: Global arrays that the clients started from. class_rows: Names of arrays whose first
        axis is the class. per_step: Names of arrays that FedNova's mean applies to.
        """
        self.origin = origin
        self.class_rows = frozenset(class_rows)
        self.per_step = frozenset(per_step)
        # -0.0 + x is x for every x; 0.0 would turn -0.0 into 0.0.
        self._sums = {name: np.full(array.shape, -0.0) for name, array in origin.items()}
        self._shares: list[Share] = []

    def add(self, arrays: Mapping[str, np.ndarray], share: Share) -> None:
        """Add an update. arrays: Arrays with `origin`'s names and shapes; each is accessed once."""
        for name, total in self._sums.items():
            array = arrays[name]
            if share.absent and name in self.class_rows:
                array = array.astype(np.float64)
                array[np.isin(np.arange(len(array)), list(share.absent))] = -0.0
            weight = share.weight / (share.num_steps if name in self.per_step else 1)
            add_scaled(total, array, weight)
        self._shares.append(share)

    def result(self) -> Arrays:
        """Return the mean, float64. It overwrites the sums, so nothing can be added any more."""
        assert self._shares
        absent = frozenset[int]().union(*(share.absent for share in self._shares))
        for name, total in self._sums.items():
            origin, per_step = self.origin[name], name in self.per_step
            if not absent or name not in self.class_rows:
                self._divide(total, origin, self._shares, per_step=per_step)
                continue
            for index in range(len(total)):
                row = slice(index, index + 1)
                shares = [share for share in self._shares if index not in share.absent]
                self._divide(total[row], origin[row], shares, per_step=per_step)
        return self._sums

    def _divide(
        self, total: np.ndarray, origin: np.ndarray, shares: list[Share], *, per_step: bool
    ) -> None:
        """Turn the sum over these shares into their mean, in place."""
        if not shares:
            total[...] = origin
            return
        weights = sum(Fraction(share.weight) for share in shares)
        if not per_step:
            total /= float(weights)
            return
        weight = sum(Fraction(share.weight) / share.num_steps for share in shares)
        total /= float(weight)
        # As fractions: exactly 1 if all clients take equally many steps, or there is only one.
        scale = float(self._effective_steps * weight / weights)
        if scale != 1:
            total *= scale
            total += (1 - scale) * origin.astype(np.float64)

    @property
    def _effective_steps(self) -> Fraction:
        """FedNova's tau, over all updates."""
        steps = sum(Fraction(share.weight) * share.num_steps for share in self._shares)
        return Fraction(steps) / sum(Fraction(share.weight) for share in self._shares)
