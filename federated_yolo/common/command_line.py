"""Helpers that all commands share: the parser, and one line for each problem in the input."""

import argparse
import os
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NoReturn

from federated_yolo.common.errors import FederationError, InputError

# The scripts in utils/ by the command that each of them starts.
SCRIPTS = {
    "certificates": "make_certificates.py",
    "export": "export_federated.py",
    "partition": "partition.py",
    "report": "report.py",
}


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
    """Return how to call a command, or the program, in the way in which the user called this one.

    That is the installed program, or the script of the clone, with its path as the user typed it.
    """
    script = Path(sys.argv[0])
    if script.name == "__main__.py" and script.parent.name == "federated_yolo":
        return f"python -m federated_yolo {command}".rstrip()
    if script.absolute().parent.name == "utils" and script.name in SCRIPTS.values():
        if script.name == SCRIPTS.get(command):
            return f"python {shlex.quote(str(script))}"
        script = Path(os.path.relpath(script.absolute().parents[1] / "federated.py"))
    if script.name == "federated.py":
        return f"python {shlex.quote(str(script))} {command}".rstrip()
    return f"federated-yolo {command}".rstrip()


def beside_python(name: str) -> str:
    """Return a program's name, or its path if this Python's environment is not activated."""
    beside = Path(sys.executable).with_name(name)
    found = shutil.which(name)
    if (found and Path(found) == beside) or not beside.exists():
        return name
    return shlex.quote(str(inside(beside)))


def inside(path: Path) -> Path:
    """Return a path relative to the working directory if it leads into it."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def shipped_config(name: str) -> Path:
    """Return the path of a config of this project: in an installed package, or beside a clone's."""
    package = Path(__file__).resolve().parents[1]
    inside = package / "configs" / name
    return inside if inside.is_file() else package.parent / "configs" / name


def install_hint(extra: str = "") -> str:
    """Return the command that installs this package with an extra, such as "onnx".

    A clone has constraints.txt beside the package; an installation and Flower's bundle do not.
    """
    extras = f"[{extra}]" if extra else ""
    clone = Path(__file__).resolve().parents[2]
    if not (clone / "constraints.txt").is_file():
        return f'pip install "federated-yolo{extras}"' if extra else "pip install federated-yolo"
    target = "." if Path.cwd() == clone else str(clone)
    return f'pip install -e "{target}{extras}"' if extra else f"pip install -e {target}"


def show_problems(problems: Iterable[str]) -> None:
    """Print one line to stderr for each problem."""
    for problem in problems:
        print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr)


def failed(problems: Iterable[str], exit_code: int) -> int:
    """Print problems and return the given exit code."""
    show_problems(problems)
    return exit_code


def answer(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> int:
    """Run the `function` that the parser chooses, and return its exit code, or that of its error.

    The function takes the parsed arguments. Wrong input is 2, any other failure 1.
    """
    try:
        options = parser.parse_args(arguments)
        return options.function(options)
    except InputError as error:
        return failed(error.problems, 2)
    except FederationError as error:
        return failed([str(error)], 1)
    except OSError as error:
        return failed([f"{error.filename or 'writing'}: {error.strerror or error}"], 1)
