"""Every task and every family of models: trained, scored, saved, rebuilt, and used.

The smallest model of each, on tiny images. `pytest -m matrix` goes through all model YAMLs.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import processes
import pytest
import torch
from recipes import (
    make_checkpoint,
    make_class_folders,
    make_data,
    write_keypoints,
    write_polygons,
)
from rich.console import Console
from trainings import (
    TRAIN,
    Silent,
    assert_identical,
    assert_learned,
    federation,
    final_arrays,
    plain_training,
)
from ultralytics import YOLO
from ultralytics.utils import ROOT

from federated_yolo.data.data_yaml import read_data, write_private_yaml
from federated_yolo.reporting.draw import draw_report
from federated_yolo.runtime.run_tables import rounds_table
from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import read_csv
from federated_yolo.yolo.checkpoint import (
    TEXT_HEADS,
    head_of,
    load_checkpoint_module,
    save_checkpoint,
    structure_of,
    task_of,
)
from federated_yolo.yolo.convert import convert
from federated_yolo.yolo.evaluator import Evaluator
from federated_yolo.yolo.model import (
    build_model,
    class_row_names,
    load_into,
    part_of_arrays,
    to_arrays,
)
from federated_yolo.yolo.rebuild import export

DATA = processes.ROOT.parent / "shared" / "data"
# One model of each family, and of each task.
MODELS = (
    "yolov3-tiny.yaml",
    "yolov5n.yaml",
    "yolov6n.yaml",
    "yolov8n.yaml",
    "yolov9t.yaml",
    "yolov10n.yaml",
    "yolo11n.yaml",
    "yolo12n.yaml",
    "yolo26n.yaml",
    "yolov8n-rtdetr.yaml",
    "yolo26n-seg.yaml",
    "yolo26n-pose.yaml",
    "yolo26n-obb.yaml",
    "yolo26n-cls.yaml",
)
# What a task is scored by, and Ultralytics' fitness of it.
B, M, P = ("metrics/mAP50-95(B)", "metrics/mAP50-95(M)", "metrics/mAP50-95(P)")
FITNESS = {
    "detect": lambda row: row[B],
    "segment": lambda row: row[B] + row[M],
    "pose": lambda row: row[B] + row[P],
    "obb": lambda row: row[B],
    "classify": lambda row: (row["metrics/accuracy_top1"] + row["metrics/accuracy_top5"]) / 2,
}
# Where a prediction of the task has its results.
RESULTS = {"segment": "masks", "pose": "keypoints", "obb": "obb", "classify": "probs"}


def all_models() -> list[str]:
    """The smallest model of each YAML of these tasks that Ultralytics has, by its path."""
    found = []
    for path in sorted((ROOT / "cfg" / "models").rglob("*.yaml")):
        structure = structure_of(str(path), where="test")
        if head_of(structure) in {*TEXT_HEADS, "SemanticSegment", "Depth"}:
            continue
        if any("TorchVision" in row for row in structure["backbone"]):  # downloads its weights
            continue
        scale = next(iter(structure.get("scales", {})), "")
        stem = path.stem
        if scale and not stem.endswith(scale):  # `yolo11-seg` -> `yolo11n-seg`
            name, dash, rest = stem.partition("-")
            stem = f"{name}{scale}{dash}{rest}" if "rtdetr-" not in stem else stem
        found.append(f"{stem}.yaml")
    return found


def one_round(base_model: str, folder: Path) -> tuple[Path, dict[str, float]]:
    """Run a round of one client, and check all that is the same for every model.

    Returns the model of the round, rebuilt from the base, and the row of results.csv.
    """
    task = task_of(base_model)
    data = make_data(folder / "data", task, num_train=2, num_val=1)
    if task == "pose":
        points = "kpt_oks_sigmas: [0.1, 0.2]\nkpt_names: {1: [low, high]}\n"
        data.write_text(data.read_text() + points)
    display = Silent()
    result = federation(
        [data],
        folder / "runs",
        {**TRAIN, "imgsz": 64},
        base_model=base_model,
        num_rounds=1,
        evaluate={"every": 1, "data": str(data), "show_images": 0},
        display=display,
    )
    assert (display.failures, display.notices) == ([], [])
    found = final_arrays(result)
    weights = result.run_dir / "weights"
    assert_learned(found, load_arrays(weights / "round0.npz")[0])
    classes = data if task == "pose" else None  # the base does not say how many keypoints
    rebuilt = export(base_model, weights / "round1.npz", folder / "rebuilt.pt", classes)
    for path in (weights / "best.pt", rebuilt):
        module = load_checkpoint_module(str(path), where="test")
        assert_identical(to_arrays(module), found)
        if task == "pose":  # as a training of `yolo train` leaves it
            kept: Any = module
            assert kept.kpt_names == {1: ["low", "high"]}
            assert kept.kpt_oks_sigmas == [0.1, 0.2]
    parts = {"backbone", "head"} | ({"neck"} if task != "classify" else set())
    assert set(part_of_arrays(module).values()) == parts
    row = {k: float(v) for k, v in read_csv(result.run_dir / "results.csv")[0].items() if v}
    for start in ("", "server/"):
        metrics = {k.removeprefix(start): v for k, v in row.items() if k.startswith(start)}
        assert FITNESS[task](metrics) >= 0
    assert row["fitness"] == pytest.approx(FITNESS[task](metrics))
    return rebuilt, row


@pytest.mark.parametrize("base_model", MODELS)
def test_a_model_of_each_family_and_task_is_trained_saved_and_rebuilt(
    base_model: str, tmp_path: Path
) -> None:
    rebuilt, _ = one_round(base_model, tmp_path)
    model = YOLO(rebuilt)
    assert model.names == {0: "a", 1: "b", 2: "c"}
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    results: Any = model.predict(image, imgsz=64, conf=1e-6, device="cpu")
    task = task_of(base_model)
    assert model.task == task
    found = getattr(results[0], RESULTS.get(task, "boxes"))
    assert found is not None
    assert torch.isfinite(found.data).all()


@pytest.mark.matrix
@pytest.mark.parametrize("base_model", all_models())
def test_every_model_yaml_is_trained_saved_rebuilt_and_exported(
    base_model: str, tmp_path: Path
) -> None:
    rebuilt, _ = one_round(base_model, tmp_path)
    exported, comparison = convert(rebuilt, "onnx", 64)
    assert exported.suffix == ".onnx"
    difference = float(comparison.split(": ")[1].split(",")[0])
    assert difference < 0.05, comparison  # of pixels, of images of 64


@pytest.mark.parametrize("base_model", ["yolo11n-cls.yaml", "yolov8n-rtdetr.yaml"])
def test_what_is_exported_gives_what_the_model_gives(base_model: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    data = {"names": {0: "a", 1: "b", 2: "c"}, "nc": 3}
    save_checkpoint(tmp_path / "m.pt", build_model(base_model, task_of(base_model), data))
    _, comparison = convert(tmp_path / "m.pt", "onnx", 64)
    assert float(comparison.split(": ")[1].split(",")[0]) < 2e-3, comparison


def hittable(folder: Path, task: str) -> Path:
    """Data whose val labels an untrained model hits: boxes of the whole image, of 128 pixels."""
    if task == "classify":
        return make_data(folder, task, num_val=6)
    path = make_data(folder, "detect", num_train=2, num_val=4, size=128)
    for number, label in enumerate(sorted((folder / "labels" / "val").iterdir())):
        label.write_text(f"{number % 2} 0.5 0.5 1 1\n")
    if task == "pose":
        write_keypoints(path)
    elif task != "detect":
        write_polygons(folder)
    return path


def label_as_predicted(model: Path, folder: Path) -> None:
    """Make labels of the val images of what a model detects there first."""
    for image in sorted((folder / "images" / "val").iterdir()):
        results: Any = YOLO(model).predict(image, imgsz=128, conf=1e-6, device="cpu")
        boxes = results[0].boxes
        label = folder / "labels" / "val" / f"{image.stem}.txt"
        label.write_text(f"{int(boxes.cls[0])} " + " ".join(map(str, boxes.xywhn[0].tolist())))


@pytest.mark.parametrize(
    "base_model",
    [
        "yolov8n-seg.yaml",
        "yolov8n-pose.yaml",
        "yolov8n-obb.yaml",
        "yolov8n-cls.yaml",
        "yolov8n-rtdetr.yaml",
    ],
)
def test_scores_are_those_of_yolo_val(base_model: str, tmp_path: Path) -> None:
    task = task_of(base_model)
    path = hittable(tmp_path / "data", task)
    data = read_data(path, task, where="test")
    model = build_model(base_model, task, data)
    arrays = to_arrays(model)
    for name in class_row_names(model):
        if name.endswith(".bias"):
            arrays[name] += np.array([9, 8, 0], "f4")
    load_into(model, arrays)
    save_checkpoint(tmp_path / "model.pt", model, {"imgsz": 128})
    if "rtdetr" in base_model:
        label_as_predicted(tmp_path / "model.pt", tmp_path / "data")
    write_private_yaml(data, tmp_path / "private")
    found = Evaluator(data, task, {"imgsz": 128}, tmp_path / "private")(model)
    metrics = YOLO(str(tmp_path / "model.pt")).val(
        data=str(path), imgsz=128, plots=False, device="cpu", project=str(tmp_path), name="val"
    )
    expected = dict(metrics.results_dict)
    assert found.fitness == expected.pop("fitness")
    assert found.metrics == expected
    assert found.fitness > 0
    assert found.fitness == pytest.approx(FITNESS[task](expected))
    assert found.per_class


# Classification, whose data is a folder


def test_a_classifier_shows_its_images_classes_and_scores(tmp_path: Path) -> None:
    data = [make_class_folders(tmp_path / name, seed=i) for i, name in enumerate(("x", "y"))]
    shutil.copytree(data[0] / "val", data[0] / "test")
    shutil.rmtree(data[1] / "train" / "c")
    shutil.rmtree(data[1] / "val" / "c")
    held_out = make_class_folders(tmp_path / "held_out", seed=2)
    shutil.rmtree(held_out / "train")  # a server that only evaluates needs none
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.jpg")}
    display = Silent()
    result = federation(
        data,
        tmp_path / "runs",
        TRAIN,
        base_model="yolov8n-cls.yaml",
        num_rounds=2,
        evaluate={"every": 1, "data": str(held_out), "cross_client": True},
        show_images=2,
        display=display,
    )
    run_dir = result.run_dir
    assert (display.failures, display.notices) == ([], [])
    sources = [path for path in tmp_path.rglob("*") if not path.is_relative_to(run_dir)]
    assert {path: path.read_bytes() for path in sources if path.suffix == ".jpg"} == before
    assert not [path for path in sources if path.suffix in (".cache", ".npy")]
    assert not (held_out / "train").exists()
    rows = read_csv(run_dir / "results.csv")
    scored = {
        int(row["round"]): sum(float(row[f"server/metrics/accuracy_top{k}"]) for k in (1, 5)) / 2
        for row in rows
    }
    assert [float(row["fitness"]) for row in rows] == pytest.approx(list(scored.values()))
    best = max(scored, key=lambda number: (scored[number], number))
    arrays, _ = load_arrays(run_dir / "weights" / f"round{best}.npz")
    module = load_checkpoint_module(str(run_dir / "weights" / "best.pt"), where="test")
    assert_identical(to_arrays(module), arrays)
    classes = [row for row in read_csv(run_dir / "classes.csv") if row["round"] == "2"]
    filled = {(row["client"], row["class"]): row["accuracy_top1"] != "" for row in classes}
    assert filled == {
        (client, name): (client, name) != ("c1", "c")
        for client in ("c0", "c1", "(server)")
        for name in "abc"
    }
    shares = [float(row["accuracy_top1"]) for row in classes if row["client"] == "(server)"]
    assert np.mean(shares) == pytest.approx(float(rows[1]["server/metrics/accuracy_top1"]))
    tests = [row for row in read_csv(run_dir / "test.csv") if row["round"] == "2"]
    assert [(row["client"], row["class"]) for row in tests] == [
        ("c0", ""), ("c0", "a"), ("c0", "b"), ("c0", "c"),
    ]  # fmt: skip
    assert float(tests[0]["metrics/accuracy_top1"]) >= 0
    info = json.loads((run_dir / "run.json").read_text())
    assert info["clients"]["c1"]["boxes"] == {"a": 2, "b": 2, "c": 0}
    for name in ("predictions.jpg", "predictions_c0.jpg"):
        assert cv2.imread(str(run_dir / name)) is not None
    draw_report(run_dir)
    page = (run_dir / "report.html").read_text()
    assert "training images of each class" in page
    assert "accuracy top1" in page
    table = rounds_table(result.rounds, result.best, Console(width=120))
    assert [column.header for column in table.columns] == [
        "round", "loss", "top1", "top5", "server\ntop1", "server\ntop5", "s",
    ]  # fmt: skip


def test_a_classifier_can_keep_its_head_and_batchnorm_to_itself(tmp_path: Path) -> None:
    data = [make_class_folders(tmp_path / name, num_train=4) for name in ("x", "y")]
    result = federation(
        data,
        tmp_path / "runs",
        TRAIN,
        base_model="yolov8n-cls.yaml",
        num_rounds=1,
        shared={"parts": ["backbone"], "batchnorm": "local"},
        evaluate={"every": 1},
    )
    shared = final_arrays(result)
    assert shared
    assert not [name for name in shared if ".bn." in name or name.startswith("model.9.")]
    image = str(next((data[0] / "val").rglob("*.jpg")))
    for client in ("c0", "c1"):
        model = YOLO(result.run_dir / "clients" / client / "best.pt")
        arrays = to_arrays(model.model)  # pyright: ignore[reportArgumentType]
        assert_identical({name: arrays[name] for name in shared}, shared)
        results: Any = model.predict(image, imgsz=32, device="cpu")
        assert results[0].probs.data.sum() == pytest.approx(1, abs=1e-5)


def test_a_base_model_passes_on_its_backbone_to_other_classes(tmp_path: Path) -> None:
    base = make_checkpoint(tmp_path / "base.pt", names=("x", "y"), base="yolov8n-cls.yaml")
    data = make_class_folders(tmp_path / "data", num_train=4)
    expected = plain_training(str(base), data, TRAIN, epochs=2, folder=tmp_path)
    result = federation([data], tmp_path / "runs", TRAIN, base_model=str(base), num_rounds=2)
    assert_identical(final_arrays(result), expected)
    start, meta = load_arrays(result.run_dir / "weights" / "round0.npz")
    assert meta is not None
    assert meta.names == ("a", "b", "c")
    source = to_arrays(load_checkpoint_module(str(base), where="test"))
    np.testing.assert_array_equal(start["model.0.conv.weight"], source["model.0.conv.weight"])
    assert start["model.9.linear.weight"].shape == (3, 1280)


def test_a_classifier_that_starts_anew_equals_plain_training(tmp_path: Path) -> None:
    """Its trainer draws all weights twice then, so that other random numbers follow."""
    data = make_class_folders(tmp_path / "data", num_train=4)
    base = make_checkpoint(tmp_path / "base.pt", base="yolov8n-cls.yaml", seed=1)
    train = {**TRAIN, "pretrained": False}
    expected = plain_training(str(base), data, train, epochs=1, folder=tmp_path)
    result = federation([data], tmp_path / "runs", train, base_model=str(base), num_rounds=1)
    assert_identical(final_arrays(result), expected)


# Real data


@pytest.mark.parametrize(
    ("name", "base_model", "metric"),
    [
        ("nuts-seg/data.yaml", "yolov8n-seg.yaml", M),
        ("nuts-obb/data.yaml", "yolov8n-obb.yaml", B),
        ("coco8-pose/data.yaml", "yolov8n-pose.yaml", P),
        ("bccd-cls", "yolov8n-cls.yaml", "metrics/accuracy_top1"),
    ],
)
def test_a_round_on_real_data(name: str, base_model: str, metric: str, tmp_path: Path) -> None:
    data = DATA / name
    if not data.exists():
        pytest.skip(f"no {data}")
    train = {"imgsz": 64, "batch": 8, "optimizer": "SGD", "lr0": 0.001, "fraction": 0.25}
    display = Silent()
    result = federation(
        [data],
        tmp_path,
        train,
        base_model=base_model,
        num_rounds=1,
        evaluate={"every": 1},
        display=display,
    )
    assert display.failures == []
    (row,) = read_csv(result.run_dir / "results.csv")
    assert float(row[metric]) >= 0
    (client,) = read_csv(result.run_dir / "clients.csv")
    assert int(client["num_examples"]) > 0
    assert int(client["num_val"]) > 0
