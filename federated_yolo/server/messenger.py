"""Messages to the clients: their contents, their receivers, and their bytes."""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from federated_yolo.common.arrays import Arrays
from federated_yolo.common.errors import FederationError
from federated_yolo.protocol.handshake import ClientAssignment
from federated_yolo.protocol.instructions import Instructions
from federated_yolo.server.broadcast import Broadcast
from federated_yolo.server.journal import RoundJournal, Traffic
from federated_yolo.server.registry import ClientRegistry
from federated_yolo.server.transport import POLL_S, SITE_POLL_S, exchange, num_bytes
from federated_yolo.storage.run_dir import RunDir


class Messenger:
    """Sends messages, gives each client its assignment, and counts bytes.

    broadcast: Source of deltas in place of arrays; None sends arrays as they are.
    """

    def __init__(
        self,
        registry: ClientRegistry,
        instructions: Instructions,
        run_dir: RunDir,
        broadcast: Broadcast | None = None,
    ) -> None:
        self.registry = registry
        self.instructions = instructions
        self.run_dir = run_dir
        self.broadcast = broadcast
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Make all present and later pauses raise FederationError; callable from any thread."""
        self._stopping.set()

    def pause(self, seconds: float) -> None:
        """Wait for this time. Raises FederationError if the run is to stop."""
        if self._stopping.wait(seconds):
            raise FederationError("stopped")

    def config_record(self, node: int | None = None) -> ConfigRecord:
        """Return the config record of a message, for a node with its client's assignment."""
        record = ConfigRecord({"instructions": self.instructions.to_json()})
        if node is not None:
            record["assignment"] = self.assignment(node).to_json()
        return record

    def assignment(self, node: int) -> ClientAssignment:
        """Return the assignment of a node's client."""
        registry = self.registry
        name = registry.names_by_node[node]
        index = registry.index_of(name)
        data = registry.clients[index]
        assignment = ClientAssignment(
            index,
            name,
            registry.trained.get(name, 0),
            not_annotated=data.not_annotated,
            summary=registry.at_start.get(name),
        )
        if data.data is None:
            return assignment
        return replace(
            assignment,
            data=data.data,
            show_images=data.show_images,
            private_dir=str(self.run_dir.client_dir(name)),
        )

    def messages(self, content: RecordDict, nodes: Iterable[int], kind: str) -> list[Message]:
        """Return a message for each of these nodes, equal except for the client's assignment."""
        return self._assigned([Message(content, node, kind) for node in nodes])

    def addressed(self, messages: Iterable[Message]) -> list[Message]:
        """Return the messages with the global arrays for each client, as deltas if set so."""
        seated = self._assigned(messages)
        if self.broadcast is None:
            return seated
        return [self.broadcast.addressed(message) for message in seated]

    def sendable(self, arrays: Arrays) -> Arrays:
        """Return new global arrays as clients will receive them: a codec leaves out a part."""
        return arrays if self.broadcast is None else self.broadcast.advance(arrays)

    def exchange(
        self, grid: Grid, messages: Iterable[Message], journal: RoundJournal
    ) -> Iterator[Message]:
        """Send messages and yield each reply when it arrives, counting the bytes of both."""
        messages = list(messages)
        journal.asked_at = time.monotonic()
        for message in messages:
            traffic = self._traffic(message.metadata.dst_node_id, journal)
            traffic.download_bytes += num_bytes(message)

        def again(message: Message, reply: Message) -> Message | None:
            return self._sent_again(message, reply, journal)

        replies = exchange(
            grid,
            messages,
            self._limit_s(len(messages)),
            self.pause,
            poll_s=SITE_POLL_S if self.registry.has_sites else POLL_S,
            again=again,
        )
        for reply in replies:
            self._traffic(reply.metadata.src_node_id, journal).upload_bytes += num_bytes(reply)
            yield reply
            del reply  # frees its arrays, which would stay until the next reply

    def _assigned(self, messages: Iterable[Message]) -> list[Message]:
        """Return the messages with the assignment of each client."""
        result = []
        for message in messages:
            content, node = message.content, message.metadata.dst_node_id
            config = ConfigRecord(dict(content.config_records["config"]))
            config["assignment"] = self.assignment(node).to_json()
            own = RecordDict({**dict(content), "config": config})
            result.append(Message(own, node, message.metadata.message_type))
        return result

    def _limit_s(self, num_messages: int) -> float | None:
        """Return the time limit for all replies: sites work in parallel, others may queue."""
        timeout_s = self.instructions.round_timeout_s
        return timeout_s and timeout_s * (1 if self.registry.has_sites else num_messages)

    def _sent_again(
        self, message: Message, reply: Message, journal: RoundJournal
    ) -> Message | None:
        """Return the message with all arrays if the client lacked the base of its delta."""
        if self.broadcast is None or self.broadcast.confirm(message, reply):
            return None
        whole = self.broadcast.whole(message)
        self._traffic(message.metadata.dst_node_id, journal).download_bytes += num_bytes(whole)
        return whole

    def _traffic(self, node: int, journal: RoundJournal) -> Traffic:
        return journal.traffic[self.registry.names_by_node.get(node, "")]
