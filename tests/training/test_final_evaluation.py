"""After the last round: test splits, every model on every client's data, and pictures."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluated import NAMES, add_test_split, hitting_arrays, whole_image_dataset
from flwr.app import Message, RecordDict
from local_grid import LocalGrid
from recipes import assert_same, make_dataset, outcome
from trainings import TRAIN, Silent, assert_identical, federation, final_arrays

from federated_yolo.client.yolo_client import YoloClient
from federated_yolo.common.arrays import Arrays
from federated_yolo.common.environment import num_cpus
from federated_yolo.common.errors import FederationError
from federated_yolo.data.data_yaml import read_data_yaml, write_private_yaml
from federated_yolo.protocol.records import from_record, to_record
from federated_yolo.server import final_evaluation
from federated_yolo.server import server as server_module
from federated_yolo.server.results import RoundResult
from federated_yolo.server.round_tables import RoundOutcome
from federated_yolo.server.server import Server
from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import read_csv
from federated_yolo.yolo.checkpoint import load_checkpoint_module, save_checkpoint
from federated_yolo.yolo.evaluator import Evaluation, Evaluator
from federated_yolo.yolo.model import build_model, load_into, to_arrays

EVERY_MODEL = {"every": 1, "cross_client": True}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "base.pt"
    model = build_model("yolov8n.yaml", "detect", {"names": NAMES, "nc": 3})
    load_into(model, hitting_arrays(0, 1))
    save_checkpoint(path, model, {"imgsz": 128})
    return path


def settings(base: Path, **others: Any) -> dict[str, Any]:
    return {"base_model": str(base), "num_rounds": 2, "evaluate": EVERY_MODEL, **others}


SMALL_STEPS = {**TRAIN, "imgsz": 128, "lr0": 1e-4, "warmup_bias_lr": 0.0}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, base: Path) -> tuple[list[Path], LocalGrid, Any]:
    """Two clients, one of which has a test split, and held-out data; all models on all data."""
    folder = tmp_path_factory.mktemp("run")
    data = [
        add_test_split(whole_image_dataset(folder / "one", [0, 1, 0]), 2),
        whole_image_dataset(folder / "two", [1, 2], seed=1),
        add_test_split(whole_image_dataset(folder / "held_out", [0, 1, 1, 2], seed=2), 3),
    ]
    grid = LocalGrid(2)
    result = federation(
        data[:2],
        folder / "runs",
        SMALL_STEPS,
        grid=grid,
        **settings(base, evaluate={**EVERY_MODEL, "data": str(data[2])}),
    )
    return data, grid, result


def score_of(arrays: Arrays, path: Path, folder: Path, split: str = "val") -> Evaluation:
    """The score of these arrays on a data set, by an evaluator and a model of the test's own.

    folder: named after the client, or the server, which evaluates on all cores (bits depend on it).
    """
    data = read_data_yaml(path, where="test")
    write_private_yaml(data, folder)
    model = build_model("yolov8n.yaml", "detect", data)
    load_into(model, arrays)
    num_threads = num_cpus() if folder.name == "(server)" else 1
    evaluator = Evaluator(data, "detect", {"imgsz": 128}, folder, num_threads=num_threads)
    return evaluator(model, split)


def arrays_of(path: Path) -> Arrays:
    return to_arrays(load_checkpoint_module(str(path), where="test"))


def test_every_model_is_scored_on_every_data_set(
    run: tuple[list[Path], LocalGrid, Any], tmp_path: Path
) -> None:
    data, _, result = run
    rows = read_csv(result.run_dir / "cross_client.csv")
    models = [("global", ""), ("local", "c0"), ("local", "c1")]
    places = dict(zip(["c0", "c1", "(server)"], data, strict=True))
    assert [(row["model"], row["owner"], row["data"]) for row in rows] == [
        (*model, place) for model in models for place in places
    ]
    for row in rows:
        owner = result.run_dir / "clients" / row["owner"]
        arrays = arrays_of(owner / "local_best.pt") if row["owner"] else final_arrays(result)
        expected = score_of(arrays, places[row["data"]], tmp_path / row["data"])
        assert float(row["fitness"]) == expected.fitness
        assert float(row["metrics/recall(B)"]) == expected.metrics["metrics/recall(B)"]
        assert int(row["num_examples"]) == expected.num_examples
    # Or another model in its place would not be noticed.
    assert len({row["metrics/precision(B)"] for row in rows if row["data"] == "c0"}) == 3


def test_a_local_model_is_what_the_client_sent_in_its_best_round(
    run: tuple[list[Path], LocalGrid, Any],
) -> None:
    _, grid, result = run
    trained = [r for r in grid.received if r.has_content() and "metrics" in r.content]
    trained = [r for r in trained if "arrays" in r.content]
    for name in ("c0", "c1"):
        rows = [r for r in read_csv(result.run_dir / "clients.csv") if r["client"] == name]
        scores = [float(row["local/fitness"]) for row in rows]
        best = max(range(2), key=lambda i: (scores[i], i))
        sent = [r for r in trained if r.content.config_records["client"]["name"] == name]
        changed = from_record(sent[best].content.array_records["arrays"])
        found = arrays_of(result.run_dir / "clients" / name / "local_best.pt")
        assert_identical({n: found[n] for n in changed}, changed)


def test_local_scores_are_those_of_the_trained_model_on_its_own_val_split(
    run: tuple[list[Path], LocalGrid, Any], tmp_path: Path
) -> None:
    data, grid, result = run
    first = next(r for r in grid.received if r.has_content() and "arrays" in r.content)
    assert first.content.config_records["client"]["name"] == "c1"  # the last one answers first
    start, _ = load_arrays(result.run_dir / "weights" / "round0.npz")
    arrays = start | from_record(first.content.array_records["arrays"])  # what changed comes back
    row = next(r for r in read_csv(result.run_dir / "clients.csv") if r["client"] == "c1")
    assert float(row["local/fitness"]) == score_of(arrays, data[1], tmp_path).fitness


def test_the_model_of_the_last_round_is_scored_on_the_test_splits_that_there_are(
    run: tuple[list[Path], LocalGrid, Any], tmp_path: Path
) -> None:
    data, _, result = run
    rows = [row for row in read_csv(result.run_dir / "test.csv") if row["round"] == "2"]
    whole = {row["client"]: row for row in rows if not row["class"]}
    assert list(whole) == ["c0", "(server)"]
    for name, path in (("c0", data[0]), ("(server)", data[2])):
        expected = score_of(final_arrays(result), path, tmp_path / name, "test")
        found = whole[name]
        assert int(found["num_examples"]) == expected.num_examples
        assert float(found["metrics/mAP50-95(B)"]) == expected.metrics["metrics/mAP50-95(B)"]
        for label in NAMES.values():
            row = next(r for r in rows if (r["client"], r["class"]) == (name, label))
            value = expected.per_class.get(f"class/{label}/mAP50-95")
            assert row["metrics/mAP50-95(B)"] == ("" if value is None else str(value))
    assert whole["c0"]["num_examples"] == "2"


@pytest.fixture
def first_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let earlier rounds be better, whatever their models score."""
    summarise = server_module.summarise

    def falling(outcome: RoundOutcome, **settings: Any) -> RoundResult:
        result = summarise(outcome, **settings)
        score = 1 / outcome.round
        return replace(result, score=score, row={**result.row, "fitness": score})

    monkeypatch.setattr(server_module, "summarise", falling)


