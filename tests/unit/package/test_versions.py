"""Ranges, the tested set and the places that lean on what other packages may change."""

import ast
import importlib
import inspect
import pkgutil
import re
import tomllib
from collections.abc import Iterable, Iterator
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version
from processes import ROOT

from federated_yolo.common.torchvision_nms import ensure_torchvision_nms

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
[TESTED] = re.findall(r"^EXTRAS := (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
REQUIREMENTS = [
    Requirement(line)
    for group in (
        PROJECT["dependencies"],
        *(PROJECT["optional-dependencies"][extra] for extra in TESTED.split(",")),
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
    for name, number in constraints().items():
        assert re.fullmatch(r"[a-z0-9._-]+", name)
        assert re.fullmatch(r"[0-9a-z.]+", number), name
        assert not re.match(r"cuda|triton|nvidia-(?!ml-py)", name), name


def test_torchvision_of_the_tested_set_belongs_to_its_torch() -> None:
    tested = constraints()
    if Version(version("torchvision")).public != tested["torchvision"]:
        pytest.skip(f"torchvision {tested['torchvision']} is not installed, which would say it")
    needed = [Requirement(line) for line in requires("torchvision") or ()]
    [torch] = [requirement for requirement in needed if requirement.name == "torch"]
    assert torch.specifier.contains(tested["torch"])


@pytest.mark.parametrize("page", ["README.md", "docs/deployment.md", "docs/tutorial.md"])
def test_what_is_installed_first_is_the_tested_set(page: str) -> None:
    lines = [
        x for x in (ROOT / page).read_text().splitlines() if re.search("venv .*pip install", x)
    ]
    assert lines
    for line in lines:
        assert "pip install -c constraints.txt -e " in line


# Versions that all marked places were tried with. Where one becomes newer, look at its places.
SEEN = {
    "flwr": ("1.41.0", "1.42.0"),
    "omegaconf": ("2.3.0", "2.4.0"),
    "torch": ("2.6.0", "2.14.1"),
    "torchvision": ("0.21.0", "0.29.1"),
    "ultralytics": ("8.4.189", "8.4.190"),
}
# `# unstable: PLACE`, what this project uses that a new version may change without a word; with
# `says 'TEXT'` where it is text of the source.
MARK = re.compile(r"# unstable: ([\w.]+)(?: says '(.+)')?$", re.MULTILINE)
FILES = sorted((ROOT / "federated_yolo").rglob("*.py"))
MARKS = {path: MARK.findall(path.read_text()) for path in FILES if "# unstable" in path.read_text()}
PLACES = sorted({mark for marks in MARKS.values() for mark in marks})


@pytest.mark.parametrize(("place", "text"), PLACES, ids=[" ".join(mark) for mark in PLACES])
def test_what_may_change_without_a_word_is_as_it_was(place: str, text: str) -> None:
    ensure_torchvision_nms()
    found = pkgutil.resolve_name(place)
    assert text in inspect.getsource(found) if text else found


def test_places_that_may_change_were_tried_with_the_tested_set_and_the_lower_ends() -> None:
    assert {place.split(".")[0] for place, _ in PLACES} == set(SEEN)
    assert all(text.count("# unstable") == len(MARKS[p]) for p, text in _texts(MARKS))
    lowest = {x.name.removesuffix("-opencv-headless"): x.specifier for x in REQUIREMENTS}
    tested = {k.removesuffix("-opencv-headless"): v for k, v in constraints().items()}
    for name, (first, last) in SEEN.items():
        assert Version(first) <= Version(tested[name]) <= Version(last), name
        ends = [Version(x.version) for x in lowest.get(name, ()) if x.operator == ">="]
        assert ends in ([], [Version(first)]), name


def test_no_private_name_of_another_package_is_used_without_a_mark() -> None:
    """As far as names tell: those with an underscore that this project does not give itself."""
    trees = {path: ast.parse(text) for path, text in _texts(FILES)}
    overridden = {name for path, tree in trees.items() for name in _overridden(path, tree)}
    own = {name for tree in trees.values() for name in _named(tree)} - overridden
    assert {"_setup_train", "_load_or_scan_cache", "_get_loss_class"} <= overridden
    for path, tree in trees.items():
        marked = " ".join(place + " " + text for place, text in MARKS.get(path, ()))
        for name, line in _private(tree):
            if name not in own and name != "_exit":  # which Python documents
                assert re.search(rf"\b{name}\b", marked), f"{path.name}:{line}: {name}"


def _texts(paths: Iterable[Path]) -> list[tuple[Path, str]]:
    return [(path, path.read_text()) for path in paths]


def _is_private(name: str) -> bool:
    return re.match(r"_[^_]", name) is not None


def _private(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Names with an underscore, and lines, that are attributes, imported, arguments or methods."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(attr=name) | ast.keyword(arg=str(name)):
                names = [name]
            case ast.FunctionDef(name=name):
                names = [name]
            case ast.ImportFrom(module=str(module), names=aliases):
                names = [*module.split("."), *(alias.name for alias in aliases)]
            case _:
                continue
        yield from ((name, node.lineno) for name in names if _is_private(name))


def _named(tree: ast.AST) -> Iterator[str]:
    """What this file defines or assigns: functions, classes, names, attributes of `self`."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield name
            case ast.Name(id=name, ctx=ast.Store()) | ast.arg(arg=name):
                yield name
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                yield name


def _overridden(path: Path, tree: ast.AST) -> Iterator[str]:
    """Private methods that a class here has in place of those of another package's class."""
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    if not classes:
        return
    module = importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    for node in classes:
        names = {x.id for base in node.bases for x in ast.walk(base) if isinstance(x, ast.Name)}
        bases = filter(inspect.isclass, (getattr(module, name, None) for name in names))
        foreign = [base for base in bases if not base.__module__.startswith("federated_yolo")]
        methods = [item.name for item in node.body if isinstance(item, ast.FunctionDef)]
        for name in filter(_is_private, methods):
            if any(hasattr(base, name) for base in foreign):
                yield name
