"""consortium.yaml: all that is wrong with it is told at once."""

from pathlib import Path

import pytest

from federated_yolo.common.errors import InputError
from federated_yolo.consortium.settings import load_settings, split_address
from federated_yolo.runtime.certificates import Authority


def problems(folder: Path, text: str) -> list[str]:
    path = folder / "consortium.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        load_settings(path)
    return [line.removeprefix(f"{path}: ") for line in error.value.problems]


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    text = 'name: "a b"\nhost: https://x\nsites: [north, North, "x y"]\ntasks: detect\n'
    found = problems(tmp_path, text)
    starts = ("tasks: unknown setting; did you mean 'task'?", "name: found 'a b', expected a name")
    starts += ("host: found 'https://x', expected a name or address", "sites[1]: 'North' is there")
    starts += ("sites[2]: found 'x y', expected a name of letters",)
    assert [next(s for s in starts if line.startswith(s)) for line in found] == list(starts)


def test_what_is_missing_or_no_yaml_is_told(tmp_path: Path) -> None:
    assert problems(tmp_path, "name: a") == ["host: missing; add it", "sites: missing; add it"]
    assert problems(tmp_path, "[1]")[0].startswith("expected lines 'name: ...'")
    with pytest.raises(InputError, match=r"no such file; write one with name, host and sites"):
        load_settings(tmp_path / "none.yaml")


def test_sites_on_other_machines_never_reach_the_superlink_itself(tmp_path: Path) -> None:
    [line] = problems(tmp_path, "name: a\nhost: example.org:8000\nsites: []\n")
    assert line.startswith("host: found port 8000, which is the SuperLink's own")
    path = tmp_path / "trial.yaml"
    path.write_text("name: a\nhost: 127.0.0.1:8000\nsites: []\n")
    assert load_settings(path).is_trial


def test_a_certificate_must_be_for_the_host_and_have_its_key(tmp_path: Path) -> None:
    authority = Authority.make("CA")
    pairs = [authority.issue("server", ["*.example.org"]), authority.issue("other", ["x.net"])]
    for number, (certificate, key) in enumerate(pairs):
        (tmp_path / f"{number}.pem").write_bytes(certificate)
        (tmp_path / f"{number}.key").write_bytes(key)
    start = f"name: a\nhost: flower.example.org\nsites: []\ntls: {{certificate: {tmp_path}"
    assert problems(tmp_path, f"{start}/1.pem, key: {tmp_path}/0.key}}\n") == [
        "tls.key: is not the key of tls.certificate; give the two of one pair",
        "tls.certificate: is for ['x.net'], not for host",
    ]
    path = tmp_path / "consortium.yaml"
    path.write_text(f"{start}/0.pem, key: {tmp_path}/0.key}}\n")
    assert load_settings(path).address == "flower.example.org:443"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.org", ("a.org", None)),
        ("a.org:8443", ("a.org", 8443)),
        ("::1", ("::1", None)),
        ("[::1]", ("::1", None)),
        ("[::1]:8443", ("::1", 8443)),
        ("a.org:x", ("a.org", 0)),
        ("a.org:", ("a.org", None)),
    ],
)
def test_addresses_are_taken_apart(text: str, expected: tuple[str, int | None]) -> None:
    assert split_address(text) == expected