@pytest.mark.parametrize(
    ("others", "arrays"), [({"codec": "topk"}, "round"), ({"server_ema": 0.5}, "ema")]
)
@pytest.mark.usefixtures("first_is_best")
def test_the_test_splits_are_scored_by_best_pt_and_by_last_pt(
    run: tuple[list[Path], LocalGrid, Any],
    base: Path,
    tmp_path: Path,
    others: dict[str, Any],
    arrays: str,
) -> None:
    data, _, _ = run
    evaluate = {"every": 1, "data": str(data[2])}
    result = federation(
        data[:2],
        tmp_path / "runs",
        {**SMALL_STEPS, "lr0": 1e-3},
        **settings(base, evaluate=evaluate, **others),
    )
    rows = [row for row in read_csv(result.run_dir / "test.csv") if not row["class"]]
    models = {"1": "best.pt", "2": "last.pt"}
    assert [(row["round"], row["client"]) for row in rows] == [
        (number, place) for number in models for place in ("c0", "(server)")
    ]
    for row in rows:
        weights = result.run_dir / "weights"
        tested = arrays_of(weights / models[row["round"]])
        assert_identical(tested, load_arrays(weights / f"{arrays}{row['round']}.npz")[0])
        path = {"c0": data[0], "(server)": data[2]}[row["client"]]
        expected = score_of(tested, path, tmp_path / row["client"], "test")
        assert {n: float(row[n]) for n in expected.metrics} == expected.metrics
    # Or another model in its place would not be noticed.
    assert len({row["metrics/precision(B)"] for row in rows}) == len(rows)


