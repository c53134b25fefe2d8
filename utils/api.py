"""A federation from Python: a config in, a result out. docs/python.md shows it.

from utils.api import load_config, run

result = run(load_config("my_config.yaml", ["num_rounds=5"]))
"""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from utils import config as config_module
from utils.config import Config, InputError
from utils.environment import prepare_environment

if TYPE_CHECKING:
    from utils.server import RunResult

__all__ = ["Config", "InputError", "load_config", "run"]


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """A config from a YAML file and `key=value` overrides. Raises InputError with every problem."""
    if not isinstance(path, str | Path) or isinstance(overrides, str):
        raise InputError(
            f"load_config: found {type(path).__name__}, {type(overrides).__name__}; expected the "
            'path of a YAML file and a list: load_config("config.yaml", ["num_rounds=5"])'
        )
    path, overrides = Path(path), list(overrides)
    _prepare(trust_checkpoints=config_module.trusts_checkpoint(path, overrides))
    return config_module.load_config(path, overrides)


def run(config: Config, *, show: bool = False) -> "RunResult":
    """Check a federation, simulate it on this machine in a directory of its own, and report it.

    show: print what the command prints meanwhile; clients that were left out are also in the run's
    clients.csv.
    Raises InputError with all problems before anything is started, and FederationError
    (utils/server.py) when the run cannot go on.
    """
    if not isinstance(config, Config):
        raise InputError(
            f"run: found {type(config).__name__}, expected a Config: run(load_config(...))"
        )
    _prepare(trust_checkpoints=config.trust_checkpoint)
    from rich.console import Console

    from utils import terminal
    from utils.checks import checked, with_demo_data
    from utils.run_dir import RunDir
    from utils.server import FederationError
    from utils.simulation import simulate

    console = Console(file=sys.stdout, highlight=False, quiet=not show)
    with checked(with_demo_data(config)) as federation:
        run_dir = RunDir.create(Path(federation.config.save_dir), config.name)
        try:
            return terminal.show_run(console, federation, run_dir, simulate)
        except FederationError:
            terminal.draw(run_dir)  # what is there
            raise


def _prepare(*, trust_checkpoints: bool) -> None:
    """Prepare the environment, which Ultralytics reads once, while it is imported."""
    is_imported = "ultralytics" in sys.modules
    prepare_environment(trust_checkpoints=trust_checkpoints)
    from ultralytics.utils import SAFE_LOAD, SETTINGS_FILE

    private = Path(os.environ["YOLO_CONFIG_DIR"])
    if is_imported and (trust_checkpoints == SAFE_LOAD or private not in SETTINGS_FILE.parents):
        raise InputError(
            "Ultralytics was imported before utils.api, or with another trust_checkpoint, and has "
            "its settings from then; import utils.api first, in a new process"
        )
