"""The exporter in a process of its own, from another directory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from processes import ROOT
from saved_rounds import BASE, NAMES, load, raw_output

from federated_yolo.common.arrays import Arrays
from federated_yolo.storage.archive import RoundMeta, save_arrays
from federated_yolo.yolo.export_command import main

SCRIPT = ROOT / "utils" / "export_federated.py"


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
