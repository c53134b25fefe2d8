"""consortium.yaml: the few things that an operator decides, checked together.

name: lungs
host: flower.example.org        # what sites reach; :PORT if it is not 443
sites: [north, south]
"""

import ipaddress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import Field, ValidationError

from federated_yolo.common.errors import InputError, nearest
from federated_yolo.common.files import read_yaml
from federated_yolo.config.schema import CLIENT_NAME, FrozenModel, PathText
from federated_yolo.runtime.certificates import is_host

Task = Literal["detect", "segment", "pose", "obb", "classify"]
Port = Annotated[int, Field(strict=True, ge=1, le=65535)]
NAME_EXPECTED = "expected a name of letters, digits, '.', '_' and '-', at most 64"
DEFAULT_PORT = 443


class TlsFiles(FrozenModel, frozen=True):
    """A certificate of a public CA, as PEM: with its chain, and its key."""

    certificate: PathText
    key: PathText


class ConsortiumSettings(FrozenModel, frozen=True):
    """Contents of consortium.yaml.

    host: Name or address that sites reach, with `:PORT` if it is not 443. task: What all data is
    annotated for. tls: A public CA's certificate; without it the kit makes a CA of its own.
    superlink_port: Where the SuperLink listens, on 127.0.0.1 only.
    """

    name: str
    host: str
    sites: tuple[str, ...]
    task: Task = "detect"
    tls: TlsFiles | None = None
    superlink_port: Port = 8000

    @property
    def host_name(self) -> str:
        """The host without its port, and without the brackets of an IPv6 address."""
        return split_address(self.host)[0]

    @property
    def port(self) -> int:
        """The port that sites reach."""
        return split_address(self.host)[1] or DEFAULT_PORT

    @property
    def address(self) -> str:
        """HOST:PORT, as SuperNodes are given it."""
        return (
            f"[{self.host_name}]:{self.port}"
            if ":" in self.host_name
            else (f"{self.host_name}:{self.port}")
        )

    @property
    def is_trial(self) -> bool:
        """Whether sites reach the SuperLink itself, which only this machine can."""
        return self.port == self.superlink_port


def split_address(text: str) -> tuple[str, int | None]:
    """Return host and port of HOST, HOST:PORT or [IPv6]:PORT. A port that is no number is 0."""
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]") or (":" in host and not host.startswith("[")):
        host, port = text, ""
    number = (int(port) if port.isdecimal() and len(port) < 6 else 0) if colon and port else None
    return host.strip("[]"), number


def load_settings(path: Path) -> ConsortiumSettings:
    """Read consortium.yaml. Raises InputError with a line for each problem."""
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no such file; write one with name, host and sites, such as:  name: lungs / "
            "host: flower.example.org / sites: [north, south]"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a readable YAML file: {reason}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected lines 'name: ...', 'host: ...', 'sites: [...]'")
    values = {str(key): value for key, value in values.items()}
    try:
        settings = ConsortiumSettings.model_validate(values)
    except ValidationError as error:
        problems = [*map(_explained, error.errors()), *_problems_in(values)]
        raise InputError(f"{path}: {line}" for line in problems) from error
    problems = [*_problems_in(values), *_tls_problems(settings)]
    if problems:
        raise InputError(f"{path}: {line}" for line in problems)
    return settings


def _explained(error: Any) -> str:
    place = ".".join(map(str, error["loc"]))
    match error["type"]:
        case "missing":
            return f"{place}: missing; add it"
        case "extra_forbidden":
            return f"{place}: unknown setting{nearest(place, ConsortiumSettings.model_fields)}"
    return f"{place}: found {error['input']!r}; {error['msg']}"


def _problems_in(values: dict[str, Any]) -> list[str]:
    """List what is wrong in name, host and sites, also where other settings are not valid."""
    name, host, sites = (values.get(key) for key in ("name", "host", "sites"))
    problems = []
    if isinstance(name, str) and not CLIENT_NAME.fullmatch(name):
        problems.append(f"name: found {name!r}, {NAME_EXPECTED}")
    if isinstance(host, str):
        host_name, port = split_address(host)
        if not is_host(host_name) or (port is not None and not 0 < port < 65536):
            problems.append(
                f"host: found {host!r}, expected a name or address, with :PORT if it is not 443, "
                "without https://"
            )
        elif port == values.get("superlink_port", 8000) and not _is_loopback(host_name):
            problems.append(
                f"host: found port {port}, which is the SuperLink's own; sites reach nginx, which "
                "keeps all others out; leave the port out, or change superlink_port"
            )
    if isinstance(sites, list):
        problems += _site_problems([str(site) for site in sites])
    return problems


def _site_problems(sites: list[str]) -> list[str]:
    found: set[str] = set()
    problems = []
    for index, site in enumerate(sites):
        if not CLIENT_NAME.fullmatch(site):
            problems.append(f"sites[{index}]: found {site!r}, {NAME_EXPECTED}")
        if site.casefold() in found:
            problems.append(f"sites[{index}]: '{site}' is there twice; give each its own name")
        found.add(site.casefold())
    return problems


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls_problems(settings: ConsortiumSettings) -> list[str]:
    """List what is wrong with a certificate that the operator brings."""
    if settings.tls is None:
        return []
    problems = []
    try:
        certificate = x509.load_pem_x509_certificate(Path(settings.tls.certificate).read_bytes())
    except (OSError, ValueError) as error:
        certificate = None
        problems.append(f"tls.certificate: not readable as PEM: {_reason(error)}")
    try:
        key = load_pem_private_key(Path(settings.tls.key).read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        key = None
        problems.append(f"tls.key: not readable as PEM without a password: {_reason(error)}")
    if certificate is None:
        return problems
    if key is not None and key.public_key() != certificate.public_key():
        problems.append("tls.key: is not the key of tls.certificate; give the two of one pair")
    if certificate.not_valid_after_utc < datetime.now(UTC):
        problems.append(
            f"tls.certificate: ended on {certificate.not_valid_after_utc:%Y-%m-%d}; renew it"
        )
    if not covers(certificate, settings.host_name):
        problems.append(f"tls.certificate: is for {names_in(certificate)}, not for host")
    return problems


def _reason(error: Exception) -> str:
    return (error.strerror or str(error)) if isinstance(error, OSError) else str(error)


def names_in(certificate: x509.Certificate) -> list[str]:
    """Return the names and addresses that a server's certificate is for."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return [*found.get_values_for_type(x509.DNSName), *addresses]


def covers(certificate: x509.Certificate, host: str) -> bool:
    """Whether a certificate is for this host; `*` stands for one label."""
    names = [name.casefold() for name in names_in(certificate)]
    wildcard = f"*.{host.partition('.')[2]}".casefold()
    return host.casefold() in names or wildcard in names
