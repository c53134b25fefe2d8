"""A client's work on one message: counted, alone, and never longer than its time."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from processes import ROOT

from federated_yolo.client import attempts
from federated_yolo.client.attempts import attempt
from federated_yolo.common.errors import LostWorkerError


def die(folder: Path, message: str) -> None:
    with attempt(folder, message, None):
        os.kill(os.getpid(), signal.SIGKILL)


def killed(folder: Path, message: str) -> None:
    process = multiprocessing.get_context("fork").Process(target=die, args=(folder, message))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


def test_an_attempt_that_ends_leaves_nothing_behind(tmp_path: Path) -> None:
    with attempt(tmp_path, "m", 60) as number:
        assert number == 1
        assert (tmp_path / "attempt.json").exists()
    with pytest.raises(KeyError), attempt(tmp_path, "m", None):
        raise KeyError("its own error, which it reports itself")
    assert {p.name for p in tmp_path.iterdir()} <= {"lock"}
    with attempt(tmp_path, "m", None) as number:
        assert number == 1


def test_after_two_workers_died_a_message_is_given_up_and_the_next_starts_anew(
    tmp_path: Path,
) -> None:
    killed(tmp_path, "m")
    with attempt(tmp_path, "m", None) as number:
        assert number == 2
    killed(tmp_path, "n")
    killed(tmp_path, "n")
    with (
        pytest.raises(LostWorkerError, match="its worker died 2 times while it worked"),
        attempt(tmp_path, "n", None),
    ):
        pass
    killed(tmp_path, "n")
    with attempt(tmp_path, "another", None) as number:
        assert number == 1


def test_what_takes_too_long_is_stopped_wherever_it_hangs_and_named(tmp_path: Path) -> None:
    """In native code that holds Python's lock, so that no Python thread could stop it."""
    code = (
        "import ctypes, sys; from pathlib import Path\n"
        "from federated_yolo.client.attempts import attempt\n"
        f"with attempt(Path({str(tmp_path)!r}), 'm', 0.5):\n"
        "    ctypes.PyDLL(None).sleep(60)\n"
    )
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 1
    assert time.monotonic() - started < 50
    with (
        pytest.raises(LostWorkerError, match=r"no answer within round_timeout_s \(0.5 s\)"),
        attempt(tmp_path, "m", 0.5),
    ):
        pass
    assert "line 4" in (tmp_path / "hang.txt").read_text()
    with attempt(tmp_path, "m", 60) as number:
        assert number == 1
    assert (tmp_path / "hang.txt").exists()


def test_a_worker_that_an_earlier_run_left_behind_is_kept_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "LOCK_TIMEOUT_S", 0.1)
    with (
        FileLock(tmp_path / "lock"),
        pytest.raises(TimeoutError, match="another process has been at work"),
        attempt(tmp_path, "m", None),
    ):
        pass


def test_a_trace_of_another_form_does_not_stop_a_client(tmp_path: Path) -> None:
    (tmp_path / "attempt.json").write_text(json.dumps({"message": "old", "number": 7}))
    with attempt(tmp_path, "m", None) as number:
        assert number == 1
