"""`patience` ends a run, and a larger one goes on with it as if it had never ended."""

import json
import shutil
from collections.abc import Callable, Iterator
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
from federated_yolo.server import server as server_module
from federated_yolo.server.results import RoundResult, RunResult
from federated_yolo.server.round_tables import RoundOutcome
from federated_yolo.storage.run_dir import RunDir, read_csv

SCORES = (0.5, 0.4, 0.6)  # of patience 1 it is the end after round 2, of 2 it is not
FINAL = ("test.csv", "cross_client.csv", "predictions.jpg", "server/finished")
REASON = "no better score than round 1's in the last 1 round"

Start = Callable[..., tuple[RunResult, LocalGrid, Silent]]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    return add_test_split(make_dataset(folder / "c0", num_train=2, num_val=2), 1)


@pytest.fixture(scope="module")
def start(data: Path) -> Iterator[Start]:
    """Starts or resumes a run whose rounds have these scores, whatever their models score."""
    summarise = server_module.summarise

    def with_score(outcome: RoundOutcome, **settings: Any) -> RoundResult:
        result = summarise(outcome, **settings)
        score = SCORES[outcome.round - 1]
        return replace(result, score=score, row={**result.row, "fitness": score})

    def start(folder: Path, display: Silent | None = None, **settings: Any) -> Any:
        grid, display = LocalGrid(1), display or Silent()
        result = federation(
            [data],
            folder,
            TRAIN,
            grid=grid,
            display=display,
            num_rounds=len(SCORES),
            evaluate={"every": 1, "cross_client": True},
            **settings,
        )
        return result, grid, display

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(server_module, "summarise", with_score)
        yield start


@pytest.fixture(scope="module")
def ended(start: Start, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LocalGrid, Silent]:
    """The folder of a run that patience has ended, and what it has sent and said."""
    folder = tmp_path_factory.mktemp("ended")
    result, grid, display = start(folder, patience=1)
    (result.run_dir / "predictions.jpg").touch()  # as if it had images to draw
    return folder, grid, display


@pytest.fixture
def folder(ended: tuple[Path, LocalGrid, Silent], tmp_path: Path) -> Path:
    """A copy of the folder of that run."""
    return Path(shutil.copytree(ended[0], tmp_path / "copy"))


def trained(grid: LocalGrid) -> list[int]:
    """The rounds in which the client was asked to train."""
    asked = [m for m in grid.sent if m.metadata.message_type == "train"]
    return [int(m.content.config_records["config"]["server-round"]) for m in asked]  # type: ignore[arg-type]


def description(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "run.json").read_text())


def final_files(folder: Path) -> list[str]:
    return [name for name in FINAL if (folder / "run" / name).exists()]


def test_a_run_ends_with_all_that_an_end_leaves(
    ended: tuple[Path, LocalGrid, Silent],
) -> None:
    folder, grid, display = ended
    assert trained(grid) == [1, 2]
    (told,) = (notice for notice in display.notices if "patience" in notice)
    assert told.startswith(
        f"{REASON}: the run ends after round 2 of 3 (patience 1); best.pt is of round 1. resume="
    )
    assert description(folder)["ended_early"] == REASON
    assert final_files(folder) == list(FINAL)
    assert {row["round"] for row in read_csv(folder / "run" / "test.csv")} == {"1", "2"}


def test_a_larger_patience_goes_on_as_if_the_run_had_had_it_from_the_start(
    start: Start, folder: Path, tmp_path: Path
) -> None:
    whole, grid, _ = start(tmp_path / "whole", patience=2)
    assert trained(grid) == [1, 2, 3]
    resumed, grid, _ = start(folder, patience=2, resume=True)
    assert trained(grid) == [3]
    assert resumed.best is not None
    assert resumed.best.round == 3
    found = outcome(resumed.run_dir)
    assert {row["round"] for row in found["test.csv"]} == {"3"}
    assert_same(found, outcome(whole.run_dir))
    assert "ended_early" not in description(folder)


def test_a_run_killed_before_its_final_steps_does_them_and_trains_no_further_round(
    start: Start, folder: Path
) -> None:
    for name in FINAL[:2] + FINAL[3:]:
        (folder / "run" / name).unlink()
    RunDir(folder / "run").note_end("")
    resumed, grid, _ = start(folder, patience=1, resume=True)
    assert trained(grid) == []
    assert len(resumed.rounds) == 2
    assert final_files(folder) == list(FINAL)
    assert description(folder)["ended_early"] == REASON


def test_a_run_that_goes_on_has_no_final_scores_until_it_ends(start: Start, folder: Path) -> None:
    class Stopping(Silent):
        def step(self, round_number: int, step: str, clients: list[str]) -> None:
            if step == "train":
                raise FederationError("stopped")

    with pytest.raises(FederationError, match="stopped"):
        start(folder, Stopping(), patience=None, resume=True)
    assert not final_files(folder)
    assert "ended_early" not in description(folder)
    # A smaller patience than that ends it where it is.
    _, grid, _ = start(folder, patience=1, resume=True)
    assert trained(grid) == []
    assert final_files(folder) == ["test.csv", "cross_client.csv", "server/finished"]
    assert description(folder)["ended_early"] == REASON


def test_patience_without_scores_is_refused(data: Path, tmp_path: Path) -> None:
    config = Config.model_validate(
        {
            "base_model": "yolov8n.yaml",
            "datasets": [str(data)],
            "save_dir": str(tmp_path),
            "patience": 3,
            "evaluate": {"every": 0},
        }
    )
    expected = "patience: found 3, but with evaluate.every 0 no round has a score; set every to 1"
    with pytest.raises(InputError, match=expected), checked(config):
        pass
