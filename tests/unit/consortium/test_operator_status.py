"""What an operator sees, also when the SuperLink does not answer."""

import json
from pathlib import Path

import pytest
from kit import consortium
from rich.console import Console

from federated_yolo.common.errors import FederationError
from federated_yolo.consortium import status
from federated_yolo.consortium.folder import SiteState, read_state, write_state
from federated_yolo.consortium.superlink import Node
from federated_yolo.server.approvals import ATTENDANCE
from federated_yolo.storage.run_dir import read_csv


@pytest.fixture
def folder(tmp_path: Path, run_dir: Path) -> Path:
    """A consortium of north (node 7), south (node 8) and west, whose last run is a recorded one."""
    folder = tmp_path / "lungs"
    state = consortium(folder, sites=("north", "south", "west"))
    for name, node in (("north", "7"), ("south", "8")):
        state = state.with_site(name, SiteState(public_key=f"k{node}", node=node, approved="t"))
    write_state(folder, state)
    refused = {"8": "SuperNode 'south': flwr is 1.40.0 here and 1.41.0 at the server"}
    seen = {"time": "t", "run_dir": str(run_dir), "present": ["north"], "refused": refused}
    (folder / "server" / ATTENDANCE).write_text(json.dumps(seen))
    return folder


def shown(folder: Path, width: int = 300) -> tuple[int, list[str]]:
    console = Console(width=width, record=True)
    code = status.show_status(console, read_state(folder), folder)
    return code, console.export_text().splitlines()


def test_each_site_has_its_state_and_why_it_was_refused(
    folder: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes = [
        Node("7", "online", "2026-11-28 10:00:00Z", "N/A", 3600.0),
        Node("8", "offline", "N/A", "2026-11-28 09:00:00Z", 0.0),
        Node("9", "registered", "N/A", "N/A", 0.0),
        Node("3", "unregistered", "N/A", "N/A", 0.0),
    ]
    found = {node.node: node for node in nodes}
    monkeypatch.setattr(status.SuperLink, "nodes", lambda _: found)
    code, lines = shown(folder)
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in lines if line}
    assert rows["north"].startswith("online since 2026-11-28 ")
    assert "(1:00:00)" in rows["north"]
    assert rows["north"].endswith("as the server")
    assert rows["south"].startswith("offline 2026-11-28 ")
    assert rows["south"].endswith("flwr is 1.40.0 here and 1.41.0 at the server")
    assert rows["west"] == "not approved 4 6.0"  # it was part of the run
    last = read_csv(run_dir / "results.csv")[-1]["round"]
    assert any(f"last run {run_dir}: round {last} of " in line for line in lines)
    assert [line for line in lines if line.startswith("!")] == [
        "! node 9: registered, but of no approved site, as by hand; end that: "
        f"FLWR_HOME={folder}/server/flwr flwr supernode unregister 9"
    ]
    assert code == 1


def test_a_superlink_that_is_away_is_told_and_the_sites_are_shown(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise FederationError("flwr supernode list: refused; start.sh starts it")

    monkeypatch.setattr(status.SuperLink, "nodes", away)
    code, lines = shown(folder)
    assert code == 1
    assert "! flwr supernode list: refused; start.sh starts it" in lines
    assert any(line.startswith("north") and "unknown" in line for line in lines)


def test_a_long_path_does_not_break_the_line_of_the_last_run(
    folder: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status.SuperLink, "nodes", lambda _: {})
    _, lines = shown(folder, width=60)
    assert any(line.startswith(f"last run {run_dir}: round ") for line in lines)
    assert any(line.endswith(" is done") for line in lines)
