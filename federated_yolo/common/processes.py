"""Processes that end when they should: on an interrupt, and with their parent."""

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
