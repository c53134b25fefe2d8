"""Helpers that all commands share: the parser, and one line for each problem in the input."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from federated_yolo.common.errors import InputError


class Parser(argparse.ArgumentParser):
    """Argument parser that raises InputError for wrong usage, as for any other wrong input."""

    def error(self, message: str) -> NoReturn:
        """Raise InputError; argparse calls this for wrong usage."""
        raise InputError(f"{message}; see --help")


def parser_of(command: str, text: str | None, *, allow_abbrev: bool = True) -> Parser:
    """Return the parser of a command, such as "export", whose --help shows this text.

    `federated-yolo COMMAND` in the text is replaced by what the user typed.
    allow_abbrev: Argparse's setting; false if the arguments were searched for an option's full
    name before.
    """
    called = called_as(command)
    return Parser(
        prog=called,
        description=(text or "").replace(f"federated-yolo {command}", called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=allow_abbrev,
    )


def called_as(command: str = "") -> str:
    """Return how the user called a command, or the program: installed or in the clone."""
    script = Path(sys.argv[0])
    if script.parent.name == "utils":
        return f"python utils/{script.name}"
    programs = {"federated.py": "python federated.py", "__main__.py": "python -m federated_yolo"}
    return f"{programs.get(script.name, 'federated-yolo')} {command}".rstrip()


def show_problems(problems: Iterable[str]) -> None:
    """Print one line to stderr for each problem."""
    for problem in problems:
        print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr)


def failed(problems: Iterable[str], exit_code: int) -> int:
    """Print problems and return the given exit code."""
    show_problems(problems)
    return exit_code
