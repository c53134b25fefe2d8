"""The command as a process of its own, and the processes that it has started."""

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def clean_environment() -> dict[str, str]:
    """What this test session has set must not help the command."""
    private = ("YOLO_", "FEDERATED_YOLO", "FLWR_", "RAY_", "ULTRALYTICS_", "OMP_")
    return {k: v for k, v in os.environ.items() if not k.startswith(private)}


def federated(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return finished([sys.executable, str(ROOT / "federated.py"), *arguments], cwd=cwd)


def finished(
    command: Sequence[str], *, cwd: Path, timeout_s: float = 400, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with these environment variables besides."""
    return subprocess.run(
        command,
        cwd=cwd,
        env={**clean_environment(), **variables},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def python(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code that may import the project, in a process of its own."""
    command = [sys.executable, "-c", code]
    return finished(command, cwd=folder, timeout_s=120, PYTHONPATH=str(ROOT))


def processes_with(marker: str) -> list[str]:
    """Command lines of the processes that have inherited this environment variable."""
    return list(process_ids_with(marker).values())


def process_ids_with(marker: str) -> dict[int, str]:
    """The same, by process ID. One that has ended but was not waited for has no environment."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (process / "environ").read_bytes():
                command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(process.name)] = command
        except OSError:  # it has ended, or is not ours
            continue
    return found


def wait_until(condition: Callable[[], bool], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


@contextmanager
def started(*arguments: str, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command in a process group of its own, and what marks all of its processes."""
    name, value = "FEDERATION_OF_TEST", uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "federated.py"), *arguments],
        env={**clean_environment(), name: value},
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process, f"{name}={value}"
    finally:
        process.kill()
        process.communicate()


def working_since(marker: str, folder: Path) -> int | None:
    """Process of the worker that is at work for a client."""
    if not (folder / "attempt.json").exists():
        return None
    for process in Path("/proc").glob("[0-9]*"):
        try:
            is_worker = b"ClientAppActor.run" in (process / "cmdline").read_bytes()
            if is_worker and marker.encode() in (process / "environ").read_bytes():
                return int(process.name)
        except OSError:  # it has ended, or is not ours
            continue
    return None
