"""Formats that a rebuilt .pt is converted to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipes
import torch
from saved_rounds import BASE, NAMES, SIZE, load, make_data
from ultralytics import YOLO

from federated_yolo.yolo.checkpoint import save_checkpoint
from federated_yolo.yolo.convert import ExportError, compare, convert
from federated_yolo.yolo.export_command import main
from federated_yolo.yolo.model import build_model


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
