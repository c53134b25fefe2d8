"""How server and clients get to know each other: what they tell, and which clients are taken.

A node of a simulation only says its number; a site says what its data set holds, so that the server
can do the checks there that it does for data on its own machine, and which package versions it has.
"""

from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import ultralytics
from pydantic import TypeAdapter

from federated_yolo.data.data_yaml import Fraction
from federated_yolo.data.summary import DataSummary

PROTOCOL = 2  # raised when messages change their meaning
PACKAGES = ("flwr", "torch")


@dataclass(frozen=True)
class Hello:
    """What the server says first.

    task: Ultralytics' task, by which labels are read. fraction: of the images, which are used.
    """

    protocol: int
    versions: dict[str, str]
    task: str
    fraction: Fraction = 1.0

    def to_json(self) -> str:
        """One line of JSON."""
        return _HELLO.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Hello":
        """Hello from `to_json`."""
        return _HELLO.validate_json(text)


@dataclass(frozen=True)
class Introduction:
    """What a client answers.

    partition: of a node of a simulation, and how many there are; None at a site, which says the
    rest. not_annotated: of its classes. show_images: how many images others may see.
    """

    partition: tuple[int, int] | None = None
    name: str = ""
    summary: DataSummary | None = None
    not_annotated: tuple[str, ...] = ()
    show_images: int = 0

    def to_json(self) -> str:
        """One line of JSON."""
        return _INTRODUCTION.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Introduction":
        """Introduction from `to_json`. Raises ValueError for anything else."""
        return _INTRODUCTION.validate_json(text)


_HELLO, _INTRODUCTION = TypeAdapter(Hello), TypeAdapter(Introduction)


@dataclass(frozen=True)
class ClientAssignment:
    """A client's place in the federation, told to it in each message.

    index: in the config's `datasets`, by which its seed differs from the others'. trained: the last
    round in which it has trained, 0 before the first. summary: what the server takes its data to
    be, as it was when it was checked; not_annotated, of its classes. What else there is, is for a
    client of a simulation, whose data the server's config names: data, its data.yaml; show_images,
    how many images others may see; private_dir, its folder.
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
        """One line of JSON."""
        return _ASSIGNMENT.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "ClientAssignment":
        """ClientAssignment from `to_json`."""
        return _ASSIGNMENT.validate_json(text)


_ASSIGNMENT = TypeAdapter(ClientAssignment)


def hello(task: str, fraction: Fraction = 1.0) -> Hello:
    """What this server says."""
    return Hello(PROTOCOL, versions(), task, fraction)


def versions() -> dict[str, str]:
    """Versions on which the result of training depends, without the build ("+cpu")."""
    found: dict[str, Any] = {name: version(name) for name in PACKAGES}
    found["ultralytics"] = ultralytics.__version__  # its distribution has more than one name
    return {name: text.partition("+")[0] for name, text in found.items()}


def version_problems(theirs: Hello) -> list[str]:
    """Say in what the server differs from this machine."""
    if theirs.protocol != PROTOCOL:
        return [f"the server speaks protocol {theirs.protocol}, this site {PROTOCOL}"]
    ours = versions()
    return [
        f"{name} is {ours.get(name, 'missing')} here and {wanted} at the server"
        for name, wanted in theirs.versions.items()
        if ours.get(name) != wanted
    ]
