"""The numbers of a run, on small tables."""

from pathlib import Path

import pytest
from recorded_runs import write_table

from federated_yolo.reporting.run_numbers import best_local, lines_of, look_of
from federated_yolo.reporting.run_record import read_run


def test_without_server_data_the_best_local_model_has_the_best_weighted_mean(
    run_dir: Path,
) -> None:
    metric = "metrics/mAP50-95(B)"
    scores = {("a", "a"): (0.5, 10), ("a", "b"): (0.2, 30), ("b", "a"): (0.3, 10)}
    scores["b", "b"] = (0.3, 30)
    rows = [
        {"model": "local", "owner": o, "data": d, "num_examples": n, metric: score}
        for (o, d), (score, n) in scores.items()
    ]
    write_table(run_dir / "cross_client.csv", rows)
    # a: (0.5 * 10 + 0.2 * 30) / 40 = 0.275, though its plain mean is 0.35
    found = best_local(read_run(run_dir))
    assert found is not None
    assert found[0] == pytest.approx(0.3)
    assert found[1:] == ("b's model", "the clients' val splits")


def test_rounds_that_a_client_missed_leave_no_point(run_dir: Path) -> None:
    lines = lines_of(read_run(run_dir), "train/box_loss")
    assert {line.name: line.x for line in lines} == {
        "north": [1, 2, 3, 4],
        "south": [1, 3, 4],
        "west": [1, 2, 3, 4],
        "mean of the clients": [1, 2, 3, 4],
    }


def test_twenty_clients_can_be_told_apart() -> None:
    assert len({look_of(number) for number in range(20)}) == 20
