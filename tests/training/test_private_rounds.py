"""Rounds with differential privacy: what leaves a client, and what epsilon is stated."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from local_grid import LocalGrid
from private_rounds import FROZEN, needs_accountant, private
from recipes import make_dataset
from trainings import TRAIN, federation

from federated_yolo.aggregation.privacy import epsilon
from federated_yolo.common.arrays import distance
from federated_yolo.protocol.records import from_record
from federated_yolo.reporting.run_page import headline
from federated_yolo.reporting.run_record import read_run
from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import read_csv
from federated_yolo.yolo.model import build_model, moved_names


def two_sites(folder: Path) -> list[Path]:
    return [make_dataset(folder / name, 2 + 2 * i, 1, seed=i) for i, name in enumerate("ab")]


@needs_accountant
def test_a_federation_with_central_privacy_moves_by_its_noise_and_says_its_epsilon(
    tmp_path: Path,
) -> None:
    privacy = private(clipping_norm=0.01, noise_multiplier=2.0)
    result = federation(
        two_sites(tmp_path),
        tmp_path,
        {**TRAIN, "freeze": 10},
        num_rounds=2,
        shared=FROZEN,
        privacy=privacy,
    )
    start, first, second = (
        load_arrays(result.run_dir / f"weights/round{i}.npz")[0] for i in (0, 1, 2)
    )
    model = build_model("yolov8n.yaml", "detect", {"names": dict(enumerate("abc")), "nc": 3})
    moved = moved_names(model, 10)
    for name in set(start) - moved:  # statistics, counters, frozen layers
        np.testing.assert_array_equal(second[name], start[name])
    size = sum(start[name].size for name in moved)
    expected = 2.0 * 0.01 / 2 * math.sqrt(size)  # beside which the mean's 0.01 does not count
    assert distance(first, start, moved) == pytest.approx(expected, rel=0.01)
    rows = read_csv(result.run_dir / "results.csv")
    assert [float(row["epsilon"]) for row in rows] == [epsilon(privacy, 1), epsilon(privacy, 2)]
    spent = json.loads((result.run_dir / "server" / "privacy.json").read_text())
    assert spent["num_updates"] == {"c0": 2, "c1": 2}
    number = headline(read_run(result.run_dir))[-1]
    assert (number.label, number.value) == ("Epsilon", f"{epsilon(privacy, 2):.3g}")
    assert "after 2 rounds" in number.note


@needs_accountant
def test_with_local_privacy_no_update_leaves_a_client_without_its_noise(tmp_path: Path) -> None:
    privacy = private("local", clipping_norm=0.01, noise_multiplier=2.0)
    grid = LocalGrid(2)
    result = federation(
        two_sites(tmp_path),
        tmp_path,
        TRAIN,
        grid=grid,
        num_rounds=1,
        shared=FROZEN,
        privacy=privacy,
    )
    start = load_arrays(result.run_dir / "weights" / "round0.npz")[0]
    model = build_model("yolov8n.yaml", "detect", {"names": dict(enumerate("abc")), "nc": 3})
    moved = moved_names(model, None)
    size = sum(start[name].size for name in moved)
    replies = [r for r in grid.received if r.has_content() and "arrays" in r.content]
    assert len(replies) == 2
    for reply in replies:
        sent = from_record(reply.content.array_records["arrays"])
        assert distance(sent, start, moved) == pytest.approx(2 * 0.01 * math.sqrt(size), rel=0.01)
        assert set(sent) == moved  # what has not moved does not travel
    (row,) = read_csv(result.run_dir / "results.csv")
    assert float(row["epsilon"]) == epsilon(privacy, 1)
