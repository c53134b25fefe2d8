"""A round's arrays become a .pt that is the federation's model, bit for bit, and then an ONNX."""

import os
import pickle
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipes
import torch
import yaml
from processes import ROOT
from ultralytics import YOLO

from federated_yolo.common.arrays import Arrays
from federated_yolo.common.errors import InputError
from federated_yolo.common.torchvision_nms import ensure_torchvision_nms
from federated_yolo.storage.archive import RoundMeta, load_arrays, save_arrays
from federated_yolo.yolo import convert as export_federated
from federated_yolo.yolo.checkpoint import save_checkpoint
from federated_yolo.yolo.convert import ExportError, compare, convert
from federated_yolo.yolo.export_command import main
from federated_yolo.yolo.model import build_model, load_into, to_arrays
from federated_yolo.yolo.rebuild import export

BASE = "yolov8n.yaml"
NAMES = ("bolt", "nut", "washer")
META = RoundMeta(round=3, names=NAMES, task="detect", base_model=BASE)
SIZE = 64  # pixels
SCRIPT = ROOT / "utils" / "export_federated.py"


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Move every weight, statistic and counter away from where a new model has it."""
    rng = np.random.default_rng(0)
    arrays = to_arrays(model)
    for name, array in arrays.items():
        if name.endswith("num_batches_tracked"):
            arrays[name] = np.array(rng.integers(1, 1000))
        elif name.endswith("running_mean"):
            arrays[name] = rng.normal(0, 0.1, array.shape).astype(np.float32)
        elif "dfl" not in name:  # the bins of the box distribution are constants
            arrays[name] = array * rng.uniform(0.9, 1.1, array.shape).astype(np.float32)
    load_into(model, arrays)
    return model.eval()


def make_data(names: tuple[str, ...] = NAMES, **more: Any) -> dict[str, Any]:
    return {"names": dict(enumerate(names)), "nc": len(names), **more}


def raw_output(model: torch.nn.Module, seed: int = 0) -> torch.Tensor:
    """Raw predictions on a random image, (1, 4 + classes + ..., anchors) float32."""
    image = torch.rand((1, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(seed))
    with torch.inference_mode():
        output: Any = model.eval()(image)
    while not isinstance(output, torch.Tensor):
        output = output[0]
    return output


def load(path: Path) -> torch.nn.Module:
    """The module that `YOLO(path)` works with."""
    model = YOLO(path).model
    assert isinstance(model, torch.nn.Module)
    return model


@pytest.fixture(scope="module")
def source() -> torch.nn.Module:
    """The federation's model after some round; tests leave it as it is."""
    return randomise(build_model(BASE, "detect", make_data(), seed=1))


@pytest.fixture(scope="module")
def arrays(source: torch.nn.Module) -> Arrays:
    """Its global arrays; tests leave them as they are."""
    return to_arrays(source)


