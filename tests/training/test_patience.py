"""`patience` ends a run, and a larger one goes on with it as if it had never ended."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluated import add_test_split
from local_grid import LocalGrid
from recipes import assert_same, make_dataset, outcome
from trainings import TRAIN, Silent, federation

from federated_yolo.checks.federation import checked
from federated_yolo.common.errors import FederationError, InputError
from federated_yolo.config.schema import Config
from federated_yolo.server import final_evaluation
from federated_yolo.server import server as server_module
from federated_yolo.server.results import RoundResult, RunResult
from federated_yolo.server.round_tables import RoundOutcome
from federated_yolo.storage.run_dir import read_csv

SCORES = (0.5, 0.4, 0.3, 0.6, 0.2)  # of patience 2 it is the end after round 3, of 3 it is not
FINAL = ("test.csv", "cross_client.csv", "predictions.jpg", "server/finished")

Start = Callable[..., tuple[RunResult, LocalGrid, Silent]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("data")
    return [
        add_test_split(make_dataset(folder / "c0", num_train=2, num_val=2), 1),
        make_dataset(folder / "held_out", num_train=1, num_val=2, seed=1),
    ]


@pytest.fixture
def start(data: list[Path], monkeypatch: pytest.MonkeyPatch) -> Start:
    """Starts or resumes a run whose rounds have these scores, whatever their models score."""
    summarise = server_module.summarise

    def with_score(outcome: RoundOutcome, **settings: Any) -> RoundResult:
        result = summarise(outcome, **settings)
        score = SCORES[outcome.round - 1]
        return replace(result, score=score, row={**result.row, "fitness": score})

    monkeypatch.setattr(server_module, "summarise", with_score)

    def start(folder: Path, *, resume: bool = False, **settings: Any) -> Any:
        grid, display = LocalGrid(1), settings.pop("display", Silent())
        result = federation(
            data[:1],
            folder,
            TRAIN,
            grid=grid,
            display=display,
            resume=resume,
            num_rounds=len(SCORES),
            evaluate={"every": 1, "cross_client": True, "data": str(data[1])},
            **settings,
        )
        return result, grid, display

    return start


def trained(grid: LocalGrid) -> list[int]:
    """The rounds in which the client was asked to train."""
    asked = [m for m in grid.sent if m.metadata.message_type == "train"]
    return [int(m.content.config_records["config"]["server-round"]) for m in asked]  # type: ignore[arg-type]


def description(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "run.json").read_text())


def test_a_larger_patience_goes_on_as_if_the_run_had_had_it_from_the_start(
    start: Start, tmp_path: Path
) -> None:
    whole, grid, _ = start(tmp_path / "whole", patience=3)
    assert trained(grid) == [1, 2, 3, 4, 5]
    ended, grid, display = start(tmp_path / "ended", patience=2)
    assert trained(grid) == [1, 2, 3]
    assert ended.best is not None
    assert ended.best.round == 1
    (told,) = (notice for notice in display.notices if "patience" in notice)
    reason = "no better score than round 1's in the last 2 rounds"
    assert told.startswith(f"{reason}: the run ends after round 3 of 5 (patience 2); best.pt is of")
    assert description(tmp_path / "ended")["ended_early"] == reason
    assert all((ended.run_dir / name).exists() for name in FINAL)
    assert {row["round"] for row in read_csv(ended.run_dir / "test.csv")} == {"1", "3"}

    again, grid, _ = start(tmp_path / "ended", patience=2, resume=True)
    assert trained(grid) == []
    assert len(again.rounds) == 3

    resumed, grid, _ = start(tmp_path / "ended", patience=3, resume=True)
    assert trained(grid) == [4, 5]
    assert resumed.best is not None
    assert resumed.best.round == 4
    found = outcome(resumed.run_dir)
    assert {row["round"] for row in found["test.csv"]} == {"4", "5"}
    assert_same(found, outcome(whole.run_dir))
    assert "ended_early" not in description(tmp_path / "ended")


def test_a_run_stopped_after_its_end_trains_no_further_round(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: Any) -> None:
        raise FederationError("stopped")

    with monkeypatch.context() as patched:
        patched.setattr(final_evaluation, "evaluate_on_test", stopped)
        with pytest.raises(FederationError, match="stopped"):
            start(tmp_path, patience=2)
    resumed, grid, _ = start(tmp_path, patience=2, resume=True)
    assert trained(grid) == []
    assert len(resumed.rounds) == 3
    assert all((resumed.run_dir / name).exists() for name in FINAL)


def test_a_run_that_goes_on_has_no_final_scores_until_it_ends(start: Start, tmp_path: Path) -> None:
    class Stopping(Silent):
        def step(self, round_number: int, step: str, clients: list[str]) -> None:
            if step == "train":
                raise FederationError("stopped")

    start(tmp_path, patience=1)
    with pytest.raises(FederationError, match="stopped"):
        start(tmp_path, patience=None, resume=True, display=Stopping())
    assert not [name for name in FINAL if (tmp_path / "run" / name).exists()]
    assert "ended_early" not in description(tmp_path)
    # A smaller one than that ends it where it is, with all that an end leaves.
    resumed, grid, _ = start(tmp_path, patience=1, resume=True)
    assert trained(grid) == []
    assert len(resumed.rounds) == 2
    assert all((resumed.run_dir / name).exists() for name in FINAL)
    assert description(tmp_path)["ended_early"].endswith("in the last 1 round")


def test_patience_without_scores_is_refused(data: list[Path], tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "base_model": "yolov8n.yaml",
            "datasets": [str(data[0])],
            "save_dir": str(tmp_path),
            "patience": 3,
            "evaluate": {"every": 0},
        }
    )
    expected = "patience: found 3, but with evaluate.every 0 no round has a score; set every to 1"
    with pytest.raises(InputError, match=expected), checked(config):
        pass
