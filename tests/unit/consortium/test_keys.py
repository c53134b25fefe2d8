"""The line that a site sends, and the digits that both read to each other."""

import shutil
import subprocess
from pathlib import Path

import pytest

from federated_yolo.common.errors import InputError
from federated_yolo.consortium.keys import read_line
from federated_yolo.runtime.certificates import make_site_key


def test_a_line_is_read_as_it_was_written_whatever_a_mail_did_to_its_blanks() -> None:
    public = make_site_key("north")[1].decode()
    key = read_line(f"north {public}")
    assert key.line == f"north {' '.join(public.split()[:2])}"
    assert read_line(f"\n  north\n{public.split()[0]}   {public.split()[1]} north@x ") == key
    groups = key.spoken.split()
    assert [len(group) for group in groups] == [5] * 8
    assert "".join(groups).isdecimal()


@pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="needs ssh-keygen")
def test_the_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    public = make_site_key("north")[1]
    (tmp_path / "key.pub").write_bytes(public)
    command = ["ssh-keygen", "-lf", str(tmp_path / "key.pub")]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert read_line(f"north {public.decode()}").fingerprint == shown.split()[1]


def test_what_is_no_line_is_refused_with_the_reason() -> None:
    private, public = (part.decode() for part in make_site_key("north"))
    kind, body = public.split()[:2]
    rsa = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILKp7iYyuJ7LQZ1sFzLTeJY3Cfn43yUXVRCJfIEMzcUk"
    for text, reason in (
        ("north", "found 1 words, expected the line that 'site join' printed"),
        (f"north {kind} {body[:-8]}", "not readable, perhaps cut off"),
        (f"a/b {kind} {body}", "found the name 'a/b'"),
        (f"north {rsa}", "found a key of kind ssh-ed25519, which Flower does not take"),
        (private, "this is a private key, which a site must not send"),
    ):
        with pytest.raises(InputError, match=reason):
            read_line(text)
