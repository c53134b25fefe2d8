"""Errors that a command reports as lines of text and an exit code."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A problem that the user can fix.

    Attributes:
        problems: One line for each problem: where it is, what was found there, what is expected,
            and what to do next.
    """

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `; did you mean 'x'?`, or an empty text if no word is similar."""
    matches = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean '{matches[0]}'?" if matches else ""


class AbortedError(Exception):
    """Raise this error in a hook of a client to leave this client out of the round.

    Its text is the reason, which is recorded in clients.csv. The server continues with the other
    clients and asks this one again in the next round.
    """


class LostWorkerError(RuntimeError):
    """Earlier attempts at this message took too long, or their workers died too often."""


class FederationError(RuntimeError):
    """The run cannot continue, for example because too few clients answer or the disk is full.

    Its finished rounds are on disk and can be used, and the run can be resumed.
    """
