"""What the tests of data spoil."""

from pathlib import Path

import pytest
import recipes


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """Folder of a sound data set, for a test to spoil."""
    recipes.make_dataset(tmp_path / "site")
    return tmp_path / "site"