@pytest.mark.parametrize("harm", ["deleted", "damaged"])
@pytest.mark.usefixtures("first_is_best")
def test_rounds_that_cannot_be_read_any_more_are_left_out_of_the_final_evaluation(
    run: tuple[list[Path], LocalGrid, Any],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    harm: str,
) -> None:
    data, _, _ = run
    original = final_evaluation.evaluate_on_test

    def harmed(server: Server, grid: Any) -> None:
        path = server.run_dir.round_path(1)
        path.unlink() if harm == "deleted" else path.write_bytes(path.read_bytes()[:999])
        original(server, grid)

    monkeypatch.setattr(final_evaluation, "evaluate_on_test", harmed)
    display = Silent()
    evaluate = {"every": 1, "data": str(data[2])}
    result = federation(
        data[:2], tmp_path, SMALL_STEPS, display=display, **settings(base, evaluate=evaluate)
    )
    rows = read_csv(result.run_dir / "test.csv")
    assert {row["round"] for row in rows} == {"2"}
    missing = "test.csv: without best.pt: the arrays of its round 1 are no longer there"
    assert missing in display.notices
    assert any("round1.npz: not a readable .npz" in n for n in display.notices) == (
        harm == "damaged"
    )
    assert (result.run_dir / "predictions.jpg").exists()
    assert (result.run_dir / "server" / "finished").exists()


@pytest.mark.usefixtures("first_is_best")
def test_where_clients_have_models_of_their_own_the_last_is_tested(
    run: tuple[list[Path], LocalGrid, Any], base: Path, tmp_path: Path
) -> None:
    data, _, _ = run
    result = federation(
        data[:2],
        tmp_path / "runs",
        {**SMALL_STEPS, "lr0": 1e-3},
        **settings(base, evaluate={"every": 1}, shared={"batchnorm": "local"}),
    )
    rows = [row for row in read_csv(result.run_dir / "test.csv") if not row["class"]]
    assert [(row["round"], row["client"]) for row in rows] == [("2", "c0")]
    arrays = arrays_of(result.run_dir / "clients" / "c0" / "last.pt")
    expected = score_of(arrays, data[0], tmp_path / "c0", "test")
    assert {n: float(rows[0][n]) for n in expected.metrics} == expected.metrics


def test_looking_at_local_models_does_not_change_the_training(
    run: tuple[list[Path], LocalGrid, Any], base: Path, tmp_path: Path
) -> None:
    data, _, result = run
    plain = federation(
        data[:2], tmp_path / "runs", SMALL_STEPS, **settings(base, evaluate={"every": 0})
    )
    assert_identical(final_arrays(plain), final_arrays(result))


def test_no_local_model_is_kept_or_sent_unless_the_config_says_so(
    run: tuple[list[Path], LocalGrid, Any], base: Path, tmp_path: Path
) -> None:
    data, _, _ = run
    grid = LocalGrid(2)
    result = federation(
        data[:2],
        tmp_path / "runs",
        SMALL_STEPS,
        grid=grid,
        **settings(base, num_rounds=1, evaluate={"every": 1}),
    )
    assert not list(result.run_dir.rglob("local_best*"))
    assert not (result.run_dir / "cross_client.csv").exists()
    config = grid.sent[-1].content.config_records["config"]
    arrays = to_record(final_arrays(result))
    for kind in ("local", "personal"):  # asked all the same
        record = RecordDict({"config": config, "arrays": arrays})
        ids = grid.push_messages([Message(record, 1000, f"query.{kind}")])
        reply = grid.pull_messages(ids)[0]
        assert reply.has_error()
        assert "'c0' keeps its model: evaluate.cross_client is false" in (reply.error.reason or "")


