"""The run directory: rounds that survive damage and interruption, folders of one's own, CSVs."""

import copy
import csv
import gc
import multiprocessing
import queue
import threading
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from federated_yolo.common.arrays import Arrays, Layout, checksum
from federated_yolo.common.errors import InputError
from federated_yolo.common.files import write_atomically
from federated_yolo.storage.archive import RoundMeta, load_arrays, load_headers, save_arrays
from federated_yolo.storage.run_dir import RunDir, _load_layout, read_csv

META = RoundMeta(round=3, names=("cat", "dög"), task="detect", base_model="yolo11n.pt")


@pytest.fixture
def arrays() -> Arrays:
    """Arrays of every kind that a model has."""
    return {
        "conv.weight": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2) / 7,
        "bn.num_batches_tracked": np.array(7, np.int64),
        "anchors": np.zeros((0, 2), np.float16),
    }


# Rounds


def test_a_round_comes_back_as_it_was_written(tmp_path: Path, arrays: Arrays) -> None:
    save_arrays(tmp_path / "round3.npz", arrays, META)
    loaded, meta = load_arrays(tmp_path / "round3.npz")
    assert meta == META
    assert Layout.of(loaded) == Layout.of(arrays)
    assert checksum(loaded) == checksum(arrays)


def test_an_archive_of_another_program_has_no_description(tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", a=np.ones(2))
    loaded, meta = load_arrays(tmp_path / "other.npz")
    assert loaded["a"].tolist() == [1, 1]
    assert meta is None


def test_a_missing_round_is_named(tmp_path: Path) -> None:
    path = tmp_path / "round9.npz"
    with pytest.raises(ValueError, match=rf"^{path}: no such file; expected an \.npz of a round"):
        load_arrays(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_archive_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "round3.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^{path}: not a readable \.npz .*; use another round"):
        load_arrays(path)


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "round3.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(ValueError, match=rf"^{path}: not a readable \.npz"):
        load_arrays(path)


def test_pickled_arrays_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "round3.npz", a=np.array([{}, {}], object))
    with pytest.raises(ValueError, match=r"round3\.npz: not a readable \.npz .*Python objects"):
        load_arrays(tmp_path / "round3.npz")


def test_a_round_of_a_later_format_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("federated_yolo.storage.archive.FORMAT", 2)
    save_arrays(tmp_path / "round3.npz", {"a": np.ones(2)}, META)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"round3\.npz: format 2, this version reads 1"):
        load_arrays(tmp_path / "round3.npz")


def test_a_truncated_round_is_refused_by_name(tmp_path: Path, arrays: Arrays) -> None:
    whole, path = tmp_path / "whole.npz", tmp_path / "round3.npz"
    save_arrays(whole, arrays, META)
    data = whole.read_bytes()
    for length in [*range(0, len(data), 13), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=f"^{path}: "):
            load_arrays(path)


def test_a_round_with_a_flipped_bit_is_refused_by_name_or_unharmed(
    tmp_path: Path, arrays: Arrays
) -> None:
    """Some bits carry nothing (dates, padding); then all arrays must be as they were."""
    whole, path = tmp_path / "whole.npz", tmp_path / "round3.npz"
    save_arrays(whole, arrays, META)
    data = whole.read_bytes()
    num_refused = 0
    for offset in range(0, len(data), 3):
        flipped = data[offset] ^ 1 << offset % 8
        path.write_bytes(data[:offset] + bytes([flipped]) + data[offset + 1 :])
        try:
            loaded, meta = load_arrays(path)
        except ValueError as error:
            assert str(error).startswith(f"{path}: ")  # noqa: PT017
            num_refused += 1
        else:
            assert meta == META
            assert checksum(loaded) == checksum(arrays)
    assert num_refused > len(data) / 3 / 2


def test_exchanged_values_are_found_by_the_checksum(tmp_path: Path) -> None:
    """A zip that is sound in itself, but has another array than was saved."""
    path = tmp_path / "round3.npz"
    save_arrays(path, {"a": np.ones(2)}, META)
    np.save(tmp_path / "a.npy", np.zeros(2))
    with zipfile.ZipFile(path) as archive:
        description = archive.read("__federation__.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("__federation__.npy", description)
        archive.write(tmp_path / "a.npy", "a.npy")
    with pytest.raises(ValueError, match=rf"^{path}: the arrays do not match their checksum"):
        load_arrays(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "{}", '{"format": 1, "checksum": "x"}'])
def test_a_damaged_description_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "round3.npz"
    np.savez(path, a=np.ones(2), __federation__=np.array(text))
    with pytest.raises(ValueError, match=rf"^{path}: damaged description .*; use another round"):
        load_arrays(path)


def test_an_interrupted_write_leaves_the_round_before(tmp_path: Path) -> None:
    path = tmp_path / "round3.npz"
    save_arrays(path, {"a": np.ones(2)}, META)

    def write_half(file: BinaryIO) -> None:
        file.write(path.read_bytes()[:100])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write_half)
    assert load_arrays(path)[0]["a"].tolist() == [1, 1]
    assert list(tmp_path.iterdir()) == [path]


