"""The rooms of the package import one way only, each from floors below its own; all of it is short.

A file, a class or a function beyond a limit does more than one thing, and is split by what it does.
"""

import ast
from pathlib import Path

import pytest
from processes import ROOT

PACKAGE = ROOT / "federated_yolo"
FLOORS = (
    "common",
    "storage config data",
    "yolo reporting partitioning",
    "protocol",
    "client aggregation",
    "server",
    "checks",
    "runtime",
    "consortium",
    "sites",
)
FILE_LINES, CLASS_LINES, FUNCTION_LINES = 500, 250, 50
NEVER = {"server": "client"}  # beside what floors say: they meet over messages alone
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
FILES = {str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.glob("*/*.py"))}


def test_every_room_has_a_floor() -> None:
    assert {name.split("/")[0] for name in FILES} == set(FLOOR)


@pytest.mark.parametrize("name", FILES)
def test_a_file_imports_only_from_its_room_and_from_floors_below(name: str) -> None:
    own = name.split("/")[0]
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        module = node.module or "" if isinstance(node, ast.ImportFrom) else ""
        package, _, rest = module.partition(".")
        if package == "federated_yolo":
            room = rest.partition(".")[0]  # empty for the package itself, which imports the rooms
            assert room == own or FLOOR.get(room, 99) < FLOOR[own], f"{own} imports {room}"
            assert room != NEVER.get(own)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_files_classes_and_functions_are_short(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= FILE_LINES
    long = {
        f"{node.name}: {num_lines} lines"
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        and (num_lines := (node.end_lineno or 0) - node.lineno + 1)
        > (CLASS_LINES if isinstance(node, ast.ClassDef) else FUNCTION_LINES)
    }
    assert not long
