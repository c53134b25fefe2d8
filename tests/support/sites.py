"""Runs of sites, SuperNodes with data of their own, in this process."""

import io
from pathlib import Path
from typing import Any

import pytest
from local_grid import LocalGrid
from recipes import make_dataset
from rich.console import Console
from trainings import TRAIN, Silent

from federated_yolo.checks.federation import checked
from federated_yolo.config.schema import Config
from federated_yolo.runtime import deployment
from federated_yolo.server.results import RunResult
from federated_yolo.storage.run_dir import RunDir

SETTINGS: dict[str, Any] = {"base_model": "yolov8n.yaml", "num_rounds": 2, "train": TRAIN}


def node_config(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    data = folder / name / "data.yaml"
    private = folder / "private" / name
    return {"data": str(data), "name": name, "folder": str(private), "num-threads": 1, **more}


def sites(folder: Path, *names: str, **more: Any) -> LocalGrid:
    """A grid of sites, each with a data set of its own."""
    for seed, name in enumerate(names):
        if not (folder / name).exists():
            make_dataset(folder / name, num_train=4, num_val=2, seed=seed)
    return LocalGrid(len(names), sites=[node_config(folder, name, **more) for name in names])


def run(
    grid: LocalGrid,
    folder: Path,
    display: Silent | None = None,
    resume: Path | None = None,
    **settings: Any,
) -> tuple[RunResult, str]:
    """A run on these sites, or the rest of one; and what the console said while it met them.

    All sites are there when it begins, so it waits for none.
    """
    config = Config.model_validate(
        {"datasets": "supernodes", "save_dir": str(folder / "runs"), **SETTINGS, **settings}
    )
    console = Console(record=True, width=500, file=io.StringIO())
    local: Any = grid

    def meet(config: Config, task: str) -> Any:
        return deployment.wait_for_sites(local, console, config, task)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("JOIN_WAIT_S", "POLL_S", "SETTLE_S"):
            patch.setattr(deployment, name, 0.0)
        with checked(config, meet) as federation:
            save_dir = folder / "runs"
            run_dir = RunDir.reopen(resume) if resume else RunDir.create(save_dir, config.name)
            result = deployment.run_on(local, federation, display or Silent(), run_dir)
    return result, console.export_text()