def test_a_first_write_that_is_interrupted_leaves_nothing(tmp_path: Path) -> None:
    def fail(file: BinaryIO) -> None:
        file.write(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(tmp_path / "best.pt", fail)
    assert list(tmp_path.iterdir()) == []


def test_while_a_file_is_written_readers_see_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    path.write_text("old")

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"

    write_atomically(path, write)
    assert path.read_text() == "new"


# Directories


def test_a_run_directory_has_its_folders(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path / "runs" / "federated", "train")
    assert run_dir.path == tmp_path / "runs" / "federated" / "train"
    assert sorted(p.name for p in run_dir.path.iterdir()) == ["clients", "server", "weights"]
    assert run_dir.client_dir("north") == run_dir.path / "clients" / "north"


def test_the_next_runs_are_numbered_as_by_ultralytics(tmp_path: Path) -> None:
    names = [RunDir.create(tmp_path, "train").path.name for _ in range(3)]
    assert names == ["train", "train2", "train3"]


def test_a_file_of_that_name_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "train").write_text("notes")
    assert RunDir.create(tmp_path, "train").path.name == "train2"
    assert (tmp_path / "train").read_text() == "notes"


def _create(folder: Path, start: Any, names: Any) -> None:
    """Wait for all others, then make run directories."""
    start.wait(timeout=60)
    for _ in range(10):
        names.put(RunDir.create(folder, "train").path.name)


def _names_by(worker: Any, folder: Path, start: Any, names: Any) -> list[str]:
    """Names of the run directories that 8 workers (threads or processes) make at once."""
    workers = [worker(target=_create, args=(folder, start, names)) for _ in range(8)]
    for started in workers:
        started.start()
    found = [names.get(timeout=60) for _ in range(80)]
    for started in workers:
        started.join()
    return sorted(found)


EIGHTY_NAMES = sorted(["train", *(f"train{i}" for i in range(2, 81))])


