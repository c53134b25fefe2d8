"""What a client remembers of its rounds, in Flower's `Context.state`, which lives from message to
message in a simulation and at a SuperNode.

A `MetricRecord` for each kind of work holds a list for each number, one entry a round, NaN where a
round has none.
"""

import math
from collections.abc import Mapping

from flwr.app import MetricRecord, RecordDict

SUFFIX = "-history"  # of the record's name in the state


def remember(state: RecordDict, kind: str, round_number: int, row: Mapping[str, float]) -> None:
    """Append the numbers of a round, or put them in place of those of an earlier try at it."""
    before = recall(state, kind)
    rounds = before.pop("round", [])
    kept = [i for i, number in enumerate(rounds) if number < round_number]
    columns = {
        name: [before[name][i] if name in before else math.nan for i in kept]
        + [float(row.get(name, math.nan))]
        for name in {**before, **row}
    }
    state[f"{kind}{SUFFIX}"] = MetricRecord(
        {"round": [*(rounds[i] for i in kept), float(round_number)], **columns}
    )


def recall(state: RecordDict, kind: str) -> dict[str, list[float]]:
    """The numbers of all rounds by name, and "round", their numbers; empty before the first."""
    record = state.metric_records.get(f"{kind}{SUFFIX}", {})
    return {name: list(values) for name, values in record.items() if isinstance(values, list)}
