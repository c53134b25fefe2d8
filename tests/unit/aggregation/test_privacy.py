"""Differential privacy: what is clipped, how much noise there is, what it is said to come to."""

import importlib.util
import math
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest
from private_rounds import needs_accountant, private

from federated_yolo.aggregation.privacy import ServerPrivacy, epsilon
from federated_yolo.checks.setting_rules import privacy_problems
from federated_yolo.common.arrays import Arrays, Layout
from federated_yolo.config.schema import Config
from federated_yolo.protocol.clipping import clipped_change, noise_of_mean, privatised
from federated_yolo.yolo.model import build_model, moved_names


def server_privacy(folder: Path, names: list[str], **settings: Any) -> ServerPrivacy:
    """With noise that is the same in every run of the test."""
    path = folder / "privacy.json"
    return ServerPrivacy(private(**settings), names, path, np.random.default_rng(0))


def exact_epsilon(multiplier: float, num_updates: int, delta: float) -> float:
    """Of composed Gaussian mechanisms (Balle & Wang 2018, arXiv 1805.06530, theorem 8)."""
    mu, cdf = math.sqrt(num_updates) / multiplier, NormalDist().cdf
    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        reached = cdf(mu / 2 - middle / mu) - math.exp(middle) * cdf(-mu / 2 - middle / mu)
        low, high = (middle, high) if reached > delta else (low, middle)
    return high


@needs_accountant
@pytest.mark.parametrize(("multiplier", "num_updates"), [(1, 1), (1, 10), (4, 10), (10, 100)])
def test_epsilon_lies_between_the_exact_value_and_a_looser_published_bound(
    multiplier: float, num_updates: int
) -> None:
    """The bound: Bun & Steinke 2016, arXiv 1605.02065, propositions 1.3 and 1.6."""
    found = epsilon(private(noise_multiplier=float(multiplier)), num_updates)
    rho = num_updates / (2 * multiplier**2)
    assert exact_epsilon(multiplier, num_updates, 1e-5) <= found
    assert found <= rho + 2 * math.sqrt(rho * math.log(1e5))


@needs_accountant
def test_epsilon_of_one_release_is_what_dp_accounting_documents() -> None:
    """Exact is 4.377; Renyi differential privacy gives 4.729. No release spends nothing."""
    assert exact_epsilon(1, 1, 1e-5) == pytest.approx(4.377, abs=0.001)
    assert epsilon(private(), 1) == pytest.approx(4.729, abs=0.001)
    assert epsilon(private(), 0) == 0


@needs_accountant
def test_local_privacy_hides_any_update_behind_any_other_so_its_noise_counts_half() -> None:
    assert epsilon(private("local", noise_multiplier=2.0), 7) == epsilon(private(), 7)


def test_an_update_is_shortened_to_the_clipping_norm_over_all_arrays_together() -> None:
    origin = {"a": np.array([1.0, 1.0], "f4"), "b": np.array([2.0], "f4")}
    arrays = {"a": np.array([1.0, 31.0], "f4"), "b": np.array([42.0], "f4")}  # 30 and 40: 50
    change, is_within = clipped_change(arrays, origin, ["a", "b"], 5.0)
    assert not is_within
    np.testing.assert_allclose(change["a"], [0, 3])
    np.testing.assert_allclose(change["b"], [4])
    change, is_within = clipped_change(arrays, origin, ["a", "b"], 50.0)
    assert is_within
    np.testing.assert_array_equal(change["b"], [40])


def test_an_update_that_did_not_move_is_no_division_by_zero() -> None:
    origin = {"a": np.ones(2, "f4")}
    change, is_within = clipped_change(origin, origin, ["a"], 1.0)
    assert is_within
    np.testing.assert_array_equal(change["a"], [0, 0])


def test_central_noise_on_the_mean_has_the_clipping_norm_times_multiplier_over_clients(
    tmp_path: Path,
) -> None:
    server = server_privacy(tmp_path, ["a"], clipping_norm=3.0, noise_multiplier=2.0)
    origin = {"a": np.full(100_000, 7.0)}
    released = server.release([origin] * 4, origin)["a"]
    assert released.std() == pytest.approx(2 * 3 / 4, rel=0.02)
    assert released.mean() == pytest.approx(7, abs=0.02)


