"""The pictures of a run, which are drawn whatever is in it, and without a warning.

Tests take warnings for errors.
"""

from pathlib import Path

import pytest
from recorded_runs import PNG, write_table

from federated_yolo.reporting.plots import write_pictures
from federated_yolo.reporting.run_record import read_run
from federated_yolo.storage.run_dir import read_csv


def test_class_names_that_matplotlib_would_read_as_formulas_are_drawn(run_dir: Path) -> None:
    text = (run_dir / "run.json").read_text().replace("RBC", r"$\\frac$ 赤血球")
    (run_dir / "run.json").write_text(text, encoding="utf-8")
    write_pictures(read_run(run_dir))
    assert (run_dir / "clients.png").read_bytes().startswith(PNG)


def test_a_run_that_has_learned_nothing_yet_is_drawn(run_dir: Path) -> None:
    for path in run_dir.glob("*.csv"):
        rows = read_csv(path)
        scored = [c for c in rows[0] if "mAP" in c or "metrics/" in c or c.endswith("fitness")]
        write_table(path, [{**row, **dict.fromkeys(scored, "0.0")} for row in rows])
    write_pictures(read_run(run_dir))
    assert (run_dir / "clients.png").read_bytes().startswith(PNG)


@pytest.mark.parametrize("num_clients", [20, 100])
def test_many_clients_with_long_names_leave_room_for_the_curves(
    tmp_path: Path, num_clients: int
) -> None:
    names = [f"client{number:058}" for number in range(num_clients)]
    row = {"round": 1, "seconds": 0.0, "train/box_loss": 1.0}
    write_table(tmp_path / "results.csv", [row])
    write_table(tmp_path / "clients.csv", [{"client": name, **row} for name in names])
    write_pictures(read_run(tmp_path))
    assert (tmp_path / "results.png").read_bytes().startswith(PNG)
