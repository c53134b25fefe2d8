"""A consortium and its sites, made by the kit."""

import hashlib
import io
import zipfile
from pathlib import Path

from federated_yolo.consortium import bundle
from federated_yolo.consortium.folder import App, Consortium
from federated_yolo.consortium.server_kit import make_consortium
from federated_yolo.consortium.settings import ConsortiumSettings
from federated_yolo.sites.folder import SiteFolder
from federated_yolo.sites.join import join


def small_bundle() -> tuple[App, bytes]:
    """A bundle of one file, as Flower makes it; the real one takes a second."""
    files = {"pyproject.toml": b"[project]\n", "app/a.py": b"x = 1\n"}
    listed = [f"{n},{hashlib.sha256(c).hexdigest()},{len(c) * 8}" for n, c in files.items()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in {**files, bundle.MANIFEST: "\n".join(listed).encode()}.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    content = buffer.getvalue()
    digest = hashlib.sha256(content).hexdigest()
    return App(file=f"us.app.0-1-0.{digest[:8]}.fab", hash=digest, version="0.1.0"), content


def consortium(folder: Path, **settings: object) -> Consortium:
    """Make a consortium in this folder."""
    values = {"name": "lungs", "host": "flower.example.org", "sites": ("north", "south")}
    return make_consortium(ConsortiumSettings.model_validate({**values, **settings}), folder)


def joined(consortium: Path, site: str, folder: Path, data: str = "") -> SiteFolder:
    """Let a site join with its invitation."""
    return join(consortium / "invitations" / f"{site}.zip", folder, data)
