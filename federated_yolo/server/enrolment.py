"""Before and between rounds: which clients are connected, and which of them have the model."""

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from federated_yolo.common.errors import FederationError
from federated_yolo.config.schema import ResolvedConfig
from federated_yolo.protocol.records import to_record
from federated_yolo.server.global_model import GlobalModel
from federated_yolo.server.journal import RoundJournal
from federated_yolo.server.messenger import Messenger
from federated_yolo.server.registry import reason_in
from federated_yolo.server.results import Display
from federated_yolo.server.transport import POLL_S, SITE_POLL_S
from federated_yolo.storage.run_dir import CONFIG_FILE


class Enrolment:
    """Looks for connected clients and sends the model to new ones. Holds which nodes have it."""

    def __init__(
        self, config: ResolvedConfig, model: GlobalModel, messenger: Messenger, display: Display
    ) -> None:
        self.config = config
        self.model = model
        self.messenger = messenger
        self.registry = messenger.registry
        self.display = display
        self.has_model: set[int] = set()  # nodes that have the model
        self._num_recorded = len(config.clients)  # clients in args.yaml

    def greet(self, grid: Grid) -> None:
        """Send the model to the clients before the first round.

        All clients of a simulation connect soon. The run has already waited for sites
        (runtime/deployment.py); others join later.
        """
        self.meet(grid)
        while self.registry.missing and not self.registry.has_sites:
            self.messenger.pause(POLL_S)
            self.meet(grid)

    def wait_for(self, num_clients: int, grid: Grid) -> None:
        """Look for clients before a round, and wait for sites if too few are connected."""
        self.meet(grid)
        if self.registry.has_sites and len(self.registry.present) < num_clients:
            there = ", ".join(self.registry.present) or "none"
            self.display.notice(f"waiting: a round needs {num_clients} clients, found {there}")
            while len(self.registry.present) < num_clients:
                self.messenger.pause(SITE_POLL_S)
                self.meet(grid)

    def meet(self, grid: Grid) -> None:
        """Look which clients are connected, and send the model to the new ones.

        Sites that do not fit are left out. Raises FederationError in a simulation, where a client
        that does not fit is a mistake in the set-up of the run.
        """
        registry, journal = self.registry, RoundJournal(self.display)
        refused = list(
            registry.refresh(grid, lambda asked: self.messenger.exchange(grid, asked, journal))
        )
        new = [node for node in registry.nodes if node not in self.has_model]
        messages = [Message(self.first_message(node), node, "query") for node in new]
        for reply in self.messenger.exchange(grid, messages, journal):
            node = reply.metadata.src_node_id
            if reply.has_error():
                name, reason = registry.names_by_node[node], reason_in(reply)
                registry.refuse(grid, name, reason)
                refused.append((f"client '{name}'", reason))
            else:
                self.has_model.add(node)
        if refused and not registry.has_sites:
            raise FederationError(f"before round 1: {'; '.join(reason for _, reason in refused)}")
        for who, reason in refused:
            self.display.notice(f"{who} is refused: {reason}")
        for name, before, now in registry.moved:
            self.display.notice(
                f"client '{name}': it is node {now} now, and was node {before}, with another key"
            )
        registry.moved.clear()
        self._record_new_clients()

    def first_message(self, node: int) -> RecordDict:
        """Return a client's message before its first round: the model without its global arrays."""
        record = RecordDict({"config": self.messenger.config_record(node)})
        if not self.model.is_whole:
            record["private"] = to_record(self.model.private)
        return record

    def _record_new_clients(self) -> None:
        """Save which clients have joined, so that a resumed run gives each the same assignment."""
        self.registry.remember_summaries()
        if len(self.registry.clients) > self._num_recorded:
            self._num_recorded = len(self.registry.clients)
            config = self.config.model_copy(update={"datasets": self.registry.clients})
            self.messenger.run_dir.write_text(CONFIG_FILE, config.to_yaml())
