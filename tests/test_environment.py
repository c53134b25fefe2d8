"""What utils/environment.py does to a process: tried in processes of their own."""

import sys
from pathlib import Path

import pytest
from processes import python

# Flower's own watch is in it too: its signal ends nothing here before the other one comes.
CHILD = """
import os, signal, sys, threading, time
from utils.environment import end_with_parent

def watch_of_flower():
    while os.getppid() == parent:
        time.sleep(0.1)
    print("signal", flush=True)
    signal.raise_signal(signal.SIGINT)

def end(*_):
    print("end", flush=True)
    os._exit(0)

parent = os.getppid()
signal.signal(signal.SIGINT, end)
end_with_parent(look_s=0.1, grace_s=1.0)
threading.Thread(target=watch_of_flower, daemon=True).start()
threading.Timer(30, os._exit, (1,)).start()  # else a failure stays behind
print("waits", file=sys.stderr, flush=True)
of_another_thread = threading.Lock()
of_another_thread.acquire()
of_another_thread.acquire()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to a thread")
def test_a_process_that_waits_for_a_thread_ends_with_the_one_that_started_it(
    tmp_path: Path,
) -> None:
    """As a ServerApp whose SuperLink is killed while arrays are on their way."""
    code = f"""
import subprocess, sys
command = [sys.executable, "-c", {CHILD!r}, "--parent-pid", "of the test"]
child = subprocess.Popen(command, stderr=subprocess.PIPE)
assert child.stderr.readline() == b"waits\\n"
"""
    done = python(code, tmp_path)  # until the child has ended, since it has the same stdout
    assert (done.returncode, done.stdout) == (0, "signal\nend\n"), done.stderr


def test_a_process_leaves_no_private_settings_behind(tmp_path: Path) -> None:
    """Flower starts one for each message to a SuperNode."""
    code = f"import tempfile; tempfile.tempdir = {str(tmp_path)!r}\n"
    code += "from utils.environment import prepare_environment; prepare_environment()\n"
    code += "import os; print(len(os.listdir(tempfile.tempdir)))"
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert not list(tmp_path.iterdir())
