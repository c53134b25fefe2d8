"""A user's subclass of YoloClient, named in the config, and what a client remembers."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from local_grid import LocalGrid
from recipes import make_dataset
from trainings import TRAIN, Silent, assert_identical, federation, final_arrays

from federated_yolo.client.history import recall
from federated_yolo.common.errors import FederationError, InputError
from federated_yolo.storage.run_dir import read_csv

NOTING = """
from dataclasses import replace
from pathlib import Path
from federated_yolo import AbortedError
from federated_yolo import YoloClient

LOG = Path(__file__).with_suffix(".log")


def note(text):
    with LOG.open("a") as file:
        file.write(text + "\\n")


class Noting(YoloClient):
    def prepare(self):
        note(f"{self.name} prepare")

    def train(self, round_number, arrays, config):
        note(f"{self.name} train {round_number} {len(self.history('train').get('round', []))}")
        return super().train(round_number, arrays, config)

    def evaluate(self, parameters, config):
        note(f"{self.name} evaluate {config['server-round']}")
        return super().evaluate(parameters, config)

    def finish(self):
        note(f"{self.name} finish {self.history('evaluate')['round']}")


class Absent(YoloClient):
    def train(self, round_number, arrays, config):
        if self.name == "c1" and round_number == 2:
            raise AbortedError("the ward is closed today")
        return super().train(round_number, arrays, config)


class Interrupted(YoloClient):
    event = "on_train_batch_start"

    def prepare(self):
        self.add_callback(self.event, self.stop)

    def stop(self, trainer):
        if self.name == "c1" and trainer.epoch == 1:
            note(f"{trainer.num_steps} steps")
            self.abort("asked to stop")


class InterruptedAtTheEnd(Interrupted):
    event = "on_train_epoch_end"


class Regretful(YoloClient):
    def train(self, round_number, arrays, config):
        result = super().train(round_number, arrays, config)
        if self.name == "c1" and round_number == 2:
            raise AbortedError("asked to stop")
        return result


class Careless(YoloClient):
    def train(self, round_number, arrays, config):
        for array in arrays.values():
            array *= 0.9
        return super().train(round_number, arrays, config)


class Own(YoloClient):
    def train(self, round_number, arrays, config):
        older = {name: array * 0 if "num_batches" in name else array
                 for name, array in arrays.items()}
        result = super().train(round_number, older, config)
        losses = {**result.losses, "my/loss": -1e20}
        return replace(result, num_examples=1, losses=losses)

    def evaluate(self, parameters, config):
        loss, num_examples, metrics = super().evaluate(parameters, config)
        return loss, num_examples, {**metrics, "fitness": 0.25, "my/number": 1e20}


class Unready(YoloClient):
    def prepare(self):
        raise ValueError("no disk is mounted")


class Forgetful(YoloClient):
    def train(self, round_number, arrays, config):
        super().train(round_number, arrays, config)


class Brief(YoloClient):
    def evaluate(self, parameters, config):
        return 0.5


class Narrow(YoloClient):
    def train(self, round_number, arrays):
        return super().train(round_number, arrays, {})


class Ending(YoloClient):
    def prepare(self):
        raise SystemExit("enough")


class Cancelled(YoloClient):
    def prepare(self):
        raise KeyboardInterrupt("enough")
