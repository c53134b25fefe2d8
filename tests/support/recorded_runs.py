"""Recorded run directories, and ways to take from them: `import recorded_runs`.

data/run is a run of three clients and four rounds, of whom one failed in round 2; one of its
classes and that failure are named by someone who means harm. data/yolo_train is what `yolo train`
leaves. The fixtures run_dir and yolo_dir are copies of them.
"""

import csv
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from federated_yolo.storage.run_dir import read_csv

DATA = Path(__file__).parent / "data"
HOSTILE_CLASS = "<b>WBC</b><img src=x onerror=\"document.title='owned'\">"
HOSTILE_NOTE = "<script>document.title = 'owned'</script>, took longer than 60 s"
PNG = b"\x89PNG\r\n"


def write_table(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    rows = list(rows)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def keep_columns(path: Path, is_kept: Callable[[str], bool]) -> None:
    write_table(path, [{k: v for k, v in row.items() if is_kept(k)} for row in read_csv(path)])


def without_metrics(run_dir: Path) -> None:
    """Leave what a run has that was never evaluated."""
    for name in ("results.csv", "clients.csv"):
        keep_columns(run_dir / name, lambda c: "metrics/" not in c and c != "fitness")
    for name in ("classes.csv", "test.csv", "cross_client.csv"):
        (run_dir / name).unlink()
