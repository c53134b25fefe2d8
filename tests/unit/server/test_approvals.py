"""A name belongs to a key: the node that the operator's kit has approved for it."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from local_grid import identify_process

from federated_yolo.common.errors import FederationError
from federated_yolo.config.schema import ClientData
from federated_yolo.data.summary import DataSummary
from federated_yolo.protocol.handshake import Introduction, hello
from federated_yolo.server.approvals import ATTENDANCE, VARIABLE, Approvals, approvals_of_kit
from federated_yolo.server.registry import ClientRegistry

SUMMARY = DataSummary(names=("a", "b"), num_train=4, num_val=2, num_test=0, class_counts=(3, 1))


class Nodes:
    """Nodes that introduce themselves under these names."""

    def __init__(self, names: dict[int, str]) -> None:
        self.names = names

    def get_node_ids(self) -> list[int]:
        return list(self.names)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.told = [str(m.content.config_records["config"]["reason"]) for m in messages]
        return []

    def ask(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            node = message.metadata.dst_node_id
            text = Introduction(name=self.names[node], summary=SUMMARY).to_json()
            content = RecordDict({"introduction": ConfigRecord({"json": text})})
            message.metadata.__dict__["_message_id"] = "x"
            yield Message(content, reply_to=message)


def refreshed(registry: ClientRegistry, names: dict[int, str]) -> list[tuple[str, str]]:
    identify_process()
    nodes: Any = Nodes(names)
    return list(registry.refresh(nodes, nodes.ask))


def test_a_name_is_taken_from_its_own_key_only_and_no_longer_once_that_is_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sites.json"
    path.write_text(json.dumps({"1": "north", "2": "south"}))
    monkeypatch.setenv(VARIABLE, str(path))
    registry = ClientRegistry([], hello("detect"), is_open=True, has_sites=True)
    registry.approvals = approvals_of_kit()
    refused = dict(refreshed(registry, {1: "north", 2: "west", 3: "south"}))
    assert registry.present == ["north"]
    assert "its key is approved for 'south' alone" in refused["node 2"]
    assert "its key is registered, but not approved" in refused["node 3"]
    attendance = json.loads((tmp_path / ATTENDANCE).read_text())
    assert attendance["present"] == ["north"]
    assert set(attendance["refused"]) == {"2", "3"}
    path.write_text(json.dumps({"2": "south"}))
    refreshed(registry, {1: "north"})
    assert registry.present == []


def test_a_site_that_is_refused_learns_no_name_of_another() -> None:
    identify_process()
    registry = ClientRegistry(
        [ClientData(name="north")], hello("detect"), is_open=False, has_sites=True
    )
    nodes: Any = Nodes({5: "norht"})
    [(_, reason)] = registry.refresh(nodes, nodes.ask)
    assert "[north]; did you mean 'north'?" in reason
    assert nodes.told == [
        "SuperNode 'norht' is not one of the federation's clients; did you mean another site's "
        "name?; correct its name, or add it under datasets"
    ]


def test_a_list_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    for content in ("", "[]", '{"x": "north"}'):
        (tmp_path / "sites.json").write_text(content)
        with pytest.raises(FederationError, match="no site can be accepted"):
            Approvals(tmp_path / "sites.json").names()


def test_without_a_kit_names_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    assert approvals_of_kit() is None
    registry = ClientRegistry([], hello("detect"), is_open=True, has_sites=True)
    assert refreshed(registry, {5: "anything"}) == []
    assert registry.present == ["anything"]
