"""The environment of all tests: the repository's modules can be imported, Ultralytics is private.

Ultralytics reads its environment while it is imported, which test modules do; conftest.py is
imported before them.
"""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from federated_yolo.common.environment import prepare_environment, remove_private_settings

DATA = Path(__file__).parent / "data"

prepare_environment()


def pytest_configure(config: pytest.Config) -> None:
    """Remove the private settings when the session ends, however it ends."""
    config.add_cleanup(remove_private_settings)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A copy of the directory of a run; see recorded_runs.py."""
    return Path(shutil.copytree(DATA / "run", tmp_path / "run"))


@pytest.fixture
def yolo_dir(tmp_path: Path) -> Path:
    """A copy of a directory of `yolo train`."""
    return Path(shutil.copytree(DATA / "yolo_train", tmp_path / "pooled"))
