"""The round: what clients send, how it is combined, and what ends up on disk."""

import errno
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Message
from local_grid import LocalGrid
from recipes import make_dataset
from trainings import TRAIN, Silent, assert_identical, federation, final_arrays
from ultralytics import YOLO

from federated_yolo.aggregation.aggregator import Update
from federated_yolo.aggregation.inbox import Inbox
from federated_yolo.client import app as client_app
from federated_yolo.client import workspace as workspace_module
from federated_yolo.common.arrays import Arrays
from federated_yolo.common.errors import FederationError
from federated_yolo.common.torchvision_nms import ensure_torchvision_nms
from federated_yolo.protocol.records import from_record, to_record
from federated_yolo.server import server as server_module
from federated_yolo.storage.archive import RoundMeta, load_arrays
from federated_yolo.storage.run_dir import RunDir, read_csv
from federated_yolo.yolo.model import load_into, to_arrays


@pytest.fixture(scope="module")
def two_clients(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], LocalGrid, Any]:
    """Two clients of unequal size, two rounds with evaluation, and every message."""
    folder = tmp_path_factory.mktemp("two")
    data = [
        make_dataset(folder / "big", num_train=6, num_val=2),
        make_dataset(folder / "small", num_train=2, num_val=4, seed=1),
    ]
    grid = LocalGrid(2)
    held_out = make_dataset(folder / "held_out", num_val=5, seed=2)
    result = federation(
        data,
        folder / "runs",
        TRAIN,
        grid=grid,
        num_rounds=2,
        evaluate={"every": 1, "data": str(held_out)},
    )
    return [*data, held_out], grid, result


def train_replies(grid: LocalGrid) -> list[Message]:
    return [r for r in grid.received if r.has_content() and "arrays" in r.content]


def test_the_global_model_is_the_weighted_mean_of_what_the_clients_sent(
    two_clients: tuple[list[Path], LocalGrid, Any],
) -> None:
    _, grid, result = two_clients
    replies = train_replies(grid)[-2:]  # of the last round
    weights = [r.content.metric_records["metrics"]["num-examples"] for r in replies]
    assert weights == [2, 6]  # the images in the train folders; the last client answers first
    global_arrays = final_arrays(result)
    returned = [from_record(r.content.array_records["arrays"]) for r in replies]
    common = [name for name in global_arrays if all(name in arrays for arrays in returned)]
    assert len(common) > 0.9 * len(global_arrays)  # what is as it was does not come back
    for name in common:
        array, small, big = global_arrays[name], returned[0][name], returned[1][name]
        mean = (6 * big.astype(float) + 2 * small.astype(float)) / 8
        expected = np.rint(mean) if array.dtype == np.int64 else mean.astype(np.float32)
        np.testing.assert_allclose(array, expected, rtol=1e-6, err_msg=name)


def test_no_client_is_more_of_a_mean_than_its_largest_share(
    two_clients: tuple[list[Path], LocalGrid, Any], tmp_path: Path
) -> None:
    data, _, _ = two_clients
    grid = LocalGrid(2)
    result = federation(
        data[:2],
        tmp_path,
        TRAIN,
        grid=grid,
        num_rounds=1,
        strategy={"name": "fedavg", "max_share": 0.5},
        evaluate={"every": 1},
    )
    small, big = (from_record(r.content.array_records["arrays"]) for r in train_replies(grid))
    mean = (small[WEIGHT].astype(float) + big[WEIGHT]) / 2  # of 2 and 6 images
    np.testing.assert_array_equal(final_arrays(result)[WEIGHT], mean.astype(np.float32))
    rows = read_csv(result.run_dir / "clients.csv")
    for name in ("train/box_loss", "metrics/recall(B)"):  # 2 and 4 images to validate
        expected = sum(float(row[name]) for row in rows) / 2
        assert result.rounds[0].row[name] == pytest.approx(expected)
    assert [float(row["statistics_factor"]) > 1 for row in rows] == [True, True]


def test_every_client_starts_a_round_from_the_global_arrays_of_the_round_before(
    two_clients: tuple[list[Path], LocalGrid, Any],
) -> None:
    _, grid, result = two_clients
    sent = [m for m in grid.sent if m.metadata.message_type == "train"]
    assert len(sent) == 4
    for index, message in enumerate(sent):
        round_before = index // 2
        saved, _ = load_arrays(result.run_dir / "weights" / f"round{round_before}.npz")
        assert_identical(from_record(message.content.array_records["arrays"]), saved)


