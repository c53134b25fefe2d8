"""What the commands have in common: wrong usage and wrong input are one line each."""

import argparse
import sys
from collections.abc import Iterable
from typing import NoReturn

from utils.config import InputError


class Parser(argparse.ArgumentParser):
    """Reports wrong usage as any other wrong input. Raises InputError."""

    def error(self, message: str) -> NoReturn:
        """Called by argparse."""
        raise InputError(f"{message}; see --help")


def show_problems(problems: Iterable[str]) -> None:
    """Print one line on stderr for each problem."""
    for problem in problems:
        print(f"error: {' '.join(problem.splitlines())}", file=sys.stderr)
