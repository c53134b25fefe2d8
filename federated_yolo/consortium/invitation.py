"""An invitation: what a site is given to join, as one small archive without any secret."""

import io
import json
import re
import zipfile
from pathlib import Path

from pydantic import ValidationError

from federated_yolo.common.errors import InputError
from federated_yolo.common.files import write_atomically
from federated_yolo.config.schema import FrozenModel
from federated_yolo.consortium.folder import App, Consortium
from federated_yolo.consortium.packages import constraints_text
from federated_yolo.consortium.settings import Task
from federated_yolo.consortium.templates import fill

FILE = "invitation.json"
CA = "ca.crt"
CONSTRAINTS = "constraints.txt"
SITE_SETTINGS = "site.yaml"
MAX_BYTES = 16 << 20
DATE = (2024, 1, 1, 0, 0, 0)
PROGRAM = 0o755


class Terms(FrozenModel, frozen=True):
    """What a site is told. own_ca: Whether ca.crt signs the server's certificate."""

    consortium: str
    site: str
    address: str
    task: Task
    own_ca: bool
    app: App
    versions: dict[str, str]


class Invitation(FrozenModel, frozen=True):
    """An invitation that has been read. ca: PEM, empty for public CAs. fab: The app's bundle."""

    terms: Terms
    ca: str
    constraints: str
    fab: bytes


def write_invitation(state: Consortium, folder: Path, site: str) -> Path:
    """Write invitations/SITE.zip with a folder CONSORTIUM-SITE in it."""
    settings, app = state.settings, state.app
    terms = Terms(
        consortium=settings.name,
        site=site,
        address=settings.address,
        task=settings.task,
        own_ca=settings.tls is None,
        app=app,
        versions=state.versions,
    )
    values = {
        "consortium": settings.name,
        "site": site,
        "address": settings.address,
        "fab": app.file,
        "hash": app.hash,
        "data": "",
    }
    files = {
        FILE: terms.model_dump_json(indent=1),
        CONSTRAINTS: constraints_text(state.versions),
        SITE_SETTINGS: fill("site.yaml.md", **values),
        "start.sh": fill("invitation.sh.md", **values),
        "README.txt": fill("invitation.txt.md", **values),
        app.file: (folder / app.file).read_bytes(),
    }
    if terms.own_ca:
        files[CA] = (folder / "authority" / CA).read_text()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(f"{settings.name}-{site}/{name}", DATE)
            entry.external_attr = (PROGRAM if name.endswith(".sh") else 0o644) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    path = folder / "invitations" / f"{site}.zip"
    write_atomically(path, lambda file: file.write(buffer.getvalue()))
    return path


def read_invitation(path: Path) -> Invitation:
    """Read an invitation: the archive, or the folder that it unpacks to. Raises InputError."""
    try:
        files = _in_folder(path) if path.is_dir() else _in_archive(path)
        terms = Terms.model_validate_json(files[FILE])
        needed = [CONSTRAINTS, terms.app.file, *([CA] if terms.own_ca else [])]
        if missing := [name for name in needed if name not in files]:
            raise InputError(f"{path}: no {', '.join(missing)}; ask for the invitation again")
        return Invitation(
            terms=terms,
            ca=files[CA].decode() if terms.own_ca else "",
            constraints=files[CONSTRAINTS].decode(),
            fab=files[terms.app.file],
        )
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(
            f"{path}: no invitation ({error}); expected a .zip of the operator"
        ) from error
    except ValidationError as error:
        places = ", ".join(".".join(map(str, e["loc"])) or "JSON" for e in error.errors())
        raise InputError(
            f"{path}: {FILE}: wrong or missing: {places}; it may be of another version of "
            "federated-yolo: ask for the invitation again"
        ) from error


def _is_part(name: str) -> bool:
    return name in (FILE, CA, CONSTRAINTS) or bool(re.fullmatch(r"[\w.-]+\.fab", name))


def _in_folder(path: Path) -> dict[str, bytes]:
    found = [part for part in path.iterdir() if _is_part(part.name) and part.is_file()]
    if sum(part.stat().st_size for part in found) > MAX_BYTES:
        raise InputError(f"{path}: more than {MAX_BYTES >> 20} MiB, expected a small folder")
    return {part.name: part.read_bytes() for part in found}


def _in_archive(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        entries = {Path(e.filename).name: e for e in archive.infolist() if not e.is_dir()}
        parts = {name: entry for name, entry in entries.items() if _is_part(name)}
        if sum(entry.file_size for entry in parts.values()) > MAX_BYTES:
            raise InputError(f"{path}: more than {MAX_BYTES >> 20} MiB, expected a small archive")
        return {name: archive.read(entry) for name, entry in parts.items()}
