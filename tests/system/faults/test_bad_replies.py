"""A reply that cannot be used costs its client the round, and nobody else anything."""

import itertools
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ConfigRecord, Error, Message, RecordDict
from local_grid import LocalGrid
from recipes import make_dataset
from trainings import TRAIN, Silent, assert_identical, federation, final_arrays

from federated_yolo.common.arrays import Arrays
from federated_yolo.common.errors import FederationError
from federated_yolo.protocol.records import from_record, to_record
from federated_yolo.server import server as server_module
from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import read_csv

WEIGHT, VARIANCE, COUNTER = "model.0.conv.weight", "model.0.bn.running_var", "num_batches_tracked"
MEAN, CONSTANT = "model.0.bn.running_mean", "model.22.dfl.conv.weight"


def arrays_of(message: Message) -> Arrays:
    return from_record(message.content.array_records["arrays"])


def changed(change: Callable[[Arrays], Any]) -> Callable[[Message], None]:
    def tamper(message: Message) -> None:
        arrays = arrays_of(message)
        change(arrays)
        message.content.array_records["arrays"] = to_record(arrays)

    return tamper


def number(key: str, value: float | None) -> Callable[[Message], None]:
    def tamper(message: Message) -> None:
        record = message.content.metric_records["metrics"]
        record.pop(key, None)
        if value is not None:
            record[key] = value

    return tamper


def about(key: str, value: Any) -> Callable[[Message], None]:
    return lambda message: message.content.config_records["client"].__setitem__(key, value)


def raised(reason: str) -> Callable[[Message], None]:
    return lambda message: message.__dict__.update(_content=None, _error=Error(2, reason))


