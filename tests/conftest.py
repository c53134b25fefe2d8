"""The environment of all tests: the repository's modules can be imported, Ultralytics is private.

Ultralytics reads its environment while it is imported, which test modules do; conftest.py is
imported before them.
"""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from utils.environment import prepare_environment, remove_private_settings

prepare_environment()


def pytest_configure(config: pytest.Config) -> None:
    """Remove the private settings when the session ends, however it ends."""
    config.add_cleanup(remove_private_settings)
