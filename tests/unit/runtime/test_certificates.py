"""Certificates for tests and trials, used over TLS and read as Flower reads them."""

import ipaddress
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key, load_ssh_public_key

from federated_yolo.common.errors import InputError
from federated_yolo.runtime.certificates import main, make_certificates


def handshake(folder: Path, host: str) -> str | None:
    """Protocol of a TLS connection between a client that trusts ca.crt and expects `host`."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "server.pem", folder / "server.key")
    client = ssl.create_default_context(cafile=folder / "ca.crt")
    client.verify_flags |= ssl.VERIFY_X509_STRICT  # the default from Python 3.13 on
    one, other = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(other, server_side=True).close()
        except (ssl.SSLError, OSError):
            other.close()  # refused by the client

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with client.wrap_socket(one, server_hostname=host) as connection:
            return connection.version()
    finally:
        thread.join(10)


def test_a_client_that_knows_the_ca_trusts_the_server_under_its_hosts_only(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["flower.example.org", "127.0.0.1"], ["north"])
    assert handshake(tmp_path, "flower.example.org") == "TLSv1.3"
    assert handshake(tmp_path, "127.0.0.1") == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError, match="not valid for"):
        handshake(tmp_path, "127.0.0.2")


def test_addresses_stand_in_the_certificate_as_addresses(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["localhost", "10.0.0.7", "::1"], ["north"])
    certificate = x509.load_pem_x509_certificate((tmp_path / "server.pem").read_bytes())
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    addresses = [ipaddress.ip_address(a) for a in ("10.0.0.7", "::1")]
    assert names.get_values_for_type(x509.IPAddress) == addresses


def test_each_site_has_a_key_pair_of_its_own_that_flower_reads(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["localhost"], ["north", "south"])
    public_keys = []
    for site in ("north", "south"):
        private = load_ssh_private_key((tmp_path / site).read_bytes(), None)
        public = load_ssh_public_key((tmp_path / f"{site}.pub").read_bytes())
        assert isinstance(private, ec.EllipticCurvePrivateKey)
        assert private.curve.name == "secp384r1"
        assert private.public_key() == public
        public_keys.append(public)
    assert public_keys[0] != public_keys[1]


def test_private_keys_are_for_their_owner_only_and_the_ca_has_none(tmp_path: Path) -> None:
    make_certificates(tmp_path, ["localhost"], ["north"])
    private = {path.name for path in tmp_path.iterdir() if b"PRIVATE KEY" in path.read_bytes()}
    assert private == {"server.key", "north"}
    for name in private:
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_nothing_is_overwritten_and_nothing_is_written_beside_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "north").write_text("a key that matters")
    assert main([str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["north"]
    assert (tmp_path / "north").read_text() == "a key that matters"
    assert f"error: {tmp_path / 'north'}: already exists" in capsys.readouterr().err


def test_hosts_and_sites_that_cannot_be_named_so_are_all_told_before_anything_is_written(
    tmp_path: Path,
) -> None:
    with pytest.raises(InputError) as raised:
        make_certificates(tmp_path / "new", ["https://x", "x:8443", "::1"], ["a/b", "ca.crt"])
    found = [problem.split(":")[0] for problem in raised.value.problems]
    assert found == ["--hosts https", "--hosts x", "--sites a/b", "--sites ca.crt"]
    assert not (tmp_path / "new").exists()


def test_the_command_says_what_the_files_are_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "new"), "--sites", "east"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert str(tmp_path / "new" / "east.pub") in lines
    assert lines[-1].startswith("For tests and trials:")


def test_a_superlink_behind_a_proxy_gets_its_certificate_without_any_site(tmp_path: Path) -> None:
    assert main([str(tmp_path), "--sites"]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["ca.crt", "server.key", "server.pem"]
