"""The rooms of the package import one way only: each only from floors below its own."""

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
)
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


LARGEST = {ast.FunctionDef: 50, ast.AsyncFunctionDef: 50, ast.ClassDef: 250}  # lines


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=str)
def test_a_function_fits_a_screen_and_a_file_is_read_in_one_sitting(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) <= 500
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < LARGEST[type(node)], node.name
