"""What can keep a site from taking part, each with its remedy; looks, and changes nothing."""

import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from federated_yolo.common.errors import InputError
from federated_yolo.consortium import bundle
from federated_yolo.consortium.packages import MUST_BE_EQUAL, different_versions
from federated_yolo.consortium.server_kit import WARN_BEFORE
from federated_yolo.sites.folder import KEY, SiteFolder
from federated_yolo.sites.probe import (
    MAX_AHEAD_S,
    MAX_BEHIND_S,
    Contact,
    Registration,
    UnreachableError,
    UntrustedError,
    contact,
    registration,
)

MIN_FREE = 5 << 30
GIB = 1 << 30
CLOCK_TOLD_S = 2.0  # a difference that NTP does not leave
NVIDIA = Path("/proc/driver/nvidia/version")  # of a driver
SHOWN = 3  # of each kind
TICKS = {True: "✓", False: "✗", None: "–"}


@dataclass(frozen=True)
class Finding:
    """One line of the table. is_good: None for what is told and hinders nothing."""

    what: str
    is_good: bool | None
    text: str
    remedy: str = ""
    waits: bool = False  # whether it passes without anybody's work at the site


def quick_checks(site: SiteFolder) -> Iterator[Finding]:
    """Yield what `site start` looks at each time: all but the data."""
    yield settings(site)
    yield from versions(site)
    yield from app(site)
    yield disk(site)
    yield gpu()
    yield own_key(site)
    yield from server(site)


def all_checks(site: SiteFolder) -> Iterator[Finding]:
    """Yield everything, the data last, which may take a while."""
    yield from quick_checks(site)
    yield data(site)


def settings(site: SiteFolder) -> Finding:
    """Whether site.yaml is valid."""
    from federated_yolo.client.site import read_site

    try:
        read_site(site.node_config())
    except InputError as error:
        lines = [line.replace("node-config: ", "") for line in error.problems]
        return Finding("settings", False, "; ".join(lines), "correct site.yaml")
    return Finding("settings", True, str(site.path / "site.yaml"))


def versions(site: SiteFolder) -> Iterator[Finding]:
    """Compare the installed packages with those of the server."""
    different = different_versions(site.terms.versions)
    remedy = f"pip install -c {site.path / 'constraints.txt'} federated-yolo's packages again"
    remedy = f"{remedy}, or remove {site.path / '.venv'} and run start.sh"
    must = {name: pair for name, pair in different.items() if name in MUST_BE_EQUAL}
    may = {name: pair for name, pair in different.items() if name not in MUST_BE_EQUAL}
    if must:
        yield Finding("versions", False, _pairs(must), remedy)
    else:
        number = site.terms.versions.get("flwr", "?")
        yield Finding("versions", True, f"as the server's: flwr {number} and what must be equal")
    if may:
        yield Finding("versions", None, f"other than the server's: {_pairs(may)}", remedy)


def _pairs(different: dict[str, tuple[str, str]]) -> str:
    lines = [f"{name} is {here}, not {wanted}" for name, (here, wanted) in different.items()]
    more = f" and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return f"{', '.join(lines[:SHOWN])}{more}"


def app(site: SiteFolder) -> Iterator[Finding]:
    """Whether the SuperNode finds the reviewed app, unchanged, and could find no other."""
    terms, apps = site.terms, site.flower_home / "apps"
    remedy = "join again with the operator's invitation, which puts the reviewed app back"
    try:
        fab = (site.path / terms.app.file).read_bytes()
        problems = _app_problems(site, fab)
    except OSError as error:
        problems = [f"{error.filename}: {error.strerror}"]
    except InputError as error:
        problems = error.problems
    if problems:
        yield Finding("app", False, "; ".join(problems), remedy)
    else:
        yield Finding("app", True, f"{terms.app.hash[:8]}, as reviewed, and no other")
    if os.access(apps, os.W_OK):
        reason = "this is root" if os.getuid() == 0 else "it may write there"
        yield Finding(
            "app",
            None,
            f"the SuperNode could take another app, since {reason}",
            "run the site as a user of its own; the unit and the container keep it read-only",
        )