def test_clients_train_with_the_weights_they_receive(
    two_clients: tuple[list[Path], LocalGrid, Any],
) -> None:
    """One round is few small steps: far from the received weights would mean others were used."""
    _, grid, _ = two_clients
    message = [m for m in grid.sent if m.metadata.message_type == "train"][-1]
    received = from_record(message.content.array_records["arrays"])
    trained = from_record(train_replies(grid)[-1].content.array_records["arrays"])
    name = "model.4.cv1.conv.weight"
    step = np.abs(trained[name] - received[name]).mean()
    assert 0 < step < 0.1 * np.abs(received[name]).mean()


def test_last_pt_is_the_global_model_and_predicts_the_same(
    two_clients: tuple[list[Path], LocalGrid, Any],
) -> None:
    _, _, result = two_clients
    ensure_torchvision_nms()
    model = YOLO(str(result.run_dir / "weights" / "last.pt")).model
    assert isinstance(model, torch.nn.Module)
    assert_identical(to_arrays(model), final_arrays(result))
    assert model.names == {0: "a", 1: "b", 2: "c"}
    assert model.task == "detect"


def test_best_pt_is_the_round_with_the_highest_fitness(
    two_clients: tuple[list[Path], LocalGrid, Any],
) -> None:
    _, _, result = two_clients
    rows = read_csv(result.run_dir / "results.csv")
    scores = {int(row["round"]): float(row["fitness"]) for row in rows}
    assert result.best.round == max(scores, key=lambda r: (scores[r], r))  # the latest of equals
    best, _ = load_arrays(result.run_dir / "weights" / f"round{result.best.round}.npz")
    model = YOLO(str(result.run_dir / "weights" / "best.pt")).model
    assert isinstance(model, torch.nn.Module)
    assert_identical(to_arrays(model), best)


def test_federated_metrics_are_those_of_yolo_val(tmp_path: Path) -> None:
    """On labels that an untrained model can hit, or everything would be 0 whatever is evaluated.

    Its boxes are 15 strides wide wherever they are: 120 pixels, here in images of 128. Few images:
    NMS has a time limit for a batch, which so many boxes reach on a busy machine.
    """
    from federated_yolo.data.data_yaml import read_data_yaml, write_private_yaml
    from federated_yolo.yolo.checkpoint import save_checkpoint
    from federated_yolo.yolo.evaluator import Evaluator
    from federated_yolo.yolo.model import build_model

    ensure_torchvision_nms()
    path = make_dataset(tmp_path / "data", num_train=2, num_val=6, size=128)
    for number, label in enumerate(sorted((tmp_path / "data" / "labels" / "val").iterdir())):
        label.write_text(f"{number % 2} 0.5 0.5 1 1\n")
    data = read_data_yaml(path, where="test")
    model = build_model("yolov8n.yaml", "detect", data)
    arrays = to_arrays(model)
    arrays["model.22.cv3.0.2.bias"] += np.array([9, 8, 0], "f4")
    load_into(model, arrays)
    save_checkpoint(tmp_path / "model.pt", model, {"imgsz": 128})
    write_private_yaml(data, tmp_path / "private")
    before = to_arrays(model)
    evaluator = Evaluator(data, "detect", {"imgsz": 128}, tmp_path / "private")
    found = [evaluator(model) for _ in range(2)]
    assert_identical(to_arrays(model), before)
    metrics = YOLO(str(tmp_path / "model.pt")).val(
        data=str(path), imgsz=128, plots=False, device="cpu", project=str(tmp_path), name="val"
    )
    expected = dict(metrics.results_dict)
    assert expected["metrics/recall(B)"] > 0
    assert found[0].metrics == {k: v for k, v in expected.items() if k != "fitness"}
    assert found[0].fitness == expected["fitness"]
    assert found[1] == found[0]
    assert found[0].num_examples == 6


def test_csvs_have_a_row_for_each_round_and_client(
    two_clients: tuple[list[Path], LocalGrid, Any],
) -> None:
    _, _, result = two_clients
    rounds = read_csv(result.run_dir / "results.csv")
    clients = read_csv(result.run_dir / "clients.csv")
    assert [row["round"] for row in rounds] == ["1", "2"]
    assert [(row["round"], row["client"]) for row in clients] == [
        ("1", "c0"),
        ("1", "c1"),
        ("2", "c0"),
        ("2", "c1"),
    ]
    assert [row["num_examples"] for row in clients[:2]] == ["6", "2"]
    assert [row["num_val"] for row in clients[:2]] == ["2", "4"]
    assert rounds[0]["num_examples"] == "8"
    loss = (6 * float(clients[0]["train/box_loss"]) + 2 * float(clients[1]["train/box_loss"])) / 8
    assert float(rounds[0]["train/box_loss"]) == pytest.approx(loss)
    score = 2 * float(clients[0]["metrics/recall(B)"]) + 4 * float(clients[1]["metrics/recall(B)"])
    assert float(rounds[0]["metrics/recall(B)"]) == pytest.approx(score / 6)
    assert "server/metrics/mAP50-95(B)" in rounds[0]


