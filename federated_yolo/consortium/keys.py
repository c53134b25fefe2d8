"""A site's key: the line that it sends to the operator, and its fingerprint to compare by voice."""

import base64
import hashlib
import re
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_ssh_public_key,
)

from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import CLIENT_NAME

NUM_GROUPS, GROUP_DIGITS = 8, 5  # 40 digits, as many as 132 bits
CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)  # NIST's, which Flower takes
LINE_EXPECTED = "expected the line that 'site join' printed: NAME ecdsa-sha2-nistp384 AAAA..."


@dataclass(frozen=True)
class SiteKey:
    """A site's name and public key. public: As OpenSSH writes it, without a comment."""

    site: str
    public: str

    @property
    def line(self) -> str:
        """The line to send to the operator."""
        return f"{self.site} {self.public}"

    @property
    def fingerprint(self) -> str:
        """What `ssh-keygen -l` shows."""
        digest = base64.b64encode(self._digest).decode().rstrip("=")
        return f"SHA256:{digest}"

    @property
    def spoken(self) -> str:
        """The fingerprint as groups of digits, which can be read aloud in any language."""
        digits = str(int.from_bytes(self._digest) % 10 ** (NUM_GROUPS * GROUP_DIGITS))
        digits = digits.zfill(NUM_GROUPS * GROUP_DIGITS)
        starts = range(0, len(digits), GROUP_DIGITS)
        return " ".join(digits[start : start + GROUP_DIGITS] for start in starts)

    @property
    def _digest(self) -> bytes:
        return hashlib.sha256(base64.b64decode(self.public.split()[1])).digest()


def read_line(text: str) -> SiteKey:
    """Read the line that a site has sent. Raises InputError."""
    words = text.split()
    if len(words) < 3:
        raise InputError(f"key line: found {len(words)} words, {LINE_EXPECTED}")
    site, public = words[0], " ".join(words[1:3])
    problems = []
    if not CLIENT_NAME.fullmatch(site):
        problems.append(f"key line: found the name {site!r}, {LINE_EXPECTED}")
    if re.search("PRIVATE KEY", text):
        problems.append("key line: this is a private key, which a site must not send; make another")
    try:
        key = load_ssh_public_key(public.encode())
    except (ValueError, UnsupportedAlgorithm):
        problems.append(f"key line: its key is not readable, perhaps cut off; {LINE_EXPECTED}")
    else:
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, CURVES):
            problems.append(
                f"key line: found a key of kind {words[1]}, which Flower does not take; "
                f"{LINE_EXPECTED}"
            )
        else:  # the same text for the same key
            public = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    if problems:
        raise InputError(problems)
    return SiteKey(site, public)
