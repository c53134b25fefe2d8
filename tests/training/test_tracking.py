"""Live loggers: what they hold is what the CSVs hold, in one run, each round once."""

import json
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_grid import LocalGrid
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tracked import config_for, make_clients
from trainings import TRAIN, Silent

from federated_yolo.checks.federation import checked
from federated_yolo.common.errors import FederationError
from federated_yolo.runtime.startup import make_server
from federated_yolo.server import tracking as loggers_module
from federated_yolo.server.server import finish_loggers
from federated_yolo.server.tracking import (
    LOGGERS,
    Loggers,
    State,
    is_installed,
)
from federated_yolo.storage.run_dir import RunDir, read_csv

Series = dict[str, list[tuple[int, float]]]  # by name: rounds and values, in order
TENSORBOARD: dict[str, Any] = {"loggers": ["tensorboard"]}
NO_SCORES: dict[str, Any] = {"evaluate": {"every": 0}}  # faster
# SQLAlchemy 2.1 deprecates what MLflow 3.17 asks of it.
mlflow_warns = pytest.mark.filterwarnings(
    "ignore:The ``noload`` loader strategy is deprecated:DeprecationWarning"
)


def run(
    folder: Path, *, resume: bool = False, display: Silent | None = None, **settings: Any
) -> Path:
    """Run two clients in this process, or go on, and return the run directory."""
    with checked(config_for(folder, **settings)) as ready:
        save_dir = folder / "runs"
        run_dir = RunDir.reopen(save_dir / "run") if resume else RunDir.create(save_dir, "run")
        server = make_server(ready, display or Silent(), run_dir)
        try:
            server.run(LocalGrid(2))  # pyright: ignore[reportArgumentType]
        finally:
            finish_loggers(server)
            run_dir._lock.release()
    return run_dir.path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_clients(tmp_path)


def series_of_csvs(run_dir: Path) -> Series:
    """What a logger should hold, from the CSVs alone."""
    found: Series = {}

    def add(prefix: str, row: Mapping[str, str]) -> None:
        for name, text in row.items():
            if text and name not in ("round", "client", "note"):
                value = (int(row["round"]), float(text))
                found.setdefault(prefix + name, []).append(value)

    for row in read_csv(run_dir / "results.csv"):
        add("", row)
    for row in read_csv(run_dir / "clients.csv"):
        add(f"clients/{row['client']}/", row)
    return found


def series_of_tensorboard(run_dir: Path) -> Series:
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def assert_equal_series(found: Series, expected: Series) -> None:
    assert set(found) == set(expected)
    assert {name: [step for step, _ in points] for name, points in found.items()} == {
        name: [step for step, _ in points] for name, points in expected.items()
    }
    for name, points in expected.items():
        values = np.array([value for _, value in points], np.float32)
        assert np.array_equal(np.array([v for _, v in found[name]], np.float32), values), name


class StopAfter(Silent):
    """A display that ends the run once this round is complete."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def round_done(self, result: Any) -> None:
        if result.round == self.last:
            raise FederationError("stopped")


# TensorBoard


def test_tensorboard_holds_the_numbers_of_the_csvs_with_rounds_as_steps(folder: Path) -> None:
    display = Silent()
    run_dir = run(folder, **TENSORBOARD, num_rounds=2, display=display)
    found = series_of_tensorboard(run_dir)
    assert_equal_series(found, series_of_csvs(run_dir))
    assert {"train/box_loss", "metrics/mAP50(B)", "clients/c1/train/box_loss"} <= set(found)
    assert [step for step, _ in found["fitness"]] == [1, 2]
    assert display.notices == [f"tensorboard: tensorboard --logdir {run_dir}"]
    # One run for the federation: none from the trainers of the clients.
    assert [path.parent for path in folder.rglob("events.out.tfevents*")] == [run_dir]


def test_tensorboard_holds_the_settings(folder: Path) -> None:
    plugin_data_pb2: Any = import_module("tensorboard.plugins.hparams.plugin_data_pb2")
    run_dir = run(folder, **TENSORBOARD, **NO_SCORES, num_rounds=1)
    events = EventAccumulator(str(run_dir))
    events.Reload()
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["train.lr0"].number_value == TRAIN["lr0"]
    assert values["datasets.1.name"].string_value == "c1"
    assert values["round_timeout_s"].string_value == "null"


def test_a_resumed_run_has_each_round_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed after round 2 was logged and before that is known on disk."""
    original = Loggers._write_states

    def killed(self: Loggers) -> None:
        if any(state.round == 2 for state in self._states.values()):
            raise KeyboardInterrupt
        original(self)

    monkeypatch.setattr(Loggers, "_write_states", killed)
    with pytest.raises(KeyboardInterrupt):
        run(folder, **TENSORBOARD)
    run_dir = folder / "runs" / "run"
    assert [step for step, _ in series_of_tensorboard(run_dir)["epoch"]] == [1, 2]
    monkeypatch.undo()
    run(folder, **TENSORBOARD, **NO_SCORES, resume=True)
    found = series_of_tensorboard(run_dir)
    assert_equal_series(found, series_of_csvs(run_dir))
    assert [step for step, _ in found["epoch"]] == [1, 2, 3]


