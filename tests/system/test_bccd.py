"""Real input: blood cell images and a pretrained backbone, where they are beside the project."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from local_grid import LocalGrid
from processes import ROOT
from trainings import Silent

from federated_yolo.checks.federation import checked
from federated_yolo.config.loading import load_config
from federated_yolo.runtime.startup import make_server
from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import RunDir, read_csv
from federated_yolo.yolo.checkpoint import load_checkpoint_module
from federated_yolo.yolo.model import to_arrays

SHARED = ROOT.parent / "shared"
DATA = SHARED / "data" / "bccd"
BACKBONE = SHARED / "weights" / "yolov8n-cls-imagenet-ft.pt"

pytestmark = pytest.mark.skipif(
    not (DATA.is_dir() and BACKBONE.is_file()),
    reason=f"needs the BCCD data set and the backbone in {SHARED.name}/ beside the project",
)


def digest(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    listing = [f"{p}:{p.stat().st_size}:{p.stat().st_mtime_ns}" for p in files]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()


@pytest.mark.parametrize("split", ["iid3", "dirichlet03", "unequal_70_20_10"])
def test_bccd_trains_from_the_pretrained_backbone_and_its_folder_is_left_alone(
    split: str, tmp_path: Path
) -> None:
    before = digest(DATA)
    config = load_config(
        ROOT / "configs" / "bccd.yaml",
        [
            f"vars.data={DATA}",
            f"vars.weights={SHARED / 'weights'}",
            f"vars.split={split}",
            f"save_dir={tmp_path}",
            "train.imgsz=32",
            "train.batch=16",
            "num_rounds=1",
            "evaluate.every=0",
        ],
    )
    with checked(config) as federation:
        run_dir = RunDir.create(tmp_path, config.name)
        display = Silent()
        server = make_server(federation, display, run_dir)
        server.run(LocalGrid(3))  # pyright: ignore[reportArgumentType]
    assert display.failures == []
    rows = read_csv(run_dir.path / "clients.csv")
    lists = [DATA / "fed" / split / row["client"] / "train.txt" for row in rows]
    listed = [len(path.read_text().split()) for path in lists]
    assert [int(r["num_examples"]) for r in rows] == listed
    assert sum(listed) == 205
    assert digest(DATA) == before

    backbone = to_arrays(load_checkpoint_module(str(BACKBONE), where="test"))
    initial, _ = load_arrays(run_dir.round_path(0))
    transferred = [n for n in initial if n in backbone and initial[n].shape == backbone[n].shape]
    assert len(transferred) == 150  # layers 0 to 8, as `yolo train` transfers
    for name in transferred:
        assert np.array_equal(initial[name], backbone[name].astype(initial[name].dtype)), name