"""


@pytest.fixture
def hooks(tmp_path: Path) -> Path:
    path = tmp_path / "hooks.py"
    path.write_text(NOTING)
    return path


def two_datasets(folder: Path) -> list[Path]:
    return [make_dataset(folder / name, 4, 2, seed=i) for i, name in enumerate("ab")]


def run(folder: Path, name: str, client: str | None, **settings: Any) -> Any:
    data = [folder / d / "data.yaml" for d in "ab"]
    return federation(data, folder / name, TRAIN, client=client, **settings)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """The run of a class that stops c1 in round 2, made once for each class."""

    @cache
    def made(name: str) -> Any:
        folder = tmp_path_factory.mktemp(name)
        two_datasets(folder)
        (folder / "hooks.py").write_text(NOTING)
        settings = {"shared": {"batchnorm": "local"}, "evaluate": {"every": 1}}
        return run(folder, "run", f"{folder / 'hooks.py'}:{name}", **settings)

    return made


def test_hooks_are_called_in_their_order_and_the_model_is_the_same(
    hooks: Path, tmp_path: Path
) -> None:
    two_datasets(tmp_path)
    settings = {"num_rounds": 2, "evaluate": {"every": 1}}
    result = run(tmp_path, "hooked", f"{hooks}:Noting", **settings)
    lines = hooks.with_suffix(".log").read_text().splitlines()
    assert [line for line in lines if line.startswith("c1")] == [
        "c1 prepare",
        "c1 train 1 0",
        "c1 evaluate 1",
        "c1 train 2 1",
        "c1 evaluate 2",
        "c1 finish [1.0, 2.0]",
    ]
    plain = run(tmp_path, "plain", None, **settings)
    assert_identical(final_arrays(result), final_arrays(plain))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Absent", "the ward is closed today"),
        ("Interrupted", "asked to stop"),
        ("InterruptedAtTheEnd", "asked to stop"),
    ],
)
def test_a_client_that_aborts_is_left_out_of_the_round_with_its_reason_alone(
    name: str, reason: str, stopped: Callable[[str], Any]
) -> None:
    result = stopped(name)
    rows = read_csv(result.run_dir / "clients.csv")
    notes = {(row["round"], row["client"]): row["note"] for row in rows if row["note"]}
    assert notes == {("2", "c1"): reason}
    trained = {(row["round"], row["client"]) for row in rows if row["train/box_loss"]}
    assert trained == {("1", "c0"), ("1", "c1"), ("2", "c0"), ("3", "c0"), ("3", "c1")}
    assert not (result.run_dir / "clients" / "c1" / "error.txt").exists()


def test_a_class_of_ones_own_counts_starts_and_scores_as_it_likes(
    hooks: Path, tmp_path: Path
) -> None:
    two_datasets(tmp_path)
    display, evaluate = Silent(), {"every": 1}
    run(
        tmp_path,
        "run",
        f"{hooks}:Own",
        num_rounds=2,
        display=display,
        evaluate=evaluate,
        strategy="qfedavg",
    )
    assert not display.failures
    rows = read_csv(tmp_path / "run" / "run" / "clients.csv")
    assert [row["num_examples"] for row in rows] == ["1"] * 4
    assert [float(row["fitness"]) for row in rows] == [0.25] * 4
    assert [float(row["my/loss"]) for row in rows] == [-1e20] * 4


def test_an_abort_ends_the_round_after_the_batch_in_hand(stopped: Callable[[str], Any]) -> None:
    log = stopped("Interrupted").run_dir.parents[1] / "hooks.log"
    assert log.read_text() == "0 steps\n"  # before the first of two batches


@pytest.mark.parametrize("name", ["Interrupted", "InterruptedAtTheEnd", "Regretful"])
def test_a_round_that_was_aborted_leaves_the_client_as_after_the_one_before(
    name: str, stopped: Callable[[str], Any]
) -> None:
    """Aborting in the first batch, after the last or after all comes to the same as being away."""
    absent, aborted = stopped("Absent"), stopped(name)
    assert_identical(final_arrays(aborted), final_arrays(absent))
    scores = [
        [row["metrics/precision(B)"] for row in read_csv(result.run_dir / "clients.csv")]
        for result in (aborted, absent)
    ]
    assert scores[0] == scores[1]


@pytest.mark.parametrize("codec", ["none", "topk"])
def test_what_was_received_cannot_be_changed_by_a_hook(
    codec: str, hooks: Path, tmp_path: Path
) -> None:
    """Replies are computed as a difference from it."""
    two_datasets(tmp_path)
    with pytest.raises(FederationError, match="0 of 2 clients"):
        run(tmp_path, "run", f"{hooks}:Careless", codec=codec, num_rounds=1)
    (*_, last) = read_csv(tmp_path / "run" / "run" / "clients.csv")
    assert "read-only" in last["note"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("Unready", "ValueError: no disk is mounted"),
        (
            "Forgetful",
            "TypeError: Forgetful.train returned NoneType, expected the SliceResult of "
            "super().train(...)",
        ),
        ("Ending", "SystemExit: enough"),
        ("Cancelled", "KeyboardInterrupt: enough"),
    ],
)
def test_an_error_in_a_hook_is_told_as_any_other(
    name: str, reason: str, hooks: Path, tmp_path: Path
) -> None:
    two_datasets(tmp_path)
    with pytest.raises(FederationError, match="0 of 2 clients returned a usable update"):
        run(tmp_path, "run", f"{hooks}:{name}")
    (*_, last) = read_csv(tmp_path / "run" / "run" / "clients.csv")
    assert last["note"] == reason


def test_a_wrong_score_of_a_hook_is_told_and_costs_no_update(hooks: Path, tmp_path: Path) -> None:
    two_datasets(tmp_path)
    result = run(tmp_path, "run", f"{hooks}:Brief", evaluate={"every": 1}, num_rounds=1)
    (first, _) = read_csv(result.run_dir / "clients.csv")
    assert first["note"].startswith("TypeError: Brief.evaluate returned float, expected the loss")
    assert result.rounds[0].row["num_clients"] == 2


@pytest.mark.parametrize(
    ("client", "message"),
    [
        ("nowhere.py:Noting", r"expected FILE.py:CLASS, with a file in the working"),
        ("Noting", r"expected FILE.py:CLASS, with a file in the working"),
        ("{hooks}:Notign", r"'Notign' is not a subclass of YoloClient .* did you mean 'Noting'"),
        (
            "{hooks}:Narrow",
            r"Narrow.train: too many .*expected train\(self, round_number, arrays, c",
        ),
        ("{hooks}:Path", r"'Path' is not a subclass of YoloClient"),
        ("{broken}:Noting", r"broken.py: NameError: name 'nothing' is not defined"),
    ],
)
def test_a_class_that_cannot_be_had_is_refused_before_round_1(
    client: str, message: str, hooks: Path, tmp_path: Path
) -> None:
    two_datasets(tmp_path)
    broken = tmp_path / "broken.py"
    broken.write_text("nothing\n")
    with pytest.raises(InputError, match=message):
        run(tmp_path, "run", client.format(hooks=hooks, broken=broken))
    assert not (tmp_path / "run" / "run").exists()


def test_what_a_client_remembers_is_in_flowers_context_and_only_there(tmp_path: Path) -> None:
    data = two_datasets(tmp_path)
    grid = LocalGrid(2)
    federation(data, tmp_path / "run", TRAIN, grid=grid, display=Silent(), evaluate={"every": 2})
    (state, _) = (context.state for context in grid._contexts.values())
    rows = [r for r in read_csv(tmp_path / "run/run/clients.csv") if r["client"] == "c0"]
    losses = recall(state, "train")
    assert losses["round"] == [1, 2, 3]
    np.testing.assert_allclose(
        losses["train/box_loss"], [float(row["train/box_loss"]) for row in rows]
    )
    scores = recall(state, "evaluate")
    assert scores["round"] == [2, 3]
    assert len(scores["fitness"]) == 2
