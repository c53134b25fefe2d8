"""A consortium's folder: its state in consortium.json, and where its files are.

NAME/consortium.json     settings, the app, and each site's key
NAME/authority/          the CA, with its key (owner only): keep a copy in a safe place
NAME/app/                the app that runs, as reviewed; NAME/*.fab is the same as one file
NAME/invitations/        SITE.zip for each site
NAME/server/             the server's kit; the SuperLink works there
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock
from pydantic import ValidationError

from federated_yolo.common.errors import InputError
from federated_yolo.common.files import write_atomically
from federated_yolo.config.schema import FrozenModel
from federated_yolo.consortium.settings import ConsortiumSettings

STATE = "consortium.json"
APPROVED = "sites.json"  # in server/: the names of nodes, which the server's app reads
FORMAT = 1


class App(FrozenModel, frozen=True):
    """The reviewed app. file: Name of the .fab. hash: SHA-256 of its bytes, in hexadecimal."""

    file: str
    hash: str
    version: str


class SiteState(FrozenModel, frozen=True):
    """A site. public_key: As OpenSSH writes it; empty until approved. node: Flower's ID of it."""

    public_key: str = ""
    node: str = ""
    approved: str = ""


class Consortium(FrozenModel, frozen=True):
    """What is known of a consortium."""

    format: int = FORMAT
    settings: ConsortiumSettings
    app: App
    versions: dict[str, str]
    sites: dict[str, SiteState]

    def with_site(self, name: str, site: SiteState | None) -> "Consortium":
        """Return the consortium with this site's state, or without the site."""
        sites = {other: state for other, state in self.sites.items() if other != name}
        if site is not None:
            sites = {**self.sites, name: site}  # in the order in which they were added
        return self.model_copy(update={"sites": sites})


def server_of(folder: Path) -> Path:
    """Return the folder of the server's kit."""
    return folder / "server"


def read_state(folder: Path) -> Consortium:
    """Read consortium.json. Raises InputError."""
    path = folder / STATE
    try:
        return Consortium.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except ValidationError as error:
        raise InputError(f"{path}: not as 'consortium init' writes it; put a copy back") from error


def write_state(folder: Path, state: Consortium) -> None:
    """Write consortium.json, and for the server's app which node is which site."""
    approved = {site.node: name for name, site in state.sites.items() if site.node}
    write_text(server_of(folder) / APPROVED, json.dumps(approved, indent=1))
    write_text(folder / STATE, state.model_dump_json(indent=1))


@contextmanager
def locked(folder: Path) -> Iterator[Consortium]:
    """Hold the consortium's state for a change: one command at a time."""
    with FileLock(folder / ".lock"):
        yield read_state(folder)


def write_text(path: Path, text: str, mode: int = 0o644) -> None:
    """Write a text file in one piece."""

    def write(file: BinaryIO) -> None:
        os.fchmod(file.fileno(), mode)  # before there is anything to read
        file.write(text.encode())

    write_atomically(path, write)


def find_folder(given: Path | None, marker: str, made_by: str) -> Path:
    """Return the folder that has a file `marker`: the given one, the present one, or one in it.

    Raises InputError if there is none, or more than one.
    """
    if given is not None:
        if not (given / marker).is_file():
            raise InputError(f"--folder {given}: has no {marker}; expected a folder of {made_by}")
        return given.absolute()
    here = Path.cwd()
    if (here / marker).is_file():
        return here
    found = sorted(path.parent for path in here.glob(f"*/{marker}"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise InputError(f"found {len(found)} folders with {marker} ({names}); give one: --folder")
    raise InputError(
        f"{here}: has no {marker}, nor does a folder in it; go to the folder that {made_by} made, "
        "or give it: --folder"
    )
