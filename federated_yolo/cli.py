"""The command `federated-yolo`, also started by `python federated.py` and `-m federated_yolo`.

`main` selects the subcommand, `parse` reads the arguments of a run, and `run` does all its steps:
load config -> check -> simulate -> print where the results are.
"""

import importlib
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flwr.serverapp import Grid

USAGE = """Federated fine-tuning of an Ultralytics YOLO model with Flower.

    {name} [CONFIG.yaml] [key=value ...]            train; without a config, the demo
    {name} check [CONFIG.yaml] [key=value ...]      look at all data, without training
    {name} resume [RUN_DIR] [key=value ...]         go on with a stopped run, or the newest
    {name} demo [key=value ...]                     a small federation on data made for it
    {name} export BASE ROUND.npz [-o model.pt]      a round as a .pt, ONNX, TensorRT, ...
    {name} partition SOURCE --clients N -o DIR      one data set becomes many clients
    {name} report RUN_DIR [RUN_DIR ...]             draw a run again, or compare runs
    {name} consortium init consortium.yaml          sites on machines of their own: the operator
    {name} site join INVITATION                     the same: a site
    {name} certificates FOLDER                      keys and TLS to try a deployment with
    {name} --version

Examples:

    {name} my_config.yaml num_rounds=50 train.imgsz=640
    {name} check my_config.yaml
    {name} resume runs/federated/train2
    {name} export yolo11n.pt runs/federated/train/weights/round50.npz --format onnx

`{name} COMMAND --help` tells more of export, partition, report, consortium, site and
certificates. run CONFIG.yaml is the same as CONFIG.yaml alone, and resume=RUN_DIR the same as
resume RUN_DIR; resume=true is the newest run.

Exit codes: 0 done, 1 failed while running (finished rounds stay usable), 2 wrong input (nothing was
started), 130 interrupted (or SIGTERM).
"""
# Commands with a parser of their own, and the module that contains their `main`.
COMMANDS = {
    "export": "federated_yolo.yolo.export_command",
    "partition": "federated_yolo.partitioning.command",
    "report": "federated_yolo.reporting.draw",
    "consortium": "federated_yolo.consortium.operator_command",
    "site": "federated_yolo.sites.site_command",
    "certificates": "federated_yolo.runtime.certificates",
}
RUN_COMMANDS = ("run", "check", "resume", "demo")
# What is typed for an option that stands alone -> the option.
OPTIONS = {
    "help": "--help",
    "version": "--version",
    "-V": "--version",
    "--version": "--version",
}


def main(arguments: list[str], grid: "Grid | None" = None) -> int:
    """Run the command that these arguments name, and return the exit code.

    grid: Nodes to run on, in a Flower app; None to start a simulation on this machine.
    """
    from federated_yolo.common.command_line import called_as, failed
    from federated_yolo.common.environment import prepare_environment, remove_private_settings
    from federated_yolo.common.errors import InputError
    from federated_yolo.common.processes import exit_on_interrupt

    try:
        if arguments and arguments[0] in COMMANDS:
            exit_on_interrupt()  # imports take seconds, and some would hide a KeyboardInterrupt
            prepare_environment(trust_checkpoints="--trust-checkpoint" in arguments)
            module = importlib.import_module(COMMANDS[arguments[0]])
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return module.main(arguments[1:])
        if {"-h", "--help"} & set(arguments):
            print(USAGE.format(name=called_as()))
            return 0
        if arguments == ["--version"]:
            prepare_environment()
            print(versions())
            return 0
        command = parse(arguments)
        prepare_environment(trust_checkpoints=command.trusts_checkpoint())
        return run(command, grid)
    except InputError as error:
        return failed(error.problems, 2)
    finally:
        remove_private_settings()


