"""A round's arrays become a .pt that is the federation's model, bit for bit."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipes
import torch
from saved_rounds import BASE, META, NAMES, SIZE, load, make_data, randomise, raw_output
from ultralytics import YOLO

from federated_yolo.common.arrays import Arrays
from federated_yolo.common.errors import InputError
from federated_yolo.common.torchvision_nms import ensure_torchvision_nms
from federated_yolo.storage.archive import RoundMeta, save_arrays
from federated_yolo.yolo.checkpoint import save_checkpoint
from federated_yolo.yolo.export_command import main
from federated_yolo.yolo.model import build_model, to_arrays
from federated_yolo.yolo.rebuild import export


def test_raw_outputs_are_bit_for_bit_those_of_the_source_model(
    source: torch.nn.Module, exported: Path
) -> None:
    model = load(exported)
    for seed in range(3):
        assert torch.equal(raw_output(model, seed), raw_output(source, seed))


def test_predicted_boxes_are_bit_for_bit_those_of_the_source_model(
    source: torch.nn.Module, exported: Path, tmp_path: Path
) -> None:
    ensure_torchvision_nms()
    image = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    save_checkpoint(tmp_path / "source.pt", source)
    boxes = []
    for path in (exported, tmp_path / "source.pt"):
        results: Any = YOLO(path).predict(image, imgsz=SIZE, conf=1e-6, device="cpu")
        boxes.append(results[0].boxes.data)
    assert len(boxes[0]) > 10
    assert torch.equal(boxes[0], boxes[1])


def test_every_array_of_the_round_is_in_the_model(arrays: Arrays, exported: Path) -> None:
    found = to_arrays(load(exported))
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


@pytest.mark.parametrize(
    "name", ["model.0.conv.weight", "model.12.cv1.bn.running_var", "model.22.cv3.2.2.bias"]
)
def test_changing_one_array_changes_the_output(
    name: str, source: torch.nn.Module, arrays: Arrays, tmp_path: Path
) -> None:
    changed = {**arrays, name: arrays[name] * np.float32(1.5)}
    save_arrays(tmp_path / "round3.npz", changed, META)
    path = export(BASE, tmp_path / "round3.npz", tmp_path / "out.pt")
    assert not torch.equal(raw_output(load(path)), raw_output(source))


def test_float32_is_not_rounded(arrays: Arrays, tmp_path: Path) -> None:
    value = np.float32(1 + 2**-20)  # half precision would make it 1
    weight = np.full_like(arrays["model.0.conv.weight"], value)
    save_arrays(tmp_path / "round3.npz", {**arrays, "model.0.conv.weight": weight}, META)
    path = export(BASE, tmp_path / "round3.npz", tmp_path / "out.pt")
    assert (to_arrays(load(path))["model.0.conv.weight"] == value).all()


def test_names_and_task_are_those_of_the_federation(exported: Path) -> None:
    model = YOLO(exported)
    assert model.names == dict(enumerate(NAMES))
    assert model.task == "detect"


@pytest.mark.parametrize(
    ("base", "task", "more"),
    [
        ("yolov8n-seg.yaml", "segment", {}),
        ("yolov8n-pose.yaml", "pose", {"kpt_shape": [5, 2]}),
        ("yolo11n-obb.yaml", "obb", {}),
    ],
)
def test_other_tasks_are_rebuilt_alike(
    base: str, task: str, more: dict[str, Any], tmp_path: Path
) -> None:
    source = randomise(build_model(base, task, make_data(("a", "b"), **more), seed=1))
    meta = RoundMeta(1, ("a", "b"), task, base)
    save_arrays(tmp_path / "round1.npz", to_arrays(source), meta)
    data = None
    if more:
        data = tmp_path / "data.yaml"
        data.write_text(f"names: [a, b]\nkpt_shape: {more['kpt_shape']}\n")
    model = YOLO(export(base, tmp_path / "round1.npz", tmp_path / "out.pt", data))
    assert (model.task, model.names) == (task, {0: "a", 1: "b"})
    assert isinstance(model.model, torch.nn.Module)
    assert torch.equal(raw_output(model.model), raw_output(source))


def test_a_pose_model_keeps_what_its_run_base_or_data_yaml_says_of_keypoints(
    tmp_path: Path,
) -> None:
    def said(path: Path) -> tuple[Any, Any]:
        model: Any = load(path)
        return model.kpt_names, model.kpt_oks_sigmas

    form = {"kpt_shape": [17, 3], "kpt_oks_sigmas": [0.5] * 17}
    points = [f"point {i}" for i in range(17)]
    source = build_model(
        "yolov8n-pose.yaml", "pose", make_data(**form, kpt_names={1: points}), seed=1
    )
    path = tmp_path / "weights" / "round1.npz"
    path.parent.mkdir()
    save_arrays(path, to_arrays(source), RoundMeta(1, NAMES, "pose", "base.pt"))
    base = recipes.make_checkpoint(tmp_path / "base.pt", ["else"], "yolov8n-pose.yaml")
    unknown = {i: [str(n) for n in range(17)] for i in range(3)}
    assert said(export(base, path, tmp_path / "out.pt")) == (unknown, None)
    save_checkpoint(path.with_name("last.pt"), source)
    assert said(export(base, path, tmp_path / "out.pt")) == ({1: points}, [0.5] * 17)
    data = tmp_path / "data.yaml"
    other = [f"other {i}" for i in range(17)]
    data.write_text(f"names: [{', '.join(NAMES)}]\nkpt_names: {{'0': {other}}}\nkpt_shape:\n")
    assert said(export(base, path, tmp_path / "out.pt", data))[0] == {0: other}
    for shape in ("", "kpt_shape: [17, 3]\n"):
        data.write_text(f"names: [{', '.join(NAMES)}]\n{shape}kpt_oks_sigmas: [1]\n")
        with pytest.raises(
            InputError, match=r"yaml\): kpt_oks_sigmas: found \[1\], expected 17 po"
        ):
            export(base, path, tmp_path / "out.pt", data)
    # Arrays of another program, whose classes are the base's.
    np.savez(tmp_path / "foreign.npz", **to_arrays(source))  # pyright: ignore[reportArgumentType]
    found = said(export(path.with_name("last.pt"), tmp_path / "foreign.npz", tmp_path / "out.pt"))
    assert found == ({1: points}, [0.5] * 17)


def test_a_last_checkpoint_that_is_damaged_or_of_another_run_leaves_keypoints_unnamed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = "yolov8n-pose.yaml"
    points = [f"point {i}" for i in range(17)]
    form = {"kpt_shape": [17, 3], "kpt_names": {0: points}}
    source = build_model(base, "pose", make_data(**form), seed=1)
    path = tmp_path / "weights" / "round1.npz"
    path.parent.mkdir()
    save_arrays(path, to_arrays(source), RoundMeta(1, NAMES, "pose", base))
    last = path.with_name("last.pt")
    five = {"kpt_shape": [5, 3], "kpt_names": {0: points[:5]}, "kpt_oks_sigmas": [0.1] * 5}
    damaged = tmp_path / "damaged"
    damaged.write_bytes(b"junk")
    for name, data in (("classes", make_data(NAMES[::-1], **form)), ("five", make_data(**five))):
        save_checkpoint(tmp_path / name, build_model(base, "pose", data))
    reason = f"{last}: is of other classes or keypoints than round1.npz"
    for name, expected in (
        ("damaged", f"{last}: not an Ultralytics checkpoint that is safe to load"),
        ("classes", reason),
        ("five", reason),
    ):
        shutil.copy(tmp_path / name, last)
        output = tmp_path / "out.pt"
        assert main([base, str(path), "-o", str(output)]) == 0
        said = capsys.readouterr().err
        assert said.startswith(f"note: keypoints have no names of the run: {expected}")
        assert said.endswith("; --data can give them\n")
        model: Any = load(output)
        assert model.kpt_names[0][0] == "0"
        assert model.kpt_oks_sigmas is None


@pytest.fixture(scope="module")
def base_80(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 80 classes, as those trained on COCO."""
    names = ["nut", *(f"thing {i}" for i in range(79))]
    return recipes.make_checkpoint(tmp_path_factory.mktemp("base") / "base80.pt", names, BASE)