def test_where_clients_have_models_of_their_own_those_are_compared(
    run: tuple[list[Path], LocalGrid, Any], base: Path, tmp_path: Path
) -> None:
    data, _, _ = run
    result = federation(
        data[:2],
        tmp_path / "runs",
        {**SMALL_STEPS, "lr0": 1e-3},
        **settings(base, shared={"batchnorm": "local"}),
    )
    rows = read_csv(result.run_dir / "cross_client.csv")
    assert [(r["model"], r["owner"], r["data"]) for r in rows if r["model"] == "personal"] == [
        ("personal", owner, place) for owner in ("c0", "c1") for place in ("c0", "c1")
    ]
    assert not [row for row in rows if row["model"] == "global"]
    for row in (r for r in rows if r["model"] == "personal"):
        arrays = arrays_of(result.run_dir / "clients" / row["owner"] / "last.pt")
        expected = score_of(arrays, data[int(row["data"][1])], tmp_path / row["data"])
        assert float(row["fitness"]) == expected.fitness


def test_a_client_that_never_trained_keeps_the_private_arrays_of_the_start(
    run: tuple[list[Path], LocalGrid, Any], base: Path, tmp_path: Path
) -> None:
    """And does not take over those of the models it was asked to score."""
    data, _, _ = run
    result = federation(
        data[:2],
        tmp_path / "runs",
        {**SMALL_STEPS, "lr0": 1e-3},
        **settings(base, shared={"batchnorm": "local"}, num_rounds=1, fraction_train=0.5),
    )
    rounds = {r["client"]: r for r in read_csv(result.run_dir / "clients.csv")}
    assert {r["num_examples"] for r in rounds.values()} == {"", "4"}
    matrix = read_csv(result.run_dir / "cross_client.csv")
    own = {
        r["owner"]: r["fitness"]
        for r in matrix
        if r["model"] == "personal" and r["owner"] == r["data"]
    }
    assert own == {name: row["fitness"] for name, row in rounds.items()}


def test_personal_models_of_the_matrix_have_the_moving_average(
    run: tuple[list[Path], LocalGrid, Any], base: Path, tmp_path: Path
) -> None:
    data, _, _ = run
    result = federation(
        data[:2],
        tmp_path / "runs",
        {**SMALL_STEPS, "lr0": 1e-2},
        **settings(base, shared={"batchnorm": "local"}, server_ema=0.9),
    )
    last = {r["client"]: r for r in read_csv(result.run_dir / "clients.csv") if r["round"] == "2"}
    for row in read_csv(result.run_dir / "cross_client.csv"):
        if row["model"] == "personal" and row["owner"] == row["data"]:
            assert row["fitness"] == last[row["owner"]]["fitness"]


