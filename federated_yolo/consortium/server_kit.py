"""Makes a consortium's folder, and renews parts of it: the server's kit, the CA, the app."""

import os
import pwd
import re
import shutil
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key

import federated_yolo
from federated_yolo.common.errors import InputError
from federated_yolo.consortium import bundle
from federated_yolo.consortium.folder import APPROVED, Consortium, SiteState, server_of, write_state
from federated_yolo.consortium.folder import write_text as write
from federated_yolo.consortium.invitation import write_invitation
from federated_yolo.consortium.packages import needed_versions
from federated_yolo.consortium.settings import ConsortiumSettings
from federated_yolo.consortium.templates import fill
from federated_yolo.runtime.certificates import Authority, as_pem

AUTHORITY_VALIDITY = timedelta(days=3650)
WARN_BEFORE = timedelta(days=30)
LOCAL = ("localhost", "127.0.0.1")  # names of the SuperLink for nginx and the operator
PRIVATE, PROGRAM = 0o600, 0o755


def make_consortium(settings: ConsortiumSettings, folder: Path) -> Consortium:
    """Make a consortium's folder in one piece. Raises InputError if it is there already."""
    refuse_odd_path(folder)
    if folder.exists() or folder.is_symlink():
        raise InputError(
            f"{folder}: is there already and will not be overwritten; add-site, renew and upgrade "
            "change a consortium, or give another folder: -o FOLDER"
        )
    app, content = bundle.build()
    state = Consortium(
        settings=settings,
        app=app,
        versions=needed_versions(),
        sites={site: SiteState() for site in settings.sites},
    )
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        building.mkdir(mode=0o700)
        _write_all(state, content, building, folder)
        building.rename(folder)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return state


def _write_all(state: Consortium, content: bytes, building: Path, folder: Path) -> None:
    """Write all files to `building`; they name `folder`, where they will be."""
    for name in ("authority", "server/tls", "server/nginx", "server/flwr", "invitations"):
        (building / name).mkdir(parents=True, mode=0o700)
    authority = Authority.make(f"CA of {state.settings.name}", AUTHORITY_VALIDITY)
    write(building / "authority" / "ca.crt", _pem(authority.certificate))
    write(building / "authority" / "ca.key", as_pem(authority.key).decode(), PRIVATE)
    write(server_of(building) / "tls" / "ca.crt", _pem(authority.certificate))
    issue_certificates(state, building, authority)
    write_server_files(state, building, folder)
    write_app(state, content, building)
    for site in state.sites:
        write_invitation(state, building, site)
    write_state(building, state)


def write_app(state: Consortium, content: bytes, folder: Path) -> None:
    """Write the app's bundle, and unpack it where runs are submitted from."""
    for old in folder.glob("*.fab"):
        old.unlink()
    (folder / state.app.file).write_bytes(content)
    shutil.rmtree(folder / "app", ignore_errors=True)
    bundle.unpack(content, folder / "app")


def write_server_files(state: Consortium, folder: Path, final: Path) -> None:
    """Write what the server's kit has besides certificates. final: The folder that files name."""
    settings, server, home = state.settings, server_of(folder), server_of(final.absolute())
    own = settings.tls
    values = {
        "name": settings.name,
        "unit": unit_name(settings.name),
        "address": settings.address,
        "host": f"[{settings.host_name}]" if ":" in settings.host_name else settings.host_name,
        "port": settings.port,
        "superlink_port": settings.superlink_port,
        "is_trial": settings.is_trial,
        "has_ipv6": Path("/proc/net/if_inet6").exists(),
        "folder": str(home),
        "parent": str(final.absolute()),
        "certificate": own.certificate if own else f"{home}/tls/nginx.pem",
        "key": own.key if own else f"{home}/tls/nginx.key",
        "own_tls": [own.certificate, own.key] if own else [],
        "approved": APPROVED,
        "programs": str(Path(sys.executable).parent),
        **of_this_user(),
    }
    write(server / "nginx.conf", fill("nginx.conf.md", **values))
    write(server / "start.sh", fill("start.server.sh.md", **values), PROGRAM)
    write(server / "compose.server.yaml", fill("compose.server.yaml.md", **values))
    write(server / "flwr" / "config.toml", fill("config.toml.md", **values), PRIVATE)
    units = ["superlink"] if settings.is_trial else ["superlink", "nginx"]
    for part in units:
        unit = fill(f"{part}.service.md", **values)
        write(server / f"{unit_name(settings.name)}-{part}.service", unit)


def refuse_odd_path(folder: Path) -> None:
    """Raise InputError for a path that units, nginx or compose would read as something else."""
    if odd := re.sub(r"[\w/.+@-]", "", str(folder)):
        raise InputError(
            f"{folder}: has {odd[0]!r} in its path, which systemd and nginx would read otherwise; "
            "choose a folder of letters, digits, '.', '_' and '-'"
        )


def unit_name(name: str) -> str:
    """Return a name as systemd takes it in a unit's."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", name)


def of_this_user() -> dict[str, str]:
    """Return what units and compose files say of the user who writes them, and of the image."""
    return {
        "user": pwd.getpwuid(os.getuid()).pw_name,
        "owner": f"{os.getuid()}:{os.getgid()}",
        "image": f"federated-yolo:{re.sub('[^A-Za-z0-9_.-]', '-', federated_yolo.__version__)}",
    }


def issue_certificates(state: Consortium, folder: Path, authority: Authority) -> list[Path]:
    """Write new certificates for the SuperLink, and for nginx if the CA is the kit's own."""
    wanted: dict[str, tuple[str, ...]] = {"superlink": LOCAL}
    if state.settings.tls is None and not state.settings.is_trial:
        wanted["nginx"] = (state.settings.host_name,)
    written = []
    for name, hosts in wanted.items():
        certificate, key = authority.issue(f"{name} of {state.settings.name}", hosts)
        tls = server_of(folder) / "tls"
        write(tls / f"{name}.key", key.decode(), PRIVATE)
        write(tls / f"{name}.pem", certificate.decode())
        written.append(tls / f"{name}.pem")
    return written


def read_authority(folder: Path) -> Authority:
    """Read the CA. Raises InputError if it is not there, for example kept elsewhere."""
    key_file = folder / "authority" / "ca.key"
    try:
        key = load_pem_private_key(key_file.read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((folder / "authority/ca.crt").read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{key_file}: not readable ({error}); put the CA's key and certificate back first"
        ) from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Authority(certificate, key)


def certificate_ends(state: Consortium, folder: Path) -> Iterator[tuple[str, datetime]]:
    """Yield each certificate of the server, and when it ends."""
    tls = server_of(folder) / "tls"
    files = {path.name: path for path in sorted(tls.glob("*.pem"))} | {"ca.crt": tls / "ca.crt"}
    if state.settings.tls is not None:
        files["tls.certificate"] = Path(state.settings.tls.certificate)
    for name, path in files.items():
        try:
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except (OSError, ValueError):
            yield name, datetime.min.replace(tzinfo=UTC)
        else:
            yield name, certificate.not_valid_after_utc


def ending_soon(state: Consortium, folder: Path) -> list[str]:
    """Return a line for each certificate that ends within 30 days."""
    lines = []
    for name, end in certificate_ends(state, folder):
        left = end - datetime.now(UTC)
        if left > WARN_BEFORE:
            continue
        remedy = "consortium renew" if name.endswith(".pem") else "its CA renews it"
        if name == "ca.crt":
            remedy = "make a new consortium in time"
        lines.append(f"certificate {name}: ends on {end:%Y-%m-%d}; {remedy}")
    return lines


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()
