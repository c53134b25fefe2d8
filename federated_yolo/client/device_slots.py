"""Limits how many clients work on a device at once, and lowers the limit if memory runs out.

The number of workers of a simulation is fixed when it starts. So if a client runs out of memory,
fewer clients may use the device at once from then on, and that client repeats its work alone on the
device. The slots of a device are file locks, which the system releases however a worker ends.
"""

import gc
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from filelock import FileLock, Timeout

from federated_yolo.common.files import write_atomically
from federated_yolo.common.text import reason_of

POLL_S = 0.1
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)

Result = TypeVar("Result")


@dataclass(frozen=True)
class DeviceSlots:
    """The slots of one device.

    folder: Folder of the lock files, the same for all workers. run_id: Id of the run; a limit that
    another run left behind does not count. num_slots: Most clients that could ever work at once.
    """

    folder: Path
    run_id: str
    num_slots: int

    @contextmanager
    def one(self) -> Iterator[None]:
        """Wait for a slot, and hold it."""
        while True:
            for lock in self._locks()[: self.limit()]:
                if not _taken(lock):
                    try:
                        yield
                    finally:
                        lock.release()
                    return
            time.sleep(POLL_S)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait for all slots, and hold them."""
        with ExitStack() as taken:
            # All workers take them in this order, so two that wait for all slots cannot deadlock.
            for lock in self._locks():
                taken.enter_context(lock)
            yield

    def limit(self) -> int:
        """Return how many clients may work at once."""
        try:
            run_id, limit = json.loads((self.folder / "limit.json").read_text())
        except FileNotFoundError:
            return self.num_slots
        return limit if run_id == self.run_id else self.num_slots

    def lower_limit(self) -> int:
        """Lower the limit to the number of clients still at work without the caller; return it."""
        with FileLock(self.folder / "limit.lock"):
            num_others = 0
            for lock in self._locks():
                if _taken(lock):
                    num_others += 1
                else:
                    lock.release()
            limit = max(1, min(num_others, self.limit() - 1))
            text = json.dumps([self.run_id, limit])
            write_atomically(self.folder / "limit.json", lambda file: file.write(text.encode()))
        return limit

    def _locks(self) -> list[FileLock]:
        self.folder.mkdir(parents=True, exist_ok=True)
        return [FileLock(self.folder / f"{i}.lock") for i in range(self.num_slots)]


def _taken(lock: FileLock) -> bool:
    """Whether another worker holds the lock; if not, the caller holds it now."""
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return True
    return False


def device_name(device: str) -> str:
    """Return a name for this process's device ("cpu" or "0") that no other device has."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "all")
    where = "cpu" if device == "cpu" else f"gpu-{visible}"
    return f"{socket.gethostname()}-{where}".replace("/", "_")


def with_slot(
    slots: DeviceSlots, work: Callable[[], Result], forget: Callable[[], None]
) -> tuple[Result, str]:
    """Do the work beside other clients, and again alone if memory runs out.

    work: Work that starts from what is on disk, so that it can be repeated. forget: Function that
    drops what this process keeps from one call to the next. Returns the result of the work and a
    note, empty if memory sufficed. Raises MemoryError if the work does not fit even alone.
    """
    try:
        with slots.one():
            result = work()
            # After memory has run out once, nothing is kept from one call to the next.
            _leave_memory(forget if slots.limit() < slots.num_slots else None)
            return result, ""
    except OUT_OF_MEMORY as error:
        # Leave this block first: the traceback keeps the objects alive that fill the memory.
        reason = reason_of(error)
    limit = slots.lower_limit()
    with slots.alone():
        _leave_memory(forget)
        try:
            result = work()
        except OUT_OF_MEMORY as error:
            raise MemoryError(
                "also with no other client at work on its device; lower train.batch or "
                f"train.imgsz ({reason_of(error)})"
            ) from error
        _leave_memory(forget)
    return result, (
        f"out of memory ({reason}); it did the work again with no other client on its device, "
        f"where from now on at most {limit} at once are at work"
    )


def _leave_memory(forget: Callable[[], None] | None) -> None:
    """Release the device's unused memory; PyTorch would keep as much as its last peak took."""
    if forget is not None:
        forget()
        gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
