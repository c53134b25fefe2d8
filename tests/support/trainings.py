"""Plain trainings, federations in this process, and what has to be equal of them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from local_grid import LocalGrid
from ultralytics import RTDETR, YOLO

from federated_yolo.checks.federation import checked
from federated_yolo.client import workspace as client_module
from federated_yolo.common.arrays import Arrays
from federated_yolo.common.torchvision_nms import ensure_torchvision_nms
from federated_yolo.config.schema import Config
from federated_yolo.runtime.startup import make_server
from federated_yolo.server.final_evaluation import finish
from federated_yolo.server.results import RunResult
from federated_yolo.storage.archive import load_arrays
from federated_yolo.storage.run_dir import RunDir
from federated_yolo.yolo.model import to_arrays

# Small, and every image and step counts: 6 images make 3 batches of 2 an epoch.
TRAIN: dict[str, Any] = {
    "imgsz": 32,
    "batch": 2,
    "nbs": 2,
    "optimizer": "SGD",
    "lr0": 0.01,
    "warmup_epochs": 1.0,
    "close_mosaic": 0,
}


class Silent:
    """A display that shows nothing and remembers what failed and what was noticed."""

    def __init__(self) -> None:
        self.failures: list[tuple[str, str]] = []
        self.notices: list[str] = []

    def step(self, round_number: int, step: str, clients: list[str]) -> None: ...
    def client_done(self, name: str, text: str) -> None: ...
    def client_failed(self, name: str, reason: str) -> None:
        self.failures.append((name, reason))

    def notice(self, text: str) -> None:
        self.notices.append(text)

    def round_done(self, result: object) -> None: ...


def plain_training(
    base_model: str, data: Path, train: dict[str, Any], epochs: int, folder: Path, seed: int = 0
) -> Arrays:
    """Raw float32 weights at the end of one `yolo train` run (best.pt has the half-rounded EMA)."""
    ensure_torchvision_nms()
    weights: Arrays = {}
    model = (RTDETR if "rtdetr" in base_model else YOLO)(base_model)
    # One thread, as our clients: sums over threads round differently.
    model.add_callback("on_train_start", lambda _: torch.set_num_threads(1))
    model.add_callback("on_fit_epoch_end", lambda t: weights.update(to_arrays(t.model)))
    model.train(
        data=str(data),
        epochs=epochs,
        seed=seed,
        val=False,  # validation draws from the random state that augmentation uses
        save=False,
        plots=False,
        device="cpu",
        project=str(folder),
        name="plain",
        **train,
    )
    return weights


def federation(
    datasets: list[Path],
    save_dir: Path,
    train: dict[str, Any],
    *,
    grid: LocalGrid | None = None,
    display: Silent | None = None,
    not_annotated: dict[int, list[str]] | None = None,
    show_images: int = 0,
    resume: bool = False,
    **settings: Any,
) -> RunResult:
    """Run a federation in this process, through the real messages, client and server.

    not_annotated: class names by client. show_images: of each client. resume: go on in the
    directory of an earlier call.
    """
    config = Config.model_validate(
        {
            "base_model": "yolov8n.yaml",
            "num_rounds": 3,
            "evaluate": {"every": 0},
            **settings,
            "datasets": [
                {
                    "name": f"c{i}",
                    "data": str(path),
                    "not_annotated": (not_annotated or {}).get(i, []),
                    "show_images": show_images,
                }
                for i, path in enumerate(datasets)
            ],
            "save_dir": str(save_dir),
            "train": train,
        }
    )
    reopened = RunDir.reopen(save_dir / "run") if resume else None
    with checked(config, resumed=reopened) as ready:
        run_dir = reopened or RunDir.create(save_dir, "run")
        server = make_server(ready, display or Silent(), run_dir)
        local: Any = grid or LocalGrid(len(datasets))
        result = server.run(local)
        finish(server, local)
        return result


def final_arrays(result: RunResult) -> Arrays:
    arrays, meta = load_arrays(result.run_dir / "weights" / f"round{len(result.rounds)}.npz")
    assert meta is not None
    assert meta.round == len(result.rounds)
    return arrays


def assert_identical(found: Arrays, expected: Arrays) -> None:
    assert list(found) == list(expected)
    different = [n for n in expected if not np.array_equal(found[n], expected[n])]
    assert not different, f"{len(different)} of {len(expected)} arrays differ, e.g. {different[0]}"


def assert_learned(found: Arrays, initial: Arrays) -> None:
    """Equality alone would also hold between two models that were never trained."""
    changed = [n for n in found if not np.array_equal(found[n], initial[n])]
    assert len(changed) > 0.5 * len(found)


class ForgetfulGrid(LocalGrid):
    """As if every message went to a new worker process."""

    def push_messages(self, messages: Any) -> list[str]:
        client_module.held_clients.clear()
        return super().push_messages(messages)