@pytest.fixture(scope="module")
def round_path(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These arrays as the run saves them."""
    path = tmp_path_factory.mktemp("run") / "round3.npz"
    save_arrays(path, arrays, META)
    return path


@pytest.fixture(scope="module")
def exported(round_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .pt rebuilt from them; tests leave it as it is."""
    return export(BASE, round_path, tmp_path_factory.mktemp("pt") / "saved_model.pt")


@pytest.fixture
def data_yaml(tmp_path: Path) -> Path:
    """A data.yaml whose images are elsewhere."""
    path = tmp_path / "data.yaml"
    path.write_text(f"train: elsewhere\nval: elsewhere\nnames: [{', '.join(NAMES)}]\n")
    return path


# The rebuilt model is the federation's.


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


# Formats.


def test_onnx_gives_what_the_pt_gives(exported: Path, tmp_path: Path) -> None:
    import onnxruntime

    saved = tmp_path / "saved_model.pt"
    saved.write_bytes(exported.read_bytes())
    path, comparison = convert(saved, "onnx", SIZE)
    assert path == tmp_path / "saved_model.onnx"
    assert "largest difference from saved_model.pt" in comparison
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved_model.onnx", "saved_model.pt"]

    image = np.random.default_rng(0).uniform(0, 1, (1, 3, SIZE, SIZE)).astype(np.float32)
    session = onnxruntime.InferenceSession(path)
    (found,) = session.run(None, {session.get_inputs()[0].name: image})
    with torch.inference_mode():
        expected = load(saved).eval()(torch.from_numpy(image))[0].numpy()
    assert np.abs(found - expected).max() <= 1e-4

    other = recipes.make_checkpoint(tmp_path / "other.pt", NAMES, seed=7)
    assert difference(compare(saved, path, SIZE)) <= 1e-4
    assert difference(compare(other, path, SIZE)) > 0.1


def difference(comparison: str) -> float:
    """The number that `compare` reports."""
    return float(comparison.split(": ")[1].split(",")[0])


def test_nms_free_models_are_compared_on_the_head_that_was_exported(tmp_path: Path) -> None:
    model: Any = build_model("yolo26n.yaml", "detect", make_data())
    model.end2end = True  # Ultralytics exports the other head, whose boxes still need NMS
    save_checkpoint(tmp_path / "saved_model.pt", model)
    _, comparison = convert(tmp_path / "saved_model.pt", "torchscript", SIZE)
    assert difference(comparison) <= 1e-4


def test_a_broken_export_leaves_the_pt_and_the_older_export(
    round_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(self: YOLO, **_: Any) -> str:
        (Path(str(self.ckpt_path)).parent / "out.onnx").write_text("half")
        raise RuntimeError("operator not supported\nlong story")

    monkeypatch.setattr(YOLO, "export", fail)
    (tmp_path / "out.onnx").write_text("older")
    arguments = [BASE, str(round_path), "-o", str(tmp_path / "out.pt"), "--format", "onnx"]
    assert main(arguments) == 1
    assert capsys.readouterr().err == "error: --format onnx: operator not supported\n"
    assert (tmp_path / "out.onnx").read_text() == "older"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.onnx", "out.pt"]
    load(tmp_path / "out.pt")


def test_an_export_that_cannot_be_run_is_an_error(exported: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not an ONNX graph")
    with pytest.raises(ExportError, match=r"broken\.onnx: cannot be run: "):
        compare(exported, tmp_path / "broken.onnx", SIZE)


# Bad input: one line for each problem, exit code 2, nothing written.

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Run the command, expect exit code 2, no new files, and return the error lines."""

    def run(base: str | Path, arrays: Path, *options: str, output: Path | None = None) -> str:
        folder = tmp_path / "output"
        folder.mkdir(exist_ok=True)
        target = output or folder / "saved_model.pt"
        assert main([str(base), str(arrays), "-o", str(target), *options]) == 2
        assert list(folder.iterdir()) == []
        captured = capsys.readouterr()
        assert captured.out == ""
        lines = captured.err.splitlines()
        assert lines
        assert all(line.startswith("error: ") for line in lines)
        return captured.err

    return run


def test_a_missing_archive_is_named(refused: Refused, tmp_path: Path) -> None:
    assert "none.npz: no such file; expected an .npz of a round" in refused(
        BASE, tmp_path / "none.npz"
    )


# numpy.load does not close the file itself when the zip has no end (seen with NumPy 2.4.6).
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("kept", [0, 1, 100, 5_000_000, -22, -1])
def test_a_truncated_archive_is_refused(
    kept: int, refused: Refused, round_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "cut.npz").write_bytes(round_path.read_bytes()[:kept])
    assert "cut.npz: not a readable .npz" in refused(BASE, tmp_path / "cut.npz")


def test_a_flipped_byte_is_refused(refused: Refused, round_path: Path, tmp_path: Path) -> None:
    content = bytearray(round_path.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "flipped.npz").write_bytes(content)
    assert "flipped.npz: not a readable .npz (Bad CRC-32" in refused(BASE, tmp_path / "flipped.npz")


def test_a_flipped_byte_in_a_compressed_archive_is_refused(arrays: Arrays, tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "weights.npz", arrays["model.8.m.0.cv1.conv.weight"])
    content = bytearray((tmp_path / "weights.npz").read_bytes())
    for position in range(60, len(content), len(content) // 10):
        flipped = content.copy()
        flipped[position] ^= 0x55
        (tmp_path / "flipped.npz").write_bytes(flipped)
        with pytest.raises(ValueError, match=r"flipped\.npz: not a readable \.npz"):
            load_arrays(tmp_path / "flipped.npz", may_be_packed=True)


def test_files_that_are_no_archive_of_numbers_are_refused(
    refused: Refused, exported: Path, tmp_path: Path
) -> None:
    with (tmp_path / "single.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    assert "single.npz: not a readable .npz" in refused(BASE, tmp_path / "single.npz")
    assert "holds files that are no arrays; expected an .npz of a round" in refused(BASE, exported)
    np.savez(tmp_path / "empty.npz")
    assert "empty.npz: holds no arrays" in refused(BASE, tmp_path / "empty.npz")
    np.savez(tmp_path / "text.npz", np.array(["a"]))
    assert "text.npz: 'arr_0' is no array of numbers" in refused(BASE, tmp_path / "text.npz")


def test_an_archive_that_unpacks_to_gigabytes_is_refused_by_its_headers(
    refused: Refused, arrays: Arrays, tmp_path: Path
) -> None:
    path = tmp_path / "weights.npz"
    wide = np.broadcast_to(np.zeros((), np.float32), (64 << 20,))
    np.savez_compressed(path, **{**arrays, "model.0.conv.weight": wide})  # 256 MB of zeros
    assert path.stat().st_size < 16 << 20
    tracemalloc.start()
    try:
        said = refused(BASE, path)
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()
    assert "model.0.conv.weight: shape (67108864,), expected (16, 3, 3, 3)" in said


def test_a_packed_archive_of_the_model_is_taken(
    arrays: Arrays, data_yaml: Path, tmp_path: Path
) -> None:
    named: Any = arrays
    np.savez_compressed(tmp_path / "packed.npz", **named)
    np.savez(tmp_path / "plain.npz", **named)
    packed = load(export(BASE, tmp_path / "packed.npz", tmp_path / "a.pt", data_yaml))
    plain = load(export(BASE, tmp_path / "plain.npz", tmp_path / "b.pt", data_yaml))
    recipes.assert_same(to_arrays(packed), to_arrays(plain))


def test_what_a_run_directory_names_is_not_trusted_with_the_base(
    arrays: Arrays, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that its args.yaml names is not read at all."""
    path = tmp_path / "theirs" / "weights" / "round3.npz"
    path.parent.mkdir(parents=True)
    save_arrays(path, arrays, META)
    torch.save({"model": Payload(tmp_path / "executed")}, tmp_path / "evil.pt")
    train = {"pretrained": str(tmp_path / "evil.pt"), "imgsz": 96}
    (tmp_path / "theirs" / "args.yaml").write_text(yaml.safe_dump({"train": train}))
    monkeypatch.setattr(
        "federated_yolo.yolo.checkpoint.SAFE_LOAD", False
    )  # as --trust-checkpoint does
    model: Any = load(export(BASE, path, tmp_path / "out.pt"))
    assert model.args["imgsz"] == 96
    assert not (tmp_path / "executed").exists()
    (tmp_path / "theirs" / "args.yaml").write_text("train: {imgsz: -1}\n")
    with pytest.raises(InputError, match=r"args\.yaml: train\.imgsz: found -1"):
        export(BASE, path, tmp_path / "out.pt")


def test_arrays_that_are_not_the_models_are_named(
    refused: Refused, arrays: Arrays, tmp_path: Path
) -> None:
    name = "model.0.conv.weight"
    path = tmp_path / "round3.npz"

    save_arrays(path, {**arrays, name: arrays[name][:8]}, META)
    lines = refused(BASE, path)
    assert "round3.npz: does not fit base 'yolov8n.yaml'; the run started from" in lines
    assert f"{name}: shape (8, 3, 3, 3), expected (16, 3, 3, 3)" in lines

    save_arrays(path, {n: a for n, a in arrays.items() if n != name}, META)
    assert f"1 arrays missing: {name}" in refused(BASE, path)

    save_arrays(path, {**arrays, name: arrays[name].astype(np.float64)}, META)
    assert f"{name}: dtype float64, expected float32" in refused(BASE, path)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(
    value: float, refused: Refused, arrays: Arrays, data_yaml: Path, tmp_path: Path
) -> None:
    name = "model.5.bn.running_var"
    spoilt = {**arrays, name: arrays[name].copy()}
    spoilt[name][3] = value
    save_arrays(tmp_path / "round3.npz", spoilt, META)
    expected = f"{name}: 1 of 128 values are NaN or infinite"
    lines = refused(BASE, tmp_path / "round3.npz")
    assert expected in lines
    assert "does not fit" not in lines

    np.savez(tmp_path / "weights.npz", *spoilt.values())
    assert expected in refused(BASE, tmp_path / "weights.npz", "--data", str(data_yaml))


def test_an_archive_of_another_model_names_the_base_of_the_run(
    refused: Refused, round_path: Path
) -> None:
    lines = refused("yolo11n.yaml", round_path)
    assert "does not fit base 'yolo11n.yaml'; the run started from 'yolov8n.yaml'" in lines
    assert len(lines.splitlines()) <= 8
    assert "of task 'detect', but base 'yolov8n-seg.yaml' is of task 'segment'" in refused(
        "yolov8n-seg.yaml", round_path
    )


def test_a_base_that_is_no_checkpoint_is_refused(
    refused: Refused, round_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "base.pt").write_text("not a checkpoint")
    assert "base.pt': not an Ultralytics checkpoint" in refused(tmp_path / "base.pt", round_path)
    assert "none.pt': no such file" in refused(tmp_path / "none.pt", round_path)
    assert "none.yaml': no such file" in refused(tmp_path / "none.yaml", round_path)
    assert "expected a .pt checkpoint or a model YAML" in refused(round_path, round_path)


class Payload:
    """Makes a file when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def test_code_in_a_pickled_base_or_archive_is_not_run(
    refused: Refused, round_path: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    torch.save({"model": Payload(marker)}, tmp_path / "base.pt")
    assert "not an Ultralytics checkpoint that is safe to load" in refused(
        tmp_path / "base.pt", round_path
    )
    (tmp_path / "base.pt").write_bytes(pickle.dumps({"model": Payload(marker)}))
    refused(tmp_path / "base.pt", round_path)
    np.savez(tmp_path / "evil.npz", np.array([Payload(marker)], dtype=object))
    assert "evil.npz: not a readable .npz" in refused(BASE, tmp_path / "evil.npz")
    assert not marker.exists()


def test_an_unknown_format_names_the_nearest(refused: Refused, round_path: Path) -> None:
    unknown = "--format {}: unknown export format; did you mean '{}'?"
    assert unknown.format("onx", "onnx") in refused(BASE, round_path, "--format", "onx")
    assert unknown.format("tensorrt", "engine") in refused(BASE, round_path, "--format", "TensorRT")
    assert "expected one of torchscript, onnx" in refused(BASE, round_path, "--format", "zzz")
    assert "always written; leave --format out" in refused(BASE, round_path, "--format", "pt")


def test_tensorrt_without_a_gpu_says_so(
    refused: Refused, round_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA GPU here; use --format onnx" in refused(BASE, round_path, "--format", "engine")


def test_missing_packages_come_with_the_command_that_installs_them(
    refused: Refused, round_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {"no_such_module": "pip install -e .[onnx]"}
    monkeypatch.setitem(export_federated.FORMAT_MODULES, "onnx", needed)
    assert "--format onnx: not installed: no_such_module; pip install -e .[onnx]" in refused(
        BASE, round_path, "--format", "onnx"
    )


def test_a_place_that_cannot_be_written_is_named(
    refused: Refused, round_path: Path, exported: Path, tmp_path: Path
) -> None:
    def lines(output: Path) -> str:
        return refused(BASE, round_path, output=output)

    assert f"no folder {tmp_path / 'none'}; make it" in lines(tmp_path / "none" / "out.pt")
    assert "expected a name that ends in .pt" in lines(tmp_path / "out.onnx")
    (tmp_path / "folder.pt").mkdir()
    assert "is a folder; choose another output" in lines(tmp_path / "folder.pt")
    assert "cannot be written: " in lines(tmp_path / f"{'a' * 300}.pt")
    before = exported.read_bytes()
    assert "would overwrite the base" in refused(exported, round_path, output=exported)
    assert exported.read_bytes() == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(refused: Refused, round_path: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    output = tmp_path / "locked" / "out.pt"
    assert "locked is not writable" in refused(BASE, round_path, output=output)


def test_a_full_disk_leaves_the_older_file(
    round_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Any, file: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    (tmp_path / "out.pt").write_text("older")
    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(InputError, match=r"out\.pt: cannot be written: .*No space left"):
        export(BASE, round_path, tmp_path / "out.pt")
    assert [p.name for p in tmp_path.iterdir()] == ["out.pt"]
    assert (tmp_path / "out.pt").read_text() == "older"


def test_classes_that_contradict_the_round_are_refused(
    refused: Refused, round_path: Path, tmp_path: Path
) -> None:
    path = tmp_path / "data.yaml"
    for text, expected in (
        ("names: [a, b]", "classes [a, b]; the federation has [bolt, nut, washer]"),
        ("nc: 3", "no list of class names"),
        ("names: [a, b]\nnc: 3", "nc: found 3, but there are 2 names"),
        ("names: {0: a, 5: b}", "names: "),
        ("names: [a, b]\nkpt_shape: 17", "kpt_shape: found 17, expected"),
        ("names: [", "not a readable YAML file"),
    ):
        path.write_text(text)
        assert expected in refused(BASE, round_path, "--data", str(path))
    assert "no such file; expected an Ultralytics data.yaml" in refused(
        BASE, round_path, "--data", str(tmp_path / "none.yaml")
    )


def test_an_image_size_that_the_model_cannot_take_is_refused(
    refused: Refused, round_path: Path
) -> None:
    onnx = ("--format", "onnx")
    expected = "--imgsz: found 100, expected a multiple of 32; use 96"
    assert expected in refused(BASE, round_path, *onnx, "--imgsz", "100")
    assert "found 0, expected a multiple of 32; use 32" in refused(
        BASE, round_path, *onnx, "--imgsz", "0"
    )
    assert "add --format" in refused(BASE, round_path, "--imgsz", "64")
    assert "invalid int value: 'big'" in refused(BASE, round_path, *onnx, "--imgsz", "big")


def test_all_problems_are_reported_together(refused: Refused, tmp_path: Path) -> None:
    lines = refused(
        tmp_path / "none.pt",
        tmp_path / "none.npz",
        *("--format", "onx", "--data", str(tmp_path / "none.yaml")),
        output=tmp_path / "none" / "out.pt",
    ).splitlines()
    assert len(lines) == 5


# The command in a process of its own, from another directory.


def run_script(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    private = ("YOLO_CONFIG_DIR", "FEDERATED_YOLO_CONFIG", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if name not in private}
    return subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        env={**environment, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_script_works_from_another_directory(
    round_path: Path, exported: Path, tmp_path: Path
) -> None:
    done = run_script(tmp_path, BASE, str(round_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("saved_model.pt  detect, round 3, 3 classes: bolt, nut, washer\n")
    assert "  yolo predict task=detect model=saved_model.pt imgsz=640" in done.stdout
    assert [p.name for p in tmp_path.iterdir()] == ["saved_model.pt"]
    assert torch.equal(raw_output(load(tmp_path / "saved_model.pt")), raw_output(load(exported)))


def test_the_script_exits_with_2_and_one_line_for_bad_input(tmp_path: Path) -> None:
    done = run_script(tmp_path, BASE, "none.npz")
    assert done.returncode == 2
    assert done.stderr == "error: none.npz: no such file; expected an .npz of a round\n"
    assert (done.stdout, list(tmp_path.iterdir())) == ("", [])


def test_another_base_of_the_same_layout_is_pointed_out(
    arrays: Arrays, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "round1.npz"
    save_arrays(path, arrays, RoundMeta(1, NAMES, "detect", "yolov8n-relu.yaml"))
    assert main([BASE, str(path), "-o", str(tmp_path / "out.pt")]) == 0
    assert "note: the run started from 'yolov8n-relu.yaml'; " in capsys.readouterr().err
    save_arrays(path, arrays, RoundMeta(1, NAMES, "detect", BASE))
    assert main([BASE, str(path), "-o", str(tmp_path / "out.pt")]) == 0
    assert capsys.readouterr().err == ""
