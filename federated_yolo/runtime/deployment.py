"""Waits for sites and runs the server of a federation whose clients are SuperNodes."""

import time
from collections.abc import Iterable, Iterator

from flwr.app import Message
from flwr.serverapp import Grid
from rich.console import Console

from federated_yolo.checks.federation import Federation
from federated_yolo.checks.resolve import fraction_of
from federated_yolo.config.schema import Config
from federated_yolo.protocol.handshake import hello
from federated_yolo.runtime.startup import make_server
from federated_yolo.server.approvals import approvals_of_kit
from federated_yolo.server.final_evaluation import finish, is_finished
from federated_yolo.server.registry import ClientRegistry
from federated_yolo.server.results import Display, RunResult
from federated_yolo.server.server import finish_loggers
from federated_yolo.server.transport import exchange
from federated_yolo.storage.run_dir import RunDir

JOIN_WAIT_S = 300.0  # since a site last joined or left
POLL_S = 1.0
SETTLE_S = 15.0  # SuperNodes that were started together have all joined within this time


def run_on(grid: Grid, federation: Federation, display: Display, run_dir: RunDir) -> RunResult:
    """Run the federation on the connected nodes. Raises FederationError as `simulate` does."""
    if federation.registry is not None and federation.registry.approvals is not None:
        federation.registry.approvals.began(run_dir.path)
    server = make_server(federation, display, run_dir)
    try:
        if not (server.is_done and is_finished(server)):
            server.run(grid)
            finish(server, grid)
        return server.result
    finally:
        finish_loggers(server)


def wait_for_sites(grid: Grid, console: Console, config: Config, task: str) -> ClientRegistry:
    """Wait for the sites that the config lists, or for any; return them with their data's summary.

    Listed sites have JOIN_WAIT_S to join. After that, `min_clients` of them are enough; if no
    sites are listed, `min_clients` of any sites are enough after SETTLE_S.
    """
    is_open = config.datasets == "supernodes" or config.new_clients
    registry = ClientRegistry(
        config.clients, hello(task, fraction_of(config)), is_open=is_open, has_sites=True
    )
    registry.names = tuple(config.names) if config.names else None
    registry.approvals = approvals_of_kit()

    def tell(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    def ask(messages: Iterable[Message]) -> Iterator[Message]:
        return exchange(grid, messages, config.round_timeout_s, time.sleep, poll_s=POLL_S)

    waits_for_all = bool(config.clients)
    told: list[str] | None = None
    last_change = time.monotonic()
    while True:
        before = registry.present
        for who, reason in registry.refresh(grid, ask):
            tell(f"{who} is refused: {reason}")
        registry.forget_absent()
        present = registry.present
        for name in sorted(set(present) - set(before)):
            tell(f"site '{name}' is there: node {registry.by_name[name].node}")
        if present != before:
            last_change = time.monotonic()
        patience_s = JOIN_WAIT_S if waits_for_all else SETTLE_S
        is_enough = len(present) >= config.min_clients
        if waits_for_all and not registry.missing:
            return registry
        if is_enough and time.monotonic() - last_change > patience_s:
            if not waits_for_all:
                registry.order_clients()
            return registry
        if told != present:
            told = present
            expected = ", ".join(registry.missing) or (
                f"{config.min_clients} SuperNodes (min_clients), found {len(present)}"
            )
            if registry.missing or not is_enough:
                tell(f"waiting for {expected}")
        time.sleep(POLL_S)