def run(command: "Command", grid: "Grid | None" = None) -> int:
    """Load config -> check -> simulate -> print where the results are. Return the exit code."""
    from rich.console import Console

    from federated_yolo.checks.check_command import check_and_show
    from federated_yolo.checks.federation import checked, with_demo_data
    from federated_yolo.common.command_line import show_problems
    from federated_yolo.common.errors import FederationError
    from federated_yolo.config.loading import load_config
    from federated_yolo.runtime import terminal
    from federated_yolo.runtime.deployment import run_on, wait_for_sites
    from federated_yolo.runtime.simulation import simulate
    from federated_yolo.storage.run_dir import RunDir

    console = Console(file=sys.stdout, highlight=False)
    run_dir = None
    try:
        config = load_config(command.config_file, command.overrides)
        if command.only_checks:
            check_and_show(console, config)
            return 0
        if command.run_dir is not None:
            run_dir = RunDir.reopen(command.run_dir)
            # The run may have been moved, so its present folder counts.
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
    """The run or check that the arguments ask for.

    run_dir: Directory of the run to continue; None for a new run. only_checks: Whether to check the
    data and start nothing.
    """

    config_file: Path
    overrides: list[str]
    run_dir: Path | None = None
    only_checks: bool = False

    def trusts_checkpoint(self) -> bool:
        """Whether base models may have any content; the environment is prepared accordingly."""
        from federated_yolo.config.loading import trusts_checkpoint

        return trusts_checkpoint(self.config_file, self.overrides)


def parse(arguments: list[str]) -> Command:
    """Separate the config file, `resume=` and the overrides of a run. Raises InputError."""
    from federated_yolo.common.command_line import shipped_config
    from federated_yolo.common.errors import InputError
    from federated_yolo.common.files import at_home

    command, arguments = _split_command(arguments)
    values = dict(a.split("=", 1) for a in arguments if a.startswith(("resume=", "save_dir=")))
    files = [a for a in arguments if "=" not in a or "/" in a.partition("=")[0]]
    overrides = [a for a in arguments if a not in files and not a.startswith("resume=")]
    _refuse_misplaced(arguments, files)
    if len(files) > 1:
        raise InputError(
            f"found {len(files)} config files ({', '.join(files)}), expected one; overrides "
            "are key=value without spaces"
        )
    if command == "demo" and files:
        raise InputError(f"demo {files[0]}: the demo has a config of its own; leave the file out")
    resume = values.get("resume", "false")
    if command == "resume" and "resume" not in values:
        resume, files = files[0] if files else "true", []
    if resume.lower() in ("false", "null"):
        if command == "resume" or (values.get("resume") and not files and command != "demo"):
            raise InputError(
                f"resume={resume}: found no run to go on with and no config to start; expected "
                "resume RUN_DIR, or resume alone for the newest run"
            )
        config_file = Path(at_home(files[0])) if files else shipped_config("demo.yaml")
        return Command(config_file, overrides, only_checks=command == "check")
    if command == "check":
        raise InputError(f"resume={resume}: check looks at data before a run; leave it out")
    return _resumed(resume, files, overrides, values.get("save_dir"))


def _split_command(arguments: list[str]) -> tuple[str, list[str]]:
    """Return the command (by default "run") and the arguments after it."""
    from federated_yolo.common.errors import InputError, nearest

    first = arguments[0] if arguments else ""
    if first in RUN_COMMANDS:
        return first, arguments[1:]
    if first.isidentifier() and first not in OPTIONS and not Path(first).exists():
        raise InputError(
            f"'{first}': found neither a command nor a file"
            f"{nearest(first, [*RUN_COMMANDS, *COMMANDS])}; expected CONFIG.yaml, "
            "check CONFIG.yaml or key=value"
        )
    return "run", arguments


