"""What rounds and runs gave, and how a run is shown."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Whole numbers in results.csv.
COUNTS = ("round", "epoch", "num_clients", "num_examples", "download_bytes", "upload_bytes")


@dataclass(frozen=True)
class RoundResult:
    """What one round gave.

    score: the number that best.pt goes by, None if the round was not evaluated.
    row: the round's row of results.csv.
    """

    round: int
    score: float | None
    row: Mapping[str, object]


@dataclass(frozen=True)
class RunResult:
    """What a run gave: rounds in order, the best of them (None without evaluation)."""

    run_dir: Path
    rounds: list[RoundResult]
    best: RoundResult | None


class Display(Protocol):
    """Shows a run while it goes on; see runtime/terminal.py."""

    def step(self, round_number: int, step: str, clients: list[str]) -> None:
        """A step of a round starts: clients are about to "train" or "evaluate"."""
        ...

    def client_done(self, name: str, text: str) -> None:
        """A client has answered."""
        ...

    def client_failed(self, name: str, reason: str) -> None:
        """A client has failed or its answer was refused."""
        ...

    def notice(self, text: str) -> None:
        """Something happened that a user should know of."""
        ...

    def round_done(self, result: RoundResult) -> None:
        """A round is complete and on disk."""
        ...


def result_of(row: Mapping[str, str]) -> RoundResult:
    """The result of a round from its row in results.csv."""
    values = {
        name: int(text) if name in COUNTS else float(text) for name, text in row.items() if text
    }
    return RoundResult(int(values["round"]), values.get("fitness"), values)
