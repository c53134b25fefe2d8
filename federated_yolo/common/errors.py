"""Errors that a command turns into lines and an exit code."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user can fix.

    Attributes:
        problems: A line for each problem, which says where it is, what was found there, what is
            expected, and what to do next.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def nearest(word: str, words: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or nothing when no word is near."""
    matches = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""


class AbortedError(Exception):
    """Raise it in a hook of a client to leave this client out of the round.

    Its text is the reason, which is noted in clients.csv. The server goes on with the other
    clients and asks this one again in the next round.
    """


class LostWorkerError(RuntimeError):
    """Earlier attempts at this message ended with their worker."""


class FederationError(RuntimeError):
    """The run cannot go on, such as when too few clients answer or the disk is full.

    Its finished rounds are on disk and can be used, and the run can be resumed.
    """
