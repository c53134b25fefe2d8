"""Resumes a stopped run: each part of a server loads its state from after the last round."""

from pathlib import Path

from federated_yolo.aggregation.aggregator import Aggregation
from federated_yolo.aggregation.privacy import SPENT, ServerPrivacy
from federated_yolo.client.kept_arrays import missing_state
from federated_yolo.common.arrays import checksum
from federated_yolo.common.errors import InputError
from federated_yolo.protocol.instructions import Instructions
from federated_yolo.server.broadcast import Broadcast
from federated_yolo.server.global_model import GlobalModel
from federated_yolo.server.registry import ClientRegistry
from federated_yolo.server.results import RoundResult, result_of
from federated_yolo.storage.run_dir import RESULTS, RunDir
from federated_yolo.yolo.passes import slice_number


def take_up(
    run_dir: RunDir,
    base_model: str,
    instructions: Instructions,
    *,
    model: GlobalModel,
    registry: ClientRegistry,
    aggregation: Aggregation,
    broadcast: Broadcast | None,
    privacy: ServerPrivacy | None,
) -> list[RoundResult]:
    """Restore each part as it was after the last complete round; return the rounds so far.

    Raises InputError if the run directory does not fit this federation, or is damaged.
    """
    try:
        _check_start(run_dir, base_model, model)
        last = run_dir.last_round()
        parts = instructions.averages_per_round
        registry.trained = {  # of a round, it may have trained the first slice alone
            row["client"]: slice_number(int(row["round"]), 1, parts)
            for row in run_dir.rows("clients.csv")
            if row.get("num_examples")
        }
        if not registry.has_sites:  # a site keeps its own state, and reports it if it is lost
            _check_states(run_dir, instructions, registry.trained, last * parts)
        if last:
            model.load(last)
            if aggregation.has_state:
                aggregation.restore(run_dir.load_state("strategy", last))
            if broadcast:
                broadcast.restore(run_dir.load_state("downloads", last), model.arrays)
        _restore_privacy(privacy, run_dir.server / SPENT, last)
    except ValueError as error:
        raise InputError(f"resume: {error}") from error
    return [result_of(row) for row in run_dir.rows(RESULTS)]


def _check_start(run_dir: RunDir, base_model: str, model: GlobalModel) -> None:
    """Raise ValueError if the run began from other arrays than the base model gives now."""
    path = run_dir.round_path(0)
    if path.exists() and checksum(run_dir.load_round(0, model.layout)) != checksum(model.arrays):
        raise ValueError(
            f"{path}: the run began from other weights than base_model '{base_model}' gives now; "
            "put back what it was"
        )


def _check_states(
    run_dir: RunDir, instructions: Instructions, trained: dict[str, int], last: int
) -> None:
    """Raise ValueError if a client that has trained lacks the state that it would continue from."""
    for name, number in trained.items():
        missing = missing_state(run_dir.client_dir(name), instructions, number, last)
        if missing:
            raise ValueError(
                f"{missing}: no such file, so client '{name}' cannot go on where it was; put "
                "it back, or start a new run from weights/last.pt"
            )


def _restore_privacy(privacy: ServerPrivacy | None, spent: Path, last: int) -> None:
    if privacy:
        privacy.restore(last)
    elif spent.exists():
        raise ValueError(
            f"{spent}: the rounds before had differential privacy, found privacy.mode "
            "none; set it to what it was, or start a new run"
        )
