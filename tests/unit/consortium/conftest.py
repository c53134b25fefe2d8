"""What the tests of the kit share."""

import pytest
from kit import small_bundle

from federated_yolo.consortium import bundle


@pytest.fixture(autouse=True)
def small_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle of one file."""
    monkeypatch.setattr(bundle, "build", small_bundle)
