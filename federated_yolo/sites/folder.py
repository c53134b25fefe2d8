"""A site's folder: its settings, key, app and logs, and where each is.

site.yaml         the settings, for an editor        key, key.pub     stay here
invitation.json   what the operator has told         ca.crt           of the server
flwr/apps/        the reviewed app, read-only         private/         runs, models, site.log
start.sh, *.service, compose.site.yaml               supernode.log    what Flower says
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from federated_yolo.common.errors import InputError
from federated_yolo.common.files import at_home, read_yaml
from federated_yolo.consortium.folder import find_folder
from federated_yolo.consortium.invitation import CA, FILE, SITE_SETTINGS, Terms
from federated_yolo.consortium.keys import SiteKey, read_line

KEY = "key"
SUPERNODE_LOG = "supernode.log"


@dataclass(frozen=True)
class SiteFolder:
    """A site that has joined. path: Its folder. terms: What it was told in its invitation."""

    path: Path
    terms: Terms

    @property
    def flower_home(self) -> Path:
        """$FLWR_HOME of its SuperNode."""
        return self.path / "flwr"

    @property
    def ca(self) -> Path | None:
        """The CA's certificate; None if the server has one of a public CA."""
        return self.path / CA if self.terms.own_ca else None

    @property
    def public_key(self) -> SiteKey:
        """The key that the operator approves. Raises InputError."""
        path = self.path / f"{KEY}.pub"
        try:
            return read_line(f"{self.terms.site} {path.read_text()}")
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}; site join makes it") from error

    def node_config(self) -> dict[str, Any]:
        """Return the settings of site.yaml as a SuperNode has them. Raises InputError."""
        path = self.path / SITE_SETTINGS
        found = read_settings(path)
        name = str(found.get("name", self.terms.site))
        if name != self.terms.site:
            raise InputError(
                f"{path}: name: found '{name}', expected '{self.terms.site}', for which this "
                "site's key is approved"
            )
        if not found.get("data"):
            raise InputError(f"{path}: data: is empty; write where this site's data is")
        found["name"] = name
        for key, default in (("data", ""), ("folder", "private")):
            found[key] = str(self.path / at_home(str(found.get(key) or default)))
        return found

    def work_folder(self) -> Path:
        """Return where runs and logs are, also if site.yaml is not valid."""
        try:
            return Path(self.node_config()["folder"])
        except InputError:
            return self.path / "private"


def find_site(given: Path | None) -> SiteFolder:
    """Return the site of a folder, or of the present one. Raises InputError."""
    folder = find_folder(given, FILE, "site join")
    path = folder / FILE
    try:
        terms = Terms.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise InputError(f"{path}: not readable; site join it again") from error
    if not (folder / KEY).exists():
        raise InputError(f"{folder}: has no key yet; join first: ./start.sh, or site join {folder}")
    return SiteFolder(folder, terms)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings of a site.yaml that are not empty. Raises InputError."""
    try:
        found = read_yaml(path)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable YAML file: {reason}") from error
    if not isinstance(found, Mapping):
        raise InputError(f"{path}: expected lines such as 'data: /srv/site/data.yaml'")
    return {str(key): value for key, value in found.items() if value is not None}
