"""The process environment in which Ultralytics, Flower and Ray run: quiet, offline, private.

All three read environment variables while they are imported, so `prepare_environment` must be
called first. Ray's workers on this machine inherit the variables.
"""

import atexit
import json
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path

import psutil

# Whoever sets one of these before starting is obeyed.
DEFAULTS = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # else Ray warns that it will stop hiding GPUs
    # A worker's last call races with Ray's own end, which would put a line on stderr now and then.
    "RAY_enable_output_error_log_if_still_retry": "0",
    "RAY_worker_niceness": "0",  # Ray 2.55's is 15: a run would yield to all else on the machine
    "YOLO_OFFLINE": "1",  # no look-up of weights, fonts or package updates
    "YOLO_AUTOINSTALL": "0",  # no pip install behind the user's back
    "YOLO_VERBOSE": "false",
    "KMP_WARNINGS": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "WANDB_ERROR_REPORTING": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "4",  # MLflow's 7 let a server that is gone hold up
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",  # a round for many minutes
}
# Ultralytics' settings that reach the network or other packages.
OTHER_TORCHVISION = (
    "yolo train, val and predict fail in this environment: its torchvision is built for another "
    "PyTorch; install the one that goes with it, from where that came from"
)
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


def prepare_environment(*, trust_checkpoints: bool = False) -> None:
    """Set the variables above and give Ultralytics a private settings folder. Idempotent.

    trust_checkpoints: a .pt is a pickle, which can run any code while it is loaded, and a model
    YAML is partly evaluated; Ultralytics loads known classes only and evaluates nothing unless this
    is true. A variable in the user's shell does not decide it.

    The user's own Ultralytics settings keep their folders (`datasets_dir`, ...); the copy only
    switches off what would reach the network. Fonts are taken from Matplotlib, because
    Ultralytics would download one to draw class names.
    """
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    os.environ.pop("RAY_ADDRESS", None)  # the setting ray.address says which Ray
    os.environ["ULTRALYTICS_SAFE_LOAD"] = "0" if trust_checkpoints else "1"
    if os.environ.get("FEDERATED_YOLO_CONFIG") == os.environ.get("YOLO_CONFIG_DIR", ""):
        return
    folder = Path(tempfile.mkdtemp(prefix=f"federated-yolo-{os.getpid()}-"))
    atexit.register(remove_private_settings)  # of the processes that Flower starts, too
    os.environ["FEDERATED_YOLO_USER_SETTINGS"] = str(_user_settings_file())
    _write_settings(folder / "Ultralytics", user_settings())
    os.environ["YOLO_CONFIG_DIR"] = os.environ["FEDERATED_YOLO_CONFIG"] = str(folder)


def worker_variables() -> dict[str, str]:
    """What `prepare_environment` has set for workers that do not inherit it; but for folders."""
    names = (*DEFAULTS, "ULTRALYTICS_SAFE_LOAD")
    return {name: os.environ[name] for name in names}


def num_cpus() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def remove_private_settings() -> None:
    """Delete the folder that `prepare_environment` made, if this process made it."""
    folder = os.environ.get("FEDERATED_YOLO_CONFIG", "")
    if f"federated-yolo-{os.getpid()}-" in folder:
        del os.environ["FEDERATED_YOLO_CONFIG"], os.environ["YOLO_CONFIG_DIR"]
        del os.environ["FEDERATED_YOLO_USER_SETTINGS"]
        shutil.rmtree(folder, ignore_errors=True)


def exit_on_interrupt() -> None:
    """End at Ctrl-C without a word; for as long as the imports of a script take."""

    def leave(*_: object) -> None:
        remove_private_settings()
        os._exit(130)

    signal.signal(signal.SIGINT, leave)


