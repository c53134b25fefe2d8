"""Wrong and hostile input is refused: exit code 2, one clear line each, no code run."""

from pathlib import Path

import pytest
from hostile import command, verdict
from hostile_recipes import CASES, EXPORT
from processes import finished

from federated_yolo import cli
from federated_yolo.common.command_line import show_problems
from federated_yolo.common.errors import InputError
from federated_yolo.yolo import export_command

REAL_PROCESSES = (  # a few as the user's own commands; benchmarks/faults.py does it for all
    "config: a python object",
    "checkpoint: code in an archive",
    "model: code in a model YAML",
    "round: pickled arrays with code",
    "data: a pickle for a label cache",
    "data: a FIFO for a label",
    "run: a class with code",
    "run: trust in a checkpoint with code",
)


def federated_here(arguments: list[str]) -> int:
    """`cli.main` in the environment that the tests have prepared."""
    try:
        return cli.run(cli.parse(arguments))
    except InputError as error:
        show_problems(error.problems)
        return 2


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script, *arguments = CASES[name](tmp_path)
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    if script == EXPORT:
        code = export_command.main(arguments)
    else:
        code = federated_here(arguments)
    shown = capsys.readouterr()
    assert verdict(tmp_path, code, shown.out, shown.err) == "", shown.err


@pytest.mark.parametrize("name", REAL_PROCESSES)
def test_it_is_refused_by_the_command(name: str, tmp_path: Path) -> None:
    done = finished(command(name, tmp_path), cwd=tmp_path)
    assert verdict(tmp_path, done.returncode, done.stdout, done.stderr) == "", done.stderr


def test_there_are_enough_of_them() -> None:
    assert len(CASES) >= 60