def test_a_resumed_run_logs_the_rounds_that_were_not_logged(folder: Path) -> None:
    """Also those before the logger was asked for."""
    with pytest.raises(FederationError, match="stopped"):
        run(folder, **NO_SCORES, display=StopAfter(1))
    with pytest.raises(FederationError, match="stopped"):
        run(folder, **TENSORBOARD, **NO_SCORES, display=StopAfter(2), resume=True)
    run(folder, **NO_SCORES, resume=True)
    run_dir = run(folder, **TENSORBOARD, **NO_SCORES, resume=True)  # all rounds are complete
    found = series_of_tensorboard(run_dir)
    assert_equal_series(found, series_of_csvs(run_dir))
    assert [step for step, _ in found["epoch"]] == [1, 2, 3]


# MLflow


@mlflow_warns
def test_mlflow_holds_the_numbers_of_the_csvs_in_one_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="needs the package mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.raises(FederationError, match="stopped"):
        run(folder, loggers=["mlflow"], display=StopAfter(2))
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("runs")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FAILED"
    forget_a_round(folder / "runs" / "run")  # as if killed before it was written down
    monkeypatch.delenv("MLFLOW_TRACKING_URI")  # the run knows where it is
    run_dir = run(folder, loggers=["mlflow"], resume=True)
    (found,) = client.search_runs([experiment.experiment_id])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    assert found.data.params["train.lr0"] == str(TRAIN["lr0"])
    best = max(series_of_csvs(run_dir)["fitness"], key=lambda point: (point[1], point[0]))
    assert found.data.tags["best/round"] == str(best[0])
    expected = {
        name.replace("(", "").replace(")", ""): points
        for name, points in series_of_csvs(run_dir).items()
    }
    series = {
        name: sorted(
            (metric.step, metric.value)
            for metric in client.get_metric_history(found.info.run_id, name)
        )
        for name in found.data.metrics
    }
    assert "metrics/mAP50B" in series
    assert series == expected


