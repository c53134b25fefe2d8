"""One client's attempts at one message, in a worker that may be killed or hang at any moment.

Ray restarts a worker that died, and gives it the same message again. A file in the client's folder
records the attempt, so that the second one knows of the first, and a third one reports the failure
instead of trying again.
"""

import faulthandler
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from federated_yolo.common.errors import LostWorkerError
from federated_yolo.common.files import write_atomically
from federated_yolo.protocol.records import MAX_ATTEMPTS

LOCK_TIMEOUT_S = 60.0

TRACE = "attempt.json"  # exists while a client works
STACK = "stack.txt"  # exists while a client works with a time limit; filled when the time is up
HANG = "hang.txt"  # the stack of the last work that ran out of time


@dataclass(frozen=True)
class _Trace:
    """Contents of TRACE. message: Id of the message. number: Number of the attempt, from 1."""

    message: str
    number: int


@contextmanager
def attempt(folder: Path, message: str, timeout_s: float | None) -> Iterator[int]:
    """Lock the client's folder for the work on a message; yield this attempt's number, from 1.

    folder: The client's folder; its lock keeps out a worker that an earlier run has left behind.
    timeout_s: Seconds after which the process ends itself, whatever it does; None for no limit.
    Raises LostWorkerError if the last attempt took too long or MAX_ATTEMPTS attempts died, and
    TimeoutError if another process is still working for this client.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(folder / "lock", timeout=LOCK_TIMEOUT_S).acquire()
    except Timeout as error:
        raise TimeoutError(f"another process has been at work in {folder} for a minute") from error
    with lock:
        number = _number_of_attempt(folder, message, timeout_s)
        trace = json.dumps(asdict(_Trace(message, number)))
        write_atomically(folder / TRACE, lambda file: file.write(trace.encode()))
        try:
            with _time_limit(folder / STACK, timeout_s):
                yield number
        finally:  # also after an exception, which the client reports itself
            (folder / TRACE).unlink(missing_ok=True)


def _number_of_attempt(folder: Path, message: str, timeout_s: float | None) -> int:
    try:
        before = _Trace(**json.loads((folder / TRACE).read_text()))
    except FileNotFoundError:
        return 1
    if before.message != message:  # left by a run that was stopped
        return 1
    stack, hang = folder / STACK, folder / HANG
    if stack.exists() and stack.stat().st_size:
        stack.replace(hang)
        (folder / TRACE).unlink()
        raise LostWorkerError(
            f"no answer within round_timeout_s ({timeout_s:g} s), its worker was stopped; "
            f"{hang} says where it stood; a longer time can be given when resuming, too"
        )
    if before.number >= MAX_ATTEMPTS:
        (folder / TRACE).unlink()
        raise LostWorkerError(
            f"its worker died {before.number} times while it worked (killed, or out of memory); "
            "lower train.batch, or raise client_resources so that fewer clients work at once"
        )
    return before.number + 1


@contextmanager
def _time_limit(path: Path, timeout_s: float | None) -> Iterator[None]:
    """End the process after `timeout_s` seconds, and write its stack to `path`."""
    if timeout_s is None:
        yield
        return
    with path.open("w") as file:
        # It runs in a C thread, so it works even if native code hangs while holding the GIL.
        faulthandler.dump_traceback_later(timeout_s, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    path.unlink()
