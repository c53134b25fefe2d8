"""Errors that a command turns into lines and an exit code."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user can fix. `problems` has one line for each: where, found, expected."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no word is near."""
    matches = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""


class AbortedError(Exception):
    """A client takes no part in this round, for the reason that is the text; raise it in a hook."""


class LostWorkerError(RuntimeError):
    """Earlier attempts at this message ended with their worker."""


class FederationError(RuntimeError):
    """The run cannot go on; what is on disk stays usable."""