def _app_problems(site: SiteFolder, fab: bytes) -> list[str]:
    import hashlib

    terms, apps = site.terms, site.flower_home / "apps"
    if hashlib.sha256(fab).hexdigest() != terms.app.hash:
        return [f"{terms.app.file} does not have the hash of the invitation, {terms.app.hash[:8]}"]
    name = bundle.installed_name(terms.app)
    if not (apps / name).is_dir():
        return [f"{apps / name} is missing"]
    others = sorted(path.name for path in apps.iterdir() if path.name != name)
    found = bundle.differences(fab, apps / name)
    more = [f"{len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return [*found[:SHOWN], *more, *(f"found another app: {other}" for other in others)]


def disk(site: SiteFolder) -> Finding:
    """Whether there is room for models, optimisers and caches."""
    folder = site.work_folder()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / GIB:.1f} GiB are free at {there}"
    if not os.access(there, os.W_OK):
        return Finding("disk", False, f"{there} is not writable", "make it so, or change 'folder'")
    if free < MIN_FREE:
        remedy = (
            f"make room for {MIN_FREE // GIB} GiB (old runs are in {folder}), or change 'folder'"
        )
        return Finding("disk", False, text, remedy)
    return Finding("disk", True, text)


def gpu() -> Finding:
    """Say what trains here; a GPU that PyTorch cannot use is a problem."""
    import torch

    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        return Finding("GPU", True, f"{properties.name}, {properties.total_memory / GIB:.0f} GiB")
    is_hidden = os.environ.get("CUDA_VISIBLE_DEVICES") == ""
    if NVIDIA.exists() and not is_hidden:
        text = f"there is one, and PyTorch {torch.__version__} cannot use it"
        remedy = "install PyTorch for CUDA in the same version, or a newer driver; "
        return Finding("GPU", False, text, remedy + "CUDA_VISIBLE_DEVICES= if the CPU is meant")
    return Finding("GPU", None, "none; the CPU trains")


def own_key(site: SiteFolder) -> Finding:
    """Whether the key is there, for nobody else to read, and fits its public key."""
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        PublicFormat,
        load_ssh_private_key,
    )

    path = site.path / KEY
    try:
        mode = path.stat().st_mode
        key = load_ssh_private_key(path.read_bytes(), None)
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        told = site.public_key
    except OSError as error:
        return Finding("key", False, f"{path}: {error.strerror}", "put it back, or join anew")
    except (ValueError, TypeError) as error:
        text = f"{path}: {error}"
        return Finding("key", False, text, "put it back; it must have no password")
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Finding("key", False, f"{path} can be read by others", f"chmod 600 {path}")
    if public != told.public:
        return Finding("key", False, f"{path}.pub is of another key", "put the pair back")
    return Finding("key", True, told.spoken)


def server(site: SiteFolder) -> Iterator[Finding]:
    """Reach the server, compare the clocks, and ask it for this site's key."""
    address = site.terms.address
    try:
        reached = contact(address, site.ca)
    except UnreachableError as error:
        remedy = (
            f"allow this machine to connect to {address} (TCP, outbound) in the firewall; ask the "
            "operator whether the server runs"
        )
        yield Finding("server", False, f"{address}: {error}", remedy, waits=True)
        return
    except (UntrustedError, OSError) as error:  # OSError: ca.crt is not readable
        remedy = getattr(error, "remedy", "join again with the operator's invitation")
        yield Finding("server", False, f"{address}: {error}", remedy)
        return
    yield from _certificate(address, reached)
    yield clock(reached)
    yield _registered(site)


