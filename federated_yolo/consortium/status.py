"""What an operator sees of all sites: online, last seen, the run, seconds, failures."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from rich.table import Table

from federated_yolo.common.errors import FederationError
from federated_yolo.config.schema import Config
from federated_yolo.consortium.folder import Consortium, server_of
from federated_yolo.consortium.server_kit import ending_soon
from federated_yolo.consortium.superlink import Node, SuperLink
from federated_yolo.server.approvals import ATTENDANCE
from federated_yolo.storage.run_dir import CONFIG_FILE, read_csv

MUST_SHOW = ("flwr", "torch", "ultralytics-opencv-headless")


@dataclass(frozen=True)
class Attendance:
    """What the server's app has written of its run. refused: Reasons, by node."""

    run_dir: Path | None
    present: tuple[str, ...]
    refused: Mapping[str, str]


def show_status(console: Any, state: Consortium, folder: Path) -> int:
    """Print the table of sites, and what needs attention. Return 1 if something does."""
    lines: list[str] = []
    try:
        nodes = SuperLink(folder).nodes()
    except FederationError as error:
        nodes = None
        lines.append(str(error))
    attendance = read_attendance(server_of(folder))
    console.print(heading(state, attendance), markup=False, soft_wrap=True)
    console.print(sites_table(state, nodes, attendance))
    known = {site.node for site in state.sites.values()}
    lines += [
        f"node {node}: {reason}" for node, reason in attendance.refused.items() if node not in known
    ]
    if nodes is not None:
        lines += stray_nodes(state, nodes, folder)
    lines += ending_soon(state, folder)
    for line in lines:
        console.print(f"! {line}", markup=False, soft_wrap=True)
    return 1 if lines else 0


def read_attendance(server: Path) -> Attendance:
    """Read who takes part in the last run; empty if there was none."""
    try:
        found = json.loads((server / ATTENDANCE).read_text())
    except (OSError, ValueError):
        return Attendance(None, (), {})
    run_dir = Path(found["run_dir"]) if found["run_dir"] else None
    return Attendance(run_dir, tuple(found["present"]), found["refused"])


def heading(state: Consortium, attendance: Attendance) -> str:
    """Return one line: the consortium, the app, and the round of the last run."""
    versions = ", ".join(
        f"{name.removesuffix('-opencv-headless')} {state.versions[name]}"
        for name in MUST_SHOW
        if name in state.versions
    )
    line = (
        f"{state.settings.name} at {state.settings.address}, app {state.app.hash[:8]}, {versions}"
    )
    if attendance.run_dir is None:
        return line
    rows = _rows(attendance.run_dir, "results.csv")
    total = _num_rounds(attendance.run_dir)
    done = rows[-1]["round"] if rows else "0"
    return f"{line}\nlast run {attendance.run_dir}: round {done} of {total} is done"


def sites_table(
    state: Consortium, nodes: Mapping[str, Node] | None, attendance: Attendance
) -> Table:
    """Return a row for each site. nodes: None if the SuperLink does not answer."""
    table = Table(box=None, pad_edge=False)
    for column in ("site", "state", "last seen", "round", "seconds", "versions", "last failure"):
        table.add_column(column)
    rows = _rows(attendance.run_dir, "clients.csv") if attendance.run_dir else []
    for name, site in state.sites.items():
        own = [row for row in rows if row["client"] == name]
        trained = [row for row in own if row.get("num_steps")]
        failures = [f"round {row['round']}: {row['note']}" for row in own if row.get("note")]
        refused = attendance.refused.get(site.node, "")
        table.add_row(
            name,
            *seen(site.node, nodes),
            trained[-1]["round"] if trained else "",
            f"{float(trained[-1]['seconds']):.1f}" if trained else "",
            "" if refused or name not in attendance.present else "as the server",
            refused or (failures[-1] if failures else ""),
        )
    return table


def seen(node: str, nodes: Mapping[str, Node] | None) -> tuple[str, str]:
    """Return whether a site is online, and since when or until when it was."""
    if not node:
        return "not approved", ""
    if nodes is None:
        return "unknown", ""
    found = nodes.get(node)
    match found.status if found else "":
        case "online":
            assert found is not None
            return "online", f"since {_short(found.online_at)} ({_duration(found.online_s)})"
        case "offline":
            assert found is not None
            return "offline", _short(found.offline_at)
        case "registered":
            return "approved", "never"
        case other:
            return other or "unknown to the SuperLink: approve it again", ""


def stray_nodes(state: Consortium, nodes: Mapping[str, Node], folder: Path) -> Iterator[str]:
    """Yield a line for each key that the SuperLink admits and this kit has not approved."""
    own = {site.node for site in state.sites.values()}
    for node in nodes.values():
        if node.node not in own and node.status != "unregistered":
            yield (
                f"node {node.node}: {node.status}, but of no approved site, as by hand; end that: "
                f"FLWR_HOME={server_of(folder)}/flwr flwr supernode unregister {node.node}"
            )


def _rows(run_dir: Path, table: str) -> list[dict[str, str]]:
    path = run_dir / table
    return read_csv(path) if path.exists() else []


def _num_rounds(run_dir: Path) -> str:
    try:
        text = (run_dir / CONFIG_FILE).read_text()
    except OSError:
        return "?"
    found = [line for line in text.splitlines() if line.startswith("num_rounds:")]
    default = Config.model_fields["num_rounds"].default
    return found[0].partition(":")[2].strip() if found else str(default)


def _short(text: str) -> str:
    """Return Flower's time to the minute, in this machine's own zone."""
    try:
        moment = datetime.fromisoformat(text.replace(" ", "T").replace("Z", "+00:00"))
    except ValueError:
        return text
    return f"{moment.astimezone():%Y-%m-%d %H:%M}"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
