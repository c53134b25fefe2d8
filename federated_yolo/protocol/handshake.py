"""How server and clients introduce themselves, compare versions, and assign clients to nodes.

A node of a simulation sends only its number. A site compares package versions with the server's,
and sends a summary of its data set, so that the server can check it like data on its own machine.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ultralytics
from pydantic import TypeAdapter

from federated_yolo.data.data_yaml import Fraction
from federated_yolo.data.summary import DataSummary

PROTOCOL = 2  # increased when the meaning of messages changes
PACKAGES = ("flwr", "torch")


@dataclass(frozen=True)
class Hello:
    """The server's first message to a node.

    task: Ultralytics' task, which decides how labels are read. fraction: Part of the images to use.
    """

    protocol: int
    versions: dict[str, str]
    task: str
    fraction: Fraction = 1.0

    def to_json(self) -> str:
        """Return one line of JSON."""
        return _HELLO.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Hello":
        """Return the Hello that `to_json` wrote. Raises ValueError for anything else."""
        return _HELLO.validate_json(text)


@dataclass(frozen=True)
class Introduction:
    """A node's answer to Hello.

    partition: In a simulation, the node's number and the number of nodes; None for a site, which
    fills in the rest. not_annotated: Those of its classes that it does not annotate. show_images:
    Number of images that others may see.
    """

    partition: tuple[int, int] | None = None
    name: str = ""
    summary: DataSummary | None = None
    not_annotated: tuple[str, ...] = ()
    show_images: int = 0

    def to_json(self) -> str:
        """Return one line of JSON."""
        return _INTRODUCTION.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Introduction":
        """Return the Introduction that `to_json` wrote. Raises ValueError for anything else."""
        return _INTRODUCTION.validate_json(text)


_HELLO, _INTRODUCTION = TypeAdapter(Hello), TypeAdapter(Introduction)


@dataclass(frozen=True)
class ClientAssignment:
    """A client's place in the federation; it is part of each message to that client.

    index: Position in the config's `datasets`, which makes its seed differ from the others'.
    trained: Last slice that it has trained, 0 before the first. summary: Its data as they were
    when the server checked them. not_annotated: Those of its classes that it does not annotate.

    Only for a client of a simulation, whose data the server's config names: data: Path of its
    data.yaml. show_images: Number of images that others may see. private_dir: Path of its folder.
    """

    index: int
    name: str
    trained: int
    data: str = ""
    not_annotated: tuple[str, ...] = ()
    show_images: int = 0
    private_dir: str = ""
    summary: DataSummary | None = None

    def to_json(self) -> str:
        """Return one line of JSON."""
        return _ASSIGNMENT.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "ClientAssignment":
        """Return the ClientAssignment that `to_json` wrote."""
        return _ASSIGNMENT.validate_json(text)


_ASSIGNMENT = TypeAdapter(ClientAssignment)


def hello(task: str, fraction: Fraction = 1.0) -> Hello:
    """Return this server's Hello."""
    return Hello(PROTOCOL, versions(), task, fraction)


def versions() -> dict[str, str]:
    """Return package versions that affect the result of training, without the build ("+cpu")."""
    found: dict[str, Any] = {name: version(name) for name in PACKAGES}
    found["ultralytics"] = ultralytics.__version__  # its distribution has more than one name
    return {name: text.partition("+")[0] for name, text in found.items()}


def version_problems(theirs: Hello) -> list[str]:
    """List the differences in protocol and package versions between the server and this machine."""
    if theirs.protocol != PROTOCOL:
        return [f"the server speaks protocol {theirs.protocol}, this site {PROTOCOL}"]
    ours = versions()
    return [
        f"{name} is {ours.get(name, 'missing')} here and {wanted} at the server"
        for name, wanted in theirs.versions.items()
        if ours.get(name) != wanted
    ]
