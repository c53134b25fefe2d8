"""Updates in the order of names, waiting on disk and nowhere else; arrays of messages unread."""

import gc
import io
import itertools
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from federated_yolo.aggregation.aggregator import Update
from federated_yolo.aggregation.inbox import Inbox, StoredArrays
from federated_yolo.common.arrays import Arrays, Shortened
from federated_yolo.protocol.records import to_record, views

ARRAYS: Arrays = {
    "w": np.arange(12, dtype=np.float32).reshape(3, 4),
    "count": np.array(7),
    "column": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
}


def assert_equal(found: Any, expected: Arrays) -> None:
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert np.array_equal(found[name], array)
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape


def update(name: str) -> Update:
    arrays = {"w": np.full(5, ord(name), np.float32)}
    return Update(name, arrays, 1, 1, {}, 0.0, norm=float(ord(name)))


class Adder:
    """Remembers the names and first values of what was added."""

    def __init__(self) -> None:
        self.added: list[tuple[str, float]] = []

    def __call__(self, update: Update) -> None:
        self.added.append((update.name, float(update.arrays["w"][0])))


@pytest.mark.parametrize("order", list(itertools.permutations("abcd")))
def test_whatever_the_order_of_arrival_updates_are_added_in_the_order_of_names(
    order: tuple[str, ...], tmp_path: Path
) -> None:
    inbox, add = Inbox(tmp_path / "updates"), Adder()
    inbox.start("dbca", add)
    for name in order:
        inbox.put(update(name))
    assert add.added == [("a", 97), ("b", 98), ("c", 99), ("d", 100)]
    assert {u.name for u in inbox.updates.values()} == set("abcd")
    assert not any(u.arrays for u in inbox.updates.values())
    assert not list(tmp_path.rglob("*.tmp"))


def test_those_after_a_client_that_does_not_answer_wait_until_it_does(tmp_path: Path) -> None:
    inbox, add = Inbox(tmp_path / "updates"), Adder()
    inbox.start("abc", add)
    inbox.put(update("c"))
    inbox.put(update("a"))
    assert [name for name, _ in add.added] == ["a"]
    assert_equal(inbox.updates["c"].arrays, dict(update("c").arrays))
    assert len(list(tmp_path.rglob("*.tmp"))) == 1
    inbox.put(update("b"))
    assert [name for name, _ in add.added] == ["a", "b", "c"]


def test_what_still_waits_at_the_end_is_removed(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "updates")
    inbox.start("ab", None)
    inbox.put(update("a"))
    inbox.put(update("b"))
    assert len(list(tmp_path.rglob("*.tmp"))) == 2
    inbox.close()
    assert not list(tmp_path.iterdir())


def test_neither_added_nor_waiting_updates_are_in_memory(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path / "updates")
    inbox.start("abc", Adder())
    living = []
    for name in "acb":
        new = update(name)
        living.append(weakref.ref(new.arrays["w"]))
        inbox.put(new)
        del new
        gc.collect()
        assert not any(reference() is not None for reference in living)


def test_stored_arrays_are_what_was_stored(tmp_path: Path) -> None:
    assert_equal(StoredArrays(tmp_path / "x", ARRAYS), ARRAYS)


def cut(data: bytearray) -> None:
    del data[-1]


def flip(data: bytearray) -> None:
    data[5] ^= 1


def empty(data: bytearray) -> None:
    data.clear()


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_waiting_file_is_an_error_that_names_it(
    damage: Callable[[bytearray], None], tmp_path: Path
) -> None:
    stored = StoredArrays(tmp_path / "x", ARRAYS)
    data = bytearray((tmp_path / "x").read_bytes())
    damage(data)
    (tmp_path / "x").write_bytes(data)
    with pytest.raises(OSError, match="damaged while it waited on disk") as error:
        dict(stored)
    assert error.value.filename == str(tmp_path / "x")


def test_views_are_the_arrays_of_a_record_without_a_copy() -> None:
    record = to_record(ARRAYS)
    found = views(record)
    assert_equal(found, ARRAYS)
    for name, array in found.items():
        assert np.shares_memory(array, np.frombuffer(record[name].data, np.uint8))
        assert not array.flags.writeable


def saved(array: np.ndarray, **changes: Any) -> Array:
    good = Array(array)
    data = changes.get("data", lambda x: x)(good.data)
    return Array(str(array.dtype), array.shape, changes.get("stype", good.stype), data)


def pickled(_: bytes) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([{}], object), allow_pickle=True)
    return file.getvalue()


W = ARRAYS["w"]
BAD: dict[str, tuple[Array, str]] = {
    "a pickle": (saved(W, data=pickled), "dtype object"),
    "no header": (saved(W, data=lambda d: b"x" * 200), "not a readable array"),
    "nothing": (saved(W, data=lambda d: b""), "not a readable array"),
    "a header cut off": (saved(W, data=lambda d: d[:40]), "not a readable array"),
    "code for a header": (
        saved(W, data=lambda d: d[:10] + b"__import__('os').getcwd()".ljust(len(d) - 10)),
        "not a readable array",
    ),
    "another version": (saved(W, data=lambda d: d[:6] + b"\3" + d[7:]), "version 1.0"),
    "values missing": (saved(W, data=lambda d: d[:-4]), "44 bytes, expected 48"),
    "values too many": (saved(W, data=lambda d: d + b"1234"), "52 bytes, expected 48"),
    "a shape far too large": (
        saved(W, data=lambda d: d.replace(b"(3, 4), }" + b" " * 9, b"(3, 4000000000), }")),
        "48 bytes, expected 48000000000",
    ),
    "a negative shape": (
        saved(W, data=lambda d: d.replace(b"(3, 4), }  ", b"(-3, -4), }")),
        "of shape",
    ),
    "another kind": (saved(W, stype="torch"), "expected the NumPy format"),
}


@pytest.mark.parametrize(("array", "reason"), BAD.values(), ids=BAD.keys())
def test_anything_but_one_readable_array_is_refused_by_name(array: Array, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"^w: .*{reason}"):
        views(ArrayRecord({"w": array}))


def test_a_shortened_update_ends_on_the_way_from_where_it_began() -> None:
    origin = {"w": np.array([1.0, 2.0], np.float32), "count": np.array(10)}
    arrays = {"w": np.array([5.0, 0.0], np.float32), "count": np.array(13)}
    short = Shortened(arrays, origin, 0.25)
    assert_equal(short, {"w": np.array([2.0, 1.5], np.float32), "count": np.array(11)})