def test_nothing_is_written_outside_the_run_directory(
    two_clients: tuple[list[Path], LocalGrid, Any],
) -> None:
    data, _, _ = two_clients
    for folder in (path.parent for path in data):
        found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        assert all(p.endswith((".jpg", ".txt", "data.yaml")) for p in found), found


def with_arrays(change: Callable[[Arrays], Any], node: int = 1000) -> Callable[[Message], Message]:
    """Tamper with the arrays that one node returns from training."""

    def tamper(reply: Message) -> Message:
        if reply.metadata.src_node_id == node and reply.has_content() and "arrays" in reply.content:
            arrays = from_record(reply.content.array_records["arrays"])
            change(arrays)
            record: ArrayRecord = to_record(arrays)
            reply.content.array_records["arrays"] = record
        return reply

    return tamper


class ForgetfulGrid(LocalGrid):
    """Checks that nobody keeps a reply; the first client may answer first."""

    def __init__(self, num_nodes: int, *, first_first: bool) -> None:
        super().__init__(num_nodes)
        self.first_first = first_first
        self.pulled: list[weakref.ref[Any]] = []

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        held = [reference for reference in self.pulled if reference() is not None]
        assert not held, "the server holds a reply while it asks for the next"
        if not self.first_first:
            replies = super().pull_messages(message_ids)
        else:
            replies = [self._replies.pop(i) for i in message_ids if i in self._replies]
        self.sent.clear()
        self.received.clear()
        for reply in replies:
            record: Any = reply.content.get("arrays")
            if record is not None:
                self.pulled.append(weakref.ref(record[WEIGHT]))
        return replies


@pytest.mark.parametrize("outliers", ["keep", "clip"])
def test_whoever_answers_first_the_result_has_the_same_bits_and_one_reply_is_held(
    outliers: str, tmp_path: Path
) -> None:
    data = [make_dataset(tmp_path / f"c{i}", num_train=n, seed=i) for i, n in enumerate((2, 6, 4))]
    results = []
    for first_first in (True, False):
        grid = ForgetfulGrid(3, first_first=first_first)
        result = federation(
            data,
            tmp_path / str(first_first),
            TRAIN,
            grid=grid,
            num_rounds=1,
            update_norm={"outliers": outliers, "times_median": 1.01},
        )
        assert len(grid.pulled) == 3
        assert not (result.run_dir / "server" / "updates").exists()
        results.append(final_arrays(result))
    assert_identical(results[0], results[1])


def test_an_update_damaged_while_it_waited_ends_the_run_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(tmp_path / "data", num_train=2)
    original = Inbox.put

    def damaging(self: Inbox, update: Update) -> None:
        original(self, update)
        for path in self.folder.glob(".c1.tmp"):
            path.write_bytes(path.read_bytes()[:-1] + b"?")

    monkeypatch.setattr(Inbox, "put", damaging)
    with pytest.raises(FederationError, match=r"round 1: .*c1\.tmp: .*: damaged while it waited"):
        federation([data] * 2, tmp_path / "runs", TRAIN, num_rounds=1)
    assert not (tmp_path / "runs" / "run" / "server" / "updates").exists()


def test_a_worker_that_holds_one_client_at_a_time_gives_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = [make_dataset(tmp_path / f"c{i}", num_train=4, seed=i) for i in range(2)]
    usual = federation(data, tmp_path / "usual", TRAIN, num_rounds=2)
    monkeypatch.setattr(workspace_module, "MAX_CLIENTS", 1)
    workspace_module.held_clients.clear()
    bounded = federation(data, tmp_path / "bounded", TRAIN, num_rounds=2)
    assert len(workspace_module.held_clients) == 1
    assert_identical(final_arrays(bounded), final_arrays(usual))


WEIGHT = "model.0.conv.weight"
BAD_ARRAYS: dict[str, tuple[Callable[[Arrays], Any], str]] = {
    "nan": (
        lambda a: a.update({WEIGHT: np.full_like(a[WEIGHT], np.nan)}),
        r"model.0.conv.weight: 432 of 432 values are NaN or infinite",
    ),
    "missing": (lambda a: a.pop(WEIGHT), r"1 arrays missing: model.0.conv.weight"),
    "extra": (
        lambda a: a.update({"backdoor": np.zeros(3)}),
        r"1 arrays not in the model: backdoor",
    ),
    "0-d": (
        lambda a: a.update({WEIGHT: np.array(1.0, "f4")}),
        r"model.0.conv.weight: shape \(\), expected \(16, 3, 3, 3\)",
    ),
    "half": (
        lambda a: a.update({WEIGHT: a[WEIGHT].astype(np.float16)}),
        r"model.0.conv.weight: dtype float16, expected float32",
    ),
}


