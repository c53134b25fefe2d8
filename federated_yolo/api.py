"""Run or check a federation from Python: takes a config, returns a result. See docs/python.md."""

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from federated_yolo.common.environment import prepare_environment, restored_verbosity
from federated_yolo.common.errors import InputError
from federated_yolo.common.files import at_home
from federated_yolo.config import loading as config_module
from federated_yolo.config.schema import Config

if TYPE_CHECKING:
    from federated_yolo.checks.federation import Federation
    from federated_yolo.server.results import RunResult

__all__ = ["Config", "InputError", "check", "load_config", "run"]

_RUNNING = threading.Lock()


def load_config(path: str | Path, overrides: Sequence[str] | None = None) -> Config:
    """Read a config from a YAML file and `key=value` overrides.

    Args:
        path: The YAML file; configs/example.yaml shows every setting. `~` is the home folder.
        overrides: `key=value` texts, as on the command line; dots reach nested settings
            ("train.imgsz=320"). None for no overrides.

    Returns:
        A config whose settings have the right types. Files that it names are not opened yet.

    Raises:
        InputError: With every problem of the file and the overrides, or if Ultralytics was
            imported before, by others or with another `trust_checkpoint`.
    """
    words = () if overrides is None else overrides
    if (
        not isinstance(path, str | Path)
        or not isinstance(words, Sequence)
        or isinstance(words, str | bytes)
        or not all(isinstance(word, str) for word in words)
    ):
        raise InputError(
            f"load_config: found {path!r}, {overrides!r}; expected the path of a YAML file and a "
            'list of texts: load_config("config.yaml", ["num_rounds=5"])'
        )
    path, overrides = Path(at_home(str(path))), list(words)
    _prepare(trust_checkpoints=config_module.trusts_checkpoint(path, overrides))
    return config_module.load_config(path, overrides)


def check(config: Config) -> "Federation":
    """Check a federation as `run` does before it starts.

    No round is trained. Only the data of the demo, and what is made of exports, stays on disk.

    Args:
        config: A config from `load_config`.

    Returns:
        The findings: the resolved config, classes, images of each client and the model before
        round 1. The folder `caches` no longer exists.

    Raises:
        InputError: With all problems that would stop a run.
    """
    _prepare_for(config, "check")
    from federated_yolo.checks.federation import checked, with_demo_data

    with checked(with_demo_data(config)) as federation:
        return federation


def run(config: Config, *, show: bool = False) -> "RunResult":
    """Check a federation, simulate it on this machine in a new run directory, and draw its report.

    Args:
        config: A config from `load_config`.
        show: Whether to print the same progress as the command. Clients that were left out of a
            round are also in the run's clients.csv.

    Returns:
        The run directory, the rounds and the best of them.

    Raises:
        InputError: With all problems, before anything is started; also if another run is in
            progress in this process.
        FederationError: If the run cannot continue; its finished rounds stay usable.
    """
    _prepare_for(config, "run")
    if not _RUNNING.acquire(blocking=False):
        raise InputError(
            "run: another run is in progress in this process, and Flower and Ray have one at a "
            "time; wait for it, or start this one in a process of its own"
        )
    try:
        with restored_verbosity():
            return _run(config, show=show)
    finally:
        _RUNNING.release()


def _run(config: Config, *, show: bool) -> "RunResult":
    from rich.console import Console

    from federated_yolo.checks.federation import checked, with_demo_data
    from federated_yolo.common.errors import FederationError
    from federated_yolo.runtime import terminal
    from federated_yolo.runtime.simulation import simulate
    from federated_yolo.storage.run_dir import RunDir

    console = Console(file=sys.stdout, highlight=False, quiet=not show)
    with checked(with_demo_data(config)) as federation:
        run_dir = RunDir.create(Path(federation.config.save_dir), config.name)
        try:
            return terminal.show_run(console, federation, run_dir, simulate)
        except FederationError:
            terminal.draw(run_dir)  # the finished rounds
            raise


def _prepare_for(config: Config, function: str) -> None:
    if not isinstance(config, Config):
        raise InputError(
            f"{function}: found {type(config).__name__}, expected a Config: "
            f"{function}(load_config(...))"
        )
    _prepare(trust_checkpoints=config.trust_checkpoint)


def _prepare(*, trust_checkpoints: bool) -> None:
    """Prepare the environment, which Ultralytics reads only once, during its import."""
    is_imported = "ultralytics" in sys.modules
    prepare_environment(trust_checkpoints=trust_checkpoints)
    from ultralytics.utils import SAFE_LOAD, SETTINGS_FILE

    private = Path(os.environ["YOLO_CONFIG_DIR"])
    if is_imported and private not in SETTINGS_FILE.parents:
        raise InputError(
            "Ultralytics was imported before federated_yolo had prepared its settings, which it "
            "reads only then; import from federated_yolo first, in a new process"
        )
    if is_imported and trust_checkpoints == SAFE_LOAD:
        raise InputError(
            f"trust_checkpoint: found {str(trust_checkpoints).lower()}, and Ultralytics was "
            f"imported with {str(not trust_checkpoints).lower()}: by an earlier config, or by an "
            "import of YoloClient, Federation or SliceResult; call load_config first, in a new "
            "process"
        )
