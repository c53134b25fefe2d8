"""Each strategy's arithmetic on numbers that can be checked by hand."""

from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from local_grid import identify_process
from processes import ROOT

from federated_yolo.aggregation.aggregator import Aggregation, Update, abstain
from federated_yolo.aggregation.strategies import STRATEGIES, strategy_problems
from federated_yolo.common.arrays import Arrays, Layout, cast_to
from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import StrategyConfig

# "w" is trainable; "var" stands for BatchNorm's statistics and "count" for its counter.
PARAMETERS = frozenset({"w"})


def state(w: float, var: float = 1.0, count: int = 0) -> Arrays:
    return {
        "w": np.array([w], np.float32),
        "var": np.array([var], np.float32),
        "count": np.array(count),
    }


def update(
    name: str, arrays: Arrays, num_examples: int = 1, num_steps: int = 1, loss: float = 1.0
) -> Update:
    return Update(name, arrays, num_examples, num_steps, {"train/loss": loss}, 0.0, 0.0)


# Unless a test says otherwise: one client with 1 image and one with 3; means 3.5, 17.5 and 4.75.
TWO = [
    update("a", state(2, var=10, count=4), num_examples=1),
    update("b", state(4, var=20, count=5), num_examples=3),
]


def aggregation(name: str, **options: Any) -> Aggregation:
    identify_process()
    config = StrategyConfig.model_validate({"name": name, **options})
    return Aggregation(config, PARAMETERS)


def one_round(
    combine: Aggregation, start: Arrays, updates: list[Update], round_number: int = 1
) -> Arrays:
    combine.configure(round_number, start, ConfigRecord({}), range(len(updates)))
    result = combine.aggregate(round_number, updates)
    assert result is not None
    return cast_to(result, Layout.of(start))


def after_one_round(name: str, updates: list[Update] = TWO, **options: Any) -> Arrays:
    return one_round(aggregation(name, **options), state(1), updates)


def w(arrays: Arrays) -> float:
    return float(arrays["w"][0])


def test_fedavg_is_the_mean_weighted_by_images_and_integers_stay_integers() -> None:
    result = after_one_round("fedavg")
    assert w(result) == 3.5  # (1*2 + 3*4) / 4
    assert result["var"].tolist() == [17.5]
    assert result["count"].item() == 5  # (4 + 3*5) / 4 = 4.75
    assert result["count"].dtype == np.int64
    assert result["count"].shape == ()
    assert result["w"].dtype == np.float32


def test_clients_can_count_the_same_and_no_claim_of_images_is_the_whole_mean() -> None:
    assert w(after_one_round("fedavg", weights="equal")) == 3  # (2 + 4) / 2
    assert w(after_one_round("fednova", weights="equal")) == 3
    three = [*TWO, update("c", state(100, var=1, count=0), num_examples=2**29)]
    assert w(after_one_round("fedavg", three)) == pytest.approx(100, abs=1e-5)
    capped = after_one_round("fedavg", three, max_share=0.5)
    assert w(capped) == 51.75  # (1*2 + 3*4 + 4*100) / 8
    assert capped["var"].tolist() == [9.25]  # (1*10 + 3*20 + 4*1) / 8
    assert w(after_one_round("fedavg", TWO, max_share=0.5)) == 3
    # FedNova by the same weights: with one step each it is the plain mean.
    assert w(after_one_round("fednova", three, max_share=0.5)) == 51.75


def test_multikrum_caps_the_shares_of_those_that_it_chooses() -> None:
    updates = [
        update("a", state(2), num_examples=1),
        update("b", state(4), num_examples=3),
        update("c", state(1e3), num_examples=100),
    ]
    assert w(after_one_round("multikrum", updates)) == 3.5
    assert w(after_one_round("multikrum", updates, max_share=0.5)) == 3
    assert w(after_one_round("multikrum", updates, weights="equal")) == 3


def test_a_loss_is_the_sum_of_ultralytics_losses_without_a_users_numbers() -> None:
    losses = {"train/box_loss": 1.0, "train/cls_loss": 0.5, "my/number": -1e30}
    assert Update("a", {}, 1, 1, losses, 0.0, 0.0).loss == 1.5
    assert Update("a", {}, 1, 1, {"train/own": -2.0}, 0.0, 0.0).loss == 0  # q-FedAvg takes roots


def test_the_mean_of_equal_models_is_the_model_to_the_last_bit() -> None:
    array = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    for count in (3, 7, 10):
        updates = [update(str(i), {"w": array}, num_examples=69) for i in range(count)]
        result = one_round(aggregation("fedavg"), {"w": array}, updates)
        assert np.array_equal(result["w"], array)


