"""Flower's grid without processes: each message goes straight to the real ClientApp."""

import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from federated_yolo.client import app as client


def identify_process() -> None:
    """Set what Flower stamps messages with, as `run_simulation` does."""
    TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1


class LocalGrid:
    """Delivers messages to `federated_yolo.client.app`, one node for each partition.

    sites: node configs of SuperNodes, in place of partitions. gone: nodes that are not there.
    tamper: may replace a reply on its way back. sent and received: every message, in order.
    """

    def __init__(
        self,
        num_nodes: int,
        tamper: Callable[[Message], Message] = lambda reply: reply,
        sites: Sequence[dict[str, Any]] = (),
    ) -> None:
        identify_process()
        # Node ids do not start at the partition number, so that nobody takes one for the other.
        self.partitions = {1000 + 7 * i: i for i in range(num_nodes)}
        self.tamper = tamper
        self.gone: set[int] = set()
        self.sent: list[Message] = []
        self.received: list[Message] = []
        self._replies: dict[str, Message] = {}
        self._contexts = {
            node: Context(
                run_id=1,
                node_id=node,
                node_config=sites[partition]
                if sites
                else {"partition-id": partition, "num-partitions": num_nodes},
                state=RecordDict(),
                run_config={},
            )
            for node, partition in self.partitions.items()
        }

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in self.partitions if node not in self.gone]

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = str(uuid.uuid4())
            self.sent.append(message)
            ids.append(message.metadata.message_id)
            reply = client.app(message, self._contexts[message.metadata.dst_node_id])
            if message.metadata.message_type != "query.refused":  # nobody waits for that one
                self._replies[message.metadata.message_id] = self.tamper(reply)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        # The last client answers first: nothing may depend on the order of replies.
        last = max(self._replies, key=lambda i: self._replies[i].metadata.src_node_id, default="")
        replies = [self._replies.pop(last)] if last in set(message_ids) else []
        self.received += replies
        return replies
