"""Results of rounds and runs, when a run is done, and the interface for showing a run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ultralytics.utils.torch_utils import EarlyStopping

from federated_yolo.common.text import counted
from federated_yolo.config.schema import Config

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


def is_done(config: Config, rounds: Sequence[RoundResult]) -> bool:
    """Whether no round is left to run: all are complete, or `patience` has ended the run."""
    return len(rounds) >= config.num_rounds or bool(early_end(config, rounds))


def early_end(config: Config, rounds: Sequence[RoundResult]) -> str:
    """Return why `patience` ends the run after these rounds; empty if it does not.

    The rule is Ultralytics' own: an equal score is no better one, and nothing is waited for while
    all scores are 0. A last round without a score ends nothing.
    """
    if not config.patience or not rounds or rounds[-1].score is None:
        return ""
    last = rounds[-1].round
    stopping = EarlyStopping(patience=0)  # with 0 it only counts; otherwise it writes to the log
    for result in rounds:
        stopping(result.round, result.score)
    waited = last - stopping.best_epoch
    if waited < config.patience or last >= config.num_rounds:
        return ""
    return (
        f"no better score than round {stopping.best_epoch}'s in the last {counted(waited, 'round')}"
    )


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