@mlflow_warns
def test_mlflow_takes_more_settings_and_numbers_than_one_request_holds(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow: Any = pytest.importorskip("mlflow", reason="needs the package mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "many")
    monkeypatch.setenv("MLFLOW_RUN", "large")
    config = config_for(folder, names=[f"class{i}" for i in range(150)])
    state = State()
    logger: Any = LOGGERS["mlflow"](config, folder, state)
    sizes: list[int] = []
    log_batch = logger._client.log_batch

    def counted(run_id: str, **batch: Any) -> None:
        sizes.append(len(batch["metrics"]))
        log_batch(run_id, **batch)

    monkeypatch.setattr(logger._client, "log_batch", counted)
    logger.log(1, {"epoch": 1.0, **{f"clients/c{i}/fitness": i / 7 for i in range(1500)}})
    logger.finish({}, is_done=True)
    found = mlflow.MlflowClient(uri).get_run(state.id)
    assert found.info.run_name == "large"
    assert len(found.data.metrics) == 1501
    assert sizes == [1000, 501]
    assert found.data.params["names.149"] == "class149"


@mlflow_warns
def test_an_interrupt_is_heard_at_once_with_mlflow(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the main thread waits for another one, as in a simulation."""
    pytest.importorskip("mlflow", reason="needs the package mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    signal.siginterrupt(signal.SIGINT, False)  # what importing polars comes to
    LOGGERS["mlflow"](config_for(folder), folder, State())
    waiting = threading.Thread(target=time.sleep, args=(10,), daemon=True)
    waiting.start()
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        waiting.join()
    assert time.monotonic() - started < 9


def forget_a_round(run_dir: Path) -> None:
    path = run_dir / "server" / "loggers.json"
    states = json.loads(path.read_text())
    for state in states.values():
        state["round"] -= 1
    path.write_text(json.dumps(states))


# Weights & Biases


def test_wandb_holds_the_numbers_of_the_csvs_in_one_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("wandb", reason="needs the package wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    with pytest.raises(FederationError, match="stopped"):
        run(folder, loggers=["wandb"], display=StopAfter(2))
    run_dir = run(folder, loggers=["wandb"], resume=True)
    assert "wandb" not in "".join(capfd.readouterr())
    files = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2  # W&B merges them by the id when they are synchronised
    records = [record for path in files for record in wandb_records(path)]
    runs = [record.run for record in records if record.HasField("run")]
    assert {(r.run_id, r.display_name, r.project) for r in runs} == {
        (runs[0].run_id, "run", "runs")
    }
    settings = {u.key: json.loads(u.value_json) for u in runs[0].config.update}
    assert settings["train.lr0"] == TRAIN["lr0"]
    series: Series = {}
    for record in records:
        if record.HasField("history"):
            for item in record.history.item:
                name = item.key or "/".join(item.nested_key)
                if not name.startswith("_"):
                    point = (record.history.step.num, json.loads(item.value_json))
                    series.setdefault(name, []).append(point)
    assert series == series_of_csvs(run_dir)
    summary = {
        item.key or "/".join(item.nested_key): json.loads(item.value_json)
        for record in records
        if record.HasField("summary")
        for item in record.summary.update
    }
    assert summary["best/round"] in (1, 2, 3)
    written = {path.name for path in (run_dir / "wandb").rglob("*") if path.is_file()}
    assert not {n for n in written if not n.endswith((".log", ".wandb"))}  # no code, no weights


def wandb_records(path: Path) -> Iterator[Any]:
    """Records of a .wandb file: a LevelDB log (32 KiB blocks) of protobufs after 7 bytes."""
    wandb_internal_pb2: Any = import_module("wandb.proto.wandb_internal_pb2")
    content, position, parts = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left = 32768 - position % 32768
        if left < 7:  # a block ends with zeros where no header fits
            position += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, position)
        parts += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


# All of them


@mlflow_warns
@pytest.mark.parametrize("name", LOGGERS)
def test_a_logger_draws_no_random_numbers(
    name: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not is_installed(name):
        pytest.skip(f"needs the package {name}")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    before = random_states()
    logger = LOGGERS[name](config_for(folder), folder, State())
    logger.log(1, {"epoch": 1.0, "fitness": 0.5})
    logger.finish({"best/round": 1, "best/fitness": 0.5}, is_done=True)
    assert random_states() == before


def random_states() -> tuple[object, ...]:
    numpy_state: Any = np.random.get_state()
    return random.getstate(), numpy_state[1].tobytes(), torch.get_rng_state().numpy().tobytes()


class Fragile:
    """A logger whose network is gone in round 2."""

    where = "nowhere"

    def __init__(self, *_: object) -> None: ...
    def log(self, round_number: int, numbers: Mapping[str, float]) -> None:
        if round_number == 2:
            raise ConnectionError("no route\nto host")

    def finish(self, best: Mapping[str, float], *, is_done: bool) -> None:
        raise ValueError("finished")


def test_a_logger_that_fails_is_dropped_with_a_notice_and_the_run_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGGERS, "wandb", Fragile)
    monkeypatch.setattr(loggers_module, "is_installed", lambda _: True)
    display = Silent()
    run_dir = run(folder, loggers=["wandb", "tensorboard"], **NO_SCORES, display=display)
    assert display.notices == [
        "wandb: nowhere",
        f"tensorboard: tensorboard --logdir {run_dir}",
        "wandb: not logged any more: no route to host; a resumed run goes on with it",
    ]
    assert len(read_csv(run_dir / "results.csv")) == 3
    assert_equal_series(series_of_tensorboard(run_dir), series_of_csvs(run_dir))
    states = json.loads((run_dir / "server" / "loggers.json").read_text())
    assert (states["wandb"]["round"], states["tensorboard"]["round"]) == (1, 3)


class Unreachable:
    def __init__(self, *_: object) -> None:
        raise ConnectionError("no route to https://me:secret@host/api")


def test_a_logger_that_cannot_start_ends_the_run_before_round_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOGGERS, "mlflow", Unreachable)
    monkeypatch.setitem(LOGGERS, "wandb", Fragile)
    monkeypatch.setattr(loggers_module, "is_installed", lambda _: True)
    display = Silent()
    with pytest.raises(
        FederationError, match="'mlflow' cannot start: no route to https://host/api; repair"
    ):
        run(folder, loggers=["wandb", "mlflow"], **NO_SCORES, display=display)
    assert "wandb: not logged any more: finished;" in display.notices[-1]  # the others are ended
    run_dir = folder / "runs" / "run"
    assert not (run_dir / "results.csv").exists()
    assert run(folder, **NO_SCORES, num_rounds=1, resume=True) == run_dir  # as the message says


def test_a_damaged_file_of_ids_is_named(folder: Path) -> None:
    run_dir = run(folder, **TENSORBOARD, **NO_SCORES, num_rounds=1)
    (run_dir / "server" / "loggers.json").write_text("{")
    with pytest.raises(FederationError, match=r"server/loggers\.json: damaged .*; delete it"):
        run(folder, **TENSORBOARD, resume=True)
