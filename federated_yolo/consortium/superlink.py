"""Asks the SuperLink of a consortium, through Flower's own commands on the same machine."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from federated_yolo.common.errors import FederationError
from federated_yolo.consortium.folder import server_of
from federated_yolo.consortium.keys import SiteKey

TIMEOUT_S = 300


@dataclass(frozen=True)
class Node:
    """A node as the SuperLink knows it. status: registered, online, offline or unregistered."""

    node: str
    status: str
    online_at: str
    offline_at: str
    online_s: float


class SuperLink:
    """The commands of `flwr` that the kit needs. They raise FederationError if it is not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = server_of(folder) / "flwr"

    def register(self, key: SiteKey) -> str:
        """Admit a site's key and return the ID of its node."""
        with TemporaryDirectory() as temporary:
            path = Path(temporary) / "key.pub"
            path.write_text(f"{key.public} {key.site}\n")
            answer = self._ask("supernode", "register", str(path), "--name", key.site)
        return str(answer["node-id"])

    def unregister(self, node: str) -> None:
        """Admit a node no longer."""
        self._ask("supernode", "unregister", node)

    def nodes(self) -> dict[str, Node]:
        """Return all nodes by their ID."""
        found = [
            Node(
                node=str(node["node-id"]),
                status=node["status"],
                online_at=node["online-at"],
                offline_at=node["offline-at"],
                online_s=float(node["online-elapsed"]),
            )
            for node in self._ask("supernode", "list")["nodes"]
        ]
        return {node.node: node for node in found}

    def submit(self, arguments: str) -> str:
        """Start a run of the consortium's app with these arguments, and return its ID."""
        app = str(self.folder / "app")
        config = f"arguments={json.dumps(arguments)}"
        return str(self._ask("run", app, "--run-config", config)["run-id"])

    def follow(self, run: str) -> None:
        """Print what a run prints, until it ends."""
        command = [_program("flwr"), "log", run, "--stream"]
        subprocess.run(command, env=self._environment(), cwd=self.home, check=False)

    def state_of(self, run: str) -> tuple[str, str]:
        """Return a run's state, such as finished:completed, and its details."""
        row = self._ask("list", "--run-id", run)["runs"][0]
        return row["status"], row["status-details"]

    def _ask(self, *arguments: str) -> dict[str, Any]:
        command = [_program("flwr"), *arguments, "--format", "json"]
        what = f"flwr {' '.join(arguments[:2])}"
        try:
            done = subprocess.run(
                command,
                env=self._environment(),
                cwd=self.home,
                capture_output=True,
                text=True,
                timeout=TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise FederationError(f"{what}: no answer within {TIMEOUT_S} s") from error
        try:
            answer = json.loads(done.stdout)
        except ValueError:
            answer = {}
        if not answer.get("success"):
            told = answer.get("error-message") or done.stderr or done.stdout
            raise FederationError(
                f"{what}: {' '.join(_without_frames(told).split()) or 'no answer'}; is the "
                f"SuperLink running? {server_of(self.folder) / 'start.sh'} starts it"
            )
        return answer

    def _environment(self) -> dict[str, str]:
        off = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "NO_COLOR": "1"}
        return {**os.environ, **off, "FLWR_HOME": str(self.home)}


def _program(name: str) -> str:
    """Return the program of this Python's environment, activated or not."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else name


def _without_frames(text: str) -> str:
    """Return the text of an error without the boxes that it is drawn in."""
    return "".join(" " if "\u2500" <= letter <= "\u259f" else letter for letter in text)