def kill_children() -> None:
    """Kill what Ray has started for this process; some of it would outlive it by a minute."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()


# unstable: flwr.superlink.cli.flower_superlink says '--parent-pid'
# unstable: flwr.supercore.app_utils.start_parent_process_monitor says 'raise_signal'
@cache
def end_with_parent(look_s: float = 1.0, grace_s: float = 10.0) -> None:
    """End a process of Flower's as Ctrl-C does once the one that started it has gone.

    Where it is started with --parent-pid, Flower 1.41 means to do this itself, but raises the
    signal in a thread of its own, which does not wake a main thread that waits for other threads: a
    ServerApp whose SuperLink was killed while arrays were on their way would stay for ever, and
    hold its run. It has `grace_s` before.
    """
    if "--parent-pid" not in sys.argv or not hasattr(signal, "pthread_kill"):  # not on Windows
        return
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(look_s)
        time.sleep(grace_s)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=watch, name="end_with_parent", daemon=True).start()


def set_verbosity(*, verbose: bool) -> None:
    """Show the log lines of Ultralytics, Flower and Ray, or keep them off the screen.

    Failures are shown by this project either way. Call it before workers start: they inherit it.
    """
    if verbose:
        os.environ["YOLO_VERBOSE"] = "true"
        logging.getLogger("ultralytics").setLevel(logging.INFO)
        return
    for name in ("flwr", "ray"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


@contextmanager
def quiet_stdout(*, verbose: bool) -> Iterator[None]:
    """Drop what Ray prints from its own threads, such as its news of a worker that died.

    Ray 2.55 has no switch for it: `log_to_driver` is about the workers' output. A rich Console made
    before with `file=sys.stdout` goes on printing.
    """
    if verbose:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield


@cache
def ensure_torchvision_nms() -> bool:
    """Make `import torchvision` work where its compiled operators do not fit this PyTorch.

    torchvision's Linux wheels on PyPI are CUDA builds. Beside a CPU build of PyTorch (seen with
    torchvision 0.21.0 to 0.29.1 and torch 2.13.0+cpu) its library does not load and the import ends
    in "operator torchvision::nms does not exist". Ultralytics imports it in every validator and
    uses that one operator, for which that of utils/nms.py takes the place.

    Only after a failed import, because a library that does load must find no operators of its name:
    it would abort the process.

    Returns whether torchvision works by itself (or is not installed). Raises InputError where it
    cannot be imported for another reason.
    """
    first = _torchvision_trouble()
    if first is None:
        return True
    import torch

    trouble: Exception | None = first
    if not hasattr(torch.ops.torchvision, "nms"):  # the library of its operators did not load
        _declare_nms()
        with warnings.catch_warnings():  # of its other library, which reads images, for nobody here
            warnings.simplefilter("ignore")
            trouble = _torchvision_trouble()
    if trouble is None:
        # unstable: torchvision.extension says 'def _has_ops'
        import torchvision.extension

        torchvision.extension._has_ops = lambda: True
        return False
    from utils.config import InputError

    raise InputError(
        f"torchvision {version('torchvision')} cannot be imported beside torch {version('torch')}"
        f": {type(trouble).__name__}: {trouble}; install the torchvision that belongs to it"
    ) from trouble


def _torchvision_trouble() -> Exception | None:
    """What importing torchvision ends in; None if it can be imported, or is not installed.

    After a failure its submodules are gone, too: Python takes back only the module that raised, and
    a second import would find the others without their package. In torch nothing is left, since
    the first operator that torchvision registers anything for is the one that is missing.
    """
    try:
        import torchvision  # noqa: F401
    except Exception as error:  # code of another package, built for another PyTorch
        if isinstance(error, ModuleNotFoundError) and error.name == "torchvision":
            return None
        for name in [x for x in sys.modules if x.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        return error
    return None


def _declare_nms() -> None:
    import torch

    from utils.nms import nms

    schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
    for operator in ("nms", "qnms"):  # the import only wants both to be declared
        torch.library.define(f"torchvision::{operator}", schema)
    torch.library.impl("torchvision::nms", "CPU")(nms)


# unstable: ultralytics.utils says 'USER_CONFIG_DIR / "settings.json"'
def _user_settings_file() -> Path:
    """Where the user's own Ultralytics settings are, before they have a private folder."""
    config_home = os.environ.get("XDG_CONFIG_HOME", str(Path.home() / ".config"))
    parent = Path(os.environ.get("YOLO_CONFIG_DIR", config_home))
    return parent / "Ultralytics" / "settings.json"


def user_settings() -> dict[str, object]:
    """The user's own Ultralytics settings as they are on disk, not those of the private folder."""
    try:
        return json.loads(Path(os.environ["FEDERATED_YOLO_USER_SETTINGS"]).read_text())
    except (OSError, ValueError):  # no settings yet: Ultralytics' defaults are as good
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
