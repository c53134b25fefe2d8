"""Config files, and what is said about one that is wrong."""

from pathlib import Path

import pytest

from federated_yolo.common.errors import InputError
from federated_yolo.config.loading import load_config
from federated_yolo.config.schema import Config

MINIMAL = "base_model: yolo11n.pt\ndatasets: [north/data.yaml, south/data.yaml]\n"


def load(folder: Path, text: str, *overrides: str) -> Config:
    """Write `text` to a config file and load it."""
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, overrides)


def problems_of(folder: Path, text: str, *overrides: str) -> list[str]:
    """The lines of the InputError that loading `text` raises, without the path of the file."""
    with pytest.raises(InputError) as caught:
        load(folder, text, *overrides)
    for line in caught.value.problems:
        assert "\n" not in line
        assert "\x1b" not in line
    return [line.removeprefix(f"{folder / 'config.yaml'}: ") for line in caught.value.problems]
