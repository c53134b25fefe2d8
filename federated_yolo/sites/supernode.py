"""Runs a site's SuperNode: checks first, starts it again if it ends, leaves nothing behind."""

import ctypes
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import IO, Any

import psutil
from filelock import FileLock, Timeout

from federated_yolo.client.journal import Journal
from federated_yolo.common.errors import FederationError
from federated_yolo.common.text import in_one_line
from federated_yolo.consortium.folder import write_text
from federated_yolo.sites.check import Finding, quick_checks
from federated_yolo.sites.folder import KEY, SUPERNODE_LOG, SiteFolder

RUNNING = "running.json"  # exists while the SuperNode runs
NODE_CONFIG = "node.toml"
RETRY_S = 15.0
END_S = 30.0  # for a SuperNode to say goodbye, so that it can come back at once
MAX_LOG_BYTES, MAX_LOGS = 5 << 20, 3
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36  # of Linux


def run_site(site: SiteFolder, tell: Callable[[str], None]) -> int:
    """Run a site until it is interrupted (exit code 0) or something has to be corrected (1).

    Raises FederationError if it runs already.
    """
    with _only_one(site):
        _adopt_orphans()
        told: list[str] = []
        try:
            while True:
                problems = [f for f in quick_checks(site) if f.is_good is False]
                lines = [_line(problem) for problem in problems]
                if lines != told:
                    for line in lines:
                        tell(line)
                    told = lines
                if any(not problem.waits for problem in problems):
                    return 1
                if not problems:
                    code = _run_once(site, tell)
                    tell(f"the SuperNode has ended with code {code}; see {SUPERNODE_LOG}")
                time.sleep(RETRY_S)
        except KeyboardInterrupt:
            tell("the site has ended")
            return 0
        finally:
            _end_descendants()


def _line(problem: Finding) -> str:
    remedy = f"; {problem.remedy}" if problem.remedy else ""
    waits = f"; trying again every {RETRY_S:.0f} s" if problem.waits else ""
    return f"{problem.what}: {problem.text}{remedy}{waits}"


@contextmanager
def _only_one(site: SiteFolder) -> Iterator[None]:
    try:
        lock = FileLock(site.path / ".running.lock", timeout=0).acquire()
    except Timeout as error:
        raise FederationError(
            f"{site.path}: this site runs already; site status says more"
        ) from error
    with lock:
        yield


def _run_once(site: SiteFolder, tell: Callable[[str], None]) -> int:
    """Start the SuperNode and wait for its end; an interrupt ends it. Return its exit code."""
    config = site.node_config()
    lines = [f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in config.items()]
    write_text(site.path / NODE_CONFIG, "\n".join([*lines, ""]), 0o600)
    process = subprocess.Popen(
        command(site, _free_port()),
        cwd=site.path,
        env=environment(site),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # an interrupt at a terminal comes from here alone
        preexec_fn=_end_with_parent(),
    )
    assert process.stdout is not None
    output = (process.stdout, site.path / SUPERNODE_LOG)
    threading.Thread(target=_keep, args=output, name="supernode.log", daemon=True).start()
    started = datetime.now().astimezone().isoformat(timespec="seconds")
    state = json.dumps({"process": process.pid, "started": started})
    write_text(site.path / RUNNING, state, 0o600)
    tell(f"the SuperNode of '{site.terms.site}' runs; {SUPERNODE_LOG} has what it says")
    Journal(Path(config["folder"])).note("the SuperNode was started", {"doing": None})
    try:
        return process.wait()
    except KeyboardInterrupt:
        _end(process)
        raise
    finally:
        (site.path / RUNNING).unlink(missing_ok=True)
        Journal(Path(config["folder"])).note("the SuperNode has ended", {"doing": None})


def command(site: SiteFolder, port: int) -> list[str]:
    """Return the command line of a site's SuperNode. port: For its own processes."""
    ca = ["--root-certificates", str(site.ca)] if site.ca else []
    beside = Path(sys.executable).with_name("flower-supernode")
    return [
        str(beside) if beside.exists() else beside.name,
        *("--superlink", site.terms.address),
        *ca,
        *("--auth-supernode-private-key", str(site.path / KEY)),
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--node-config", str(site.path / NODE_CONFIG)),
    ]


def environment(site: SiteFolder) -> dict[str, str]:
    """Return the SuperNode's environment: this one, without what is this process's own."""
    own = ("FEDERATED_YOLO_CONFIG", "FEDERATED_YOLO_USER_SETTINGS", "YOLO_CONFIG_DIR")
    kept = {name: value for name, value in os.environ.items() if name not in own}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', '')}"
    return {
        **kept,
        "PATH": programs,  # the SuperNode looks there for its helpers
        "FLWR_HOME": str(site.flower_home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }


def running(site: SiteFolder) -> Mapping[str, Any] | None:
    """Return the process and start of a site's SuperNode; None if it does not run."""
    with suppress(OSError, ValueError, KeyError):
        found = json.loads((site.path / RUNNING).read_text())
        if psutil.pid_exists(found["process"]):
            return found
    return None


def _keep(stream: IO[str], path: Path) -> None:
    """Print what a SuperNode says, and keep it in a log that does not grow without end."""
    handler = RotatingFileHandler(
        path, maxBytes=MAX_LOG_BYTES, backupCount=MAX_LOGS, encoding="utf-8"
    )
    for line in stream:
        text = " " * (len(line) - len(line.lstrip())) + in_one_line(line)
        record = logging.LogRecord("", logging.INFO, "", 0, text, (), None)
        with suppress(OSError, ValueError):  # a full disk, or a terminal that has gone
            handler.emit(record)
            print(text, flush=True)


def _free_port() -> int:
    """Return a port that nobody listens on: Flower's usual one may be taken."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _end(process: subprocess.Popen[str]) -> None:
    """Ask a SuperNode to end, and kill it after END_S or at a second interrupt."""
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(END_S)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def _end_descendants() -> None:
    """Kill what a SuperNode has left: Flower gives its helpers sessions of their own."""
    for how in ("terminate", "kill"):
        left = psutil.Process().children(recursive=True)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                getattr(process, how)()
        psutil.wait_procs(left, timeout=5)


def _prctl(option: int, value: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def _adopt_orphans() -> None:
    """Become the parent of descendants whose parent ends, so that they can be found and ended."""
    _prctl(PR_SET_CHILD_SUBREAPER, 1)


def _end_with_parent() -> Callable[[], None]:
    """Return what lets a new process end when this one is killed."""
    library = ctypes.CDLL(None) if sys.platform == "linux" else None

    def prepare() -> None:
        if library is not None:
            library.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return prepare
