"""Bad input of an export: one line for each problem, exit code 2, nothing written."""

import os
import pickle
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipes
import torch
import yaml
from saved_rounds import BASE, META, load

from federated_yolo.common.arrays import Arrays
from federated_yolo.common.errors import InputError
from federated_yolo.storage.archive import load_arrays, save_arrays
from federated_yolo.yolo import convert as export_federated
from federated_yolo.yolo.export_command import main
from federated_yolo.yolo.model import to_arrays
from federated_yolo.yolo.rebuild import export

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
    needed = {"no_such_module": "{onnx}"}
    monkeypatch.setitem(export_federated.FORMAT_MODULES, "onnx", needed)
    assert "--format onnx: not installed: no_such_module; pip install -e " in refused(
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
