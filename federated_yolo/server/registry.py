"""The registry of clients: nodes introduce themselves, are accepted or refused, leave, return."""

import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from federated_yolo.common.errors import nearest
from federated_yolo.common.text import in_one_line
from federated_yolo.config.schema import CLIENT_NAME, ClientData
from federated_yolo.data.label_space import class_problems
from federated_yolo.data.summary import DataSummary, form_problems, without_unlabelled_test
from federated_yolo.protocol.handshake import Hello, Introduction
from federated_yolo.server.approvals import Approvals
from federated_yolo.server.plausible import MAX_IMAGES, MAX_INTRODUCTION

ASK_AGAIN_S = 60.0  # a refused site may have been repaired by then
Ask = Callable[[Iterable[Message]], Iterator[Message]]


class Unfit(ValueError):
    """A node that cannot be a client; the text gives the reason."""


@dataclass(frozen=True)
class Member:
    """A client that has been accepted, and its node.

    summary: Summary of a site's data; None in a simulation, where the server reads the data itself.
    """

    data: ClientData
    node: int
    summary: DataSummary | None


class ClientRegistry:
    """Holds the clients, their nodes, and the nodes that have been refused.

    clients: All clients, in order; the list grows if others may join. is_open: Whether others may
    join. names: Class names of the federation, None while they depend on which sites join.
    classes: Class names that train.classes selects, None for all.
    """

    def __init__(
        self, clients: Iterable[ClientData], hello: Hello, *, is_open: bool, has_sites: bool
    ) -> None:
        self.clients = list(clients)
        self.hello = hello
        self.is_open = is_open
        self.has_sites = has_sites
        self.names: tuple[str, ...] | None = None
        self.classes: tuple[str, ...] | None = None
        self.by_name: dict[str, Member] = {}
        self.names_by_node: dict[int, str] = {}  # also of nodes that have left
        self.online: set[int] = set()
        self.refused: dict[int, tuple[str, float]] = {}  # the reason, and when to ask again
        self.moved: list[tuple[str, int, int]] = []  # (name, old node, new node), to be shown
        self.at_start: dict[str, DataSummary] = {}  # what each client's data was, by client
        self.trained: dict[str, int] = {}  # the last slice that each client has trained
        self.approvals: Approvals | None = None  # which node may have which name; None for any
        self._surplus: set[int] = set()  # nodes of a simulation that have no client

    @property
    def present(self) -> list[str]:
        """Names of the connected clients, in their order."""
        names = (data.name for data in self.clients)
        return [n for n in names if n in self.by_name and self.by_name[n].node in self.online]

    @property
    def missing(self) -> list[str]:
        """Names of the clients that are not connected."""
        present = set(self.present)
        return [data.name for data in self.clients if data.name not in present]

    @property
    def summaries(self) -> dict[str, DataSummary]:
        """Data summaries of the connected sites, in their order."""
        found = {name: self.by_name[name].summary for name in self.present}
        return {name: summary for name, summary in found.items() if summary is not None}

    @property
    def nodes(self) -> list[int]:
        """Nodes of the connected clients, in order of names."""
        return [self.by_name[name].node for name in sorted(self.present)]

    def names_of(self, nodes: Iterable[int]) -> list[str]:
        """Return the names of the clients at these nodes, sorted."""
        return sorted(self.names_by_node[node] for node in nodes)

    @property
    def nodes_with_test(self) -> list[int]:
        """Nodes of the connected clients that have a test split."""
        return [n for n in self.nodes if self.at_start[self.names_by_node[n]].num_test]

    @property
    def nodes_with_pictures(self) -> list[int]:
        """Nodes of the connected clients that let others see images."""
        shown = {data.name for data in self.clients if data.show_images}
        return [node for node in self.nodes if self.names_by_node[node] in shown]

    def absent(self, names: Sequence[str]) -> dict[str, list[int]]:
        """Return the indices of the federation's classes that each client does not annotate.

        names: Class names of the federation.
        """
        annotated = {
            data.name: set(self.at_start[data.name].names) - set(data.not_annotated)
            for data in self.clients
            if data.name in self.at_start
        }
        return {
            client: [index for index, name in enumerate(names) if name not in own]
            for client, own in annotated.items()
        }

    def sample(self, fraction: float, seed: str) -> list[int]:
        """Draw the nodes that take part in a round; in order of names, so that a rerun agrees.

        fraction: Fraction of all clients, connected or not; at least one node is drawn.
        """
        nodes = self.nodes
        number = max(1, round(fraction * len(self.clients)))
        drawn = random.Random(seed).sample(nodes, min(len(nodes), number))
        return sorted(drawn, key=nodes.index)

    def remember_summaries(self) -> None:
        """Keep the first data summary of each site, which limits how much its updates count.

        A site that comes back says again what it has: more than before does not count.
        """
        for name, summary in self.summaries.items():
            self.at_start.setdefault(name, without_unlabelled_test(summary, self.classes))

    def order_clients(self) -> None:
        """Sort clients by name before the start, so that it does not matter who came first."""
        self.clients.sort(key=lambda data: data.name)

    def index_of(self, name: str) -> int:
        """Return the index of a client, which makes its seed differ from the others'."""
        return [data.name for data in self.clients].index(name)

    def refresh(self, grid: Grid, ask: Ask) -> Iterator[tuple[str, str]]:
        """Look which nodes are connected; yield `(node, reason)` once for each refused node.

        ask: Function that sends messages and yields the replies.
        """
        nodes = set(grid.get_node_ids())
        approved = self.approvals.names() if self.approvals else None
        self.online = _still_approved(nodes & set(self.names_by_node), self.names_by_node, approved)
        record = ConfigRecord({"hello": self.hello.to_json()})
        now = time.monotonic()
        refused = {node for node, (_, until) in self.refused.items() if now < until}
        new = nodes - set(self.names_by_node) - refused - self._surplus
        messages = [
            Message(RecordDict({"config": record}), node, "query.hello") for node in sorted(new)
        ]
        named = [(_name_in(reply), reply) for reply in ask(messages)]
        numbers = Counter(name for name, _ in named)  # nodes that give the same name
        for name, reply in named:
            node = reply.metadata.src_node_id
            try:
                if name and numbers[name] > 1:
                    raise Unfit(
                        f"SuperNode '{name}': {numbers[name]} nodes have come under this name, so "
                        "none is taken; give each its own"
                    )
                introduction = _introduction_in(reply)
                _check_approved(node, introduction.name, approved)
                self._take(node, introduction)
            except Unfit as error:
                reason, (before, _) = in_one_line(str(error)), self.refused.get(node, ("", 0))
                self.refused[node] = reason, now + ASK_AGAIN_S
                if reason == before:
                    continue
                if not reply.has_error():  # a node that reports the error itself knows it
                    _tell(grid, node, reason, self.clients)
                yield f"node {node}", reason
        if self.approvals:
            reasons = {node: reason for node, (reason, _) in self.refused.items() if node in nodes}
            self.approvals.note(self.present, reasons)

    def forget_absent(self) -> None:
        """Forget clients that left before the start; they introduce themselves if they return."""
        for name in set(self.by_name) - set(self.present):
            del self.names_by_node[self.by_name.pop(name).node]

    def refuse(self, grid: Grid, name: str, reason: str) -> None:
        """Remove a client that had been accepted; its node is asked again after ASK_AGAIN_S."""
        node = self.by_name.pop(name).node
        self.online.discard(node)
        del self.names_by_node[node]
        self.refused[node] = reason, time.monotonic() + ASK_AGAIN_S
        _tell(grid, node, reason, self.clients)

    def _take(self, node: int, introduction: Introduction) -> None:
        if introduction.partition is not None:
            self._take_partition(node, *introduction.partition)
            return
        name, summary = introduction.name, introduction.summary
        if not CLIENT_NAME.fullmatch(name) or summary is None:
            raise Unfit(f"found name {name!r}, expected letters, digits, '.', '_' and '-'")
        problems = _implausible(introduction, summary)
        if problems:
            raise Unfit(f"SuperNode '{name}': {'; '.join(problems)}; correct its data.yaml")
        data = self._client_named(name)
        self._check_form(name, summary)
        if data is None:
            data = ClientData(name=name)
            self.clients.append(data)
        self.clients[self.index_of(name)] = data = data.model_copy(
            update={
                "not_annotated": introduction.not_annotated,
                "show_images": introduction.show_images,
            }
        )
        self._enter(node, Member(data, node, summary))

    def _enter(self, node: int, member: Member) -> None:
        self.refused.pop(node, None)
        if (before := self.by_name.get(member.data.name)) and before.node != node:
            # If the old node returns, it has to introduce itself again, and will be refused.
            self.names_by_node.pop(before.node, None)
            self.moved.append((member.data.name, before.node, node))
        self.by_name[member.data.name] = member
        self.names_by_node[node] = member.data.name
        self.online.add(node)

    def _take_partition(self, node: int, partition: int, num_partitions: int) -> None:
        if self.has_sites:
            raise Unfit(
                "it is a node of a simulation, and the config expects SuperNodes; list a data.yaml "
                "for each client under datasets"
            )
        if num_partitions < len(self.clients):
            raise Unfit(
                f"the simulation has {num_partitions} nodes for {len(self.clients)} clients; start "
                f"it with --federation-config num-supernodes={len(self.clients)}"
            )
        if partition < len(self.clients):
            self._enter(node, Member(self.clients[partition], node, None))
        else:
            self._surplus.add(node)

    def _client_named(self, name: str) -> ClientData | None:
        """Return the client of this name; None if it is new and may join, else raise Unfit."""
        if not self.has_sites:
            raise Unfit(
                f"SuperNode '{name}' has data of its own, and the config lists data paths; write "
                "datasets: supernodes"
            )
        present = {other.casefold(): other for other in self.present}
        if name.casefold() in present:
            raise Unfit(
                f"SuperNode '{name}': another one of that name is there; give it another name, or "
                "wait a minute for the other to be gone and start it again"
            )
        known = {data.name: data for data in self.clients}
        if name in known:
            return known[name]
        if name.casefold() in {other.casefold() for other in known}:
            raise Unfit(f"SuperNode '{name}': a client's name differs only in case; write it alike")
        if not self.is_open:
            raise Unfit(
                f"SuperNode '{name}' is not one of the federation's clients "
                f"[{', '.join(known)}]{nearest(name, known)}; correct its name, or add it under "
                "datasets"
            )
        return None

    def _check_form(self, name: str, summary: DataSummary) -> None:
        """Raise Unfit if data would shape another model, or has classes beyond the federation's."""
        unknown = [n for n in summary.names if self.names is not None and n not in self.names]
        if unknown:
            raise Unfit(
                f"SuperNode '{name}': class '{unknown[0]}' is not one of the federation's "
                f"[{', '.join(self.names or ())}]{nearest(unknown[0], self.names or ())}; correct "
                "its data.yaml, or start a new run with it under names"
            )
        for problem in class_problems(summary, self.classes):
            raise Unfit(f"SuperNode '{name}': {problem}")
        # Also clients that are not connected now, but not its own earlier introduction.
        others = {f"'{n}'": m.summary for n, m in self.by_name.items() if n != name and m.summary}
        for problem in form_problems(summary, others):
            raise Unfit(f"SuperNode '{name}': {problem}")


