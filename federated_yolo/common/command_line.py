"""What the commands have in common: wrong usage and wrong input are one line each."""

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn

from federated_yolo.common.errors import InputError


class Parser(argparse.ArgumentParser):
    """Reports wrong usage as any other wrong input. Raises InputError."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise InputError(f"{message}; see --help")


def parser_of(command: str, text: str | None, *, allow_abbrev: bool = True) -> Parser:
    """A parser of a command, such as "export", whose --help shows this text.

    Where the text has `federated-yolo COMMAND`, it shows what the user has typed.
    allow_abbrev: as of argparse; false where an option is looked for in full before.
    """
    called = called_as(command)
    return Parser(
        prog=called,
        description=(text or "").replace(f"federated-yolo {command}", called),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=allow_abbrev,
    )


def called_as(command: str = "") -> str:
    """How the user calls a command, or without one the program: installed, or in the clone."""
    script = Path(sys.argv[0])
    if script.parent.name == "utils":
        return f"python utils/{script.name}"
    programs = {"federated.py": "python federated.py", "__main__.py": "python -m federated_yolo"}
    return f"{programs.get(script.name, 'federated-yolo')} {command}".rstrip()


def show_problems(problems: Iterable[str]) -> None:
    """Print one line on stderr for each problem."""
    for problem in problems:
        print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr)


def failed(problems: Iterable[str], exit_code: int) -> int:
    """Show problems, and return the exit code that goes with them."""
    show_problems(problems)
    return exit_code
