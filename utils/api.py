"""A federation from Python: a config in, a result out. docs/python.md shows it.

from utils.api import load_config, run

result = run(load_config("my_config.yaml", ["num_rounds=5"]))
"""

import atexit
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from utils.config import Config, InputError, load_config
from utils.environment import prepare_environment, remove_private_settings

if TYPE_CHECKING:
    from utils.server import RunResult

__all__ = ["Config", "InputError", "load_config", "run"]


def run(config: Config, *, show: bool = False) -> "RunResult":
    """Check a federation, simulate it on this machine in a directory of its own, and report it.

    show: print what the command prints meanwhile; clients that were left out are also in the run's
    clients.csv. Import this module before Ultralytics: it reads its settings while it is imported.
    Raises InputError with all problems before anything is started, and FederationError
    (utils/server.py) when the run cannot go on.
    """
    prepare_environment(trust_checkpoints=config.trust_checkpoint)
    atexit.register(remove_private_settings)
    from rich.console import Console

    from utils import terminal
    from utils.checks import checked, with_demo_data
    from utils.run_dir import RunDir
    from utils.simulation import simulate

    console = Console(file=sys.stdout, highlight=False, quiet=not show)
    with checked(with_demo_data(config)) as federation:
        run_dir = RunDir.create(Path(federation.config.save_dir), config.name)
        terminal.show_start(console, federation, run_dir)
        with terminal.TerminalDisplay(console, config.num_rounds) as display:
            result = simulate(federation, display, run_dir)
    terminal.draw(run_dir)
    terminal.show_end(console, result, federation)
    return result