def test_clients_count_the_same_and_each_no_more_than_the_clipping_norm(tmp_path: Path) -> None:
    server = server_privacy(tmp_path, ["a"], clipping_norm=5.0, noise_multiplier=1e-12)
    origin = {"a": np.array([1.0, 1.0])}
    models = [{"a": np.array([301.0, 401.0])}, {"a": np.array([1.0, 2.0])}]
    released = server.release(iter(models), origin)["a"]
    np.testing.assert_allclose(released, [1 + 3 / 2, 1 + (4 + 1) / 2], atol=1e-9)


def test_local_noise_has_the_clipping_norm_times_multiplier_at_each_client() -> None:
    origin: Arrays = {
        "a": np.zeros(100_000, "f4"),
        "running_var": np.array([0.5], "f4"),
        "num_batches_tracked": np.array(3),
    }
    trained = {"a": np.ones(100_000, "f4"), "running_var": np.array([9.0], "f4")}
    trained["num_batches_tracked"] = np.array(8)
    config = private("local", clipping_norm=3.0, noise_multiplier=2.0)
    sent = privatised(trained, origin, ["a"], config, np.random.default_rng(0))
    assert Layout.of(sent) == Layout.of(origin)
    assert sent["a"].std() == pytest.approx(2 * 3, rel=0.02)
    assert abs(sent["a"].mean()) < 0.1  # of a change of 1, clipping leaves 3 / sqrt(100,000)
    assert sent["running_var"] == np.float32(0.5)
    assert sent["num_batches_tracked"] == 3


def test_local_noise_averages_out_less_than_central_noise_is_divided() -> None:
    settings = {"clipping_norm": 3.0, "noise_multiplier": 2.0}
    assert noise_of_mean(private("central", **settings), 4) == 2 * 3 / 4
    assert noise_of_mean(private("local", **settings), 4) == 2 * 3 / 2


def test_noise_does_not_follow_from_a_seed(tmp_path: Path) -> None:
    origin = {"a": np.zeros(3)}
    found = []
    for _ in range(2):
        np.random.seed(0)
        server = ServerPrivacy(private(), ["a"], tmp_path / "privacy.json")
        found.append(server.release([origin], origin)["a"])
    assert (found[0] != found[1]).all()


@pytest.mark.parametrize(("length", "factor"), [(50.0, math.exp(0.1)), (0.1, math.exp(-0.1))])
def test_adaptive_clipping_moves_the_norm_towards_the_middle_of_the_updates(
    tmp_path: Path, length: float, factor: float
) -> None:
    """With so many clients that the noise on their count does not matter."""
    server = server_privacy(tmp_path, ["a"], clipping="adaptive", noise_multiplier=1e-3)
    origin = {"a": np.zeros(1)}
    for _ in range(3):
        server.clipping_norm = 1.0
        server.release([{"a": np.array([length])}] * 1000, origin)
        assert server.clipping_norm == pytest.approx(factor, rel=0.05)
    again = server_privacy(tmp_path, ["a"], clipping="adaptive", noise_multiplier=1e-3)
    again.restore(1)
    assert again.clipping_norm == server.clipping_norm


def test_adaptive_clipping_pays_for_its_count_with_more_noise(tmp_path: Path) -> None:
    """z / sqrt(1 - (z / 2 s)^2) with s = z for few clients: 2 / sqrt(3) times z."""
    server = server_privacy(tmp_path, ["a"], clipping="adaptive")
    origin = {"a": np.zeros(100_000)}
    released = server.release([origin] * 4, origin)["a"]
    assert released.std() == pytest.approx(2 / math.sqrt(3) / 4, rel=0.02)


@needs_accountant
def test_what_was_spent_before_a_crash_is_still_spent_after_it(tmp_path: Path) -> None:
    server = server_privacy(tmp_path, ["a"])
    for client in ("north", "south", "north"):
        server.count(client)
    again = server_privacy(tmp_path, ["a"])
    again.restore(0)  # the round was not finished
    assert again.row() == {"epsilon": epsilon(private(), 2)}  # of the client that gave most


def test_a_run_does_not_go_on_when_nobody_knows_what_it_has_spent(tmp_path: Path) -> None:
    server = server_privacy(tmp_path, ["a"])
    server.restore(0)
    with pytest.raises(ValueError, match=r"privacy\.json: not readable .*put it back"):
        server.restore(1)
    (tmp_path / "privacy.json").write_text("{}")
    with pytest.raises(ValueError, match="not readable"):
        server.restore(1)


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"noise_multiplier": 2.0}, "privacy.noise_multiplier 1.0, found 2.0; set it to what it"),
        ({"clipping_norm": 0.5}, "privacy.clipping_norm 1.0, found 0.5"),
        ({"mode": "local"}, "privacy.mode central, found local"),
    ],
)
def test_a_run_does_not_go_on_with_other_protection(
    tmp_path: Path, changed: dict[str, Any], expected: str
) -> None:
    """An epsilon of all rounds would be wrong: it is computed from one noise multiplier."""
    server_privacy(tmp_path, ["a"]).count("north")
    with pytest.raises(ValueError, match=expected):
        server_privacy(tmp_path, ["a"], **changed).restore(0)
    server_privacy(tmp_path, ["a"], delta=1e-7).restore(0)


