"""Clients that share a device: where memory is short, fewer work at once, and nothing is lost."""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from shortages import shortage

from federated_yolo.client.device_slots import DeviceSlots, device_name, with_slot


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
    slots = DeviceSlots(tmp_path, "run", 4)
    inside, most = 0, 0
    counting = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        with slots.one():
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
    with slots.one(), slots.one():
        assert slots.lower_limit() == 2
    assert highest() == 2


def test_the_limit_falls_below_those_that_were_there_but_never_below_one(tmp_path: Path) -> None:
    slots = DeviceSlots(tmp_path, "run", 8)
    with slots.one(), slots.one(), slots.one():  # beside the one that has left
        assert slots.lower_limit() == 3
        assert slots.lower_limit() == 2  # another that was among the same
    assert [slots.lower_limit() for _ in range(2)] == [1, 1]
    assert DeviceSlots(tmp_path, "run", 8).limit() == 1
    assert DeviceSlots(tmp_path, "another run", 8).limit() == 8


def test_who_wants_to_be_alone_waits_for_all_others_and_keeps_them_out(tmp_path: Path) -> None:
    slots = DeviceSlots(tmp_path, "run", 3)
    order: list[str] = []

    def alone() -> None:
        with slots.alone():
            order.append("alone")
            time.sleep(0.3)
            order.append("left")

    def beside() -> None:
        with slots.one():
            order.append("beside")

    with slots.one():
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
        with DeviceSlots(tmp_path, "run", 2).one():
            os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join()
    with DeviceSlots(tmp_path, "run", 2).alone():
        pass


def test_each_gpu_and_each_machine_has_a_room_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "box")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [device_name("0"), device_name("cpu")] == ["box-gpu-1", "box-cpu"]


# Work that runs out of memory


def test_work_that_fits_is_done_once_and_keeps_what_it_has_built(tmp_path: Path) -> None:
    forgotten: list[int] = []
    slots = DeviceSlots(tmp_path, "run", 2)
    assert with_slot(slots, failing(None), lambda: forgotten.append(1)) == ("done", "")
    assert not forgotten


@pytest.mark.parametrize("error", [shortage(), MemoryError("with train.batch=8")])
def test_work_that_does_not_fit_is_done_again_and_says_so(tmp_path: Path, error: Exception) -> None:
    forgotten: list[int] = []
    slots = DeviceSlots(tmp_path, "run", 3)
    with slots.one():
        pass
    result, note = with_slot(slots, failing(error, None), lambda: forgotten.append(1))
    assert result == "done"
    assert note.startswith(f"out of memory ({type(error).__name__}: {error}); it did the work")
    assert note.endswith("at most 1 at once are at work")
    assert forgotten
    assert slots.limit() == 1


def test_work_that_does_not_fit_even_alone_is_an_error_with_the_next_step(tmp_path: Path) -> None:
    slots = DeviceSlots(tmp_path, "run", 2)
    with pytest.raises(
        MemoryError, match=r"no other client at work .* lower train\.batch or train\.imgsz .*CUDA"
    ):
        with_slot(slots, failing(shortage(), shortage()), lambda: None)
    assert with_slot(slots, failing(None), lambda: None)[0] == "done"  # its slots are free


def test_other_errors_are_not_tried_again(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="mine"):
        with_slot(DeviceSlots(tmp_path, "run", 2), failing(ValueError("mine"), None), lambda: None)
