"""A checkpoint with a class of the user's own: refused, unless its author is trusted."""

import os
import subprocess
import sys
from pathlib import Path

from processes import ROOT, finished
from recipes import make_dataset
from sound_configs import write_config

from federated_yolo.storage.archive import load_arrays

MODULE = """
import torch
class Swish(torch.nn.SiLU):
    pass
"""
MAKE = """
import sys; sys.path.insert(0, {root!r})
from federated_yolo.common.environment import prepare_environment, remove_private_settings
prepare_environment(trust_checkpoints=True)
import own_layers
from federated_yolo.yolo.model import build_model
from federated_yolo.yolo.checkpoint import save_checkpoint
model = build_model("yolov8n.yaml", "detect", {{"names": {{0: "a", 1: "b", 2: "c"}}, "nc": 3}})
model.model[0].act = own_layers.Swish()
save_checkpoint(__import__("pathlib").Path("own.pt"), model)
remove_private_settings()
"""


def run(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    python = [sys.executable, *command]
    return finished(python, cwd=folder, timeout_s=300, PYTHONPATH=str(folder))


def test_it_is_refused_with_the_way_out_and_trained_and_exported_when_trusted(
    tmp_path: Path,
) -> None:
    (tmp_path / "own_layers.py").write_text(MODULE)
    made = run(tmp_path, "-c", MAKE.format(root=str(ROOT)))
    assert made.returncode == 0, made.stderr
    make_dataset(tmp_path / "north", num_train=2, num_val=1)
    config = str(write_config(tmp_path, base_model="own.pt", num_rounds=1))
    command = os.fspath(ROOT / "federated.py")
    refused = run(tmp_path, command, config)
    assert refused.returncode == 2
    assert "it refers to own_layers.Swish, which is no part of a model" in refused.stderr
    assert "set trust_checkpoint" in refused.stderr
    trained = run(tmp_path, command, config, "trust_checkpoint=true")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    round_1 = tmp_path / "runs" / "train" / "weights" / "round1.npz"
    load_arrays(round_1)
    exporter = os.fspath(ROOT / "utils" / "export_federated.py")
    refused = run(tmp_path, exporter, "own.pt", str(round_1))
    assert refused.returncode == 2
    assert "--trust-checkpoint" in refused.stderr
    exported = run(tmp_path, exporter, "own.pt", str(round_1), "--trust-checkpoint")
    assert exported.returncode == 0, exported.stderr
    assert (tmp_path / "saved_model.pt").exists()
