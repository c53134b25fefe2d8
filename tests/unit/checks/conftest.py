"""What the tests of checks check: sound data and a sound checkpoint."""

from pathlib import Path

import pytest
import recipes
from sound_configs import Sites


@pytest.fixture(scope="session")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Sites:
    """The data.yaml of two sound clients; tests only read them."""
    folder = tmp_path_factory.mktemp("sites")
    return {
        name: recipes.make_dataset(folder / name, num_train=2, num_val=1, seed=seed)
        for seed, name in enumerate(("north", "south"))
    }


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound checkpoint."""
    return recipes.make_checkpoint(tmp_path_factory.mktemp("model") / "base.pt")