def test_a_base_of_80_classes_gives_a_model_of_the_federations_3(
    base_80: Path, tmp_path: Path
) -> None:
    source = randomise(build_model(str(base_80), "detect", make_data()))
    save_arrays(tmp_path / "round1.npz", to_arrays(source), META)
    model = YOLO(export(base_80, tmp_path / "round1.npz", tmp_path / "out.pt"))
    assert model.names == dict(enumerate(NAMES))
    assert isinstance(model.model, torch.nn.Module)
    output = raw_output(model.model)
    assert output.shape[1] == 4 + 3
    assert torch.equal(output, raw_output(source))


def test_the_arrays_shape_the_model_and_the_run_says_its_image_size(
    base_80: Path, tmp_path: Path
) -> None:
    """`pretrained: false` does not keep the width of the checkpoint's class branch."""
    source = build_model(str(base_80), "detect", make_data(), {"pretrained": False})
    arrays_path = tmp_path / "weights" / "round1.npz"
    arrays_path.parent.mkdir()
    save_arrays(arrays_path, to_arrays(source), META)
    alone: Any = YOLO(export(base_80, arrays_path, tmp_path / "out.pt")).model
    assert alone.args["imgsz"] == 640
    assert torch.equal(raw_output(alone), raw_output(source))
    (tmp_path / "args.yaml").write_text("train: {pretrained: false, imgsz: 96, lr0: 0.1}\n")
    model: Any = YOLO(export(base_80, arrays_path, tmp_path / "out.pt")).model
    assert model.args["imgsz"] == 96
    assert torch.equal(raw_output(model), raw_output(source))