def _tell(grid: Grid, node: int, reason: str, clients: Iterable[ClientData]) -> None:
    """Tell a node why it is refused, without the names of other sites."""
    own = re.match(r"\w+ '([^']*)'", reason)
    reason = re.sub(r"(federation's clients) \[[^]]*\]", r"\1", reason)
    for name in {data.name for data in clients} - ({own[1]} if own else set()):
        reason = reason.replace(f"'{name}'", "another site's name")
    record = RecordDict({"config": ConfigRecord({"reason": reason})})
    grid.push_messages([Message(record, node, "query.refused")])  # nobody waits for an answer


def _still_approved(
    nodes: Iterable[int], names: Mapping[int, str], approved: Mapping[int, str] | None
) -> set[int]:
    """Return those of these nodes whose key has not been revoked meanwhile."""
    return {node for node in nodes if approved is None or approved.get(node) == names[node]}


def _check_approved(node: int, name: str, approved: Mapping[int, str] | None) -> None:
    """Raise Unfit if the operator has not approved this node's key under this name."""
    if approved is None:
        return
    if node not in approved:
        raise Unfit(
            f"SuperNode '{name}': its key is registered, but not approved in this consortium; "
            "the operator's 'federated-yolo consortium approve' does that"
        )
    if approved[node] != name:
        raise Unfit(
            f"SuperNode '{name}': its key is approved for '{approved[node]}' alone; write that "
            "name in its site.yaml"
        )