def test_processes_that_start_together_get_directories_of_their_own(tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    names = _names_by(context.Process, tmp_path, context.Barrier(8), context.Queue())
    assert names == EIGHTY_NAMES


def test_threads_that_start_together_get_directories_of_their_own(tmp_path: Path) -> None:
    names = _names_by(threading.Thread, tmp_path, threading.Barrier(8), queue.Queue())
    assert names == EIGHTY_NAMES


def test_a_round_is_found_by_its_number(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "train")
    for number in (10, 0, 2):
        run_dir.save_round({"a": np.full(2, number)}, RoundMeta(number, ("cat",), "detect", "m.pt"))
    layout = Layout.of({"a": np.full(2, 0)})
    assert run_dir.load_round(10, layout)["a"].tolist() == [10, 10]


def test_a_round_is_loaded_in_the_order_of_the_layout(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "train")
    run_dir.save_round({"b": np.ones(1), "a": np.ones(1)}, RoundMeta(1, (), "detect", "m.pt"))
    layout = Layout((("a", (1,), "float64"), ("b", (1,), "float64")))
    assert list(run_dir.load_round(1, layout)) == ["a", "b"]


# CSVs


def test_columns_that_appear_late_give_one_header_and_empty_cells(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "train")
    run_dir.append_rows("results.csv", [{"round": 1, "loss": 0.5}])
    run_dir.append_rows("results.csv", [{"round": 2, "mAP": 0.25}, {"round": 3}])
    text = (run_dir.path / "results.csv").read_text()
    assert text == "round,loss,mAP\n1,0.5,\n2,,0.25\n3,,\n"
    assert read_csv(run_dir.path / "results.csv") == [
        {"round": "1", "loss": "0.5", "mAP": ""},
        {"round": "2", "loss": "", "mAP": "0.25"},
        {"round": "3", "loss": "", "mAP": ""},
    ]


def test_any_text_survives_a_csv(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "train")
    rows = [{"name": "a,b", "text": 'say "no"'}, {"name": "dög", "text": "two\nlines"}]
    run_dir.append_rows("clients.csv", rows)
    assert read_csv(run_dir.path / "clients.csv") == rows


FORMULAS = ["=1+1", "+cmd", "-2+3", "@SUM(A1)", "\t=1", "＝1", "'=1", "''-a"]


@pytest.mark.parametrize("text", FORMULAS)
def test_no_text_of_a_csv_is_a_formula_and_each_is_read_as_it_was(
    text: str, tmp_path: Path
) -> None:
    run_dir = RunDir.create(tmp_path, "train")
    run_dir.append_rows("clients.csv", [{"round": 1, "note": text, text: "x"}])
    with (run_dir.path / "clients.csv").open(encoding="utf-8", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert cells == ["round", "note", f"'{text}", "1", f"'{text}", "x"]
    assert read_csv(run_dir.path / "clients.csv") == [{"round": "1", "note": text, text: "x"}]


def test_negative_numbers_stay_numbers_also_of_a_run_that_goes_on(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "train")
    row = {"round": 1, "x": -0.5, "note": "it's -1", "y": "-1e-05", "z": "=1"}
    run_dir.append_rows("results.csv", [row])
    expected = "round,x,note,y,z\n1,-0.5,it's -1,-1e-05,'=1\n"
    assert (run_dir.path / "results.csv").read_text() == expected
    run_dir._lock.release()
    again = RunDir.reopen(run_dir.path)
    again.append_rows("results.csv", [{**row, "round": 2}])
    assert (run_dir.path / "results.csv").read_text() == expected + "2,-0.5,it's -1,-1e-05,'=1\n"


def test_each_csv_has_its_own_rows(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "train")
    run_dir.append_rows("results.csv", [{"round": 1}])
    run_dir.append_rows("clients.csv", [{"client": "north"}])
    assert (run_dir.path / "results.csv").read_text() == "round\n1\n"
    assert (run_dir.path / "clients.csv").read_text() == "client\nnorth\n"


def test_a_value_that_cannot_be_written_leaves_the_csv_as_it_was(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "train")
    run_dir.append_rows("results.csv", [{"round": 1}])

    class Unprintable:
        def __str__(self) -> str:
            raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        run_dir.append_rows("results.csv", [{"round": Unprintable()}])
    assert (run_dir.path / "results.csv").read_text() == "round\n1\n"
    assert sorted(p.name for p in run_dir.path.iterdir()) == [
        "clients",
        "results.csv",
        "server",
        "weights",
    ]


def test_texts_are_written_as_they_are(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "train")
    assert run_dir.write_text("args.yaml", "name: dög\n").read_bytes() == "name: dög\n".encode()


def test_what_an_archive_promises_takes_no_memory_before_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "round3.npz"
    packed = zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED)
    with packed as archive, archive.open("a.npy", "w") as member:
        about = {"descr": "|u1", "fortran_order": False, "shape": (256 << 20,)}
        np.lib.format.write_array_header_1_0(member, about)
        for _ in range(256):
            member.write(bytes(1 << 20))
    assert path.stat().st_size < 1 << 20
    headers, meta = load_headers(path)
    assert (headers["a"].shape, headers["a"].dtype, meta) == ((256 << 20,), np.uint8, None)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="its arrays are packed, which those of a run never"):
            load_arrays(path)
        layout = Layout((("a", (3,), "uint8"),))
        with pytest.raises(ValueError, match=r"not of this model: a: shape \(268435456,\)"):
            _load_layout(path, layout)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_headers_that_do_not_fit_what_follows_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "round3.npz"
    for shape, content in (((1 << 40,), b""), ((2,), bytes(9)), ((-2,), bytes(8))):
        with zipfile.ZipFile(path, "w") as archive, archive.open("a.npy", "w") as member:
            about = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, about)
            member.write(content)
        for load in (load_headers, load_arrays):
            with pytest.raises(ValueError, match=r"round3\.npz: not a readable \.npz \('a' says"):
                load(path)


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    """Many entries that point at one array make a small file a large model."""
    path = tmp_path / "round3.npz"
    whole: Any = zipfile.ZipFile(path, "w")
    with whole as archive:
        with archive.open("a.npy", "w") as member:
            np.save(member, np.zeros(1000))
        first = archive.infolist()[0]
        for name in ("b.npy", "c.npy"):
            again = copy.copy(first)
            again.filename = again.orig_filename = name
            archive.filelist.append(again)
        archive._didModify = True
    with pytest.raises(ValueError, match="not a readable"):
        load_arrays(path)


def test_headers_are_those_of_the_arrays(tmp_path: Path, arrays: Arrays) -> None:
    save_arrays(tmp_path / "round3.npz", arrays, META)
    headers, meta = load_headers(tmp_path / "round3.npz")
    assert Layout.of(headers) == Layout.of(arrays)
    assert meta == META
    assert not any(header.any() for header in headers.values())


def test_label_caches_of_a_run_that_goes_on_are_thrown_away_unread(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "run")
    caches = run_dir.client_dir("north") / "caches"
    caches.mkdir(parents=True)
    for name in ("train.cache", "val-0.npy"):
        (caches / name).write_bytes(b"code")
    (run_dir.server / "val.cache").write_bytes(b"code")
    (caches / "kept.txt").write_text("")
    del run_dir
    gc.collect()
    RunDir.reopen(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").rglob("*.*")] == ["kept.txt"]


def test_links_of_a_run_that_goes_on_stay_within_it(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "run")
    (run_dir.path / "wandb").mkdir()
    (run_dir.path / "latest").symlink_to("wandb")
    (tmp_path / "same").symlink_to(run_dir.path)
    path = run_dir.path
    del run_dir
    gc.collect()
    RunDir.reopen(tmp_path / "same")
    gc.collect()
    (path / "clients" / "north").symlink_to(tmp_path)
    with pytest.raises(InputError, match=r"clients/north: leads out of it; put there what it"):
        RunDir.reopen(path)
