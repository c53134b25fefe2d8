"""Sound configs, and what is said about one that is not."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from trainings import TRAIN

from federated_yolo.checks.federation import checked
from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import Config

Sites = dict[str, Path]


def config_of(folder: Path, sites: Sites, **settings: Any) -> Config:
    """A sound config, but for these settings."""
    sound = {
        "base_model": "yolov8n.yaml",
        "datasets": [{"name": name, "data": str(path)} for name, path in sites.items()],
        "save_dir": str(folder / "runs"),
    }
    return Config.model_validate({**sound, **settings})


def problems_of(config: Config) -> list[str]:
    """The lines of the InputError that checking this config raises."""
    with pytest.raises(InputError) as caught, checked(config):
        pass
    for line in caught.value.problems:
        assert "\n" not in line
        assert "\x1b" not in line
    return caught.value.problems


def write_config(folder: Path, **changes: Any) -> Path:
    settings: dict[str, Any] = {
        "base_model": "yolov8n.yaml",
        "datasets": [{"name": "north", "data": str(folder / "north" / "data.yaml")}],
        "num_rounds": 2,
        "save_dir": str(folder / "runs"),
        "train": TRAIN,
        **changes,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path
