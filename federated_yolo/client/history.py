"""The numbers of a client's rounds so far, kept in Flower's `Context.state`.

The state lives from message to message, in a simulation and at a SuperNode. A `MetricRecord` for
each kind of work holds a list for each name, with an entry per round: NaN if the round has none.
"""

import math
from collections.abc import Mapping

from flwr.app import MetricRecord, RecordDict

SUFFIX = "-history"  # end of the record's name in the state


def remember(state: RecordDict, kind: str, round_number: int, row: Mapping[str, float]) -> None:
    """Append the numbers of a round; entries of this round and later, from a retry, are dropped."""
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
    """Return a list for each name, and "round" with the rounds' numbers; empty at the start."""
    record = state.metric_records.get(f"{kind}{SUFFIX}", {})
    return {name: list(values) for name, values in record.items() if isinstance(values, list)}
