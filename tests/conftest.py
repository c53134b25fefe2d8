"""The environment of all tests: Ultralytics is private, and what is no unit test is slow.

Ultralytics reads its environment while it is imported, which test modules do; conftest.py is
imported before them.
"""

import shutil
from pathlib import Path

import pytest
from processes import ROOT
from recorded_runs import DATA

from federated_yolo.common.environment import prepare_environment, remove_private_settings

SLOW = (ROOT / "tests" / "training", ROOT / "tests" / "system")

prepare_environment()


def pytest_configure(config: pytest.Config) -> None:
    """Remove the private settings when the session ends, however it ends."""
    config.add_cleanup(remove_private_settings)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what trains or starts whole systems as slow."""
    for item in items:
        if any(item.path.is_relative_to(folder) for folder in SLOW):
            item.add_marker("slow")


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A copy of the directory of a run; see recorded_runs.py."""
    return Path(shutil.copytree(DATA / "run", tmp_path / "run"))


@pytest.fixture
def yolo_dir(tmp_path: Path) -> Path:
    """A copy of a directory of `yolo train`."""
    return Path(shutil.copytree(DATA / "yolo_train", tmp_path / "pooled"))
