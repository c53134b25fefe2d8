"""Ends processes when they should end: on an interrupt, and after their parent process."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from functools import cache

import psutil

from federated_yolo.common.environment import remove_private_settings


def exit_on_interrupt() -> None:
    """Let Ctrl-C end the process silently; meant for the time in which a script imports."""

    def leave(*_: object) -> None:
        remove_private_settings()
        os._exit(130)

    signal.signal(signal.SIGINT, leave)


def kill_children() -> None:
    """Kill all child processes; some that Ray started would outlive this one by a minute."""
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()


# unstable: flwr.superlink.cli.flower_superlink says '--parent-pid'
# unstable: flwr.supercore.app_utils.start_parent_process_monitor says 'raise_signal'
@cache
def end_with_parent(look_s: float = 1.0, grace_s: float = 10.0) -> None:
    """End a process that Flower started, as Ctrl-C does, once its parent process has ended.

    With --parent-pid, Flower 1.41 is meant to do this itself, but raises the signal in a separate
    thread, which does not wake a main thread that waits for other threads: a ServerApp whose
    SuperLink was killed during a transfer of arrays would stay forever and block its run. Flower's
    own attempt gets `grace_s` first.
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