def test_training_goes_on_from_exactly_these_weights(
    arrays: Arrays, exported: Path, tmp_path: Path
) -> None:
    ensure_torchvision_nms()
    data = recipes.make_dataset(tmp_path / "data", num_train=4, num_val=1, names=NAMES)
    start: list[Arrays] = []
    model = YOLO(exported)
    model.add_callback("on_train_start", lambda trainer: start.append(to_arrays(trainer.model)))
    options = {"project": str(tmp_path / "runs"), "save": False, "val": False, "plots": False}
    model.train(data=str(data), epochs=1, batch=2, imgsz=SIZE, workers=0, device="cpu", **options)
    (found,) = start
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


# Archives of other Flower projects.


def test_arrays_by_position_give_the_same_model_as_by_name(
    arrays: Arrays, exported: Path, data_yaml: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "weights.npz", *arrays.values())
    model = YOLO(export(BASE, tmp_path / "weights.npz", tmp_path / "out.pt", data_yaml))
    assert model.names == dict(enumerate(NAMES))
    assert isinstance(model.model, torch.nn.Module)
    assert torch.equal(raw_output(model.model), raw_output(load(exported)))


def test_classes_come_from_the_base_when_nobody_else_names_them(
    arrays: Arrays, exported: Path, tmp_path: Path
) -> None:
    np.savez_compressed(tmp_path / "weights.npz", **arrays)  # type: ignore[reportArgumentType]
    model = YOLO(export(exported, tmp_path / "weights.npz", tmp_path / "out.pt"))
    assert model.names == dict(enumerate(NAMES))


