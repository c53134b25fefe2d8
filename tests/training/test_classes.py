"""Classes by name: other orders, other sets, and classes that a client did not annotate."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from local_grid import LocalGrid
from recipes import make_class_folders, make_dataset
from trainings import TRAIN, assert_identical, federation, final_arrays
from ultralytics import YOLO

from federated_yolo.common.arrays import Arrays
from federated_yolo.protocol.records import from_record
from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import read_csv
from federated_yolo.yolo.model import class_row_names


def renumber(source: Path, target: Path, order: Sequence[str], names: Sequence[str]) -> Path:
    """Copy a data set whose classes are `names`, with its labels written in another order."""
    shutil.copytree(source.parent, target)
    for label in target.glob("labels/*/*.txt"):
        rows = [line.split() for line in label.read_text().splitlines()]
        label.write_text(
            "".join(f"{order.index(names[int(c)])} {' '.join(box)}\n" for c, *box in rows)
        )
    path = target / "data.yaml"
    path.write_text(f"train: images/train\nval: images/val\nnames: [{', '.join(order)}]\n")
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_classes_in_another_order_train_and_score_as_in_the_same_order(tmp_path: Path) -> None:
    names = ("a", "b", "c")
    first = make_dataset(tmp_path / "first")
    second = make_dataset(tmp_path / "second", num_train=4, seed=1)
    held_out = make_dataset(tmp_path / "held_out", seed=2)
    other = renumber(second, tmp_path / "other", ("c", "a", "b"), names)
    other_held_out = renumber(held_out, tmp_path / "other_held_out", ("b", "c", "a"), names)
    before = files_of(tmp_path / "other")
    train = {**TRAIN, "optimizer": "AdamW", "lr0": 0.01, "cls_pw": 0.5}
    same = federation(
        [first, second], tmp_path / "same", train, evaluate={"every": 1, "data": str(held_out)}
    )
    mixed = federation(
        [first, other],
        tmp_path / "mixed",
        train,
        evaluate={"every": 1, "data": str(other_held_out)},
    )
    assert_identical(final_arrays(mixed), final_arrays(same))
    assert files_of(tmp_path / "other") == before
    for name in ("clients.csv", "results.csv", "classes.csv"):
        rows = [
            [{k: v for k, v in row.items() if not k.endswith("seconds")} for row in read_csv(path)]
            for path in (same.run_dir / name, mixed.run_dir / name)
        ]
        assert rows[0] == rows[1]


def class_rows(arrays: Arrays, start: Arrays) -> np.ndarray:
    """Which classes' weights in the last layers of all classification branches have changed."""
    num_classes = 3
    changed = np.zeros(num_classes, bool)
    found = 0
    for name, array in arrays.items():
        is_class_layer = ".cv3." in name and array.shape[:1] == (num_classes,)
        if is_class_layer:
            found += 1
            difference = array != start[name]
            changed |= difference.reshape(num_classes, -1).any(1)
    assert found in (6, 12)  # weight and bias for 3 strides, twice with an end-to-end head
    return changed


