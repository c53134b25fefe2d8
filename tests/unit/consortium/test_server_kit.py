"""A consortium's folder: made in one piece, no secret for others, and files that programs read."""

import json
import re
import shutil
import subprocess
import zipfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from kit import consortium, joined, small_bundle
from processes import ROOT

from federated_yolo.common.errors import InputError
from federated_yolo.consortium import bundle, operator_command, server_kit
from federated_yolo.consortium.folder import SiteState, read_state, write_state
from federated_yolo.consortium.superlink import Node, SuperLink
from federated_yolo.runtime.certificates import make_site_key


def test_secrets_are_the_owners_alone_and_no_site_gets_one(tmp_path: Path) -> None:
    folder = tmp_path / "lungs"
    consortium(folder)
    secret = {p for p in folder.rglob("*") if p.is_file() and b"PRIVATE KEY" in p.read_bytes()}
    names = {p.relative_to(folder).as_posix() for p in secret}
    assert names == {"authority/ca.key", "server/tls/nginx.key", "server/tls/superlink.key"}
    assert {p.stat().st_mode & 0o777 for p in secret} == {0o600}
    assert folder.stat().st_mode & 0o777 == 0o700
    for site in ("north", "south"):
        with zipfile.ZipFile(folder / "invitations" / f"{site}.zip") as archive:
            assert all(b"PRIVATE KEY" not in archive.read(name) for name in archive.namelist())
            others = {"north", "south"} - {site}
            told = [name for name in archive.namelist() if not name.endswith(".fab")]
            assert not any(o.encode() in archive.read(n) for o in others for n in told)


def test_a_folder_is_never_overwritten_and_never_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lungs"

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(server_kit, "write_invitation", full)
        with pytest.raises(OSError, match="No space left"):
            consortium(folder)
    assert list(tmp_path.iterdir()) == []
    consortium(folder)
    before = (folder / "authority" / "ca.key").read_bytes()
    with pytest.raises(InputError, match="is there already and will not be overwritten"):
        consortium(folder)
    assert (folder / "authority" / "ca.key").read_bytes() == before
    with pytest.raises(InputError, match="has ' ' in its path"):
        consortium(tmp_path / "a b")


def test_the_kits_nginx_lets_pass_what_the_documented_one_does(tmp_path: Path) -> None:
    """docs/nginx.conf is for a server set up by hand; the two must not drift apart."""
    consortium(tmp_path / "lungs")
    home = f"{tmp_path}/lungs/server"
    documented = (ROOT / "docs" / "nginx.conf").read_text()
    for theirs, ours in {
        "/etc/flower/fullchain.pem": f"{home}/tls/nginx.pem",
        "/etc/flower/privkey.pem": f"{home}/tls/nginx.key",
        "/etc/flower/superlink/ca.crt": f"{home}/tls/ca.crt",
    }.items():
        assert theirs in documented
        documented = documented.replace(theirs, ours)

    def directives(text: str) -> set[str]:
        text = re.sub(r"#.*", "", text)
        return {" ".join(x.split()) for x in re.split(r"(?<=[;{}])", text) if x.strip()}

    ours = directives((tmp_path / "lungs" / "server" / "nginx.conf").read_text())
    assert directives(documented) <= ours
    assert {line for line in ours if line.startswith("location")} == {
        "location / {",
        "location /v1/fleet/ {",
    }


@pytest.mark.parametrize("own_certificate", [False, True])
def test_what_programs_read_is_sound(own_certificate: bool, tmp_path: Path) -> None:
    tls = {"certificate": "/etc/x.pem", "key": "/etc/x.key"} if own_certificate else None
    folder = tmp_path / "lungs"
    consortium(folder, tls=tls)
    server = folder / "server"
    composed = yaml.safe_load((server / "compose.server.yaml").read_text())
    assert set(composed["services"]) == {"superlink", "nginx"}
    assert composed["services"]["nginx"]["network_mode"] == "service:superlink"
    assert composed["services"]["superlink"]["ports"] == ["443:443"]
    assert (server / "tls" / "nginx.key").exists() != own_certificate
    site = joined(folder, "north", tmp_path / "n", "/srv/data/data.yaml")
    assert (site.ca is None) == own_certificate
    composed = yaml.safe_load((site.path / "compose.site.yaml").read_text())
    assert "/srv/data:/srv/data:ro" in composed["services"]["site"]["volumes"]
    for script in (server / "start.sh", site.path / "start.sh"):
        assert subprocess.run(["sh", "-n", str(script)], check=False).returncode == 0
        assert script.stat().st_mode & 0o100
    for unit in (*server.glob("*.service"), *site.path.glob("*.service")):
        sections = re.findall(r"^\[(\w+)\]$", unit.read_text(), re.MULTILINE)
        assert sections == ["Unit", "Service", "Install"]
        assert "{" not in unit.read_text()
        if shutil.which("systemd-analyze"):
            done = subprocess.run(
                ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
            )
            assert "Unknown" not in done.stderr


