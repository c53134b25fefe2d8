"""Federated fine-tuning of an Ultralytics YOLO model with Flower.

    python federated.py [CONFIG.yaml] [key=value ...]

Without a config, the demo in configs/demo.yaml runs. Exit codes: 0 done, 1 failed while running
(finished rounds stay usable), 2 wrong input (nothing was started), 130 interrupted.
"""

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

    prepare_environment(verbose="verbose=true" in arguments)
    try:
        return run(arguments)
    finally:
        remove_private_settings()


def run(arguments: list[str]) -> int:
    """Load config -> check -> simulate -> say where the results are."""
    from rich.console import Console

    from utils import terminal
    from utils.config import InputError, load_config
    from utils.report import plot_results
    from utils.run_dir import RunDir
    from utils.server import FederationError
    from utils.simulation import checked, simulate, with_demo_data

    console = Console(highlight=False)
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
    except InputError as error:
        terminal.show_problems(error.problems)
        return 2
    except FederationError as error:
        terminal.show_problems([str(error)])
        return 1
    except KeyboardInterrupt:
        terminal.show_problems(["interrupted; finished rounds are in the run directory"])
        return 130
    return 0


def split_arguments(arguments: list[str]) -> tuple[Path, list[str]]:
    """Tell the config file from the overrides."""
    overrides = [a for a in arguments if "=" in a]
    files = [a for a in arguments if "=" not in a]
    if len(files) > 1:
        from utils.config import InputError

        raise InputError(f"found {len(files)} config files ({', '.join(files)}), expected one")
    return (Path(files[0]) if files else DEMO), overrides


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
