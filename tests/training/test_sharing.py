"""What travels and what stays: parts, BatchNorm, private arrays, participation, averages."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from local_grid import LocalGrid
from recipes import make_dataset
from trainings import (
    TRAIN,
    ForgetfulGrid,
    assert_identical,
    federation,
    final_arrays,
    plain_training,
)
from ultralytics import YOLO

from federated_yolo.common.arrays import Arrays
from federated_yolo.common.errors import InputError
from federated_yolo.protocol.records import from_record
from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import read_csv
from federated_yolo.yolo import slice_mixin as trainer_module
from federated_yolo.yolo.checkpoint import load_checkpoint_module
from federated_yolo.yolo.model import (
    to_arrays,
)
from federated_yolo.yolo.rebuild import export

SHARED = [
    {"batchnorm": "local"},
    {"parts": ["backbone", "neck"]},
    {"parts": ["backbone"], "batchnorm": "local"},
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    """A data set, and what plain training makes of it."""
    folder = tmp_path_factory.mktemp("plain")
    data = make_dataset(folder / "data")
    return data, plain_training("yolov8n.yaml", data, TRAIN, epochs=3, folder=folder)


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("grid", [LocalGrid, ForgetfulGrid])
def test_one_client_equals_plain_training_whatever_it_keeps_to_itself(
    shared: dict[str, Any], grid: type[LocalGrid], plain: tuple[Path, Arrays], tmp_path: Path
) -> None:
    """Notices private arrays that start anew in a round, also after a change of the process."""
    data, expected = plain
    evaluate: dict[str, Any] = {"every": 3}
    result = federation(
        [data], tmp_path / "runs", TRAIN, shared=shared, evaluate=evaluate, grid=grid(1)
    )
    found = final_arrays(result)
    state = result.run_dir / "clients" / "c0" / "state" / "round3.pt"
    private = torch.load(state, weights_only=True)["private"]
    assert 0 < len(found) < len(expected)
    assert_identical(
        {n: found[n] if n in found else private[n].numpy() for n in expected}, expected
    )


@pytest.fixture(scope="module")
def with_local_batchnorm(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalGrid, Any]:
    folder = tmp_path_factory.mktemp("local")
    data = [make_dataset(folder / "a"), make_dataset(folder / "b", num_train=4, seed=1)]
    grid = LocalGrid(2)
    settings: dict[str, Any] = {"shared": {"batchnorm": "local"}, "evaluate": {"every": 1}}
    result = federation(data, folder / "runs", TRAIN, grid=grid, num_rounds=2, **settings)
    return grid, result


def test_local_batchnorm_never_leaves_the_client(
    with_local_batchnorm: tuple[LocalGrid, Any],
) -> None:
    grid, result = with_local_batchnorm
    # What the base model has for them is sent once, before round 1, and only then.
    once = [m for m in grid.sent if "private" in m.content]
    assert [m.metadata.message_type for m in once] == ["query", "query"]
    sent, returned = (
        [n for m in messages for record in m.content.array_records.values() for n in record]
        for messages in ([m for m in grid.sent if m not in once], grid.received)
    )
    carried = [*sent, *returned]
    num_shared = len(final_arrays(result))
    assert len(sent) == 2 * 2 * 2 * num_shared  # to train, to evaluate
    assert (
        2 * 2 * num_shared * 0.9 < len(returned) < 2 * 2 * num_shared
    )  # but for what is as it was
    assert not [name for name in carried if ".bn." in name or "running" in name]
    for message in grid.received:  # nor hidden in a number or a text
        assert set(message.content) <= {"arrays", "metrics", "client", "introduction"}
    assert not [name for name in final_arrays(result) if ".bn." in name]


def test_each_client_gets_a_model_of_its_own(with_local_batchnorm: tuple[LocalGrid, Any]) -> None:
    _, result = with_local_batchnorm
    assert not list((result.run_dir / "weights").glob("*.pt"))
    shared = final_arrays(result)
    models: list[Arrays] = []
    for name in ("c0", "c1"):
        folder = result.run_dir / "clients" / name
        arrays = to_arrays(load_checkpoint_module(str(folder / "last.pt"), where="test"))
        assert_identical({n: arrays[n] for n in shared}, shared)
        private = torch.load(folder / "state" / "round2.pt", weights_only=True)["private"]
        start, _ = load_arrays(folder / "start.npz")
        assert list(start) == list(private) == [n for n in arrays if n not in shared]
        assert_identical({n: arrays[n] for n in private}, {n: private[n].numpy() for n in private})
        models.append(arrays)
        assert YOLO(folder / "best.pt").names == {0: "a", 1: "b", 2: "c"}
    differing = [n for n in models[0] if not np.array_equal(models[0][n], models[1][n])]
    assert any("running_mean" in n for n in differing)
    assert all(".bn." in n for n in differing)


def test_the_exporter_points_to_the_clients_own_models(
    with_local_batchnorm: tuple[LocalGrid, Any], tmp_path: Path
) -> None:
    _, result = with_local_batchnorm
    with pytest.raises(InputError, match=r"kept the other arrays to themselves .* clients/NAME"):
        export("yolov8n.yaml", result.run_dir / "weights" / "round2.npz", tmp_path / "out.pt")


def test_sharing_everything_is_fedavg_until_batchnorm_freezes(tmp_path: Path) -> None:
    data = [make_dataset(tmp_path / "a"), make_dataset(tmp_path / "b", num_train=4, seed=1)]
    plain = federation(data, tmp_path / "plain", TRAIN)
    frozen = federation(
        data, tmp_path / "frozen", TRAIN, shared={"batchnorm": "frozen", "freeze_after": 2}
    )

    def rounds(result: Any) -> list[Arrays]:
        return [load_arrays(result.run_dir / "weights" / f"round{r}.npz")[0] for r in (1, 2, 3)]

    free, fixed = rounds(plain), rounds(frozen)
    assert_identical(fixed[0], free[0])
    assert_identical(fixed[1], free[1])
    buffers = [n for n in free[0] if n.endswith(("running_mean", "running_var", "tracked"))]
    assert_identical({n: fixed[2][n] for n in buffers}, {n: fixed[1][n] for n in buffers})
    weight = "model.0.conv.weight"
    assert not np.array_equal(fixed[2][weight], fixed[1][weight])
    assert not np.array_equal(
        free[2]["model.0.bn.running_mean"], free[1]["model.0.bn.running_mean"]
    )


def test_fedprox_adds_mu_times_the_distance_to_the_gradient_of_each_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps of SGD: the first starts at the global model, where the term is zero."""
    data = make_dataset(tmp_path / "data", num_train=4)
    lr, mu = 0.01, 0.5
    train = {**TRAIN, "lr0": lr, "momentum": 0.0, "weight_decay": 0.0, "warmup_epochs": 0.0}
    before_step: list[Arrays] = []
    original = trainer_module._SliceMixin._before_step

    def recording(self: Any, *args: Any) -> None:
        before_step.append(to_arrays(self.model))
        original(self, *args)

    monkeypatch.setattr(trainer_module._SliceMixin, "_before_step", recording)
    free = federation([data], tmp_path / "free", train, num_rounds=1)
    strategy = {"name": "fedprox", "proximal_mu": mu}
    pulled = federation([data], tmp_path / "pulled", train, num_rounds=1, strategy=strategy)
    start, after_one, start_again, after_one_again = before_step
    assert_identical(start_again, start)
    assert_identical(after_one_again, after_one)
    ended_free, ended_pulled = final_arrays(free), final_arrays(pulled)
    farthest = 0.0
    for name in (n for n in start if n.endswith(("weight", "bias"))):
        distance = after_one[name].astype(float) - start[name]
        farthest = max(farthest, np.abs(distance).max())
        found = ended_free[name].astype(float) - ended_pulled[name]
        np.testing.assert_allclose(found, lr * mu * distance, atol=5e-7, err_msg=name)
    assert lr * mu * farthest > 1e-5


