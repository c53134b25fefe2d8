"""What a site sees of itself: whether it runs, what it does, its scores, its last error, logs."""

import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from federated_yolo.client.journal import LOG, Journal
from federated_yolo.consortium.settings import split_address
from federated_yolo.sites.folder import SUPERNODE_LOG, SiteFolder
from federated_yolo.sites.supernode import running

FOLLOW_S = 0.5
TAIL = 40  # lines


def status_lines(site: SiteFolder) -> Iterator[tuple[str, str]]:
    """Yield what is shown, as (label, text)."""
    terms, work = site.terms, site.work_folder()
    yield "site", f"{terms.site} in {terms.consortium}, server {terms.address}"
    found = running(site)
    yield "SuperNode", _running_text(found, terms.address) if found else "does not run: site start"
    state = Journal(work).read()
    if state:
        yield "work", _work_text(state)
    for key, label in (("training", "trained"), ("score", "own score")):
        if numbers := state.get(key):
            yield label, f"round {numbers['round']}: {_numbers_text(numbers)}"
    if error := state.get("last_error"):
        yield "last error", f"{error['time']}: {error['text']}"
    yield "logs", f"{work / LOG} (site log), {site.path / SUPERNODE_LOG}"
    if run := state.get("run"):
        yield "this run", f"{work / run}: last.pt, best.pt; error.txt has the last traceback"


def _running_text(found: Mapping[str, Any], address: str) -> str:
    since = f"runs since {found['started']}"
    if _is_connected(found["process"], address):
        return f"{since}, connected to the server"
    return f"{since}, not connected to the server at the moment: site check says why"


def _is_connected(process: int, address: str) -> bool:
    """Whether a SuperNode has a connection to the server's port; it asks for work every 3 s."""
    port = split_address(address)[1]
    for _ in range(5):
        try:
            connections = psutil.Process(process).net_connections("inet")
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False
        if any(c.raddr and c.raddr.port == port and c.status == "ESTABLISHED" for c in connections):
            return True
        time.sleep(FOLLOW_S)
    return False


def _work_text(state: Mapping[str, Any]) -> str:
    doing = state.get("doing", "none so far")
    place = f"run {state['run']}" if "run" in state else ""
    if state.get("round"):
        place += f", round {state['round']} of {state['num_rounds']}"
    return f"{doing}{f' ({place})' if place else ''}, {_ago(state['time'])}"


def _ago(text: str) -> str:
    seconds = (datetime.now().astimezone() - datetime.fromisoformat(text)).total_seconds()
    return f"noted {seconds:.0f} s ago" if seconds < 120 else f"noted at {text}"


def _numbers_text(numbers: Mapping[str, float | None]) -> str:
    shown = []
    for name, value in numbers.items():
        short = name.rpartition("/")[2]
        if name == "num-examples":
            shown.append(f"{value:g} images")
        elif name == "seconds":
            shown.append(f"{value:.1f} s")
        elif short.endswith("_loss") or short == "fitness" or "mAP" in short:
            shown.append(f"{short} {'–' if value is None else f'{value:.4f}'}")
    return ", ".join(shown)


def log_lines(path: Path, *, follow: bool) -> Iterator[str]:
    """Yield the last lines of a log and, if wanted, those that are still to come."""
    position = 0
    if path.exists():
        lines = path.read_text(errors="replace").splitlines()
        yield from lines[-TAIL:]
        position = path.stat().st_size
    while follow:
        time.sleep(FOLLOW_S)
        if not path.exists():
            continue
        if path.stat().st_size < position:  # it was rotated
            position = 0
        with path.open(errors="replace") as file:
            file.seek(position)
            yield from (line.rstrip("\n") for line in file)
            position = file.tell()