def test_certificates_are_renewed_by_the_same_ca_and_warned_of_thirty_days_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lungs"
    state = consortium(folder)
    assert server_kit.ending_soon(state, folder) == []
    monkeypatch.setattr(server_kit, "WARN_BEFORE", timedelta(days=366))
    lines = server_kit.ending_soon(state, folder)
    assert [line.split(":")[0] for line in lines] == [
        "certificate nginx.pem",
        "certificate superlink.pem",
    ]
    monkeypatch.undo()
    before = (folder / "server" / "tls" / "nginx.pem").read_bytes()
    assert operator_command.main(["renew", "--folder", str(folder)]) == 0
    after = (folder / "server" / "tls" / "nginx.pem").read_bytes()
    authority = x509.load_pem_x509_certificate((folder / "authority" / "ca.crt").read_bytes())
    renewed = x509.load_pem_x509_certificate(after)
    assert after != before
    renewed.verify_directly_issued_by(authority)
    assert renewed.not_valid_after_utc - datetime.now(UTC) > timedelta(days=360)
    (folder / "authority" / "ca.key").unlink()
    assert operator_command.main(["renew", "--folder", str(folder)]) == 2


class Registered(SuperLink):
    """A SuperLink that admits all; holds what was asked."""

    asked: tuple[str, ...] = ()

    def register(self, key: object) -> str:
        return "77"

    def unregister(self, node: str) -> None:
        type(self).asked += (node,)

    def nodes(self) -> dict[str, Node]:
        return {"77": Node("77", "offline", "", "", 0.0)}


def test_a_key_is_bound_to_its_name_until_it_is_revoked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(operator_command, "SuperLink", Registered)
    monkeypatch.setattr(Registered, "asked", ())
    folder = tmp_path / "lungs"
    consortium(folder)
    at = ["--folder", str(folder)]
    line = f"north {make_site_key('x')[1].decode()}"
    approved = folder / "server" / "sites.json"

    assert operator_command.main(["approve", line, *at]) == 2  # nobody has compared the digits
    assert "compare the digits, and give --yes" in capsys.readouterr().err
    assert json.loads(approved.read_text()) == {}
    assert operator_command.main(["approve", line, "--yes", *at]) == 0
    assert json.loads(approved.read_text()) == {"77": "north"}
    assert operator_command.main(["approve", line, "--yes", *at]) == 0  # again, as it is
    for wrong, reason in (
        (f"north {make_site_key('x')[1].decode()}", "'north' has another key already"),
        (line.replace("north", "south", 1), "another site has this key"),
        (line.replace("north", "nort", 1), "'nort' is no site of lungs [north, south]; did you"),
    ):
        assert operator_command.main(["approve", wrong, "--yes", *at]) == 2
        assert reason in capsys.readouterr().err
    assert operator_command.main(["revoke", "north", *at]) == 0
    assert json.loads(approved.read_text()) == {}
    assert Registered.asked == ("77",)
    assert operator_command.main(["revoke", "north", *at]) == 2


def test_a_site_is_added_with_an_invitation_of_its_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "lungs"
    consortium(folder)
    assert operator_command.main(["add-site", "West", "--folder", str(folder)]) == 0
    assert joined(folder, "West", tmp_path / "w").terms.site == "West"
    assert list(read_state(folder).sites) == ["north", "south", "West"]
    assert operator_command.main(["add-site", "NORTH", "--folder", str(folder)]) == 2
    assert "'NORTH' is there already" in capsys.readouterr().err


def test_an_upgrade_keeps_the_keys_and_makes_all_invitations_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "lungs"
    state = consortium(folder)
    write_state(folder, state.with_site("north", SiteState(public_key="k", node="1", approved="t")))
    site = joined(folder, "north", tmp_path / "n")
    app, content = small_bundle()
    other = app.model_copy(update={"file": app.file.replace("0-1-0", "0-2-0"), "version": "0.2.0"})
    monkeypatch.setattr(bundle, "build", lambda: (other, content))
    assert operator_command.main(["upgrade", "--folder", str(folder)]) == 0
    assert read_state(folder).sites["north"].node == "1"
    assert [path.name for path in folder.glob("*.fab")] == [other.file]
    key = (site.path / "key").read_bytes()
    again = joined(folder, "north", site.path)
    assert again.terms.app == other
    assert (again.path / "key").read_bytes() == key
    assert [p.name for p in (again.flower_home / "apps").iterdir()] == [
        bundle.installed_name(other)
    ]
