"""Federated fine-tuning of Ultralytics YOLO models with Flower.

    from federated_yolo import load_config, run

    result = run(load_config("my_config.yaml", ["num_rounds=5"]))

Names are imported on first use: Ultralytics, Flower and Ray read the environment during import, so
this package prepares it before it imports a name that needs them. With such an import Ultralytics
gets known classes only, so a config with trust_checkpoint must be loaded before it.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from federated_yolo.api import check, load_config, run
    from federated_yolo.checks.federation import Federation
    from federated_yolo.client.yolo_client import YoloClient
    from federated_yolo.common.errors import AbortedError, FederationError, InputError
    from federated_yolo.config.schema import Config
    from federated_yolo.server.results import RoundResult, RunResult
    from federated_yolo.yolo.trainer import SliceResult

__all__ = [
    "AbortedError",
    "Config",
    "Federation",
    "FederationError",
    "InputError",
    "RoundResult",
    "RunResult",
    "SliceResult",
    "YoloClient",
    "check",
    "load_config",
    "run",
]

_HOMES = {
    "AbortedError": "common.errors",
    "Config": "config.schema",
    "Federation": "checks.federation",
    "FederationError": "common.errors",
    "InputError": "common.errors",
    "RoundResult": "server.results",
    "RunResult": "server.results",
    "SliceResult": "yolo.trainer",
    "YoloClient": "client.yolo_client",
    "check": "api",
    "load_config": "api",
    "run": "api",
}
_WITH_ULTRALYTICS = ("checks.federation", "client.yolo_client", "yolo.trainer")

try:
    __version__ = version("federated-yolo")
except PackageNotFoundError:  # a clone that is not installed, or Flower's bundle of the app
    __version__ = "0.1.0+unknown"


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    if _HOMES[name] in _WITH_ULTRALYTICS:
        from federated_yolo.common.environment import prepare_for_import

        prepare_for_import()
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    """List the public names too, which are not imported yet."""
    return sorted({*globals(), *__all__})
