"""The process environment in which Ultralytics, Flower and Ray run: quiet, offline, private.

All three read environment variables while they are imported, so `prepare_environment` must be
called first. Ray's workers on this machine inherit the variables.
"""

import atexit
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path

# A variable that is already set keeps its value.
DEFAULTS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns that it will stop hiding GPUs
    # A worker's last call races with Ray's shutdown, which would sometimes print a line to stderr.
    "RAY_enable_output_error_log_if_still_retry": "0",
    "RAY_worker_niceness": "0",  # Ray 2.55 has 15: a run would yield to all other processes
    "YOLO_OFFLINE": "1",  # no look-up of weights, fonts or package updates
    "YOLO_AUTOINSTALL": "0",  # no pip install behind the user's back
    "YOLO_VERBOSE": "false",
    "KMP_WARNINGS": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    # With MLflow's 7 retries, an unreachable server delays a round by many minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
}

# Ultralytics' settings that reach the network or other packages.
SETTINGS_OFF = (
    "sync",
    "clearml",
    "comet",
    "dvc",
    "mlflow",
    "raytune",
    "tensorboard",
    "wandb",
    "vscode_msg",
    "openvino_msg",
)

LOGGERS = ("ultralytics", "flwr", "ray")


def prepare_environment(*, trust_checkpoints: bool = False) -> None:
    """Set the variables above and give Ultralytics a private settings folder. Idempotent.

    trust_checkpoints: Whether Ultralytics may load any class and evaluate code. A .pt is a pickle,
    which can run any code while it is loaded, and a model YAML is partly evaluated; unless this is
    true, Ultralytics loads known classes only and evaluates nothing. A variable in the user's
    shell has no influence on it.

    The private copy of the user's Ultralytics settings keeps their folders (`datasets_dir`, ...)
    and only switches off what would reach the network. Fonts are copied from Matplotlib, because
    Ultralytics would download one to draw class names.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.pop("RAY_ADDRESS", None)  # only the setting ray.address selects a cluster
    os.environ["ULTRALYTICS_SAFE_LOAD"] = "0" if trust_checkpoints else "1"
    if _is_prepared():
        return
    _remove_left_behind()
    folder = Path(tempfile.mkdtemp(prefix=f"federated-yolo-{os.getpid()}-{_namespace()}-"))
    atexit.register(remove_private_settings)  # also in processes that Flower starts
    os.environ["FEDERATED_YOLO_USER_SETTINGS"] = str(_user_settings_file())
    _write_settings(folder / "Ultralytics", user_settings())
    os.environ["YOLO_CONFIG_DIR"] = os.environ["FEDERATED_YOLO_CONFIG"] = str(folder)


def prepare_for_import() -> None:
    """Prepare the environment if Ultralytics has yet to be imported and nothing was prepared.

    What a config has decided with `trust_checkpoint`, here or for the workers, stays.
    """
    if "ultralytics" not in sys.modules and not _is_prepared():
        prepare_environment()


def _is_prepared() -> bool:
    """Whether Ultralytics' settings folder is one of ours, made here or by the parent process."""
    return os.environ.get("FEDERATED_YOLO_CONFIG") == os.environ.get("YOLO_CONFIG_DIR", "")


def worker_variables() -> dict[str, str]:
    """Return the variables, except folders, for workers that do not inherit the environment."""
    names = (*DEFAULTS, "ULTRALYTICS_SAFE_LOAD")
    return {name: os.environ[name] for name in names}


def num_cpus() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def remove_private_settings() -> None:
    """Delete the folder that `prepare_environment` made, if this process made it."""
    folder = os.environ.get("FEDERATED_YOLO_CONFIG", "")
    if f"federated-yolo-{os.getpid()}-" in folder:
        del os.environ["FEDERATED_YOLO_CONFIG"], os.environ["YOLO_CONFIG_DIR"]
        del os.environ["FEDERATED_YOLO_USER_SETTINGS"]
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left_behind() -> None:
    """Delete the folders of this user's processes that were killed and could not do it.

    A process ID says nothing of a process in another container that has the same temporary folder,
    so only folders from this namespace of process IDs are looked at.
    """
    import psutil

    for folder in Path(tempfile.gettempdir()).glob(f"federated-yolo-*-{_namespace()}-*"):
        pid = folder.name.split("-")[2]
        with suppress(OSError):  # another process is removing it too
            is_own = not hasattr(os, "getuid") or folder.lstat().st_uid == os.getuid()
            if is_own and pid.isdecimal() and not psutil.pid_exists(int(pid)):
                shutil.rmtree(folder)


def _namespace() -> int:
    """Return the number of this process's namespace of process IDs, 0 where there are none."""
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def set_verbosity(*, verbose: bool) -> None:
    """Show or hide the log lines of Ultralytics, Flower and Ray.

    This project shows failures in both cases. Call it before workers start: they inherit it.
    """
    if verbose:
        os.environ["YOLO_VERBOSE"] = "true"
        for name in LOGGERS:
            logging.getLogger(name).setLevel(logging.INFO)
        return
    for name in ("flwr", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def restored_verbosity() -> Iterator[None]:
    """Restore what `set_verbosity` and `ray.init` change, so that it is one run's alone."""
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    verbose = os.environ["YOLO_VERBOSE"]
    try:
        yield
    finally:
        os.environ["YOLO_VERBOSE"] = verbose
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


@contextmanager
def quiet_stdout(*, verbose: bool) -> Iterator[None]:
    """Discard what Ray prints from its own threads, such as messages about a worker that died.

    Ray 2.55 has no switch for it: `log_to_driver` only affects the workers' output. A rich Console
    that was created earlier with `file=sys.stdout` still prints.
    """
    if verbose:
        yield
        return
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


# unstable: ultralytics.utils says 'USER_CONFIG_DIR / "settings.json"'
def _user_settings_file() -> Path:
    """Return the path of the user's own Ultralytics settings, before the private folder is set."""
    config_home = os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config"))
    parent = Path(os.environ.get("YOLO_CONFIG_DIR", config_home))
    return parent / "Ultralytics" / "settings.json"


def user_settings() -> dict[str, object]:
    """Return the user's own Ultralytics settings from disk, not the private copy."""
    try:
        return json.loads(Path(os.environ["FEDERATED_YOLO_USER_SETTINGS"]).read_text())
    except (OSError, ValueError):  # no settings yet: Ultralytics' defaults apply
        return {}


# unstable: ultralytics.utils.SettingsManager.__init__ says '"settings_version": version'
def _write_settings(folder: Path, user: dict[str, object]) -> None:
    import matplotlib

    folder.mkdir(parents=True)
    font = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        shutil.copyfile(font, folder / name)
    settings: dict[str, object] = {
        "settings_version": "0.0.8",
        "datasets_dir": str(Path.cwd() / "datasets"),
        "weights_dir": str(Path.cwd() / "weights"),
        "runs_dir": str(Path.cwd() / "runs"),
        "uuid": "0" * 64,
        "api_key": "",
        "openai_api_key": "",
    }
    settings.update((key, user[key]) for key in settings if key in user)
    settings.update((key, False) for key in SETTINGS_OFF)
    (folder / "settings.json").write_text(json.dumps(settings, indent=2))
