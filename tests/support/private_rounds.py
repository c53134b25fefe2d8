"""Settings of differential privacy."""

import importlib.util
from typing import Any

import pytest

from federated_yolo.config.schema import PrivacyConfig

needs_accountant = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason='needs pip install -e ".[dp]"'
)


FROZEN = {"batchnorm": "frozen", "freeze_after": 0}


def private(mode: str = "central", **settings: Any) -> PrivacyConfig:
    sound = {"mode": mode, "clipping_norm": 1.0, "noise_multiplier": 1.0}
    return PrivacyConfig.model_validate({**sound, **settings})