def _refuse_misplaced(arguments: list[str], files: list[str]) -> None:
    """Raise InputError for an argument that belongs elsewhere: a command, an option, nothing.

    files: The arguments that would be config files.
    """
    from federated_yolo.common.command_line import called_as
    from federated_yolo.common.errors import InputError

    for place, argument in enumerate(arguments, 1):
        if not argument.strip():
            raise InputError(
                f"argument {place} of {len(arguments)} is empty, expected CONFIG.yaml or "
                "key=value; leave it out, or see whether a variable of the shell is not set"
            )
        if OPTIONS.get(argument) and not Path(argument).exists():
            raise InputError(
                f"'{argument}': expected {called_as(OPTIONS[argument])}, without other arguments"
            )
        if argument.startswith("-"):
            bare = argument.lstrip("-").replace("-", "_")
            raise InputError(
                f"'{argument}': unknown option; settings are key=value, e.g. "
                f"{bare.partition('=')[0]}=..., and --help shows the commands"
            )
        is_command = argument in files and argument in (*RUN_COMMANDS, *COMMANDS)
        if is_command and not Path(argument).exists():
            raise InputError(
                f"'{argument}': found a command as argument {place}, expected it first: "
                f"{called_as(argument)} ..."
            )


def _resumed(resume: str, files: list[str], overrides: list[str], save_dir: str | None) -> Command:
    """Return the command that continues a run. resume: Its directory, or "true" for the newest."""
    from federated_yolo.common.errors import InputError
    from federated_yolo.common.files import at_home
    from federated_yolo.config.resume import resume_problems, trust_problems
    from federated_yolo.config.schema import DEFAULT_SAVE_DIR
    from federated_yolo.storage.run_dir import CONFIG_FILE, find_run

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
    run_dir = find_run(at_home(resume), Path(at_home(save_dir or DEFAULT_SAVE_DIR)))
    if problems := trust_problems(run_dir / CONFIG_FILE, overrides):
        raise InputError(problems)
    return Command(run_dir / CONFIG_FILE, overrides, run_dir)


def versions() -> str:
    """Return one line with the versions of this package and of the packages it depends on."""
    from importlib.metadata import version

    from federated_yolo import __version__
    from federated_yolo.protocol import handshake

    packages = {**handshake.versions(), "ray": version("ray")}
    return f"federated-yolo {__version__} ({', '.join(f'{n} {v}' for n, v in packages.items())})"


def start(function: Callable[[list[str]], int], arguments: list[str]) -> None:
    """Run a command and end this process with its exit code."""
    from federated_yolo.common.command_line import failed
    from federated_yolo.common.streams import flush_problem, make_streams_last

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a scheduler's signal acts as Ctrl-C
    make_streams_last()
    exit_code = _exit_code(function, arguments)
    if problem := flush_problem():
        exit_code = failed([problem], exit_code or 1)
    if exit_code in (1, 130):
        # Flower's threads may wait for ever for dead workers, and Python for those threads.
        from federated_yolo.common.processes import kill_children

        kill_children()
        os._exit(exit_code)
    sys.exit(exit_code)


def _exit_code(function: Callable[[list[str]], int], arguments: list[str]) -> int:
    """Run a command; return its exit code, also where its surroundings do not let it run."""
    from federated_yolo.common.command_line import failed, install_hint

    try:
        os.getcwd()  # noqa: PTH109
    except OSError as error:
        reason = error.strerror or error
        return failed([f"the working directory: {reason}; go on in another one (cd DIR)"], 2)
    try:
        return function(arguments)
    except KeyboardInterrupt:  # during the imports, or a second interrupt
        return failed(["interrupted"], 130)
    except SystemExit as ended:  # argparse, after --help
        return ended.code if isinstance(ended.code, int) else 0
    except ModuleNotFoundError as error:
        name = error.name or ""
        if not name or "." in name or name == "federated_yolo":
            raise
        line = f"the package '{name}' is not installed in this Python ({sys.executable}); "
        return failed([f"{line}install all that is needed: {install_hint()}"], 2)
    except OSError as error:  # such as a full disk behind stdout
        return failed([f"{error.filename or 'output'}: {error.strerror or error}"], 1)


def entry() -> None:
    """Start the command `federated-yolo` with this process's arguments."""
    start(main, sys.argv[1:])


def script(command: str) -> None:
    """Start one command for a script in utils/, with the script's arguments."""
    start(main, [command, *sys.argv[1:]])
