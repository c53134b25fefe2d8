"""Read and check the files in a run directory.

Directories of `yolo train` are read too, as centralised runs. A table that a directory lacks (the
run was not evaluated, or an older version made it) is empty here.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from federated_yolo.common.errors import InputError
from federated_yolo.common.files import read_yaml, refuse_special
from federated_yolo.config.schema import SharedConfig
from federated_yolo.storage.run_dir import (
    CONFIG_FILE,
    DESCRIPTION_FILE,
    ENDED_EARLY,
    PERSONAL,
    RESULTS,
    read_csv,
)

# The metric that a task is judged by; a model with masks or keypoints also has one for boxes.
PRIMARY = (
    "metrics/mAP50-95(M)",
    "metrics/mAP50-95(P)",
    "metrics/mAP50-95(B)",
    "metrics/accuracy_top1",
)
TEXT_COLUMNS = {"client", "class", "note", "model", "owner", "data", "kept"}
NEEDED_COLUMNS = {
    "clients.csv": ("round", "client"),
    "classes.csv": ("round", "client", "class"),
    "test.csv": ("client",),
    "cross_client.csv": ("model", "owner", "data"),
    PERSONAL: ("client", "kept"),
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """The content of a run directory. Tables have numbers as floats, and None for empty cells.

    name: Unique among the runs of a page. settings: From args.yaml. info: From run.json.
    """

    path: Path
    name: str
    is_federated: bool
    settings: Row
    info: Row
    rounds: list[Row]
    clients: list[Row]
    classes: list[Row]
    tests: list[Row]
    matrix: list[Row]
    personal_models: list[Row]

    @cached_property
    def client_names(self) -> list[str]:
        """The clients, in the order of all tables and charts."""
        known = [*self.info.get("clients", {}), *(row["client"] for row in self.clients)]
        return list(dict.fromkeys(known))

    @cached_property
    def client_rows(self) -> dict[str, list[Row]]:
        """Rows of clients.csv by client, in the order of `client_names`."""
        rows: dict[str, list[Row]] = {name: [] for name in self.client_names}
        for row in self.clients:
            rows[row["client"]].append(row)
        return rows

    @cached_property
    def metric(self) -> str | None:
        """The column that the run is judged by; None if nothing was evaluated."""
        found = filled_columns((*self.rounds, *self.clients, *self.matrix, *self.tests))
        return next((m for m in PRIMARY if m in found or f"server/{m}" in found), None)

    @cached_property
    def score_column(self) -> str | None:
        """The judged column of results.csv: on the server's data if it has scores there."""
        on_server = f"server/{self.metric}"
        return on_server if on_server in filled_columns(self.rounds) else self.metric

    @cached_property
    def best(self) -> Row | None:
        """The best evaluated round; of equal ones the latest, as for best.pt."""
        column = self.score_column
        scored = [row for row in self.rounds if column and row.get(column) is not None]
        by = "fitness" if "fitness" in filled_columns(scored) else str(column)
        return max(scored, key=lambda row: (row.get(by) or 0.0, row["round"]), default=None)

    @cached_property
    def best_score(self) -> float | None:
        """The run's judged metric in its best round."""
        return self.best[str(self.score_column)] if self.best else None

    @property
    def early_end(self) -> str:
        """Why `patience` has ended the run before its last round; empty if it has not."""
        return self.info.get(ENDED_EARLY, "")

    @cached_property
    def is_personal(self) -> bool:
        """Whether each client has a model of its own, because some arrays are private."""
        return SharedConfig.model_validate(self.settings.get("shared") or {}).is_partial


def read_run(path: Path, name: str | None = None) -> Run:
    """Read a run directory. Raises InputError with all its problems."""
    if not path.is_dir():
        reason = "is a file" if path.exists() else "no such directory"
        raise InputError(f"{path}: {reason}; expected the directory of a run")
    problems: list[str] = []
    rounds = _collect(problems, lambda: _read_rounds(path), [])
    settings = _collect(problems, lambda: _read_mapping(path / CONFIG_FILE, read_yaml), {})
    info = _collect(problems, lambda: _read_info(path / DESCRIPTION_FILE), {})
    tables = {
        table: _collect(problems, lambda file=path / table: read_table(file), [])
        for table in NEEDED_COLUMNS
    }
    if problems:
        raise InputError(problems)
    is_federated = "round" in rounds[0]
    if not is_federated:
        rounds = [{"round": row["epoch"], **row} for row in rounds]
    return Run(
        path=path,
        name=name or path.resolve().name,
        is_federated=is_federated,
        settings=settings,
        info=info,
        rounds=rounds,
        clients=tables["clients.csv"],
        classes=tables["classes.csv"],
        tests=tables["test.csv"],
        matrix=tables["cross_client.csv"],
        personal_models=tables[PERSONAL],
    )


