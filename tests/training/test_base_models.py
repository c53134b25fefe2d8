"""Base models of any classes: what clients and exporter build is the model that the server trains.

Ultralytics lets a head keep the width of the checkpoint's class branch where the numbers of classes
differ (`BaseModel.load`, 8.4.180 to 8.4.190), so that neither YAML nor classes tell the model.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from pydantic import TypeAdapter
from recipes import data_of, make_checkpoint, make_data, names_of
from trainings import TRAIN, assert_identical, federation, final_arrays, plain_training

from federated_yolo.checks.federation import checked
from federated_yolo.common.arrays import Layout
from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import Config
from federated_yolo.storage.archive import RoundMeta, load_arrays, save_arrays
from federated_yolo.yolo.checkpoint import (
    load_base,
    load_checkpoint_module,
    save_checkpoint,
    task_of,
)
from federated_yolo.yolo.class_branch import (
    Architecture,
    architecture_of,
)
from federated_yolo.yolo.model import architecture_problems, build_model, load_into, to_arrays
from federated_yolo.yolo.rebuild import export

CLASSES = [(80, 2), (2, 80), (15, 3), (80, 80)]
MODELS = (
    "yolov3-tinyu yolov5n yolov6n yolov8n yolov9t yolov10n yolo11n yolo12n yolo26n yolov8n-rtdetr "
    "yolov8n-seg yolo11n-seg yolo26n-seg yolov8n-pose yolo11n-pose yolo26n-pose "
    "yolov8n-obb yolo11n-obb yolo26n-obb yolov8n-cls yolo11n-cls yolo26n-cls"
).split()
# Of the nano and tiny sizes, whose class branches are narrower than 80 (or 15) classes.
KEEPS_WIDTH = {
    *"yolov5n yolov8n yolov9t yolov10n yolo11n yolo12n yolo26n".split(),
    *"yolov8n-seg yolo11n-seg yolo26n-seg yolov8n-obb yolo11n-obb yolo26n-obb".split(),
}


def as_sent(architecture: Architecture) -> Architecture:
    """As it comes out of the JSON of a message."""
    adapter = TypeAdapter(Architecture)
    return adapter.validate_json(adapter.dump_json(architecture))


def raw_output(model: torch.nn.Module, size: int = 64) -> torch.Tensor:
    image = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        output: Any = model.eval()(image)
    while not isinstance(output, torch.Tensor):  # beside others, such as what the loss takes
        output = output[0]
    return output


@pytest.mark.parametrize("name", MODELS)
def test_clients_and_exporter_build_the_servers_model_from_a_base_of_any_classes(
    name: str, tmp_path: Path
) -> None:
    task = task_of(f"{name}.yaml")
    bases = {}
    for count in {source for source, _ in CLASSES}:
        bases[count] = str(tmp_path / f"base{count}.pt")
        source = build_model(f"{name}.yaml", task, data_of(names_of(count), task), seed=1)
        save_checkpoint(Path(bases[count]), source)
    for before, after in CLASSES:
        data = data_of(names_of(after, "other"), task)
        model = build_model(bases[before], task, data)
        expected_random = torch.get_rng_state()
        architecture = as_sent(architecture_of(model, load_base(bases[before]).module))
        built = build_model(architecture, task, data)
        layout = Layout.of(to_arrays(model))
        assert Layout.of(to_arrays(built)) == layout
        assert architecture_problems(architecture, model, task, data, {}) == []
        assert torch.equal(torch.get_rng_state(), expected_random)
        if name in KEEPS_WIDTH and {before, after} == {2, 80}:  # a YAML says the other one
            rows = [s for n, s in architecture.class_branch.items() if n.endswith(".0.2.weight")]
            assert {shape[:2] for shape in rows} == {(after, max(64, before))}
        load_into(built, to_arrays(model))
        assert torch.equal(raw_output(built), raw_output(model))

        rng = np.random.default_rng(0)
        arrays = {  # of a round: nothing of them is in the base
            n: a + rng.random(a.shape, np.float32) if a.dtype.kind == "f" else a
            for n, a in to_arrays(model).items()
        }
        round_path, output = tmp_path / "round1.npz", tmp_path / "out.pt"
        save_arrays(round_path, arrays, RoundMeta(1, tuple(data["names"].values()), task, "base"))
        module = load_checkpoint_module(
            str(export(bases[before], round_path, output)), where="test"
        )
        assert_identical(to_arrays(module), arrays)


# One of each kind of class branch that keeps its width, and the heads with more than boxes.
HEADS = {
    "yolov8n.yaml": ("detect", {}),
    "yolov10n.yaml": ("detect", {}),
    "yolo11n.yaml": ("detect", {}),
    "yolo26n.yaml": ("detect", {}),
    "yolo11n-seg.yaml": ("segment", {}),
    "yolo11n-obb.yaml": ("obb", {"optimizer": "AdamW", "lr0": 0.001}),
}


@pytest.mark.parametrize("base", HEADS)
def test_one_client_with_a_coco_checkpoint_equals_plain_training_and_so_does_its_export(
    base: str, tmp_path: Path
) -> None:
    task, settings = HEADS[base]
    checkpoint = make_checkpoint(tmp_path / "base.pt", ["b", *names_of(79)], base)
    data = make_data(tmp_path / "data", task, num_train=2, num_val=1)
    train = {**TRAIN, "imgsz": 64, **settings}
    expected = plain_training(str(checkpoint), data, train, epochs=2, folder=tmp_path)
    result = federation(
        [data],
        tmp_path / "runs",
        train,
        base_model=str(checkpoint),
        num_rounds=2,
        evaluate={"every": 1},
    )
    assert_identical(final_arrays(result), expected)
    weights = result.run_dir / "weights"
    rebuilt = export(checkpoint, weights / "round2.npz", tmp_path / "out.pt")
    for path in (rebuilt, weights / "last.pt"):
        assert_identical(to_arrays(load_checkpoint_module(str(path), where="test")), expected)


SETTINGS: dict[str, dict[str, Any]] = {
    "single_cls": {"train": {"single_cls": True}},
    "no remapping by names": {"train": {"cls_remap": False}},
    "frozen layers": {"train": {"freeze": 10}},
    "weights of another checkpoint": {"base_model": "yolo11n.yaml", "train": {"pretrained": "{}"}},
    "weights of another family": {"base_model": "yolo11n.yaml", "train": {"pretrained": "{v8}"}},
    "weights thrown away": {"train": {"pretrained": False}},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_what_shapes_the_model_beside_its_base_is_as_in_plain_training(
    name: str, tmp_path: Path
) -> None:
    checkpoint = str(make_checkpoint(tmp_path / "base.pt", ["b", *names_of(79)], "yolo11n.yaml"))
    other = str(make_checkpoint(tmp_path / "v8.pt", ["b", *names_of(79)], "yolov8n.yaml"))
    settings = SETTINGS[name]
    base_model = settings.get("base_model", checkpoint)
    paths = {"{}": checkpoint, "{v8}": other}
    extra = {k: paths.get(str(v), v) for k, v in settings["train"].items()}
    train = {**TRAIN, "imgsz": 64, **extra}
    data = make_data(tmp_path / "data", "detect", num_train=2, num_val=1)
    expected = plain_training(base_model, data, train, epochs=1, folder=tmp_path)
    result = federation([data], tmp_path / "runs", train, base_model=base_model, num_rounds=1)
    assert_identical(final_arrays(result), expected)
    arrays = result.run_dir / "weights" / "round1.npz"
    copied = tmp_path / "round1.npz"  # away from the run's args.yaml
    copied.write_bytes(arrays.read_bytes())
    rebuilt = export(base_model, copied, tmp_path / "out.pt")
    assert_identical(to_arrays(load_checkpoint_module(str(rebuilt), where="test")), expected)


def test_a_saved_model_is_the_base_of_the_next_federation(tmp_path: Path) -> None:
    """80 -> 3 -> 5 classes, and 80 -> 3 -> the same 3."""
    base = make_checkpoint(tmp_path / "base.pt", names_of(80), "yolo11n.yaml")
    train = {**TRAIN, "imgsz": 64}
    three = make_data(tmp_path / "three", "detect", num_train=2, num_val=1)
    five = make_data(
        tmp_path / "five", "detect", num_train=2, num_val=1, names=("a", "x", "b", "y", "c")
    )
    first = federation([three], tmp_path / "first", train, base_model=str(base), num_rounds=1)
    saved = str(first.run_dir / "weights" / "last.pt")
    width = final_arrays(first)["model.23.cv3.0.0.1.conv.weight"].shape[0]
    assert width == 80
    for name, data in (("again", three), ("more", five)):
        expected = plain_training(saved, data, train, epochs=1, folder=tmp_path / name)
        result = federation([data], tmp_path / name / "runs", train, base_model=saved, num_rounds=1)
        assert_identical(final_arrays(result), expected)
        start, _ = load_arrays(result.run_dir / "weights" / "round0.npz")
        assert start["model.23.cv3.0.0.1.conv.weight"].shape[0] == width


def test_image_size_and_single_class_are_the_checkpoints_where_the_config_is_silent(
    tmp_path: Path,
) -> None:
    """As `yolo train` has it (`Model._reset_ckpt_args`)."""
    data_of_base = data_of(["x"], "detect")
    model = build_model("yolov8n.yaml", "detect", data_of_base)
    save_checkpoint(tmp_path / "base.pt", model, {"imgsz": 64, "single_cls": True, "lr0": 0.5})
    data = make_data(tmp_path / "data", "detect", num_train=2, num_val=1)
    train = {name: value for name, value in TRAIN.items() if name != "imgsz"}
    base = str(tmp_path / "base.pt")
    expected = plain_training(base, data, train, epochs=1, folder=tmp_path)
    result = federation([data], tmp_path / "runs", train, base_model=base, num_rounds=1)
    assert_identical(final_arrays(result), expected)
    args = yaml.safe_load((result.run_dir / "args.yaml").read_text())["train"]
    assert (args["imgsz"], args["single_cls"], args["lr0"]) == (64, True, TRAIN["lr0"])
    told = federation(
        [data], tmp_path / "told", {**TRAIN, "single_cls": False}, base_model=base, num_rounds=1
    )
    args = yaml.safe_load((told.run_dir / "args.yaml").read_text())["train"]
    assert (args["imgsz"], args["single_cls"]) == (TRAIN["imgsz"], False)


@pytest.mark.parametrize(
    "settings",
    [
        {"shared": {"parts": ["backbone", "neck"]}},
        {"shared": {"batchnorm": "local"}},
        {"codec": {"name": "int8"}},
        {"codec": {"name": "topk", "fraction": 0.1}},
    ],
    ids=["head stays", "batchnorm stays", "int8", "topk"],
)
def test_a_coco_checkpoint_with_private_arrays_and_codecs(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    base = make_checkpoint(tmp_path / "base.pt", ["b", *names_of(79)], "yolo11n.yaml")
    data = [
        make_data(tmp_path / f"data{i}", "detect", num_train=2, num_val=1, seed=i) for i in (0, 1)
    ]
    result = federation(
        data,
        tmp_path / "runs",
        {**TRAIN, "imgsz": 64},
        base_model=str(base),
        num_rounds=2,
        evaluate={"every": 1},
        **settings,
    )
    assert len(result.rounds) == 2
    row = (result.run_dir / "clients.csv").read_text()
    assert "failed" not in row
    if "shared" in settings:  # each client's own model, whole
        own = result.run_dir / "clients" / "c1" / "last.pt"
        arrays = to_arrays(load_checkpoint_module(str(own), where="test"))
        assert arrays["model.23.cv3.0.0.1.conv.weight"].shape[0] == 80
        shared = final_arrays(result)
        assert_identical({n: arrays[n] for n in shared}, shared)


def test_another_programs_archive_of_a_coco_checkpoint_is_rebuilt_by_name_and_by_position(
    tmp_path: Path,
) -> None:
    base = make_checkpoint(tmp_path / "base.pt", names_of(80), "yolo11n.yaml")
    data = tmp_path / "data.yaml"
    data.write_text("names: [a, b, c]\n")
    for source in (str(base), "yolo11n.yaml"):  # the width of 80 classes, and of 3
        arrays = to_arrays(build_model(source, "detect", data_of(["a", "b", "c"], "detect")))
        np.savez(tmp_path / "named.npz", **arrays)  # pyright: ignore[reportArgumentType]
        np.savez(tmp_path / "positions.npz", *arrays.values())
        for name in ("named", "positions"):
            for given in (str(base), "yolo11n.yaml"):
                path = export(given, tmp_path / f"{name}.npz", tmp_path / "out.pt", data)
                found = to_arrays(load_checkpoint_module(str(path), where="test"))
                assert_identical(found, arrays)


def test_a_base_whose_class_branch_cannot_be_described_is_refused_before_round_1(
    tmp_path: Path,
) -> None:
    """With the values of arrays alone, clients would train another model without a word."""
    model: Any = build_model("yolo11n.yaml", "detect", data_of(names_of(80), "detect"))
    for module in model.model[-1].cv3.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eps = 0.1
    save_checkpoint(tmp_path / "base.pt", model)
    config = Config.model_validate(
        {
            "base_model": str(tmp_path / "base.pt"),
            "datasets": [str(make_data(tmp_path / "data", "detect"))],
            "save_dir": str(tmp_path / "runs"),
            "train": TRAIN,
        }
    )
    with (
        pytest.raises(
            InputError, match=r"base\.pt': cannot be federated: model\.23\.cv3.*eps=0\.1"
        ),
        checked(config),
    ):
        pass