def _certificate(address: str, reached: Contact) -> Iterator[Finding]:
    days = int((reached.ends - time.time()) / 86400)
    yield Finding("server", True, f"{address}: TLS, name and CA are right")
    if days <= WARN_BEFORE.days:
        text = f"its certificate ends in {days} days"
        yield Finding("server", None, text, "tell the operator: consortium renew")


def clock(reached: Contact) -> Finding:
    """Compare this clock with the server's: Flower refuses without a word what is too far off."""
    ahead = reached.ahead_s
    if ahead is None:
        return Finding("clock", None, "the server does not say its time")
    text = f"{abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    remedy = "set this clock by NTP: timedatectl set-ntp true (or the server's, if that is wrong)"
    if not -MAX_BEHIND_S + reached.error_s < ahead < MAX_AHEAD_S - reached.error_s:
        text += f"; Flower takes {MAX_AHEAD_S:.0f} s ahead to {MAX_BEHIND_S:.0f} s behind"
        return Finding("clock", False, text, remedy)
    if abs(ahead) > CLOCK_TOLD_S + reached.error_s:
        return Finding("clock", None, text, remedy)
    return Finding("clock", True, text if abs(ahead) > reached.error_s else "as the server's")


def _registered(site: SiteFolder) -> Finding:
    address = site.terms.address
    try:
        found = registration(address, site.ca, (site.path / KEY).read_bytes())
    except UnreachableError as error:
        return Finding("approval", False, f"{address}: {error}", "try again", waits=True)
    except (OSError, ValueError, TypeError) as error:
        return Finding("approval", False, f"the key is not readable: {error}", "see above")
    match found:
        case Registration.REGISTERED:
            return Finding("approval", True, "the server admits this site's key")
        case Registration.UNKNOWN:
            remedy = f"send it to the operator (consortium approve): {site.public_key.line}"
            text = "the server does not know this site's key"
            return Finding("approval", False, text, remedy, waits=True)
        case Registration.REFUSED:
            text = "the server refuses the signature of this site's key"
            return Finding("approval", False, text, "set the clock right, which is a part of it")
        case Registration.NO_SUPERLINK:
            text = "nginx answers, and the SuperLink behind it does not"
            return Finding("approval", False, text, "ask the operator to start it", waits=True)
    text = "what answers is no SuperLink"
    return Finding("approval", False, text, "check address and port with the operator")


def data(site: SiteFolder) -> Finding:
    """Read every image's header and every label, as the handshake does, in a temporary folder."""
    from federated_yolo.client.site import prepared_data, read_site
    from federated_yolo.data.scan import check_dataset

    try:
        own = read_site(site.node_config())
    except InputError:
        return Finding("data", None, "not looked at: correct the settings first")
    with tempfile.TemporaryDirectory() as temporary:
        try:
            path = prepared_data(replace(own, folder=Path(temporary)), site.terms.task)
            summary = check_dataset(
                path,
                site.terms.task,
                Path(temporary) / "caches",
                where=f"site '{own.name}'",
                splits=("train", "val"),
            )
        except InputError as error:
            more = [f"{len(error.problems) - SHOWN} more"] if len(error.problems) > SHOWN else []
            text = "; ".join([*error.problems[:SHOWN], *more])
            return Finding("data", False, text, f"repair {own.data}; the line says what")
    counts = f"{summary.num_train} train and {summary.num_val} val images"
    return Finding("data", True, f"{counts}, classes {', '.join(summary.names)}")


def show(console: Any, findings: Iterator[Finding]) -> list[Finding]:
    """Print a line for each finding as it comes, then the remedies; return the problems."""
    found = []
    for finding in findings:
        tick = TICKS[finding.is_good]
        line = f"{tick} {finding.what:<9} {finding.text}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)
        found.append(finding)
    for finding in found:
        if finding.remedy:
            line = f"{finding.what}: {finding.remedy}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    return [finding for finding in found if finding.is_good is False]