def test_a_local_model_that_cannot_be_scored_is_no_reason_to_refuse_the_update(
    run: tuple[list[Path], LocalGrid, Any],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, _, _ = run

    def broken(self: YoloClient, round_number: int, trained: Arrays) -> dict[str, float]:
        raise OSError("disk full")

    monkeypatch.setattr(YoloClient, "_score_local_model", broken)
    display = Silent()
    result = federation(
        data[:2], tmp_path / "runs", SMALL_STEPS, display=display, **settings(base, num_rounds=1)
    )
    rows = read_csv(result.run_dir / "clients.csv")
    assert [row["num_examples"] for row in rows] == ["4", "4"]
    assert rows[0]["note"] == "its local model was not scored: OSError: disk full"
    # Then there is none to compare, and a resumed run asks again.
    assert "has no local_best.pt" in display.failures[0][1]
    assert not (result.run_dir / "server" / "finished").exists()
    assert display.notices[-1].startswith("the final evaluation lacks c0, c1")


def test_pictures_do_without_a_first_round_that_was_deleted_or_labels(
    run: tuple[list[Path], LocalGrid, Any],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, _, _ = run
    drawn: list[list[str]] = []

    def draw(
        self: Evaluator, model: torch.nn.Module, versions: dict[str, Arrays], num_images: int
    ) -> bytes:
        drawn.append(list(versions))
        (tmp_path / "runs" / "run" / "weights" / "round1.npz").unlink(missing_ok=True)
        raise ValueError("none of the val images has a label")

    monkeypatch.setattr(Evaluator, "draw", draw)
    evaluate = {"every": 1, "data": str(data[2])}
    arguments = settings(base, evaluate=evaluate)
    for resume in (False, True):
        display = Silent()
        federation(
            data[:1], tmp_path / "runs", SMALL_STEPS, display=display, resume=resume, **arguments
        )
        assert [notice for notice in display.notices if "predictions" in notice] == [
            "predictions.jpg: not drawn: ValueError: none of the val images has a label"
        ]
        (tmp_path / "runs" / "run" / "server" / "finished").unlink()
    assert drawn == [["round 1", "round 2"], ["round 2"]]


def test_a_model_of_another_shape_is_left_out_of_the_matrix(
    run: tuple[list[Path], LocalGrid, Any], base: Path, tmp_path: Path
) -> None:
    data, _, _ = run

    def spoil(reply: Message) -> Message:
        if (reply.metadata.message_type, reply.metadata.src_node_id) == ("query.local", 1000):
            arrays = from_record(reply.content.array_records["arrays"])
            arrays["model.0.conv.weight"] = arrays["model.0.conv.weight"][:1]
            reply.content["arrays"] = to_record(arrays)
        return reply

    display = Silent()
    result = federation(
        data[:2],
        tmp_path / "runs",
        SMALL_STEPS,
        grid=LocalGrid(2, spoil),
        display=display,
        **settings(base, num_rounds=1),
    )
    owners = {row["owner"] for row in read_csv(result.run_dir / "cross_client.csv")}
    assert owners == {"", "c1"}
    assert [name for name, _ in display.failures] == ["c0"]
    assert "its model was refused: model.0.conv.weight" in display.failures[0][1]


@pytest.mark.usefixtures("first_is_best")
def test_a_run_that_was_stopped_in_its_final_evaluation_does_it_when_resumed(
    run: tuple[list[Path], LocalGrid, Any],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, _, _ = run
    arguments = settings(base, evaluate={**EVERY_MODEL, "data": str(data[2])})
    result = federation(data[:2], tmp_path / "whole", SMALL_STEPS, **arguments)
    original = final_evaluation.evaluate_across_clients

    def stopped(server: Server, grid: Any) -> None:
        raise FederationError("stopped")

    monkeypatch.setattr(final_evaluation, "evaluate_across_clients", stopped)
    with pytest.raises(FederationError, match="stopped"):
        federation(data[:2], tmp_path / "runs", SMALL_STEPS, **arguments)
    monkeypatch.setattr(final_evaluation, "evaluate_across_clients", original)
    resumed = federation(data[:2], tmp_path / "runs", SMALL_STEPS, resume=True, **arguments)
    found = outcome(resumed.run_dir)
    assert "cross_client.csv" in found
    assert {row["round"] for row in found["test.csv"]} == {"1", "2"}
    assert_same(found, outcome(result.run_dir))
    assert (resumed.run_dir / "predictions.jpg").exists()


def test_pictures_are_of_the_first_and_the_last_round(
    run: tuple[list[Path], LocalGrid, Any],
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data, _, _ = run
    drawn: list[dict[str, Arrays]] = []

    def draw(
        self: Evaluator, model: torch.nn.Module, versions: dict[str, Arrays], num_images: int
    ) -> bytes:
        drawn.append(versions)
        assert num_images == (2 if len(drawn) == 1 else 1)
        return b"\xff\xd8\xff"

    monkeypatch.setattr(Evaluator, "draw", draw)
    evaluate = {"every": 1, "data": str(data[2]), "show_images": 2}
    result = federation(
        data[:1], tmp_path, SMALL_STEPS, show_images=1, **settings(base, evaluate=evaluate)
    )
    assert len(drawn) == 2  # on the server's images, and on the client's
    for found in drawn:
        assert list(found) == ["round 1", "round 2"]
        for number, arrays in enumerate(found.values(), 1):
            saved, _ = load_arrays(result.run_dir / "weights" / f"round{number}.npz")
            assert_identical(arrays, saved)
    for name in ("predictions.jpg", "predictions_c0.jpg"):
        assert (result.run_dir / name).read_bytes() == b"\xff\xd8\xff"


def test_a_client_that_shows_no_images_is_not_drawn_even_if_asked(
    run: tuple[list[Path], LocalGrid, Any],
) -> None:
    _, grid, result = run
    assert [p.name for p in result.run_dir.glob("*.jpg")] == ["predictions.jpg"]  # the server's
    last = [message for message in grid.sent if message.metadata.dst_node_id == 1000][-1]
    config = last.content.config_records["config"]
    record = RecordDict({"config": config, "round 1": to_record(final_arrays(result))})
    reply = grid.pull_messages(grid.push_messages([Message(record, 1000, "query.pictures")]))[0]
    assert "'c0' shows no images: its show_images is 0" in (reply.error.reason or "")


def test_the_bytes_of_a_round_are_those_of_the_arrays_in_its_messages(
    run: tuple[list[Path], LocalGrid, Any],
) -> None:
    _, grid, result = run

    def num_bytes(message: Message) -> int:
        records = message.content.array_records.values()
        return sum(array.numpy().nbytes for record in records for array in record.values())

    down = [num_bytes(m) for m in grid.sent if m.metadata.message_type in ("train", "evaluate")]
    up = [num_bytes(m) for m in grid.received if m.metadata.message_type == "train"]
    rows = read_csv(result.run_dir / "results.csv")
    # Of two rounds, two clients and two messages each; then came test splits.
    for row, sent in zip(rows, (sum(down[:4]), sum(down[4:8])), strict=True):
        headers = int(row["download_bytes"]) / sent - 1
        assert 0 <= headers < 0.01  # NumPy's, of each array
        # But for arrays that training has left as they were.
        assert 0.9 < int(row["upload_bytes"]) * 2 / int(row["download_bytes"]) <= 1
        assert 0 <= int(row["upload_bytes"]) / sum(up[:2]) - 1 < 0.01
    clients = [r for r in read_csv(result.run_dir / "clients.csv") if r["round"] == "1"]
    total = sum(int(row["download_bytes"]) for row in clients)
    assert total == int(rows[0]["download_bytes"])


def test_a_fraction_of_no_test_images_leaves_no_test_scores(tmp_path: Path) -> None:
    """As Ultralytics documents `fraction: [1, 1, 0]`."""
    path = add_test_split(make_dataset(tmp_path / "one"), 2)
    train = {**TRAIN, "fraction": [1.0, 1.0, 0]}
    display = Silent()
    result = federation(
        [path],
        tmp_path / "runs",
        train,
        num_rounds=1,
        evaluate={"data": str(path)},
        display=display,
    )
    assert (display.failures, display.notices) == ([], [])
    assert (result.run_dir / "server" / "finished").exists()
    assert not (result.run_dir / "test.csv").exists()


def test_a_client_that_was_never_drawn_has_no_local_model_and_has_not_failed(
    tmp_path: Path,
) -> None:
    data = [make_dataset(tmp_path / name, num_train=2, num_val=1) for name in "abc"]
    display = Silent()
    result = federation(
        data,
        tmp_path / "runs",
        TRAIN,
        num_rounds=2,
        fraction_train=0.34,
        evaluate={"every": 1, "cross_client": True},
        display=display,
    )
    assert (display.failures, display.notices) == ([], [])
    assert (result.run_dir / "server" / "finished").exists()
    clients = read_csv(result.run_dir / "clients.csv")
    drawn = {row["client"] for row in clients if row["num_examples"]}
    assert 1 <= len(drawn) < 3
    rows = read_csv(result.run_dir / "cross_client.csv")
    local = [row for row in rows if row["model"] == "local"]
    assert {row["owner"] for row in local if row["fitness"]} == drawn
    assert {row["owner"] for row in local if not row["fitness"]} == {"c0", "c1", "c2"} - drawn
    assert len(local) == 9
    assert {row["data"] for row in rows} == {"c0", "c1", "c2"}
