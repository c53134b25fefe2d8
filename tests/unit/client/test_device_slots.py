"""Clients that share a device: where memory is short, fewer work at once, and nothing is lost."""

import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from flwr.app import Context, Message
from local_grid import LocalGrid, identify_process
from recipes import make_dataset
from trainings import TRAIN, Silent, assert_identical, federation, final_arrays
from ultralytics.models.yolo.detect import DetectionTrainer

from federated_yolo.client import app as client_module
from federated_yolo.client.device_slots import Room, device_name, with_room
from federated_yolo.storage.run_dir import read_csv

CUDA_ERROR = "CUDA out of memory. Tried to allocate 20.00 MiB."


def shortage() -> torch.OutOfMemoryError:
    return torch.OutOfMemoryError(CUDA_ERROR)


def failing(*errors: BaseException | None) -> Callable[[], str]:
    """Work that raises these one after the other; None is success."""
    left = list(errors)

    def work() -> str:
        error = left.pop(0)
        if error is not None:
            raise error
        return "done"

    return work


# Places


def test_no_more_are_let_in_than_the_limit_says(tmp_path: Path) -> None:
    room = Room(tmp_path, "run", 4)
    inside, most = 0, 0
    counting = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with room.place():
            with counting:
                inside += 1
                most = max(most, inside)
            time.sleep(0.3)
            with counting:
                inside -= 1

    def highest() -> int:
        nonlocal most
        most = 0
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return most

    assert highest() == 4
    with room.place(), room.place():
        assert room.lower_limit() == 2
    assert highest() == 2


def test_the_limit_falls_below_those_that_were_there_but_never_below_one(tmp_path: Path) -> None:
    room = Room(tmp_path, "run", 8)
    with room.place(), room.place(), room.place():  # beside the one that has left
        assert room.lower_limit() == 3
        assert room.lower_limit() == 2  # another that was among the same
    assert [room.lower_limit() for _ in range(2)] == [1, 1]
    assert Room(tmp_path, "run", 8).limit() == 1
    assert Room(tmp_path, "another run", 8).limit() == 8


def test_who_wants_to_be_alone_waits_for_all_others_and_keeps_them_out(tmp_path: Path) -> None:
    room = Room(tmp_path, "run", 3)
    order: list[str] = []

    def alone() -> None:
        with room.alone():
            order.append("alone")
            time.sleep(0.3)
            order.append("left")

    def beside() -> None:
        with room.place():
            order.append("beside")

    with room.place():
        threads = [threading.Thread(target=alone) for _ in range(2)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        order.append("first")
    time.sleep(0.2)
    threads.append(threading.Thread(target=beside))
    threads[-1].start()
    for thread in threads:
        thread.join(20)
    assert order[0] == "first"
    assert sorted(order) == ["alone", "alone", "beside", "first", "left", "left"]
    assert [order[i + 1] for i, step in enumerate(order) if step == "alone"] == ["left", "left"]


def test_places_of_a_worker_that_was_killed_are_free_again(tmp_path: Path) -> None:
    def die() -> None:
        with Room(tmp_path, "run", 2).place():
            os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    with Room(tmp_path, "run", 2).alone():
        pass


def test_each_gpu_and_each_machine_has_a_room_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [device_name("0"), device_name("cpu")] == ["box-gpu-1", "box-cpu"]


# Work that runs out of memory


def test_work_that_fits_is_done_once_and_keeps_what_it_has_built(tmp_path: Path) -> None:
    forgotten: list[int] = []
    room = Room(tmp_path, "run", 2)
    assert with_room(room, failing(None), lambda: forgotten.append(1)) == ("done", "")
    assert not forgotten


@pytest.mark.parametrize("error", [shortage(), MemoryError("with train.batch=8")])
def test_work_that_does_not_fit_is_done_again_and_says_so(tmp_path: Path, error: Exception) -> None:
    forgotten: list[int] = []
    room = Room(tmp_path, "run", 3)
    with room.place():
        pass
    result, note = with_room(room, failing(error, None), lambda: forgotten.append(1))
    assert result == "done"
    assert note.startswith(f"out of memory ({type(error).__name__}: {error}); it did the work")
    assert note.endswith("at most 1 at once are at work")
    assert forgotten
    assert room.limit() == 1


def test_work_that_does_not_fit_even_alone_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    room = Room(tmp_path, "run", 2)
    with pytest.raises(
        MemoryError, match=r"no other client at work .* lower train\.batch or train\.imgsz .*CUDA"
    ):
        with_room(room, failing(shortage(), shortage()), lambda: None)
    assert with_room(room, failing(None), lambda: None)[0] == "done"  # its places are free


def test_other_errors_are_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"):
        with_room(Room(tmp_path, "run", 2), failing(ValueError("mine"), None), lambda: None)


# Real slices


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