def test_frozen_layers_and_buffers_are_not_moved_by_training() -> None:
    model = build_model("yolov8n.yaml", "detect", {"names": {0: "a"}, "nc": 1})
    layers = {int(name.split(".")[1]) for name in moved_names(model, 2)}
    assert layers.isdisjoint({0, 1})
    assert {2, 22} <= layers
    without = {n for n in moved_names(model, None) if ".22.cv2." not in n and ".5." not in n[5:8]}
    assert moved_names(model, ["22.cv2", "5"]) == without
    assert moved_names(model, [22]) == {n for n in moved_names(model, None) if ".22." not in n}
    assert not any(
        "running" in n or "num_batches" in n or "dfl" in n for n in moved_names(model, 0)
    )


def problems_of(**settings: Any) -> list[str]:
    """Of a config that is sound but for these settings, where the accountant is installed."""
    sound = {
        "base_model": "yolov8n.yaml",
        "datasets": [{"name": "north", "data": "n.yaml"}, {"name": "south", "data": "s.yaml"}],
        "shared": {"batchnorm": "local"},
        "privacy": private(),
    }
    return privacy_problems(Config.model_validate({**sound, **settings}))


@pytest.fixture
def accountant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())


@pytest.mark.usefixtures("accountant")
@pytest.mark.parametrize("mode", ["central", "local"])
@pytest.mark.parametrize(
    "shared", [{"batchnorm": "local"}, {"batchnorm": "frozen", "freeze_after": 0}]
)
def test_privacy_is_accepted_where_no_statistics_leave_a_client(mode: str, shared: Any) -> None:
    assert problems_of(privacy=private(mode), shared=shared) == []


@pytest.mark.usefixtures("accountant")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"shared": {}}, "shared.batchnorm: average sends means and variances"),
        ({"shared": {"batchnorm": "frozen"}}, "shared.batchnorm: frozen .* until they are frozen"),
        ({"evaluate": {"cross_client": True}}, "evaluate.cross_client: .* set it to false"),
        ({"strategy": {"name": "fedmedian"}}, "strategy.name: fedmedian .* use fedavg, fedavgm"),
        ({"strategy": {"name": "fednova"}}, "strategy.name: fednova needs each update"),
        ({"strategy": {"name": "qfedavg"}}, "strategy.name: qfedavg needs each update"),
        ({"update_norm": {"outliers": "clip"}}, "update_norm.outliers: clip .* use keep"),
        ({"privacy": {"mode": "central", "noise_multiplier": 1.0}}, "clipping_norm: missing"),
        ({"privacy": {"mode": "local", "clipping_norm": 1.0}}, "noise_multiplier: missing"),
        ({"privacy": private(delta=0.5)}, "privacy.delta: found 0.5, expected less than 1 / 2"),
        ({"privacy": private("local", clipping="adaptive")}, "privacy.clipping: .* use fixed"),
        (
            {"privacy": {"clipping_norm": 1.0}},
            "clipping_norm: has no effect with privacy.mode none",
        ),
        ({"privacy": {"secure_aggregation": True}}, "secure_aggregation: .* set it to false"),
    ],
)
def test_what_would_break_privacy_is_refused_with_what_to_do(settings: Any, expected: str) -> None:
    (problem,) = problems_of(**settings)
    with pytest.raises(ValueError, match=expected):
        raise ValueError(problem)


@pytest.mark.usefixtures("accountant")
def test_local_privacy_leaves_the_server_its_strategies() -> None:
    settings: Any = {"strategy": {"name": "fedmedian"}, "update_norm": {"outliers": "refuse"}}
    assert problems_of(privacy=private("local"), **settings) == []


def test_a_missing_accountant_is_said_before_round_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert problems_of() == [
        "privacy.mode: central needs dp-accounting to state epsilon, and it is not installed; "
        'pip install -e ".[dp]"'
    ]