def test_fedavgm_goes_on_in_the_direction_of_the_rounds_before() -> None:
    combine = aggregation("fedavgm", server_momentum=0.5, server_learning_rate=2.0)
    first = one_round(combine, state(1), TWO)
    assert w(first) == 6.0  # 1 + 2 * (3.5 - 1)
    # The mean is 3.5 again: momentum 0.5 * 2.5 + (3.5 - 6) = -1.25.
    second = one_round(combine, first, TWO, round_number=2)
    assert w(second) == 3.5  # 6 + 2 * -1.25


def test_fedavgm_starts_from_the_arrays_it_is_given_each_round() -> None:
    combine = aggregation("fedavgm", server_momentum=0.5)
    one_round(combine, state(1), TWO)
    # As after a resume: the arrays are those of the file, whatever the strategy remembers.
    assert w(one_round(combine, state(3), TWO, round_number=2)) == 3 + 0.5 * 2.5 + 0.5


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # m = 0.1 * 2.5, v = 0.01 * 2.5^2; Flower's bias correction has round + 1 in its exponents:
        # sqrt(1 - 0.99^2) / (1 - 0.9^2) = 0.742464
        ("fedadam", 1 + 0.1 * 0.742464 * 0.25 / (0.25 + 0.001)),
        ("fedyogi", 1 + 0.1 * 0.25 / (0.25 + 0.001)),  # v = 0 + 0.01 * 2.5^2
        ("fedadagrad", 1 + 0.1 * 2.5 / (2.5 + 0.001)),  # m = 2.5, v = 2.5^2
    ],
)
def test_adaptive_server_optimisers_step_along_the_mean_update(name: str, expected: float) -> None:
    assert w(after_one_round(name, eta=0.1, tau=0.001)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "name", ["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "fednova"]
)
def test_buffers_are_weighted_means_whatever_the_server_optimiser(name: str) -> None:
    combine = aggregation(name)
    arrays = one_round(combine, state(1), TWO)
    arrays = one_round(combine, arrays, TWO, round_number=2)
    assert arrays["var"].tolist() == [17.5]
    assert arrays["count"].item() == 5


def test_clients_that_do_not_annotate_a_class_abstain_from_its_rows() -> None:
    """Rows are classes; only a and b annotate class 0, only c class 1, nobody class 2."""
    start = {"w": np.array([[9.0], [9.0], [9.0], [9.0]], np.float32)}
    updates = [
        update("a", {"w": np.array([[1.0], [0.0], [0.0], [2.0]], np.float32)}, num_examples=1),
        update("b", {"w": np.array([[5.0], [0.0], [0.0], [2.0]], np.float32)}, num_examples=3),
        update("c", {"w": np.array([[0.0], [7.0], [0.0], [8.0]], np.float32)}, num_examples=2),
    ]
    absent = {"a": [1, 2], "b": [1, 2], "c": [0, 2]}
    filled = abstain(updates, absent, ["w"], start)
    combine = aggregation("fedavg")
    # Class 0: (1*1 + 3*5) / 4. Class 3, which all annotate: (1*2 + 3*2 + 2*8) / 6.
    assert one_round(combine, start, filled)["w"].ravel().tolist() == [4.0, 7.0, 9.0, 4.0]
    assert abstain(updates, {"a": []}, ["w"], start) is updates


@pytest.mark.parametrize("name", ["fedmedian", "krum", "bulyan"])
def test_a_hostile_client_gets_nothing_through_those_that_abstain(name: str) -> None:
    """Of 7 clients 3 annotate the class, one of them hostile."""
    start = {"w": np.zeros((1, 1), np.float32)}
    values = [1.0, 1.1, 1e6, 0.0, 0.0, 0.0, 0.0]
    updates = [update(str(i), {"w": np.array([[v]], np.float32)}) for i, v in enumerate(values)]
    options = {} if name == "fedmedian" else {"num_malicious_nodes": 1}
    combine = Aggregation(StrategyConfig.model_validate({"name": name, **options}), PARAMETERS, "w")
    combine.configure(1, start, ConfigRecord({}), range(7))
    result = combine.aggregate(1, updates, {str(i): [0] for i in range(3, 7)})
    assert result is not None
    assert 0.9 < result["w"].item() < 1.2


def test_fednova_counts_by_the_step_before_others_abstain() -> None:
    """a moved by 1 in 50 steps, b, which does not annotate the class, took 5: tau is 27.5."""
    start = {"w": np.zeros((1, 1), np.float32)}
    updates = [
        update("a", {"w": np.ones((1, 1), np.float32)}, num_steps=50),
        update("b", {"w": np.zeros((1, 1), np.float32)}, num_steps=5),
    ]
    combine = Aggregation(StrategyConfig(name="fednova"), PARAMETERS, "w")
    combine.configure(1, start, ConfigRecord({}), range(2))
    result = combine.aggregate(1, updates, {"b": [0]})
    assert result is not None
    assert result["w"].item() == pytest.approx(27.5 / 50)


def test_fedprox_averages_and_tells_the_clients_mu() -> None:
    combine = aggregation("fedprox", proximal_mu=0.25)
    (message,) = combine.configure(1, state(1), ConfigRecord({}), [7])
    assert message.content.config_records["config"]["proximal-mu"] == 0.25
    assert message.metadata.dst_node_id == 7
    assert w(after_one_round("fedprox")) == 3.5


def test_fednova_counts_updates_by_the_step() -> None:
    updates = [
        update("a", state(2), num_examples=1, num_steps=6),
        update("b", state(4), num_examples=3, num_steps=2),
    ]
    # tau = 0.25*6 + 0.75*2 = 3; 1 + 0.25 * 3/6 * (2-1) + 0.75 * 3/2 * (4-1)
    assert w(after_one_round("fednova", updates)) == 4.5
    same = [
        update("a", state(2), num_examples=1, num_steps=4),
        update("b", state(4), num_examples=3, num_steps=4),
    ]
    assert w(after_one_round("fednova", same)) == 3.5  # as FedAvg


def test_qfedavg_listens_more_to_clients_with_a_larger_loss() -> None:
    updates = [update("a", state(2), loss=2.0), update("b", state(4), loss=1.0)]
    assert w(after_one_round("qfedavg", updates, q=0)) == 3.0  # the plain mean
    # L = 1: deltas 2*(1-2) and 1*(1-4); h = 1*1 + 2 and 1*9 + 1
    assert w(after_one_round("qfedavg", updates, q=1)) == pytest.approx(1 + 5 / 13)


def five(*values: float) -> list[Update]:
    return [
        update(str(i), state(x, var=x, count=int(x)), num_examples=1 + i)
        for i, x in enumerate(values)
    ]


def test_fedmedian_takes_the_middle_of_every_array() -> None:
    result = after_one_round("fedmedian", five(2, 1e6, 4, 3, -1e6))
    assert (w(result), result["var"].item(), result["count"].item()) == (3, 3, 3)


def test_fedtrimmedavg_leaves_out_the_extremes_of_every_array() -> None:
    result = after_one_round("fedtrimmedavg", five(2, 1e6, 4, 3, -1e6), beta=0.2)
    assert (w(result), result["var"].item(), result["count"].item()) == (3, 3, 3)


def test_krum_takes_one_update_near_the_others_by_trainable_parameters_alone() -> None:
    updates = [
        # Counters and variances say otherwise: by them, c would be the outlier.
        update("a", state(2.0, var=1e6, count=9)),
        update("b", state(50, var=1e6, count=9)),
        update("c", state(2.1, var=0, count=1)),
        update("d", state(2.3, var=1e6, count=9)),
        update("e", state(2.5, var=1e6, count=9)),
    ]
    result = after_one_round("krum", updates, num_malicious_nodes=1)
    assert w(result) == pytest.approx(2.1)
    assert result["var"].tolist() == [0]  # of the same client


def test_multikrum_averages_the_nearest_updates_by_images() -> None:
    updates = [
        update("a", state(2, var=1), num_examples=1),
        update("b", state(4, var=2), num_examples=3),
        update("c", state(1e3, var=3), num_examples=100),
    ]
    result = after_one_round("multikrum", updates, num_nodes_to_select=2)
    assert w(result) == 3.5
    assert result["var"].tolist() == [1.75]


def test_bulyan_averages_what_is_nearest_to_the_median() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 1e6]
    updates = [update(str(i), state(x, var=x)) for i, x in enumerate(values)]
    result = after_one_round("bulyan", updates, num_malicious_nodes=1)
    # 5 of 7 are chosen by distance, and of those the 3 nearest to their median count.
    assert 1 < w(result) < 6
    assert result["var"].item() == w(result)


