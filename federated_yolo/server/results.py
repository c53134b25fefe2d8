"""Results of rounds and runs, and the interface for showing a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Whole numbers in results.csv.
COUNTS = ("round", "epoch", "num_clients", "num_examples", "download_bytes", "upload_bytes")


@dataclass(frozen=True)
class RoundResult:
    """Result of one round.

    score: Score that decides which round is in best.pt, None if the round was not evaluated.
    row: The round's row of results.csv.
    """

    round: int
    score: float | None
    row: Mapping[str, object]


@dataclass(frozen=True)
class RunResult:
    """Result of a run: rounds in order, and the best of them (None without evaluation)."""

    run_dir: Path
    rounds: list[RoundResult]
    best: RoundResult | None


class Display(Protocol):
    """Shows a run while it is in progress; see runtime/terminal.py."""

    def step(self, round_number: int, step: str, clients: list[str]) -> None:
        """Show that a step of a round starts: clients are about to "train" or "evaluate"."""
        ...

    def client_done(self, name: str, text: str) -> None:
        """Show that a client has replied."""
        ...

    def client_failed(self, name: str, reason: str) -> None:
        """Show that a client has failed or that its reply was refused."""
        ...

    def notice(self, text: str) -> None:
        """Show something that a user should know."""
        ...

    def round_done(self, result: RoundResult) -> None:
        """Show that a round is complete and on disk."""
        ...


def result_of(row: Mapping[str, str]) -> RoundResult:
    """Return the result of a round from its row in results.csv."""
    values = {
        name: int(text) if name in COUNTS else float(text) for name, text in row.items() if text
    }
    return RoundResult(int(values["round"]), values.get("fitness"), values)
