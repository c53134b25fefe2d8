"""Federated fine-tuning of an Ultralytics YOLO model with Flower.

    python federated.py [CONFIG.yaml] [key=value ...]
    python federated.py check [CONFIG.yaml] [key=value ...]    look at all data, without training
    python federated.py resume=RUN_DIR    go on with a stopped run; resume=true: with the newest

Without a config, the demo in configs/demo.yaml runs. Exit codes: 0 done, 1 failed while running
(finished rounds stay usable), 2 wrong input (nothing was started), 130 interrupted (or SIGTERM).
"""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.serverapp import Grid

ROOT = Path(__file__).resolve().parent
DEMO = ROOT / "configs" / "demo.yaml"


def main(arguments: list[str], grid: "Grid | None" = None) -> int:
    """Run a federation from command-line arguments and return the exit code.

    grid: the nodes to run on, in a Flower app; without it, a simulation is started here.
    """
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
        return 0
    from utils.command import show_problems
    from utils.config import InputError
    from utils.environment import prepare_environment, remove_private_settings

    try:
        command = parse(arguments)
        prepare_environment(trust_checkpoints=command.trusts_checkpoint())
        return run(command, grid)
    except InputError as error:
        show_problems(error.problems)
        return 2
    finally:
        remove_private_settings()


def run(command: "Command", grid: "Grid | None" = None) -> int:
    """Load config -> check -> simulate -> say where the results are."""
    from functools import partial

    from rich.console import Console

    from utils import terminal
    from utils.check_command import check_and_show
    from utils.checks import checked, with_demo_data
    from utils.command import show_problems
    from utils.config import load_config
    from utils.deployment import run_on, wait_for_sites
    from utils.run_dir import RunDir
    from utils.server import FederationError
    from utils.simulation import simulate

    console = Console(file=sys.stdout, highlight=False)
    run_dir = None
    try:
        config = load_config(command.config_file, command.overrides)
        if command.only_checks:
            check_and_show(console, config)
            return 0
        if command.run_dir is not None:
            run_dir = RunDir.reopen(command.run_dir)
            # Where the run was made does not matter any more; it may have been moved.
            config = config.model_copy(update={"save_dir": str(run_dir.path.parent)})
        meet = partial(wait_for_sites, grid, console) if grid else None
        with checked(with_demo_data(config), meet, resumed=run_dir) as federation:
            run_dir = run_dir or RunDir.create(Path(federation.config.save_dir), config.name)
            terminal.show_run(
                console, federation, run_dir, partial(run_on, grid) if grid else simulate
            )
        return 0
    except (FederationError, OSError) as error:
        show_problems([str(error)])
        code = 1
    except KeyboardInterrupt:
        show_problems(["interrupted"])
        code = 130
    terminal.show_what_is_done(run_dir, over_network=grid is not None)
    return code


@dataclass(frozen=True)
class Command:
    """What the arguments ask for. run_dir: of the run to go on with, None for a new one.

    only_checks: look at the data, and start nothing.
    """

    config_file: Path
    overrides: list[str]
    run_dir: Path | None = None
    only_checks: bool = False

    def trusts_checkpoint(self) -> bool:
        """Whether base models may hold anything; the environment has to know first."""
        from utils.config import trusts_checkpoint

        return trusts_checkpoint(self.config_file, self.overrides)


def parse(arguments: list[str]) -> Command:
    """Tell `check`, the config file, `resume=` and the overrides apart. Raises InputError."""
    from utils.config import (
        DEFAULT_SAVE_DIR,
        InputError,
        at_home,
        nearest,
        resume_problems,
        trust_problems,
    )
    from utils.run_dir import CONFIG_FILE, find_run

    only_checks = arguments[:1] == ["check"]
    first = "" if only_checks or not arguments else arguments[0]
    if first.isidentifier() and not Path(first).exists():
        raise InputError(
            f"'{first}': found neither a command nor a file{nearest(first, ['check'])}; expected "
            "CONFIG.yaml, check CONFIG.yaml or key=value"
        )
    arguments = arguments[1:] if only_checks else arguments
    values = dict(a.split("=", 1) for a in arguments if a.startswith(("resume=", "save_dir=")))
    files = [a for a in arguments if "=" not in a or "/" in a.partition("=")[0]]
    overrides = [a for a in arguments if a not in files and not a.startswith("resume=")]
    for option in (a for a in arguments if a.startswith("-")):
        bare = option.lstrip("-").replace("-", "_")
        raise InputError(
            f"'{option}': unknown option; settings are key=value, e.g. {bare.partition('=')[0]}=..."
        )
    resume = values.get("resume", "false")
    if resume.lower() in ("false", "null"):
        if len(files) > 1:
            raise InputError(
                f"found {len(files)} config files ({', '.join(files)}), expected one; overrides "
                "are key=value without spaces"
            )
        config_file = Path(at_home(files[0])) if files else DEMO
        return Command(config_file, overrides, only_checks=only_checks)
    if only_checks:
        raise InputError(f"resume={resume}: check looks at data before a run; leave it out")
    if files:
        raise InputError(
            f"resume={resume}: a resumed run has its settings in its {CONFIG_FILE}; leave "
            f"{files[0]} out"
        )
    if resume.lower() == "true":  # save_dir says where to look
        overrides = [a for a in overrides if not a.startswith("save_dir=")]
    problems = resume_problems(overrides)
    if problems:
        raise InputError(problems)
    save_dir = Path(at_home(values.get("save_dir", DEFAULT_SAVE_DIR)))
    run_dir = find_run(at_home(resume), save_dir)
    if problems := trust_problems(run_dir / CONFIG_FILE, overrides):
        raise InputError(problems)
    return Command(run_dir / CONFIG_FILE, overrides, run_dir)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # of a scheduler: as Ctrl-C
    try:
        exit_code = main(sys.argv[1:])
    except KeyboardInterrupt:  # while the libraries are imported, or a second one
        print("error: interrupted", file=sys.stderr)
        exit_code = 130
    sys.stdout.flush()
    sys.stderr.flush()
    if exit_code in (1, 130):
        # Flower's threads may wait for ever for workers that are gone, and Python for the threads.
        from utils.environment import kill_children

        kill_children()
        os._exit(exit_code)
    sys.exit(exit_code)
