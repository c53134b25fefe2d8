"""Sends each node only the part of the global arrays that it lacks.

With a codec, the global arrays change exactly by the delta that is sent. What encoding leaves out
of an aggregate is kept for the next one, so no client works with other arrays than the server.
"""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from federated_yolo.common.arrays import Arrays, checksum
from federated_yolo.protocol.delta import Encoding
from federated_yolo.protocol.records import LACKS_ARRAYS, to_record

DELTA, RESIDUAL, BEFORE = "increment/", "residual/", "before"  # names in the state


class Broadcast:
    """Holds the last delta and its residual, and which node holds which global arrays.

    Arrays are identified by their checksums.
    """

    def __init__(self, encoding: Encoding, arrays: Arrays) -> None:
        self.encoding = encoding
        self.arrays = arrays
        self._residual: Arrays = {}
        self._held: dict[int, str] = {}
        self._presumed = ""  # what nodes hold that have not replied yet
        self._place(arrays, before="", delta={})

    def advance(self, aggregated: Arrays) -> Arrays:
        """Return the next global arrays: the old ones, changed by a delta towards `aggregated`."""
        delta, self._residual = self.encoding.delta(aggregated, self.arrays, self._residual)
        arrays = self.encoding.rebuilt(delta, self.arrays)
        self._place(arrays, before=self._checksum, delta=delta)
        return arrays

    def addressed(self, message: Message) -> Message:
        """Return the message with the global arrays that its node lacks, in place of any arrays."""
        held = self._held.get(message.metadata.dst_node_id, self._presumed)
        if held == self._checksum:
            return self._carrying(message, ArrayRecord())
        if self._delta and held == self._before:
            return self._carrying(message, to_record(self._delta))
        return self.whole(message)

    def whole(self, message: Message) -> Message:
        """Return the message with all global arrays."""
        if self._whole is None:
            self._whole = to_record(self.encoding.whole(self.arrays))
        return self._carrying(message, self._whole)

    def confirm(self, message: Message, reply: Message) -> bool:
        """Record what a replying node holds; return False if it lacked the base of the message."""
        if reply.has_error() or "encoded" not in message.content:
            return True
        node = message.metadata.dst_node_id
        was_whole = message.content["encoded"] is self._whole
        about = reply.content.config_records.get("client", {})
        if about.get(LACKS_ARRAYS) and not was_whole:
            self._held[node] = ""
            return False
        self._held[node] = self._checksum
        return True

    def state(self) -> Arrays:
        """Return the state that a resumed run needs."""
        return {
            **{f"{DELTA}{name}": array for name, array in self._delta.items()},
            **{f"{RESIDUAL}{name}": array for name, array in self._residual.items()},
            BEFORE: np.array(self._before),
        }

    def restore(self, state: Arrays, arrays: Arrays) -> None:
        """Continue from a `state` and the global arrays of that round.

        Most nodes will hold these or those of the round before; the others will reply that they
        lack them.
        """
        self._residual = _starting_with(RESIDUAL, state)
        self._presumed = str(state[BEFORE])
        self._place(arrays, self._presumed, _starting_with(DELTA, state))

    def _place(self, arrays: Arrays, before: str, delta: Arrays) -> None:
        self.arrays = arrays
        self._checksum = checksum(arrays)
        self._before = before
        self._delta = delta
        self._whole: ArrayRecord | None = None

    def _carrying(self, message: Message, encoded: ArrayRecord) -> Message:
        content = {name: record for name, record in message.content.items() if name != "arrays"}
        config = ConfigRecord({**message.content.config_records["config"]})
        config["checksum"] = self._checksum
        record = RecordDict({**content, "config": config, "encoded": encoded})
        return Message(record, message.metadata.dst_node_id, message.metadata.message_type)


def _starting_with(prefix: str, arrays: Arrays) -> Arrays:
    return {n.removeprefix(prefix): a for n, a in arrays.items() if n.startswith(prefix)}