@pytest.mark.parametrize(("change", "reason"), BAD_ARRAYS.values(), ids=BAD_ARRAYS.keys())
def test_a_client_with_unusable_arrays_is_left_out_and_named(
    change: Callable[[Arrays], Any], reason: str, tmp_path: Path
) -> None:
    data = make_dataset(tmp_path / "data", num_train=2)
    display = Silent()
    grid = LocalGrid(2, tamper=with_arrays(change))
    result = federation(
        [data, data], tmp_path / "runs", TRAIN, num_rounds=1, grid=grid, display=display
    )
    assert [name for name, _ in display.failures] == ["c0"]
    import re

    assert re.search(reason, display.failures[0][1])
    honest = next(r for r in train_replies(grid) if r.metadata.src_node_id != 1000)
    sent = from_record(honest.content.array_records["arrays"])
    found = final_arrays(result)
    assert "model.22.dfl.conv.weight" not in sent  # constant, so it is not sent back
    assert_identical({name: found[name] for name in sent}, sent)


def test_when_no_client_is_usable_the_run_stops_and_earlier_rounds_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "RETRY_WAIT_S", 0.0)
    data = make_dataset(tmp_path / "data", num_train=2)
    calls = 0

    def nan_from_round_2(arrays: Arrays) -> None:
        nonlocal calls
        calls += 1
        if calls >= 2:
            arrays[WEIGHT] = np.full_like(arrays[WEIGHT], np.nan)

    grid = LocalGrid(1, tamper=with_arrays(nan_from_round_2))
    with pytest.raises(FederationError, match="round 2: 0 of 1 clients returned a usable update"):
        federation([data], tmp_path / "runs", TRAIN, grid=grid)
    run_dir = tmp_path / "runs" / "run"
    load_arrays(run_dir / "weights" / "round1.npz")
    assert not (run_dir / "weights" / "round2.npz").exists()
    assert len(read_csv(run_dir / "results.csv")) == 1


def test_an_error_in_a_client_is_shown_and_its_traceback_kept(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", num_train=2)
    display = Silent()
    grid = LocalGrid(2)
    lost = False

    def lose_an_image(message: Message) -> Message:
        nonlocal lost
        if not lost:  # after the check of the data, before training
            lost = True
            (tmp_path / "fragile" / "images" / "train" / "0.jpg").unlink()
            (tmp_path / "fragile" / "images" / "train" / "1.jpg").unlink()
        return message

    fragile = make_dataset(tmp_path / "fragile", num_train=2)
    grid.tamper = lose_an_image
    result = federation(
        [fragile, data], tmp_path / "runs", TRAIN, num_rounds=1, grid=grid, display=display
    )
    assert display.failures[0][0] == "c0"
    assert "fragile" in display.failures[0][1]
    error = (result.run_dir / "clients" / "c0" / "error.txt").read_text()
    assert "Traceback" in error
    assert (result.run_dir / "weights" / "round1.npz").exists()


def test_a_client_with_another_model_is_refused_before_round_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(tmp_path / "data", num_train=2)
    original = client_app.build_model
    monkeypatch.setattr(client_app, "build_model", lambda _, *rest: original("yolo11n.yaml", *rest))
    with pytest.raises(FederationError, match=r"'c0' builds another model than the server"):
        federation([data], tmp_path / "runs", TRAIN)
    assert not (tmp_path / "runs" / "run" / "weights" / "round1.npz").exists()


def test_a_place_that_cannot_be_written_any_more_ends_the_run_with_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, in round 2; round 1 stays usable."""
    data = make_dataset(tmp_path / "data", num_train=2)
    original = RunDir.save_round

    def full(self: RunDir, arrays: Arrays, meta: RoundMeta) -> Path:
        if meta.round == 2:
            raise OSError(errno.ENOSPC, "No space left on device", "round2.npz")
        return original(self, arrays, meta)

    monkeypatch.setattr(RunDir, "save_round", full)
    with pytest.raises(FederationError, match=r"round 2: round2.npz: No space left on device"):
        federation([data], tmp_path / "runs", TRAIN)
    load_arrays(tmp_path / "runs" / "run" / "weights" / "round1.npz")
    assert len(read_csv(tmp_path / "runs" / "run" / "results.csv")) == 1