def _collect(problems: list[str], read: Callable[[], Any], otherwise: Any) -> Any:
    try:
        return read()
    except InputError as error:
        problems.extend(error.problems)
        return otherwise


def _read_rounds(path: Path) -> list[Row]:
    if not (path / RESULTS).exists():
        raise InputError(f"{path}: has no {RESULTS}; expected the directory of a run")
    rounds = read_table(path / RESULTS)
    if not rounds:
        raise InputError(f"{path / RESULTS}: no round was finished; there is nothing to draw yet")
    column = "round" if "round" in rounds[0] else "epoch"
    for number, row in enumerate(rounds, 1):
        if row.get(column) is None:
            raise InputError(
                f"{path / RESULTS}: row {number}: found columns {', '.join(row)}, expected a "
                "number under 'round', or 'epoch' of yolo train; restore the file"
            )
    return rounds


def read_table(path: Path) -> list[Row]:
    """Read the rows of a CSV; a missing file has none. Raises InputError for a damaged file."""
    if not path.exists():
        return []
    try:
        rows = read_csv(path)
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read ({error}); restore the file") from error
    missing = [c for c in NEEDED_COLUMNS.get(path.name, ()) if rows and c not in rows[0]]
    if missing:
        raise InputError(
            f"{path}: found columns {', '.join(map(str, rows[0]))}, expected also "
            f"{', '.join(missing)}; restore the file"
        )
    return [_parsed(path, number, row) for number, row in enumerate(rows, 1)]


def _parsed(path: Path, number: int, row: Mapping[Any, Any]) -> Row:
    """Parse cells into texts or numbers. In csv.DictReader, None marks a row of another length."""
    where = f"{path}: row {number}"
    if None in row or None in row.values():
        raise InputError(f"{where}: has more or fewer cells than the header; restore the file")
    result: Row = {}
    for name, text in row.items():
        column = str(name).strip()  # older versions of Ultralytics pad them
        if column in TEXT_COLUMNS:
            result[column] = text
            continue
        try:
            value = float(text) if text.strip() else None
        except ValueError as error:
            raise InputError(
                f"{where}: column '{column}': found '{text[:40]}', expected a number; restore "
                "the file"
            ) from error
        result[column] = value if value is not None and math.isfinite(value) else None
    if "round" in result and result["round"] is None:
        raise InputError(f"{where}: no number under 'round'; restore the file")
    return result


def _read_info(path: Path) -> Row:
    info = _read_mapping(path, lambda file: json.loads(file.read_text(encoding="utf-8")))
    clients = info.get("clients", {})
    counts = clients if isinstance(clients, dict) else {}
    expected = [
        ("names", info.get("names", []), list),
        ("versions", info.get("versions", {}), dict),
        ("clients", clients, dict),
        (ENDED_EARLY, info.get(ENDED_EARLY, ""), str),
        *((f"clients.{name}", found, dict) for name, found in counts.items()),
    ]
    for name, found, kind in expected:
        if not isinstance(found, kind):
            raise InputError(
                f"{path}: '{name}': found {type(found).__name__}, expected {kind.__name__}; "
                "restore the file"
            )
    return info


def _read_mapping(path: Path, read: Callable[[Path], Any]) -> Row:
    if not path.exists():
        return {}
    try:
        refuse_special(path)
        found = read(path)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({reason}); restore the file") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: found {type(found).__name__}, expected names and values")
    return found


def filled_columns(rows: Iterable[Row]) -> set[str]:
    """Return the columns that contain at least one value."""
    return {name for row in rows for name, value in row.items() if value not in (None, "")}


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read runs and give them distinct names. Raises InputError with all their problems."""
    problems = [
        f"{path}: given twice; name each run once"
        for i, path in enumerate(paths)
        if path.resolve() in [other.resolve() for other in paths[:i]]
    ]
    runs = [
        _collect(problems, lambda p=path, n=name: read_run(p, n), None)
        for path, name in zip(paths, _names(paths), strict=True)
    ]
    if problems:
        raise InputError(problems)
    return runs


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the ends of the paths, just long enough to be distinct."""
    parts = [path.resolve().parts for path in paths]
    for length in range(1, max(map(len, parts))):
        names = ["/".join(p[-length:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return [str(path.resolve()) for path in paths]
