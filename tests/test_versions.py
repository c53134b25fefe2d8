"""Ranges, the tested set and the places that lean on what other packages may change."""

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from processes import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TESTED = re.search(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split(",")
REQUIREMENTS = [
    Requirement(line)
    for group in (
        PROJECT["dependencies"],
        *(PROJECT["optional-dependencies"][extra] for extra in TESTED),
    )
    for line in group
]


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


def test_the_tested_set_has_a_version_in_range_of_all_that_is_installed() -> None:
    tested = constraints()
    for requirement in REQUIREMENTS:
        assert requirement.specifier.contains(tested[requirement.name.lower()]), requirement


def test_the_tested_set_is_of_no_machine() -> None:
    """No builds, paths, or parts of one operating system's PyTorch."""
    for name, version in constraints().items():
        assert re.fullmatch(r"[a-z0-9._-]+", name)
        assert re.fullmatch(r"[0-9a-z.]+", version), name
        assert not re.match(r"cuda|triton|nvidia-(?!ml-py)", name), name


def test_torchvision_of_the_tested_set_belongs_to_its_torch() -> None:
    tested = constraints()
    needed = [Requirement(line) for line in _requires("torchvision", tested["torchvision"])]
    [torch] = [requirement for requirement in needed if requirement.name == "torch"]
    assert torch.specifier.contains(tested["torch"])


def _requires(name: str, tested: str) -> list[str]:
    from importlib.metadata import version

    try:
        installed = Version(version(name)).public
    except PackageNotFoundError:
        installed = "none"
    if installed != tested:
        pytest.skip(f"{name} {tested} is not installed, but {installed}")
    return requires(name) or []


def test_every_range_has_both_ends_but_for_tools_of_developers() -> None:
    for requirement in REQUIREMENTS:
        ends = {specifier.operator for specifier in requirement.specifier}
        if requirement.name not in ("flwr", "onnxslim", "pytest-timeout", "ruff", "pyright"):
            assert ends == {">=", "<"}, requirement


@pytest.mark.parametrize("page", ["README.md", "docs/deployment.md", "docs/tutorial.md"])
def test_what_is_installed_first_is_the_tested_set(page: str) -> None:
    lines = [x for x in (ROOT / page).read_text().splitlines() if re.search("venv .*pip install", x)]
    assert lines
    for line in lines:
        assert "pip install -c constraints.txt -e " in line
