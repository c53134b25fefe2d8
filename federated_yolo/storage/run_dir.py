"""The run directory: rounds as .npz, the resolved config, CSV rows, private client folders.

Every file is written to a temporary file in its folder, flushed and renamed into place, so that
a reader sees the whole old file or the whole new one, even if the run was killed meanwhile.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from federated_yolo.common.arrays import Arrays, Layout, layout_problems, select
from federated_yolo.common.errors import InputError
from federated_yolo.common.files import refuse_special, special_kind, write_atomically
from federated_yolo.storage.archive import RoundMeta, load_arrays, load_headers, save_arrays

# The start of a formula in a spreadsheet, also after the leading ' that `as_cell` adds.
FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")

CONFIG_FILE = "args.yaml"
SPLITS = ("train", "val", "test")
DESCRIPTION_FILE = "run.json"  # facts known before round 1: model, data counts, versions; its end
ENDED_EARLY = "ended_early"  # in the description, with the reason
SERVER = "(server)"  # in place of a client's name; no client can have this name
JPEG = b"\xff\xd8\xff"  # first bytes of a picture of predictions
CLIENTS, CLASSES = "clients.csv", "classes.csv"
RESULTS = "results.csv"  # a round is complete once its row is here: it is written last
PERSONAL = "personal.csv"  # a row per client: its model of its own after the last round
TABLES = (RESULTS, CLIENTS, CLASSES, PERSONAL)


class RunDir:
    """Paths, files, CSV rows and lock of one run.

    Rows are kept in memory, so that later rows can add columns. The lock prevents other processes
    from continuing the run at the same time.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.weights = path / "weights"
        self.clients = path / "clients"
        self.server = path / "server"
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._lock = FileLock(self.server / "lock", timeout=0)

    @classmethod
    def create(cls, save_dir: Path, name: str) -> "RunDir":
        """Make `save_dir/name`, or name2, name3, ... if that exists, as Ultralytics does.

        `mkdir` decides, so two runs that start together get two directories.
        Raises InputError if save_dir cannot be made.
        """
        try:
            save_dir.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
            raise InputError(
                f"save_dir {str(save_dir)!r}: cannot be made: {error}; choose another save_dir"
            ) from error
        number = 1
        while True:
            run_dir = cls(save_dir.resolve() / (name if number == 1 else f"{name}{number}"))
            try:
                run_dir.path.mkdir()
            except FileExistsError:
                number += 1
                continue
            for folder in (run_dir.weights, run_dir.clients, run_dir.server):
                folder.mkdir()
            run_dir._lock.acquire()
            return run_dir

    @classmethod
    def reopen(cls, path: Path) -> "RunDir":
        """Open the directory of a run that has ended, to continue the run.

        Rows of an incomplete round are dropped; the round will run again. The directory may come
        from somebody else, so label caches, which are pickles, are deleted without being read.
        Raises InputError if the run is still in progress, and if the directory holds links that
        lead out of it, or special files.
        """
        run_dir = cls(path.resolve())
        if problems := list(run_dir._foreign_entries()):
            raise InputError(f"resume={path}: {problem}" for problem in problems)
        try:
            for folder in (run_dir.weights, run_dir.clients, run_dir.server):
                folder.mkdir(exist_ok=True)
            run_dir._lock.acquire()
            for left in run_dir.path.rglob(".*.tmp"):  # from writes that were killed
                left.unlink(missing_ok=True)
            for folder in (run_dir.clients, run_dir.server):
                for cache in (*folder.rglob("*.cache"), *folder.rglob("*.npy")):
                    cache.unlink(missing_ok=True)
        except Timeout as error:
            raise InputError(
                f"resume={path}: another process is at work on this run; wait for it or stop it"
            ) from error
        except OSError as error:
            raise InputError(f"resume={path}: {error}; the run cannot go on there") from error
        tables = {name: _rows_by_round(run_dir.path / name) for name in TABLES}
        last = max((number for number, _ in tables[RESULTS]), default=0)
        for name, table in tables.items():
            rows = [row for number, row in table if number <= last]
            if not any(row.get("note") for row in rows):  # only the dropped round had it
                rows = [{k: v for k, v in row.items() if k != "note"} for row in rows]
            run_dir._rows[name] = rows
        found = [int(row["round"]) for row in run_dir._rows[RESULTS]]
        if found != list(range(1, len(found) + 1)):
            raise InputError(f"{run_dir.path / RESULTS}: found rounds {found}, some are missing")
        return run_dir

    def _foreign_entries(self) -> Iterator[str]:
        """Yield a line for each link that leads out of the directory, and each special file."""
        kept = (*self.weights.rglob("*"), *self.clients.rglob("*"), *self.server.rglob("*"))
        for entry in (*self.path.glob("*"), *kept):
            where = entry.relative_to(self.path)
            if entry.is_symlink() and not entry.resolve().is_relative_to(self.path):
                yield f"{where}: leads out of it; put there what it leads to"
            elif kind := special_kind(entry):
                yield f"{where}: is {kind}, expected an ordinary file; remove it"

    def last_round(self) -> int:
        """Return the number of the last complete round; 0 before the first."""
        path = self.path / RESULTS
        return max((int(row["round"]) for row in read_csv(path)), default=0) if path.exists() else 0

    def rows(self, name: str) -> list[dict[str, Any]]:
        """Return the rows of a CSV so far: as appended, or strings if the run was reopened."""
        return list(self._rows.get(name, []))

    def client_dir(self, name: str) -> Path:
        """Return the private folder of one client."""
        return self.clients / name

    def images_at_start(self) -> dict[str, dict[str, int]]:
        """Return each client's numbers of images when the run began: `num_train`, `num_val`, ...

        Empty if the run was stopped before it had recorded them.
        Raises InputError if the file is damaged.
        """
        path = self.path / DESCRIPTION_FILE
        try:
            clients = json.loads(path.read_text(encoding="utf-8"))["clients"]
            return {
                name: {f"num_{split}": int(counts[f"{split}_images"]) for split in SPLITS}
                for name, counts in clients.items()
            }
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"resume: {path}: damaged ({type(error).__name__}); put it back, or remove it"
            ) from error

    def note_end(self, reason: str) -> None:
        """Write into the description why the run ended before its last round; empty: it did not."""
        path = self.path / DESCRIPTION_FILE
        description = json.loads(path.read_text(encoding="utf-8"))
        if description.pop(ENDED_EARLY, "") != reason:
            description |= {ENDED_EARLY: reason} if reason else {}
            self.write_text(DESCRIPTION_FILE, json.dumps(description, indent=2))

    def round_path(self, round_number: int) -> Path:
        """Return the path of the global arrays after this round; 0 is the initial model."""
        return self.weights / f"round{round_number}.npz"

    def save_round(self, arrays: Arrays, meta: RoundMeta) -> Path:
        """Write the global arrays of `meta.round` and return the path."""
        path = self.round_path(meta.round)
        save_arrays(path, arrays, meta)
        return path

    def load_round(self, round_number: int, layout: Layout) -> Arrays:
        """Read the global arrays of a round of this run, in the order of the layout.

        Raises ValueError that names the file if it is damaged or has another layout.
        """
        return _load_layout(self.round_path(round_number), layout)

    def average_path(self, round_number: int) -> Path:
        """Return the path of the moving average of the global arrays after this round."""
        return self.weights / f"ema{round_number}.npz"

    def save_average(self, arrays: Arrays, meta: RoundMeta) -> None:
        """Write the moving average of the global arrays after `meta.round`."""
        save_arrays(self.average_path(meta.round), arrays, meta)

    def load_average(self, round_number: int, layout: Layout) -> Arrays:
        """Read the moving average after a round. Raises the errors of `load_round`."""
        return _load_layout(self.average_path(round_number), layout)

    def _state_path(self, what: str, round_number: int) -> Path:
        return self.server / f"{what}{round_number}.npz"

    def save_state(self, what: str, state: Arrays, meta: RoundMeta) -> None:
        """Write state that the server carries from round to round; keep that of the last 2 rounds.

        what: Owner of the state: "strategy" or "downloads".
        """
        save_arrays(self._state_path(what, meta.round), state, meta)
        self._state_path(what, meta.round - 2).unlink(missing_ok=True)

    def load_state(self, what: str, round_number: int) -> Arrays:
        """Read the server's state. Raises ValueError if the file is missing or damaged."""
        return load_arrays(self._state_path(what, round_number))[0]

    def write_text(self, name: str, text: str) -> Path:
        """Write a small text file and return its path."""
        path = self.path / name
        write_atomically(path, lambda file: file.write(text.encode()))
        return path

    def append_rows(self, name: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Append rows to a CSV, as `write_rows` writes it."""
        self._rows.setdefault(name, []).extend(dict(row) for row in rows)
        self._write_table(name)

    def write_rows(self, name: str, rows: Iterable[Mapping[str, object]]) -> None:
        """Write all rows of a CSV: one header, missing values empty, columns in order of arrival.

        Texts are made safe for spreadsheets by `as_cell`; `read_csv` returns the original texts.
        """
        self._rows[name] = [dict(row) for row in rows]
        self._write_table(name)

    def _write_table(self, name: str) -> None:
        table = self._rows[name]
        columns = list(dict.fromkeys(column for row in table for column in row))

        def write(file: BinaryIO) -> None:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow([as_cell(column) for column in columns])
            writer.writerows([as_cell(row.get(c, "")) for c in columns] for row in table)
            text.detach()

        write_atomically(self.path / name, write)


def as_cell(value: Any) -> Any:
    """Return a value for a CSV; text that a spreadsheet would run as a formula gets a leading '.

    Clients supply notes, and names of classes and columns. Numbers stay as they are.
    """
    if isinstance(value, str) and FORMULA.match(value) and not _is_number(value):
        return f"'{value}"
    return value


def from_cell(text: str) -> str:
    """Return the text from which `as_cell` made this one."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _rows_by_round(table: Path) -> list[tuple[int, dict[str, str]]]:
    """Return the rows of a CSV with their rounds; [] without it. Raises InputError on damage."""
    try:
        return [(int(row["round"]), row) for row in read_csv(table)] if table.exists() else []
    except (KeyError, ValueError, TypeError, OSError, csv.Error) as error:
        raise InputError(f"{table}: damaged ({error}); the run cannot go on") from error


def _load_layout(path: Path, layout: Layout) -> Arrays:
    for load in (load_headers, load_arrays):  # headers first: they may state any size
        arrays, _ = load(path)
        problems = layout_problems(arrays, layout)
        if problems:
            raise ValueError(f"{path}: not of this model: {'; '.join(problems[:3])}")
    return select(arrays, layout.names)


def find_run(where: str, save_dir: Path) -> Path:
    """Return the directory of the run to continue.

    where: The directory, or a file in it, or "true" for the newest run below save_dir.
    Raises InputError if there is none.
    """
    if where.lower() == "true":
        configs = save_dir.glob(f"*/{CONFIG_FILE}") if save_dir.is_dir() else ()
        found = max(configs, key=lambda path: path.stat().st_mtime_ns, default=None)
        if found is None:
            raise InputError(f"resume=true: found no run in {save_dir}; give resume=RUN_DIR")
        return found.parent
    path = Path(where)
    try:
        for folder in path.absolute().parents[:2] if path.is_file() else [path]:
            if (folder / CONFIG_FILE).is_file():
                return folder
    except (OSError, ValueError) as error:  # a name that no file can have
        raise InputError(f"resume={where}: {error}; expected the directory of a run") from error
    reason = f"has no {CONFIG_FILE}, so no run has begun there" if path.exists() else "not there"
    raise InputError(f"resume={where}: {reason}; expected the directory of a run")


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV of this project; empty strings are missing values."""
    refuse_special(path)
    with path.open(encoding="utf-8-sig", newline="") as file:  # spreadsheets add a BOM
        reader = csv.DictReader(file)
        reader.fieldnames = [from_cell(name) for name in reader.fieldnames or ()]
        return [
            {n: from_cell(t) if isinstance(t, str) else t for n, t in r.items()} for r in reader
        ]
