"""Clips or refuses updates whose norm is far larger than the others' in their round."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from federated_yolo.aggregation.aggregator import Update
from federated_yolo.common.arrays import Shortened
from federated_yolo.config.schema import UpdateNormConfig


@dataclass(frozen=True)
class Limited:
    """The updates that stay, and texts by client for the refused and the shortened ones."""

    updates: list[Update]
    refused: dict[str, str] = field(default_factory=dict)
    shortened: dict[str, str] = field(default_factory=dict)


def limit_norms(
    updates: Sequence[Update], origin: Mapping[str, np.ndarray], setting: UpdateNormConfig
) -> Limited:
    """Clip or refuse updates with a far larger norm than the others, as `update_norm` says.

    origin: Global arrays that the updates started from.
    """
    median = statistics.median(update.norm for update in updates)
    if setting.outliers == "keep" or not median:
        return Limited(list(updates))
    limit = setting.times_median * median
    result = Limited([])
    for update in updates:
        if update.norm <= limit:
            result.updates.append(update)
            continue
        found = (
            f"its update_norm is {update.norm:.4g}, {update.norm / median:.3g} times the "
            "round's median"
        )
        if setting.outliers == "refuse":
            result.refused[update.name] = f"{found}; refused"
            continue
        result.shortened[update.name] = f"{found}; shortened to {setting.times_median:g} times"
        arrays = Shortened(update.arrays, origin, limit / update.norm)
        result.updates.append(replace(update, arrays=arrays))
    return result
