"""Two clients whose rounds are logged."""

from pathlib import Path
from typing import Any

from recipes import make_dataset
from trainings import TRAIN

from federated_yolo.config.schema import Config


def config_for(folder: Path, **settings: Any) -> Config:
    return Config.model_validate(
        {
            "base_model": "yolov8n.yaml",
            "num_rounds": 3,
            **settings,
            "datasets": [
                {"name": f"c{i}", "data": str(folder / f"c{i}/data.yaml")} for i in (0, 1)
            ],
            "save_dir": str(folder / "runs"),
            "train": TRAIN,
        }
    )


def make_clients(folder: Path) -> Path:
    make_dataset(folder / "c0", num_train=4, num_val=2)
    make_dataset(folder / "c1", num_train=2, num_val=2, seed=1)
    return folder
