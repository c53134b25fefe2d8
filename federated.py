"""Federated fine-tuning of an Ultralytics YOLO model with Flower.

    python federated.py [CONFIG.yaml] [key=value ...]

Without a config, the demo in configs/demo.yaml runs. Exit codes: 0 done, 1 failed while running
(finished rounds stay usable), 2 wrong input (nothing was started), 130 interrupted.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
DEMO = ROOT / "configs" / "demo.yaml"


def main(arguments: list[str]) -> int:
    """Run a federation from command-line arguments and return the exit code."""
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    from utils.environment import prepare_environment, remove_private_settings

    prepare_environment()
    try:
        return run(arguments)
    finally:
        remove_private_settings()


def run(arguments: list[str]) -> int:
    """Load config -> check -> simulate -> say where the results are."""
    from rich.console import Console

    from utils import terminal
    from utils.checks import checked, with_demo_data
    from utils.config import InputError, load_config
    from utils.report import plot_results
    from utils.run_dir import RunDir
    from utils.server import FederationError
    from utils.simulation import simulate

    console = Console(highlight=False)
    run_dir = None
    try:
        config_file, overrides = split_arguments(arguments)
        config = with_demo_data(load_config(config_file, overrides))
        with checked(config) as federation:
            run_dir = RunDir.create(Path(config.save_dir), config.name)
            terminal.show_start(console, federation, run_dir)
            with terminal.TerminalDisplay(console, config.num_rounds) as display:
                result = simulate(federation, display, run_dir)
            plot_results(run_dir.path)
            terminal.show_end(console, result, federation)
        return 0
    except InputError as error:
        terminal.show_problems(error.problems)
        return 2
    except FederationError as error:
        terminal.show_problems([str(error)])
        code = 1
    except KeyboardInterrupt:
        terminal.show_problems(["interrupted"])
        code = 130
    terminal.show_what_is_done(run_dir)
    return code


def split_arguments(arguments: list[str]) -> tuple[Path, list[str]]:
    """Tell the config file from the overrides."""
    from utils.config import InputError

    overrides = [a for a in arguments if "=" in a]
    files = [a for a in arguments if "=" not in a]
    for option in (a for a in arguments if a.startswith("-")):
        bare = option.lstrip("-").replace("-", "_")
        raise InputError(
            f"'{option}': unknown option; settings are key=value, e.g. {bare.partition('=')[0]}=..."
        )
    if len(files) > 1:
        raise InputError(
            f"found {len(files)} config files ({', '.join(files)}), expected one; overrides are "
            "key=value without spaces"
        )
    return (Path(files[0]) if files else DEMO), overrides


if __name__ == "__main__":
    exit_code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    if exit_code in (1, 130):
        # Flower's threads may wait for ever for workers that are gone, and Python for the threads.
        os._exit(exit_code)
    sys.exit(exit_code)