def _implausible(introduction: Introduction, summary: DataSummary) -> list[str]:
    """Return what cannot be true in an introduction, before all others have to rely on it."""
    names, counts = summary.names, summary.class_counts
    shape = summary.kpt_shape
    alien = set(introduction.not_annotated) - set(names)
    checks = {
        "names: expected 1 to 10000, each once, not blank and printable": (
            0 < len(names) <= 10_000
            and len(set(names)) == len(names)
            and all(name.strip() and name.isprintable() and len(name) <= 1000 for name in names)
        ),
        "boxes: expected a count for each class": (
            len(counts) == len(names) and all(0 <= count < 2**53 for count in counts)
        ),
        f"images: expected at least one to train and to validate, at most {MAX_IMAGES}": (
            0 < summary.num_train <= MAX_IMAGES
            and 0 < summary.num_val <= MAX_IMAGES
            and 0 <= summary.num_test <= MAX_IMAGES
        ),
        "channels: expected 1 to 1024": 0 < summary.channels <= 1024,
        "kpt_shape: expected two small numbers": (
            shape is None or (len(shape) == 2 and all(0 < n <= 1000 for n in shape))
        ),
        "keypoints: expected a flip_idx, kpt_oks_sigmas and kpt_names for each, or none": (
            _is_of_keypoints(summary)
        ),
        "val and test: expected classes of its own": (
            {*summary.val_classes, *summary.test_classes} <= set(names)
        ),
        "show-images: expected 0 to 16": 0 <= introduction.show_images <= 16,
        f"not-annotated: {sorted(alien)[:3]} are none of its classes": not alien,
    }
    return [problem for problem, is_right in checks.items() if not is_right]