@pytest.mark.parametrize(("setting", "expected"), [("keep", 9), ("reset", 3)])
def test_the_local_optimizer_is_kept_or_reset_between_rounds(
    setting: str, expected: int, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data")  # 3 batches an epoch
    train = {**TRAIN, "optimizer": "AdamW", "lr0": 0.001}
    result = federation([data], tmp_path / "runs", train, local_optimizer=setting)
    state = torch.load(result.run_dir / "clients/c0/state/round3.pt", weights_only=True)
    assert {int(s["step"]) for s in state["optimizer"]["state"].values()} == {expected}


def test_a_fraction_of_the_clients_trains_in_each_round(tmp_path: Path) -> None:
    data = [make_dataset(tmp_path / str(i), num_train=2 + 2 * i, seed=i) for i in range(4)]
    settings: dict[str, Any] = {"fraction_train": 0.5, "num_rounds": 4, "evaluate": {"every": 4}}
    runs = [
        federation(data, tmp_path / name, TRAIN, grid=grid(4), **settings)
        for name, grid in (("one", LocalGrid), ("two", ForgetfulGrid))
    ]
    trained: list[list[str]] = []
    for result in runs:
        rows = [r for r in read_csv(result.run_dir / "clients.csv") if r["num_steps"]]
        trained.append([f"{r['round']}:{r['client']}" for r in rows])
        assert [r.row["num_clients"] for r in result.rounds] == [2, 2, 2, 2]
    assert trained[0] == trained[1]
    by_round = [{x for x in trained[0] if x.startswith(f"{r}:")} for r in (1, 2, 3, 4)]
    assert len({frozenset(c.split(":")[1] for c in names) for names in by_round}) > 1
    assert_identical(final_arrays(runs[0]), final_arrays(runs[1]))
    last = [r for r in read_csv(runs[0].run_dir / "clients.csv") if r["round"] == "4"]
    assert [r["client"] for r in last] == ["c0", "c1", "c2", "c3"]  # all are evaluated
    assert all(r["num_val"] for r in last)


def test_the_server_average_is_evaluated_and_saved_and_training_goes_on_without_it(
    tmp_path: Path,
) -> None:
    data = make_dataset(tmp_path / "data")
    plain = federation([data], tmp_path / "plain", TRAIN, num_rounds=2)
    grid = LocalGrid(1)
    settings: dict[str, Any] = {"server_ema": 0.75, "evaluate": {"every": 1}, "num_rounds": 2}
    result = federation([data], tmp_path / "runs", TRAIN, grid=grid, **settings)
    assert_identical(final_arrays(result), final_arrays(plain))
    weights = result.run_dir / "weights"
    (first, _), (second, _) = (load_arrays(weights / f"round{r}.npz") for r in (1, 2))
    average, _ = load_arrays(weights / "ema2.npz")
    for name, array in average.items():
        mean = 0.75 * first[name].astype(float) + 0.25 * second[name]
        expected = np.rint(mean) if array.dtype == np.int64 else mean
        np.testing.assert_allclose(array, expected, rtol=1e-6, err_msg=name)
    evaluated = [m for m in grid.sent if m.metadata.message_type == "evaluate"][-1]
    assert_identical(from_record(evaluated.content.array_records["arrays"]), average)
    saved = to_arrays(load_checkpoint_module(str(weights / "last.pt"), where="test"))
    assert_identical(saved, average)


def test_the_latest_of_equal_rounds_is_the_best(tmp_path: Path) -> None:
    """From random weights the first rounds all score 0, and the later ones have learned more."""
    data = make_dataset(tmp_path / "data", num_train=2)
    result = federation([data], tmp_path / "runs", TRAIN, evaluate={"every": 1}, num_rounds=2)
    assert [r.score for r in result.rounds] == [0, 0]
    assert result.best is not None
    assert result.best.round == 2
