"""Make certificates and keys for tests and trials of a deployment: a CA, keys of sites.

    federated-yolo certificates FOLDER [--hosts localhost 127.0.0.1] [--sites north south]

    FOLDER/ca.crt               the CA's certificate: for the sites and the operator
    FOLDER/server.pem, .key     of the SuperLink, or of the proxy before it, valid for the hosts
    FOLDER/north, north.pub     key pair of a SuperNode, as `ssh-keygen -t ecdsa -b 384` makes it

The CA's own key is not kept, so that nobody can make more certificates that a site would trust;
for other hosts, run it again with another folder. The files are for tests and trials, because all
private keys are made on one machine; in production each site makes its own. docs/deployment.md
explains how, and where ca.crt and server.pem may be used in production too (between a SuperLink
and a proxy on one machine; `--sites` without names makes no keys).

Exit codes: 0 done, 1 the files could not be written, 2 wrong input (nothing was written).
"""

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federated_yolo.common.command_line import failed, parser_of
from federated_yolo.common.errors import InputError

VALIDITY = timedelta(days=365)
CLOCK_DIFFERENCE = timedelta(days=1)  # a site's clock may be behind
HOSTS, SITES = ("localhost", "127.0.0.1"), ("north", "south")  # by default
SITE = re.compile(r"[A-Za-z0-9_-]+")  # no dot: the names of the other files have one
HOST_NAME = re.compile(r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*")


def make_certificates(folder: Path, hosts: Sequence[str], sites: Sequence[str]) -> list[Path]:
    """Write the files named above and return their paths.

    hosts: Names and addresses of the server.
    Raises InputError if the name of a host or site is not valid, or if a file already exists.
    """
    problems = [
        f"--hosts {host}: expected a name or an IP address, without scheme or port"
        for host in hosts
        if not is_host(host)
    ]
    problems += [
        f"--sites {site}: expected letters, digits, - and _; choose another name"
        for site in sites
        if not SITE.fullmatch(site)
    ]
    if problems:
        raise InputError(problems)
    files = _site_files(sites) | _server_files(hosts)
    problems = [
        f"{folder / name}: already exists and will not be overwritten; choose another folder"
        for name in files
        if (folder / name).exists()
    ]
    if problems:
        raise InputError(problems)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        write_new(folder / name, content, is_private=b"PRIVATE KEY" in content)
    return [folder / name for name in files]


def _site_files(sites: Sequence[str]) -> dict[str, bytes]:
    files = {}
    for site in sites:
        files[site], files[f"{site}.pub"] = make_site_key(site)
    return files


@dataclass(frozen=True)
class Authority:
    """A CA of one's own."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def make(cls, name: str, validity: timedelta = VALIDITY) -> "Authority":
        """Make a CA that signs certificates of servers, and no other CAs."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = (
            _unsigned(subject, subject, key.public_key(), validity)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_key_usage(is_authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    def issue(self, name: str, hosts: Sequence[str]) -> tuple[bytes, bytes]:
        """Return a server's certificate for these names and addresses, and its key, as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        own = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
        certificate = (
            _unsigned(subject, self.certificate.subject, key.public_key(), VALIDITY)
            .add_extension(x509.SubjectAlternativeName(map(_alternative_name, hosts)), False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(is_authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), False
            )
            .sign(self.key, hashes.SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), as_pem(key)


def as_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as unencrypted PEM (PKCS #8)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def make_site_key(comment: str) -> tuple[bytes, bytes]:
    """Make a SuperNode's key pair, private and public; Flower reads OpenSSH's with NIST curves."""
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return private, public + f" {comment}\n".encode()


def _server_files(hosts: Sequence[str]) -> dict[str, bytes]:
    """Make a CA's certificate, and the server's certificate with its private key."""
    authority = Authority.make("Test CA, not for production")
    certificate, key = authority.issue("SuperLink", hosts)
    return {
        "ca.crt": authority.certificate.public_bytes(Encoding.PEM),
        "server.pem": certificate,
        "server.key": key,
    }


def _unsigned(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, validity: timedelta
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return x509.CertificateBuilder(
        issuer_name=issuer,
        subject_name=subject,
        public_key=key,
        serial_number=x509.random_serial_number(),
        not_valid_before=now - CLOCK_DIFFERENCE,
        not_valid_after=now + validity,
    )


def _key_usage(*, is_authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not is_authority,
        key_cert_sign=is_authority,
        crl_sign=is_authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative_name(host: str) -> x509.GeneralName:
    if _is_address(host):
        return x509.IPAddress(ipaddress.ip_address(host))
    return x509.DNSName(host)


def is_host(text: str) -> bool:
    """Whether a text is a host's name or IP address."""
    return bool(HOST_NAME.fullmatch(text)) or _is_address(text)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def write_new(path: Path, content: bytes, *, is_private: bool) -> None:
    """Write a file that must not exist yet; a private one is never readable by others."""
    mode = 0o600 if is_private else 0o644
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = parser_of("certificates", __doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where to write the files")
    parser.add_argument(
        "--hosts",
        nargs="+",
        default=HOSTS,
        help="names and IP addresses of the server, for which server.pem is valid "
        f"(default: {' '.join(HOSTS)})",
    )
    parser.add_argument(
        "--sites",
        nargs="*",
        default=SITES,
        help="names of the sites, which get a key pair each; none without names "
        f"(default: {' '.join(SITES)})",
    )
    try:
        options = parser.parse_args(arguments)
        for path in make_certificates(options.folder, options.hosts, options.sites):
            print(path)
    except InputError as error:
        return failed(error.problems, 2)
    except OSError as error:
        return failed([f"{error.filename or 'writing'}: {error.strerror or error}"], 1)
    print("For tests and trials: in earnest, each site makes its own key. See docs/deployment.md.")
    return 0