@pytest.mark.parametrize("base_model", ["yolov8n.yaml", "yolov10n.yaml", "yolo26n.yaml"])
def test_a_class_that_is_not_annotated_gets_no_gradient(base_model: str, tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", num_train=2, names=("a", "c"))
    train = {**TRAIN, "weight_decay": 0.0, "warmup_epochs": 0.0, "lr0": 0.1}
    grid = LocalGrid(1)
    result = federation(
        [data],
        tmp_path / "runs",
        train,
        base_model=base_model,
        names=["a", "b", "c"],
        num_rounds=2,
        grid=grid,
    )
    start, _ = load_arrays(result.run_dir / "weights" / "round0.npz")
    # As the client sends it: the server keeps rows of a class that no client annotates.
    reply = [r for r in grid.received if r.metadata.message_type == "train"][-1]
    sent = {**start, **from_record(reply.content.array_records["arrays"])}  # without what stayed
    assert class_rows(sent, start).tolist() == [True, False, True]


def test_the_rows_of_a_class_are_those_of_the_clients_that_annotate_it(tmp_path: Path) -> None:
    """Of two clients only c1 has class b: the others' rows would hold it back by half."""
    data = [
        make_dataset(tmp_path / "without", num_train=4, names=("a", "c")),
        make_dataset(tmp_path / "with", num_train=2, seed=1),
    ]
    grid = LocalGrid(2)
    result = federation(
        data, tmp_path / "runs", TRAIN, num_rounds=1, names=["a", "b", "c"], grid=grid
    )
    found = final_arrays(result)
    trained = [r for r in grid.received if r.metadata.message_type == "train"]
    c1, c0 = (from_record(r.content.array_records["arrays"]) for r in trained)
    names = [n for n in found if ".cv3." in n and found[n].shape[:1] == (3,)]
    assert len(names) == 6
    for name in names:
        np.testing.assert_array_equal(found[name][1], c1[name][1])
        mean = (4 * c0[name][[0, 2]].astype(float) + 2 * c1[name][[0, 2]]) / 6
        np.testing.assert_allclose(found[name][[0, 2]], mean, rtol=1e-6)


def test_classes_that_are_listed_but_not_annotated_count_as_absent(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", names=("a", "c"))
    listed = renumber(data, tmp_path / "listed", ("a", "b", "c"), ("a", "c"))
    absent = federation([data], tmp_path / "absent", TRAIN, names=["a", "b", "c"], num_rounds=1)
    named = federation([listed], tmp_path / "named", TRAIN, num_rounds=1, not_annotated={0: ["b"]})
    unmasked = federation([listed], tmp_path / "unmasked", TRAIN, num_rounds=1)
    assert_identical(final_arrays(named), final_arrays(absent))
    assert not np.array_equal(
        final_arrays(unmasked)["model.22.cv3.0.2.bias"],
        final_arrays(absent)["model.22.cv3.0.2.bias"],
    )


def test_metrics_of_absent_classes_are_left_empty(tmp_path: Path) -> None:
    data = [
        make_dataset(tmp_path / "both", names=("a", "b")),
        make_dataset(tmp_path / "one", names=("b",), seed=1),
    ]
    grid = LocalGrid(2)
    result = federation(
        data, tmp_path / "runs", TRAIN, num_rounds=1, evaluate={"every": 1}, grid=grid
    )
    rows = read_csv(result.run_dir / "classes.csv")
    filled = {(row["client"], row["class"]): row["mAP50-95"] != "" for row in rows}
    assert filled == {
        ("c0", "a"): True,
        ("c0", "b"): True,
        ("c1", "a"): False,
        ("c1", "b"): True,
    }


def test_names_by_index_may_stand_in_any_order(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", num_train=2)
    text = data.read_text()
    other = make_dataset(tmp_path / "other", num_train=2)
    other.write_text(text.replace("[a, b, c]", "{2: c, 0: a, 1: b}"))
    plain = federation([data], tmp_path / "plain", TRAIN, num_rounds=1)
    mixed = federation([other], tmp_path / "mixed", TRAIN, num_rounds=1)
    assert_identical(final_arrays(mixed), final_arrays(plain))
    weights = mixed.run_dir / "weights"
    _, meta = load_arrays(weights / "round1.npz")
    assert meta is not None
    assert meta.names == ("a", "b", "c")
    assert YOLO(weights / "last.pt").names == {0: "a", 1: "b", 2: "c"}


def test_rtdetr_leaves_out_a_class_that_is_not_annotated(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", num_train=2, names=("a", "c"))
    train = {**TRAIN, "weight_decay": 0.0, "warmup_epochs": 0.0, "lr0": 0.1}
    grid = LocalGrid(1)
    result = federation(
        [data],
        tmp_path / "runs",
        train,
        base_model="yolov8n-rtdetr.yaml",
        names=["a", "b", "c"],
        num_rounds=1,
        grid=grid,
    )
    start, _ = load_arrays(result.run_dir / "weights" / "round0.npz")
    # As the client sends it: the server keeps rows of a class that no client annotates.
    (reply,) = [r for r in grid.received if r.metadata.message_type == "train"]
    found = from_record(reply.content.array_records["arrays"])
    heads = [name for name in found if "_score_head." in name]
    assert len(heads) == 14  # weight and bias, of the encoder and of 6 layers of the decoder
    for name in heads:
        changed = (found[name] != start[name]).reshape(3, -1).any(1)
        assert changed.tolist() == [True, False, True], name


@pytest.mark.parametrize("names", [("n01440764", "n02102040")])
def test_codes_of_imagenet_are_names_like_others(names: tuple[str, str], tmp_path: Path) -> None:
    """Ultralytics makes words of them, which no folder is called."""
    data = [make_class_folders(tmp_path / n, names=names, seed=i) for i, n in enumerate("ab")]
    result = federation(
        data, tmp_path / "runs", TRAIN, base_model="yolov8n-cls.yaml", num_rounds=1,
        evaluate={"every": 1},
    )  # fmt: skip
    _, meta = load_arrays(result.run_dir / "weights" / "round1.npz")
    assert meta is not None
    assert meta.names == names


def test_classifiers_with_other_classes_train_and_score_in_one_model(tmp_path: Path) -> None:
    data = [
        make_class_folders(tmp_path / "first", names=("b", "c")),
        make_class_folders(tmp_path / "second", names=("a", "b"), seed=1),
    ]
    result = federation(
        data,
        tmp_path / "runs",
        TRAIN,
        base_model="yolov8n-cls.yaml",
        num_rounds=1,
        evaluate={"every": 1},
    )
    model = YOLO(result.run_dir / "weights" / "last.pt")
    assert model.names == {0: "b", 1: "c", 2: "a"}
    rows = read_csv(result.run_dir / "classes.csv")
    filled = {(r["client"], r["class"]) for r in rows if r["accuracy_top1"]}
    assert filled == {("c0", "b"), ("c0", "c"), ("c1", "a"), ("c1", "b")}
    # An image of b is none of c: all rows of the head move at both clients, and are averaged.
    assert class_row_names(model.model) == []  # pyright: ignore[reportArgumentType]