BAD: dict[str, tuple[Callable[[Message], None], str]] = {
    "it raised": (raised("RuntimeError: CUDA out of memory"), "CUDA out of memory"),
    "NaN": (changed(lambda a: a[WEIGHT].fill(np.nan)), "432 of 432 values are NaN or infinite"),
    "one infinity": (
        changed(lambda a: a[WEIGHT].__setitem__((0, 0, 0, 0), np.inf)),
        "1 of 432 values are NaN or infinite",
    ),
    "a negative variance": (
        changed(lambda a: a[VARIANCE].__setitem__(0, -1)),
        "model.0.bn.running_var: has negative values",
    ),
    "an array is missing": (changed(lambda a: a.pop(WEIGHT)), "1 arrays missing"),
    "an array too many": (
        changed(lambda a: a.update(backdoor=np.zeros(3))),
        "1 arrays not in the model: backdoor",
    ),
    "no arrays": (lambda m: m.content.array_records.clear(), "its reply has no 'arrays'"),
    "another shape": (
        changed(lambda a: a.update({WEIGHT: a[WEIGHT][:8]})),
        "shape (8, 3, 3, 3), expected (16, 3, 3, 3)",
    ),
    "a scalar, which NumPy would broadcast": (
        changed(lambda a: a.update({WEIGHT: np.array(1.0, "f4")})),
        "shape (), expected (16, 3, 3, 3)",
    ),
    "half precision": (
        changed(lambda a: a.update({WEIGHT: a[WEIGHT].astype("f2")})),
        "dtype float16, expected float32",
    ),
    "a counter as a float": (
        changed(
            lambda a: a.update({n: v.astype("f4") for n, v in a.items() if n.endswith(COUNTER)})
        ),
        "dtype float32, expected int64",
    ),
    "no examples": (number("num-examples", 0), "num-examples: found 0.0, expected a positive"),
    "fewer than no examples": (number("num-examples", -5), "num-examples: found -5.0"),
    "examples not counted": (number("num-examples", None), "its reply has no 'num-examples'"),
    "a loss that is no number": (number("train/box_loss", np.nan), "its numbers are not finite"),
    "names for a table without end": (
        lambda m: m.content.metric_records["metrics"].update({f"x/{i}": 0.0 for i in range(1000)}),
        "names of numbers in its replies, expected at most 1000 in a run",
    ),
    "a name that a table cannot hold": (number("x/" + "a" * 200_000, 1.0), "200002 characters"),
    "a name that would move the cursor": (number("x/\x1b[2J", 1.0), "all printable"),
    "no steps": (number("num-steps", 0), "num-steps: found 0.0"),
    "more examples than there can be": (number("num-examples", 1.7e308), "not finite, or huge"),
    "more examples than a mean is exact for": (
        number("num-examples", 2**29 + 1),
        "num-examples: found 536870913.0, expected a positive whole number, at most 536870912",
    ),
    "a column of the server's": (number("round", 2.0), "its number 'round' is named as the server"),
    "a score of the server's": (number("server/fitness", 1.0), "its number 'server/fitness' is"),
    "a reason that would move the cursor": (
        raised("\x1b[31mred\r\nround 9: done\x07"),
        "red round 9: done",
    ),
    "steps without end": (
        number("num-steps", 2.0**53),
        "num-steps: found 9007199254740992, expected 1 for 2 images in batches of 2, 1 times",
    ),
    "images of which it cannot have trained": (
        number("num-examples", 1000),
        "num-steps: found 1, expected 500 for 1000 images",
    ),
    "a time longer than its answer took": (
        number("seconds", 1e9),
        "seconds: found 1e+09, expected",
    ),
    "a time below zero": (number("seconds", -1), "seconds: found -1, expected 0 to"),
    "a loss below zero": (number("train/box_loss", -5), "train/box_loss: found -5, expected 0 to"),
    "a huge loss": (number("train/cls_loss", 1e20), "train/cls_loss: found 1e+20, expected 0 to"),
    "a share above 1 of its own model": (
        number("local/metrics/recall(B)", 7),
        "local/metrics/recall(B): found 7, expected 0 to 1",
    ),
    "a counter that ran faster than its batches": (
        changed(lambda a: a.update({f"model.0.bn.{COUNTER}": np.array(500)})),
        f"model.0.bn.{COUNTER}: found 500, expected 0 to 1: it has trained 1 batches at most",
    ),
    "a variance that silences its channel": (
        changed(lambda a: a[VARIANCE].__setitem__(3, 1e12)),
        f"{VARIANCE}: moved 9.99e+11 times, expected at most 1e+06",
    ),
    "a mean far from all it can have seen": (
        changed(lambda a: a[MEAN].__setitem__(3, -1e9)),
        f"{MEAN}: moved ",
    ),
    "another constant": (
        changed(lambda a: a.update({CONSTANT: np.zeros((1, 16, 1, 1), "f4")})),
        f"1 arrays changed that training does not move: {CONSTANT}",
    ),
    "more bytes than the model has": (
        changed(lambda a: a.update(big=np.zeros(4_000_000, "f4"))),
        "bytes of arrays, expected at most",
    ),
    "records without end": (
        lambda m: m.content.update({f"r{i}": ConfigRecord() for i in range(20)}),
        "its reply has 23 records, expected at most 8",
    ),
    "a note without end": (about("note", "x" * (1 << 26)), "bytes beside its arrays, expected"),
    "a list of names without end": (
        lambda m: m.content.update({"names": ConfigRecord({"all": ["x"] * (1 << 25)})}),
        "bytes beside its arrays, expected",
    ),
    "an attempt that there cannot be": (about("attempt", 10**9), "attempt: found 1000000000"),
    "no metrics": (lambda m: m.content.metric_records.clear(), "its reply has no 'metrics'"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("data") / "data", num_train=2)


def spoiling(
    spoil: Callable[[Message], None], node: int, calls: set[int], kind: str = "train"
) -> LocalGrid:
    """A grid on which a node's replies of a kind, of these numbers from 1, are spoilt."""
    count = 0

    def tamper(reply: Message) -> Message:
        nonlocal count
        if reply.metadata.src_node_id == node and reply.metadata.message_type == kind:
            count += 1
            if count in calls:
                spoil(reply)
        return reply

    return LocalGrid(2, tamper)


@pytest.mark.parametrize(("spoil", "reason"), BAD.values(), ids=BAD.keys())
def test_its_client_is_left_out_of_the_round_named_and_asked_again_in_the_next(
    spoil: Callable[[Message], None], reason: str, data: Path, tmp_path: Path
) -> None:
    grid, display = spoiling(spoil, node=1000, calls={1}), Silent()
    train = {**TRAIN, "warmup_epochs": 0.0}  # or no weight would change, and travel, in round 1
    result = federation([data, data], tmp_path, train, num_rounds=2, grid=grid, display=display)
    assert [name for name, _ in display.failures] == ["c0"]
    assert reason in display.failures[0][1]
    rows = {(r["round"], r["client"]): r for r in read_csv(tmp_path / "run" / "clients.csv")}
    assert reason in rows["1", "c0"]["note"]
    assert rows["1", "c0"]["num_examples"] == ""
    assert (rows["2", "c0"]["num_examples"], rows["2", "c0"]["note"]) == ("2", "")
    honest = next(
        r
        for r in grid.received
        if r.metadata.src_node_id != 1000 and r.metadata.message_type == "train"
    )
    after_round_1, _ = load_arrays(tmp_path / "run" / "weights" / "round1.npz")
    sent = arrays_of(honest)
    assert WEIGHT in sent
    assert_identical({name: after_round_1[name] for name in sent}, sent)
    assert result.rounds[0].row["num_clients"] == 1
    assert result.rounds[1].row["num_clients"] == 2


class Intruder(LocalGrid):
    """The second node slips in messages that are no replies of its own."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        replies = super().pull_messages(message_ids)
        forged = []
        for reply in (r for r in replies if r.has_content() and "arrays" in r.content):
            poison = {n: np.full_like(a, 9) for n, a in arrays_of(reply).items()}
            content = RecordDict({**reply.content, "arrays": to_record(poison)})
            unasked = Message(content, 1, "train")
            of_another = Message(content, reply_to=self.sent[-1])
            of_another.metadata.__dict__.update(
                _src_node_id=1007 if reply.metadata.src_node_id == 1000 else 1000,
                _reply_to_message_id=reply.metadata.reply_to_message_id,
            )
            failed = Message(Error(2, "I speak for others"), reply_to=self.sent[-1])
            failed.metadata.__dict__["_reply_to_message_id"] = ""
            forged += [unasked, of_another, failed]
        return [*forged, *replies, *replies]


def test_a_message_that_answers_nothing_or_for_another_is_not_looked_at(
    data: Path, tmp_path: Path
) -> None:
    runs = [
        federation([data, data], tmp_path / name, TRAIN, grid=grid, num_rounds=2)
        for name, grid in (("plain", LocalGrid(2)), ("intruder", Intruder(2)))
    ]
    assert_identical(*(final_arrays(result) for result in runs))


BAD_SCORES: list[tuple[Callable[[Message], None], str]] = [
    (number("fitness", 1e30), "fitness: found 1e+30, expected 0 to 1"),
    (number("fitness", 0.9), "loss: found 1, expected 1 - fitness = 0.1"),
    (number("metrics/mAP50(B)", 1.5), "metrics/mAP50(B): found 1.5, expected 0 to 1"),
    (number("class/a/mAP50", -1), "class/a/mAP50: found -1, expected 0 to 1"),
    (number("class/z/mAP50", 0.5), "class/z/mAP50: not of a class and metric of this federation"),
    (number("seconds", 1e9), "seconds: found 1e+09, expected 0 to"),
    (number("num-examples", 2.0**53), "num-examples: found 9007199254740992.0, expected a"),
]


def test_a_score_that_cannot_be_is_refused_and_no_round_is_the_best_by_it(
    data: Path, tmp_path: Path
) -> None:
    """A wrong one in each round; steps without end beside them, which FedNova would divide by."""
    spoils, display = iter(BAD_SCORES), Silent()

    def spoil(reply: Message) -> Message:
        if reply.metadata.src_node_id == 1000 and reply.metadata.message_type == "evaluate":
            next(spoils)[0](reply)
        if reply.metadata.src_node_id == 1000 and reply.metadata.message_type == "train":
            number("num-steps", 2.0**53)(reply)
        return reply

    result = federation(
        [data] * 2,
        tmp_path,
        TRAIN,
        num_rounds=len(BAD_SCORES),
        strategy="fednova",
        evaluate={"every": 1},
        grid=LocalGrid(2, spoil),
        display=display,
    )
    rows = [r for r in read_csv(tmp_path / "run" / "clients.csv") if r["client"] == "c0"]
    for row, (_, reason) in zip(rows, BAD_SCORES, strict=True):
        assert "num-steps: found 9007199254740992" in row["note"]
        assert reason in row["note"]
        assert row["num_val"] == ""
    assert [r.row["num_clients"] for r in result.rounds] == [1] * len(BAD_SCORES)
    assert all(0 <= (r.score or 0) <= 1 for r in result.rounds)


def test_a_users_own_numbers_are_free_and_no_text_of_a_client_is_a_formula(
    data: Path, tmp_path: Path
) -> None:
    def spoil(reply: Message) -> None:
        number("my/number", -1e20)(reply)
        number("=1+1/x", 5)(reply)
        about("note", "=HYPERLINK(1)\x1b[2J\nround 9: done")(reply)

    grid, display = spoiling(spoil, node=1000, calls={1}), Silent()
    federation([data] * 2, tmp_path, TRAIN, num_rounds=1, grid=grid, display=display)
    assert not display.failures
    row = read_csv(tmp_path / "run" / "clients.csv")[0]
    assert (float(row["my/number"]), float(row["=1+1/x"])) == (-1e20, 5)
    assert row["note"] == "=HYPERLINK(1) round 9: done"
    text = (tmp_path / "run" / "clients.csv").read_text()
    assert ",'=HYPERLINK(1) round" in text
    assert ",'=1+1/x" in text
    assert ",-1e+20," in text


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_client_counts_with_no_more_images_than_it_had_at_the_start(
    kind: str, data: Path, tmp_path: Path
) -> None:
    def claim(reply: Message) -> None:
        number("num-examples", 2000)(reply)
        if kind == "train":
            number("num-steps", 1000)(reply)

    boastful = spoiling(claim, node=1000, calls={1}, kind=kind)
    settings: dict[str, Any] = {"num_rounds": 1, "evaluate": {"every": 1}}
    runs = [
        federation([data, data], tmp_path / name, TRAIN, grid=grid, **settings)
        for name, grid in (("honest", LocalGrid(2)), ("boastful", boastful))
    ]
    assert_identical(*(final_arrays(result) for result in runs))
    notes = {r["client"]: r["note"] for r in read_csv(tmp_path / "boastful/run/clients.csv")}
    known = 2 if kind == "train" else 3
    expected = f"it has 2000 images now; it counts with the {known} of its start"
    assert notes == {"c0": expected, "c1": ""}


def test_numbers_under_new_names_in_each_round_do_not_fill_the_tables(
    data: Path, tmp_path: Path
) -> None:
    numbers = itertools.count()

    def spoil(reply: Message) -> None:
        new = {f"x/{next(numbers)}": 0.0 for _ in range(600)}
        reply.content.metric_records["metrics"].update(new)

    grid, display = spoiling(spoil, node=1000, calls={1, 2}), Silent()
    result = federation([data, data], tmp_path, TRAIN, num_rounds=2, grid=grid, display=display)
    (failure,) = display.failures
    assert failure[0] == "c0"
    assert "names of numbers in its replies, expected at most 1000 in a run" in failure[1]
    assert [r.row["num_clients"] for r in result.rounds] == [2, 1]


class Stray(LocalGrid):
    """Flower hands out what a node has sent unasked with the next that is pulled, unread."""

    strays = 0

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        if self.strays:
            self.strays -= 1
            message_ids = set(message_ids)
            super().pull_messages(message_ids)  # what was asked for is lost with it
            raise json.JSONDecodeError("Expecting value", "", 0)
        return super().pull_messages(message_ids)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        self.strays = 1
        return super().push_messages(messages)


def test_an_unreadable_message_that_nobody_asked_for_costs_no_reply(
    data: Path, tmp_path: Path
) -> None:
    display = Silent()
    result = federation([data, data], tmp_path, TRAIN, grid=Stray(2), display=display)
    assert not display.failures
    assert [r.row["num_clients"] for r in result.rounds] == [2, 2, 2]


class Garbled(LocalGrid):
    """Flower cannot unpack the first train reply of the first node."""

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        for reply in super().pull_messages(message_ids):
            is_first = sum(m.metadata.message_type == "train" for m in self.sent) <= 2
            if reply.metadata.src_node_id == 1000 and "arrays" in reply.content and is_first:
                raise json.JSONDecodeError("Expecting value", "", 0)
            return [reply]
        return []


def test_a_reply_that_cannot_be_unpacked_leaves_its_client_out(data: Path, tmp_path: Path) -> None:
    display = Silent()
    result = federation([data, data], tmp_path, TRAIN, grid=Garbled(2), display=display)
    assert display.failures == [("c0", "its reply is not readable (JSONDecodeError)")]
    assert [r.row["num_clients"] for r in result.rounds] == [1, 2, 2]


@pytest.mark.parametrize(
    ("data_of_array", "reason"),
    [
        (b"", "not a readable array"),
        (b"\x93NUMPY\1\0\x10\0{'descr': <<<<<<<<<", "not a readable array"),
        (b"PK\3\4" + bytes(40), "not a readable array"),
    ],
    ids=["empty", "garbage header", "a zip"],
)
def test_an_increment_that_is_no_array_leaves_its_client_out(
    data_of_array: bytes, reason: str, data: Path, tmp_path: Path
) -> None:
    def spoil(reply: Message) -> None:
        array = reply.content.array_records["encoded"]["difference"]
        reply.content.array_records["encoded"]["difference"] = Array(
            array.dtype, array.shape, array.stype, data_of_array
        )

    grid, display = spoiling(spoil, node=1000, calls={1}), Silent()
    federation(
        [data, data], tmp_path, TRAIN, num_rounds=1, codec="int8", grid=grid, display=display
    )
    ((name, found),) = display.failures
    assert name == "c0"
    assert reason in found


@pytest.fixture
def no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "RETRY_WAIT_S", 0.0)


@pytest.mark.usefixtures("no_wait")
def test_a_round_with_too_few_updates_is_tried_again_and_ends_as_if_nothing_had_happened(
    data: Path, tmp_path: Path
) -> None:
    whole = federation([data, data], tmp_path / "whole", TRAIN, num_rounds=2)
    display = Silent()
    grid = spoiling(raised("CUDA out of memory"), node=1000, calls={2, 3})
    result = federation(
        [data, data],
        tmp_path / "retried",
        TRAIN,
        num_rounds=2,
        min_clients=2,
        grid=grid,
        display=display,
    )
    assert_identical(final_arrays(result), final_arrays(whole))
    text = (
        "round 2: 1 of 2 clients returned a usable update, it needs 2: asking those that failed "
        "again"
    )
    assert display.notices == [text, text]
    sent = [m.metadata.dst_node_id for m in grid.sent if m.metadata.message_type == "train"]
    assert len(sent) == 2 + 2 + 1 + 1  # only the one that failed is asked again


@pytest.mark.usefixtures("no_wait")
def test_a_round_that_keeps_failing_ends_the_run_which_can_be_resumed(
    data: Path, tmp_path: Path
) -> None:
    whole = federation([data, data], tmp_path / "whole", TRAIN, num_rounds=2)
    settings: dict[str, Any] = {"num_rounds": 2, "min_clients": 2}
    grid = spoiling(raised("CUDA out of memory"), node=1000, calls={2, 3, 4})
    with pytest.raises(FederationError, match=r"round 2: 1 of 2 .* it needs 2 .* tried 3 times"):
        federation([data, data], tmp_path / "stopped", TRAIN, grid=grid, **settings)
    rows = read_csv(tmp_path / "stopped" / "run" / "clients.csv")
    assert "CUDA out of memory" in rows[-2]["note"]
    resumed = federation([data, data], tmp_path / "stopped", TRAIN, resume=True, **settings)
    assert_identical(final_arrays(resumed), final_arrays(whole))
    rows = read_csv(tmp_path / "stopped" / "run" / "clients.csv")
    assert [(r["round"], r["client"]) for r in rows] == [
        ("1", "c0"),
        ("1", "c1"),
        ("2", "c0"),
        ("2", "c1"),
    ]


def longer(factor: float, start: Path) -> Callable[[Message], None]:
    """Make an update so many times as long."""

    def tamper(message: Message) -> None:
        origin, _ = load_arrays(start)

        def change(arrays: Arrays) -> None:
            for name, array in arrays.items():
                if name.endswith(("weight", "bias")):
                    arrays[name] = origin[name] + np.float32(factor) * (array - origin[name])

        changed(change)(message)

    return tamper


@pytest.mark.parametrize("outliers", ["keep", "clip", "refuse"])
def test_an_update_much_longer_than_the_others_is_kept_clipped_or_refused(
    outliers: str, data: Path, tmp_path: Path
) -> None:
    start = tmp_path / "run" / "weights" / "round0.npz"
    tamper = longer(50, start)
    grid = LocalGrid(3)

    def of_c1(reply: Message) -> Message:
        if reply.metadata.src_node_id == 1007 and reply.metadata.message_type == "train":
            tamper(reply)
        return reply

    grid.tamper = of_c1
    display = Silent()
    federation(
        [data] * 3,
        tmp_path,
        TRAIN,
        num_rounds=1,
        update_norm={"outliers": outliers, "times_median": 2.0},
        grid=grid,
        display=display,
    )
    origin, _ = load_arrays(start)
    found, _ = load_arrays(tmp_path / "run" / "weights" / "round1.npz")
    replies = [arrays_of(r) for r in grid.received if r.metadata.message_type == "train"]
    c2, c1, c0 = (r[WEIGHT].astype(float) for r in replies)  # the last client answers first
    rows = {r["client"]: r for r in read_csv(tmp_path / "run" / "clients.csv")}
    norms = [float(rows[c]["update_norm"]) for c in ("c0", "c2")]
    if outliers == "keep":
        expected, note = (c0 + c1 + c2) / 3, ""
    elif outliers == "refuse":
        expected, note = (c0 + c2) / 2, "times the round's median; refused"
        assert [name for name, _ in display.failures] == ["c1"]
    else:
        norm = float(rows["c1"]["update_norm"])
        factor = 2 * max(norms) / norm  # the median of three is the longer of the honest two
        clipped = origin[WEIGHT] + factor * (c1 - origin[WEIGHT])
        expected, note = (c0 + clipped + c2) / 3, "shortened to 2 times"
        assert norm > 10 * max(norms)
    np.testing.assert_allclose(found[WEIGHT], expected, rtol=1e-5, atol=1e-8)
    assert rows["c1"].get("note", "").endswith(note)


def test_a_round_that_refusing_leaves_too_small_ends_the_run(data: Path, tmp_path: Path) -> None:
    grid = spoiling(longer(50, tmp_path / "run" / "weights" / "round0.npz"), 1000, {1})
    with pytest.raises(FederationError, match="update_norm left 1 of 2 updates, it needs 2"):
        federation(
            [data] * 2,
            tmp_path,
            TRAIN,
            num_rounds=1,
            min_clients=2,
            update_norm={"outliers": "refuse", "times_median": 1.5},
            grid=grid,
        )