def test_bulyan_with_too_few_replies_gives_nothing() -> None:
    assert aggregation("bulyan").aggregate(1, TWO) is None


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_keeps_a_model_on_which_all_agree(name: str) -> None:
    updates = [update(str(i), state(1, var=2, count=3), num_examples=i + 1) for i in range(7)]
    combine = aggregation(name)
    for round_number in (1, 2):
        result = one_round(combine, state(1, var=2, count=3), updates, round_number)
        assert (w(result), result["var"].item(), result["count"].item()) == (1, 2, 3)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_sends_all_arrays_to_the_nodes_of_the_round(name: str) -> None:
    messages = aggregation(name).configure(3, state(1, var=2, count=3), ConfigRecord({}), [5, 8, 9])
    assert sorted(m.metadata.dst_node_id for m in messages) == [5, 8, 9]
    for message in messages:
        sent = message.content.array_records["arrays"]
        assert {n: (a.numpy().item(), a.dtype) for n, a in sent.items()} == {
            "w": (1.0, "float32"),
            "var": (2.0, "float32"),
            "count": (3, "int64"),
        }
        assert message.content.config_records["config"]["server-round"] == 3


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        ({"name": "fedavgg"}, r"name: found 'fedavgg', expected one of.*did you mean 'fedavgm?'"),
        ({"name": "fedavg", "mu": 1}, r"mu: unknown option of fedavg; it has no options"),
        ({"name": "fedavg", "max_shar": 0.5}, r"max_shar: .* did you mean 'max_share'"),
        ({"name": "fedprox", "mu": 1}, r"mu: unknown option of fedprox; its options are proximal"),
        ({"name": "fedadam", "eta": "big"}, r"eta: found 'big', expected a number greater than 0"),
        ({"name": "fedadam", "beta_1": 1}, r"beta_1: found 1, expected a number at least 0 and"),
        ({"name": "fedprox", "proximal_mu": -1}, r"proximal_mu: found -1, expected .* at least 0"),
        ({"name": "krum", "num_malicious_nodes": 0.5}, r"found 0.5, expected .* that is whole"),
        ({"name": "fedadam", "eta": float("inf")}, r"eta: found inf"),
        ({"name": "fedadam", "eta": True}, r"eta: found True"),
    ],
)
def test_a_wrong_strategy_or_option_is_explained(strategy: dict[str, Any], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Aggregation(StrategyConfig.model_validate(strategy))


@pytest.mark.parametrize(
    ("strategy", "needed"),
    [
        ({"name": "fedavg"}, 1),
        ({"name": "fedmedian"}, 3),
        ({"name": "fedtrimmedavg", "beta": 0.25}, 4),
        ({"name": "krum", "num_malicious_nodes": 2}, 7),
        ({"name": "multikrum", "num_nodes_to_select": 5}, 5),
        ({"name": "bulyan", "num_malicious_nodes": 1}, 7),
    ],
)
def test_robust_strategies_say_how_many_clients_they_need(
    strategy: dict[str, Any], needed: int
) -> None:
    config = StrategyConfig.model_validate(strategy)
    assert strategy_problems(config, needed) == []
    if needed > 1:
        (problem,) = strategy_problems(config, needed - 1)
        assert f"needs {needed} clients in a round, found {needed - 1}" in problem


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [
        (
            {"name": "fedavg", "max_share": 0.2},
            "expected at least 0.25: one of 4 clients in a round",
        ),
        (
            {"name": "fedmedian", "max_share": 0.5},
            "strategy.max_share: has no effect with fedmedian",
        ),
        ({"name": "qfedavg", "weights": "equal"}, "strategy.weights: has no effect with qfedavg"),
        ({"name": "krum", "max_share": 0.5}, "strategy.max_share: has no effect with krum"),
        (
            {"name": "multikrum", "max_share": 0.4},
            "3 clients can keep; multikrum takes the mean of 2",
        ),
    ],
)
def test_weights_that_a_strategy_cannot_keep_are_explained(
    strategy: dict[str, Any], expected: str
) -> None:
    (problem,) = strategy_problems(StrategyConfig.model_validate(strategy), clients_per_round=4)
    assert expected in problem


@pytest.mark.parametrize(("max_share", "needed"), [(0.5, 2), (0.1, 10), (1 / 3, 3), (0.34, 3)])
def test_a_round_has_as_many_clients_as_a_share_takes(max_share: float, needed: int) -> None:
    assert aggregation("fedavg", max_share=max_share).min_clients == needed
    config = StrategyConfig.model_validate({"name": "fedavg", "max_share": max_share})
    assert strategy_problems(config, needed) == []
    assert len(strategy_problems(config, needed - 1)) == 1


def test_every_strategy_has_its_place_in_the_docs() -> None:
    folder = ROOT / "docs" / "strategies"
    for name in STRATEGIES:
        assert f"`{name}`" in (folder / "README.md").read_text(), name
        others = [p.read_text() for p in folder.glob("*.md") if p.name != "README.md"]
        assert any(f"`{name}`" in text for text in others), name