def _is_of_keypoints(summary: DataSummary) -> bool:
    """Whether a summary's keypoint settings are possible; most data sets have none."""
    num_points = summary.kpt_shape[0] if summary.kpt_shape else 0
    flip, sigmas, names = summary.flip_idx, summary.kpt_oks_sigmas, summary.kpt_names
    return (
        (not flip or sorted(flip) == list(range(num_points)))
        and (not sigmas or (len(sigmas) == num_points and all(0 < s < 1e6 for s in sigmas)))
        and (not names or len(names) == len(summary.names))
        and sum(map(len, names)) <= 100_000
        and all(len(points) in (0, num_points) for points in names)
        and all(n.strip() and n.isprintable() and len(n) <= 100 for points in names for n in points)
    )


def reason_in(reply: Message) -> str:
    """Return why a node has failed, from its reply with an error."""
    return in_one_line(reply.error.reason or "") or "no reason given"


def _name_in(reply: Message) -> str:
    """Return the name that a node gives itself, in lower case; empty for none."""
    with suppress(Unfit):
        return _introduction_in(reply).name.casefold()
    return ""


def _introduction_in(reply: Message) -> Introduction:
    if reply.has_error():
        raise Unfit(reason_in(reply))
    try:
        record: Any = reply.content.config_records["introduction"]
        text = str(record["json"])
        if len(text) > MAX_INTRODUCTION:
            raise ValueError(f"{len(text)} characters, expected at most {MAX_INTRODUCTION}")
        return Introduction.from_json(text)
    except (KeyError, ValueError) as error:
        raise Unfit(f"its introduction is not readable: {in_one_line(str(error))}") from error
