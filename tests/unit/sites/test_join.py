"""Joining: the key is made here, the app is read-only, and nothing of the site's own is lost."""

import os
import subprocess
import tempfile
import zipfile
from pathlib import Path
from subprocess import PIPE

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key
from kit import consortium, joined

from federated_yolo.common.errors import InputError
from federated_yolo.consortium import bundle
from federated_yolo.sites import join as join_module
from federated_yolo.sites import site_command

NOBODY = 65534


def test_a_site_joins_with_a_key_of_its_own_that_nobody_else_can_read(tmp_path: Path) -> None:
    consortium(tmp_path / "lungs")
    data = tmp_path / "data.yaml"
    site = joined(tmp_path / "lungs", "north", tmp_path / "n", str(data))
    key = load_ssh_private_key((site.path / "key").read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert key.curve.name == "secp384r1"
    modes = {name: (site.path / name).stat().st_mode & 0o777 for name in ("key", "site.yaml", "")}
    assert modes == {"key": 0o600, "site.yaml": 0o600, "": 0o700}
    assert site.node_config() == {
        "name": "north",
        "data": str(data),
        "folder": str(site.path / "private"),
    }
    apps = site.flower_home / "apps"
    assert [path.name for path in apps.iterdir()] == [bundle.installed_name(site.terms.app)]
    assert all(not path.stat().st_mode & 0o222 for path in (apps, *apps.rglob("*")))
    assert joined(tmp_path / "lungs", "south", tmp_path / "s").public_key != site.public_key


def test_an_invitation_is_joined_where_it_was_unpacked_with_the_data_written_there(
    tmp_path: Path,
) -> None:
    consortium(tmp_path / "lungs")
    with zipfile.ZipFile(tmp_path / "lungs" / "invitations" / "north.zip") as archive:
        archive.extractall(tmp_path)
    folder = tmp_path / "lungs-north"
    settings = folder / "site.yaml"
    text = settings.read_text().replace("data: ", "data: data/x.yaml\nshow-images: 3  # of ours\n")
    settings.write_text(text)
    assert site_command.main(["join", str(folder), "--folder", str(folder)]) == 0
    site = site_command.find_site(folder)
    assert settings.read_text() == text
    assert site.node_config()["data"] == str(folder / "data" / "x.yaml")
    assert (folder / "start.sh").read_text().startswith("#!/bin/sh\n# Checks the site")


def test_what_is_asked_for_later_is_told_and_data_that_is_not_there_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium(tmp_path / "lungs")
    monkeypatch.chdir(tmp_path)
    invitation = str(tmp_path / "lungs" / "invitations" / "north.zip")
    assert site_command.main(["join", invitation, "--data", "no.yaml"]) == 2
    assert f"data: {tmp_path}/no.yaml: no such file or folder" in capsys.readouterr().err
    assert not (tmp_path / "lungs-north").exists()
    assert site_command.main(["join", invitation]) == 0
    told = capsys.readouterr().out
    site = site_command.find_site(tmp_path / "lungs-north")
    assert f"\n{site.public_key.line}\n" in told
    assert f"\n    {site.public_key.spoken}\n" in told
    assert f"write where the data is into {site.path}/site.yaml" in told
    with pytest.raises(InputError, match="data: is empty"):
        site.node_config()
    (tmp_path / "data").mkdir()
    assert site_command.main(["join", invitation, "--data", "data"]) == 0  # once more, with it
    assert site.node_config()["data"] == str(tmp_path / "data")
    assert site_command.find_site(site.path).public_key == site.public_key


def test_a_folder_of_anything_else_is_left_alone(tmp_path: Path) -> None:
    consortium(tmp_path / "lungs")
    site = joined(tmp_path / "lungs", "north", tmp_path / "n")
    before = {path: path.read_bytes() for path in site.path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"belongs to 'north' of 'lungs'.* for 'south'"):
        joined(tmp_path / "lungs", "south", site.path)
    assert {path: path.read_bytes() for path in before} == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "a").touch()
    with pytest.raises(InputError, match="is there and is no site"):
        joined(tmp_path / "lungs", "north", tmp_path / "mine")


def test_a_disk_that_fills_up_leaves_no_half_of_a_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium(tmp_path / "lungs")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(join_module, "fill", full)
    with pytest.raises(OSError, match="No space left"):
        joined(tmp_path / "lungs", "north", tmp_path / "n")
    assert [path.name for path in tmp_path.iterdir()] == ["lungs"]


@pytest.mark.parametrize("content", [b"", b"no zip", b"{}"])
def test_what_is_no_invitation_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(content)
    with pytest.raises(InputError, match="no invitation"):
        join_module.join(path, tmp_path / "n", "")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/invitation.json", "{}")
    with pytest.raises(InputError, match="wrong or missing: consortium, site, address"):
        join_module.join(path, tmp_path / "n", "")
    with pytest.raises(InputError, match="No such file"):
        join_module.join(tmp_path / "none.zip", None, "")


def test_a_name_other_than_the_one_of_the_key_is_refused(tmp_path: Path) -> None:
    consortium(tmp_path / "lungs")
    site = joined(tmp_path / "lungs", "north", tmp_path / "n", "/srv/data")
    settings = yaml.safe_load((site.path / "site.yaml").read_text())
    (site.path / "site.yaml").write_text(yaml.safe_dump({**settings, "name": "south"}))
    with pytest.raises(InputError, match="name: found 'south', expected 'north'"):
        site.node_config()


def test_a_user_cannot_put_another_app_beside_the_reviewed_one(tmp_path: Path) -> None:
    """Flower makes a folder there for each app; as root, the test asks another user to."""
    consortium(tmp_path / "lungs")
    with tempfile.TemporaryDirectory() as temporary:  # where that user comes to
        site = joined(tmp_path / "lungs", "north", Path(temporary) / "n")
        user = NOBODY if os.getuid() == 0 else None
        if user is not None:
            for path in (Path(temporary), *Path(temporary).rglob("*")):
                os.chown(path, user, user)

        def makes(folder: Path) -> bool:
            command = ["mkdir", str(folder)]
            return subprocess.run(command, user=user, stderr=PIPE, check=False).returncode == 0

        assert makes(site.flower_home / "other")
        assert not makes(site.flower_home / "apps" / "other")
        join_module._make_writable(site.flower_home)  # for the clean-up
