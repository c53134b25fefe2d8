"""What is read from a run directory."""

from pathlib import Path

import pytest
from recorded_runs import write_table

from federated_yolo.reporting.run_record import read_run
from federated_yolo.storage.run_dir import read_csv


def test_the_best_round_goes_by_fitness_and_the_latest_of_equals(run_dir: Path) -> None:
    rows = read_csv(run_dir / "results.csv")
    for row, fitness in zip(rows, ("0.1", "0.9", "0.9", "0.2"), strict=True):
        row["fitness"] = fitness
    write_table(run_dir / "results.csv", rows)
    run = read_run(run_dir)
    assert run.best is not None
    assert run.best["round"] == 3
    assert run.best_score == float(rows[2]["server/metrics/mAP50-95(B)"])


def test_padded_column_names_of_older_ultralytics_are_read(yolo_dir: Path) -> None:
    header, _, rows = (yolo_dir / "results.csv").read_text().partition("\n")
    padded = ",".join(f"{name:>23}" for name in header.split(","))
    (yolo_dir / "results.csv").write_text(f"{padded}\n{rows}")
    run = read_run(yolo_dir)
    assert not run.is_federated
    assert run.best_score == pytest.approx(0.42)
