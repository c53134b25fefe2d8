"""What the tests of exports export: a round that was saved, and the .pt of it."""

from pathlib import Path

import pytest
import torch
from saved_rounds import BASE, META, NAMES, make_data, randomise

from federated_yolo.common.arrays import Arrays
from federated_yolo.storage.archive import save_arrays
from federated_yolo.yolo.model import build_model, to_arrays
from federated_yolo.yolo.rebuild import export


@pytest.fixture(scope="session")
def source() -> torch.nn.Module:
    """The federation's model after some round; tests leave it as it is."""
    return randomise(build_model(BASE, "detect", make_data(), seed=1))


@pytest.fixture(scope="session")
def arrays(source: torch.nn.Module) -> Arrays:
    """Its global arrays; tests leave them as they are."""
    return to_arrays(source)


@pytest.fixture(scope="session")
def round_path(arrays: Arrays, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """These arrays as the run saves them."""
    path = tmp_path_factory.mktemp("run") / "round3.npz"
    save_arrays(path, arrays, META)
    return path


@pytest.fixture(scope="session")
def exported(round_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .pt rebuilt from them; tests leave it as it is."""
    return export(BASE, round_path, tmp_path_factory.mktemp("pt") / "saved_model.pt")


@pytest.fixture
def data_yaml(tmp_path: Path) -> Path:
    """A data.yaml whose images are elsewhere."""
    path = tmp_path / "data.yaml"
    path.write_text(f"train: elsewhere\nval: elsewhere\nnames: [{', '.join(NAMES)}]\n")
    return path