def test_swapping_two_arrays_of_equal_shape_is_another_model(
    arrays: Arrays, exported: Path, data_yaml: Path, tmp_path: Path
) -> None:
    values = list(arrays.values())
    first = list(arrays).index("model.2.m.0.cv1.conv.weight")
    second = list(arrays).index("model.2.m.0.cv2.conv.weight")
    assert values[first].shape == values[second].shape
    values[first], values[second] = values[second], values[first]
    np.savez(tmp_path / "weights.npz", *values)
    path = export(BASE, tmp_path / "weights.npz", tmp_path / "out.pt", data_yaml)
    assert not torch.equal(raw_output(load(path)), raw_output(load(exported)))


def test_doubles_and_counters_stored_as_floats_are_cast(
    arrays: Arrays, data_yaml: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "weights.npz", *[a.astype(np.float64) for a in arrays.values()])
    path = export(BASE, tmp_path / "weights.npz", tmp_path / "out.pt", data_yaml)
    for name, array in to_arrays(load(path)).items():
        assert array.dtype == arrays[name].dtype
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_a_double_too_large_for_float32_is_refused(
    arrays: Arrays, data_yaml: Path, tmp_path: Path
) -> None:
    values = [a.astype(np.float64) for a in arrays.values()]
    values[0].flat[5] = 1e39
    np.savez(tmp_path / "weights.npz", *values)
    with pytest.raises(InputError, match=r"model\.0\.conv\.weight: 1 of 432 .* NaN or infinite"):
        export(BASE, tmp_path / "weights.npz", tmp_path / "out.pt", data_yaml)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            lambda n, a: a - 5 if n.endswith("running_var") else a,
            "model.0.conv.bn.running_var|model.0.bn.running_var: has negative values",
        ),
        (
            lambda n, a: a.astype(np.int8) if n.endswith("conv.weight") else a,
            "model.0.conv.weight: int8, expected a floating-point array",
        ),
    ],
)
def test_arrays_of_other_programs_that_cannot_be_right_are_refused(
    arrays: Arrays, data_yaml: Path, tmp_path: Path, spoil: Any, expected: str
) -> None:
    np.savez(tmp_path / "weights.npz", *(spoil(n, a) for n, a in arrays.items()))
    with pytest.raises(InputError, match=expected):
        export(BASE, tmp_path / "weights.npz", tmp_path / "out.pt", data_yaml)
    assert not (tmp_path / "out.pt").exists()


def test_positions_that_do_not_fit_are_named_with_both_shapes(
    arrays: Arrays, data_yaml: Path, tmp_path: Path
) -> None:
    values = list(arrays.values())
    np.savez(tmp_path / "weights.npz", values[1], values[0], *values[2:])
    with pytest.raises(InputError) as error:
        export(BASE, tmp_path / "weights.npz", tmp_path / "out.pt", data_yaml)
    assert "give the base that these arrays were trained from" in error.value.problems[0]
    assert error.value.problems[1].endswith(
        "position 0: arr_0 has shape (16,), model.0.conv.weight expects (16, 3, 3, 3)"
    )


def test_parameters_without_buffers_are_refused_by_their_number(
    source: torch.nn.Module, data_yaml: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "weights.npz", *[p.detach().numpy() for p in source.parameters()])
    expected = r"184 arrays by position, expected 355: all parameters and buffers"
    with pytest.raises(InputError, match=expected):
        export(BASE, tmp_path / "weights.npz", tmp_path / "out.pt", data_yaml)


@pytest.mark.parametrize("by_name", [True, False])
def test_another_number_of_classes_asks_for_data(
    by_name: bool, arrays: Arrays, tmp_path: Path
) -> None:
    keys = list(arrays) if by_name else [f"arr_{i}" for i in range(len(arrays))]
    archive = dict(zip(keys, arrays.values(), strict=True))
    np.savez(tmp_path / "weights.npz", **archive)  # type: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"head differs: .* 80 classes; pass --data data\.yaml"):
        export(BASE, tmp_path / "weights.npz", tmp_path / "out.pt")
