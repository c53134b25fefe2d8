"""What the tests of partitioning split."""

from pathlib import Path

import pytest
from partitions import NUM_TRAIN, NUM_VAL
from recipes import make_dataset


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of boxes of three classes; tests only read it."""
    return make_dataset(tmp_path_factory.mktemp("source"), NUM_TRAIN, NUM_VAL)
