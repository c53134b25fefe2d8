"""Clients whose memory is short: they work one after the other, and nothing is lost."""

import itertools
import multiprocessing
import time
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from flwr.app import Context, Message
from local_grid import LocalGrid, identify_process
from recipes import make_dataset
from shortages import shortage
from trainings import TRAIN, Silent, assert_identical, federation, final_arrays
from ultralytics.models.yolo.detect import DetectionTrainer

from federated_yolo.client import app as client_module
from federated_yolo.storage.run_dir import read_csv


def fail_once(monkeypatch: pytest.MonkeyPatch, method: str, call: int) -> None:
    """Let the trainers' method raise a GPU's error in its n-th call, counted from 1."""
    calls = itertools.count(1)
    original = getattr(DetectionTrainer, method)

    def tampered(self: Any, *arguments: Any) -> Any:
        if next(calls) == call:
            raise shortage()
        return original(self, *arguments)

    monkeypatch.setattr(DetectionTrainer, method, tampered)


@pytest.mark.parametrize(
    ("method", "call"),
    [
        ("preprocess_batch", 1),  # before the first step
        ("preprocess_batch", 3),  # in the first epoch, where Ultralytics would halve the batch
        ("preprocess_batch", 11),  # in the second epoch of the second round
        ("optimizer_step", 2),  # outside of Ultralytics' own care
    ],
)
def test_a_slice_that_ran_out_of_memory_ends_as_if_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, call: int
) -> None:
    data = make_dataset(tmp_path / "data")
    settings: dict[str, Any] = {"num_rounds": 2, "local_epochs": 2}
    whole = federation([data], tmp_path / "whole", TRAIN, **settings)
    fail_once(monkeypatch, method, call)
    display = Silent()
    result = federation([data], tmp_path / "short", TRAIN, display=display, **settings)
    assert_identical(final_arrays(result), final_arrays(whole))
    assert not display.failures
    (notice,) = display.notices
    assert "did the work again with no other client on its device" in notice
    notes = [row["note"] for row in read_csv(result.run_dir / "clients.csv") if row.get("note")]
    assert f"client 'c0': {notes[0]}" == notice


class ProcessGrid(LocalGrid):
    """Each message goes to one of several processes, so that clients work at the same time."""

    def __init__(self, num_nodes: int, pool: ProcessPoolExecutor) -> None:
        super().__init__(num_nodes)
        self.pool = pool
        self.futures: dict[str, Future[Message]] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            ids.append(f"message {len(self.futures)}")
            message.metadata.__dict__["_message_id"] = ids[-1]
            context = self._contexts[message.metadata.dst_node_id]
            self.futures[ids[-1]] = self.pool.submit(answer, message, context)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        return [self.futures[i].result() for i in message_ids if self.futures[i].done()]


def answer(message: Message, context: Context) -> Message:
    return client_module.app(message, context)


def make_crowded(folder: Path) -> None:
    """In a process of the pool: a device on which two clients do not fit, once they are two."""
    identify_process()
    calls = itertools.count(1)
    original = DetectionTrainer.preprocess_batch

    def others_are_there() -> bool:
        locks = [FileLock(path) for path in folder.rglob("[0-9].lock")]
        return sum(is_taken(lock) for lock in locks) > 1

    def preprocess_batch(self: Any, batch: Any) -> Any:
        if next(calls) == 3:
            deadline = time.monotonic() + 60
            while not others_are_there() and time.monotonic() < deadline:
                time.sleep(0.05)
            time.sleep(0.5)  # both see each other
            raise shortage()
        return original(self, batch)

    DetectionTrainer.preprocess_batch = preprocess_batch


def is_taken(lock: FileLock) -> bool:
    try:
        with lock.acquire(blocking=False):
            return False
    except TimeoutError:
        return True


def test_clients_at_work_at_once_that_do_not_fit_end_as_if_they_did(tmp_path: Path) -> None:
    data = [make_dataset(tmp_path / f"d{i}", seed=i) for i in range(2)]
    whole = federation(data, tmp_path / "whole", TRAIN, num_rounds=2)
    display = Silent()
    with ProcessPoolExecutor(
        2,
        multiprocessing.get_context("spawn"),
        initializer=make_crowded,
        initargs=(tmp_path / "short",),
    ) as pool:
        grid = ProcessGrid(2, pool)
        result = federation(
            data, tmp_path / "short", TRAIN, num_rounds=2, grid=grid, display=display
        )
    assert_identical(final_arrays(result), final_arrays(whole))
    assert not display.failures
    assert len(display.notices) == 2
    assert all(notice.endswith("at most 1 at once are at work") for notice in display.notices)
