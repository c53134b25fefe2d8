"""Joins a consortium: makes the key and the site's folder, or takes a new invitation into one."""

import compileall
import os
import shutil
import sys
from pathlib import Path

from federated_yolo.common.errors import InputError
from federated_yolo.consortium import bundle
from federated_yolo.consortium.folder import write_text
from federated_yolo.consortium.invitation import (
    CA,
    CONSTRAINTS,
    FILE,
    SITE_SETTINGS,
    Invitation,
    Terms,
    read_invitation,
)
from federated_yolo.consortium.server_kit import of_this_user, refuse_odd_path, unit_name
from federated_yolo.consortium.templates import fill
from federated_yolo.runtime.certificates import make_site_key, write_new
from federated_yolo.sites.folder import KEY, SiteFolder, read_settings

PRIVATE, PROGRAM = 0o600, 0o755


def default_folder(terms: Terms) -> Path:
    """Return where a site is made if nobody says where."""
    return Path.cwd() / f"{terms.consortium}-{terms.site}"


def join(invitation: Path, folder: Path | None, data: str) -> SiteFolder:
    """Make a site's folder, or take a new invitation into it: key and settings stay.

    data: Path of the data; empty to keep what site.yaml says. Raises InputError.
    """
    read = read_invitation(invitation)
    folder = (folder or default_folder(read.terms)).absolute()
    refuse_odd_path(folder)
    site = SiteFolder(folder, read.terms)
    if (folder / FILE).is_file():
        _refuse_other(folder, read.terms)
        _write(site, read, data, folder)
        return site
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder}: is there and is no site; give another folder: --folder")
    building = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        building.mkdir(mode=0o700, parents=True)
        _write(SiteFolder(building, read.terms), read, data, folder)
        building.replace(folder)
    finally:
        _make_writable(building / "flwr")
        shutil.rmtree(building, ignore_errors=True)
    return site


def _refuse_other(folder: Path, terms: Terms) -> None:
    """Raise InputError if a folder belongs to another site or consortium."""
    there = Terms.model_validate_json((folder / FILE).read_bytes())
    if (there.consortium, there.site) != (terms.consortium, terms.site):
        raise InputError(
            f"{folder}: belongs to '{there.site}' of '{there.consortium}', and the invitation is "
            f"for '{terms.site}' of '{terms.consortium}'; give another folder: --folder"
        )


def _write(site: SiteFolder, invitation: Invitation, data: str, final: Path) -> None:
    """Write a site's folder. final: Where it will be, which its files name."""
    folder, terms = site.path, invitation.terms
    folder.chmod(0o700)
    (folder / "flwr").mkdir(exist_ok=True)
    install_app(site, invitation.fab)
    if not (folder / KEY).exists():
        private, public = make_site_key(terms.site)
        write_new(folder / f"{KEY}.pub.new", public, is_private=False)
        (folder / f"{KEY}.pub.new").replace(folder / f"{KEY}.pub")
        write_new(folder / KEY, private, is_private=True)
    if terms.own_ca:
        write_text(folder / CA, invitation.ca)
    write_text(folder / CONSTRAINTS, invitation.constraints)
    settings = folder / SITE_SETTINGS
    values = {
        "consortium": terms.consortium,
        "site": terms.site,
        "unit": unit_name(f"{terms.consortium}-{terms.site}"),
        "folder": str(final),
        "python": sys.executable,
        "data": data,
        "data_folder": "",
        **of_this_user(),
    }
    if data or not settings.exists():
        _write_settings(settings, fill("site.yaml.md", **values), data)
    place = Path(str(read_settings(settings).get("data") or ""))
    if place.is_absolute():
        values["data_folder"] = str(place if place.is_dir() else place.parent)
    write_text(folder / "start.sh", fill("start.site.sh.md", **values), PROGRAM)
    write_text(folder / f"{values['unit']}.service", fill("site.service.md", **values))
    write_text(folder / "compose.site.yaml", fill("compose.site.yaml.md", **values))
    for old in folder.glob("*.fab"):
        if old.name != terms.app.file:
            old.unlink()
    (folder / terms.app.file).write_bytes(invitation.fab)
    write_text(folder / FILE, terms.model_dump_json(indent=1))  # the last: it marks a whole folder


def _write_settings(path: Path, text: str, data: str) -> None:
    """Write site.yaml, or only its data into one that has other settings."""
    if path.exists():
        lines = path.read_text().splitlines()
        fresh = next(line for line in text.splitlines() if line.startswith("data:"))
        kept = [fresh if line.startswith("data:") else line for line in lines]
        text = "\n".join(kept if fresh in kept else [*kept, fresh]) + "\n"
    write_text(path, text, PRIVATE)


def install_app(site: SiteFolder, fab: bytes) -> None:
    """Put the reviewed app where the SuperNode looks for it, and leave no room for another.

    Flower 1.41 takes what is there under the run's hash, and else unpacks what it was sent, which
    fails in a folder that it may not write to.
    """
    apps = site.flower_home / "apps"
    name = bundle.installed_name(site.terms.app)
    _make_writable(apps)
    target = apps / name
    if not target.exists() or bundle.differences(fab, target):
        building = apps / f".{name}.{os.getpid()}.tmp"
        bundle.unpack(fab, building)
        compileall.compile_dir(building, quiet=2, stripdir=str(building), prependdir=str(target))
        shutil.rmtree(target, ignore_errors=True)
        building.replace(target)
    for other in apps.iterdir():
        if other.name != name:
            shutil.rmtree(other)
    _make_read_only(apps)


def _make_read_only(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)


def _make_writable(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
