"""What common/environment.py does to a process: tried in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, finished, python

# Flower's own watch is in it too: its signal ends nothing here before the other one comes.
CHILD = """
import os, signal, sys, threading, time
from federated_yolo.common.processes import end_with_parent

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
    code += (
        "from federated_yolo.common.environment import prepare_environment; prepare_environment()\n"
    )
    code += "import os; print(len(os.listdir(tempfile.tempdir)))"
    done = python(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr
    assert not list(tmp_path.iterdir())


def test_folders_that_killed_processes_left_behind_are_removed(tmp_path: Path) -> None:
    """Not those of a process that lives, of another container, or of other programs."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as lives:
        kept = [f"federated-yolo-{lives.pid}-NS-x", f"federated-yolo-{ended.pid}-1-x"]
        kept += ["federated-yolo-wheel-NS-x", f"federated-yolo-{ended.pid}", f"other-{ended.pid}"]
        code = f"""
import os, tempfile
tempfile.tempdir = {str(tmp_path)!r}
from federated_yolo.common import environment
for name in {[*kept, f"federated-yolo-{ended.pid}-NS-x"]!r}:
    os.makedirs(name.replace("NS", str(environment._namespace())) + "/Ultralytics")
before = set(os.listdir())
environment.prepare_environment()
print([name.split("-")[2] for name in before - set(os.listdir())])
"""
        done = python(code, tmp_path)
    assert (done.returncode, done.stdout) == (0, f"['{ended.pid}']\n"), done.stderr
    assert len(list(tmp_path.iterdir())) == len(kept)


@pytest.mark.parametrize("niceness", ["", "7"])
def test_workers_are_as_nice_as_the_user_says_and_else_not_at_all(
    niceness: str, tmp_path: Path
) -> None:
    code = "from federated_yolo.common.environment import prepare_environment, worker_variables\n"
    code += "prepare_environment()\n"
    code += "import os, ray\n"
    code += "ray.init('local', num_cpus=1, include_dashboard=False, log_to_driver=False)\n"
    code += "worker = ray.get(ray.remote(lambda: os.nice(0)).remote())\n"
    code += "print(worker - os.nice(0), worker_variables()['RAY_worker_niceness'])\n"
    variables = {"RAY_worker_niceness": niceness} if niceness else {}
    done = finished(
        [sys.executable, "-c", code], cwd=tmp_path, timeout_s=120, PYTHONPATH=str(ROOT), **variables
    )
    expected = niceness or "0"
    assert (done.returncode, done.stdout) == (0, f"{expected} {expected}\n"), done.stderr


TORCHVISION_TEST = """
import sys
from federated_yolo.common.torchvision_nms import ensure_torchvision_nms

print(ensure_torchvision_nms())
import torch, torchvision

boxes = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]], dtype=torch.float32)
print(torch.ops.torchvision.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5).tolist())
"""
# Packages that do as torchvision does when it is imported, in all that matters here.
EXTENSION = """
import os
import torch

def load():  # as the real library, which aborts the process
    if hasattr(torch.ops.torchvision, "nms"):
        os.abort()
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor d, Tensor s, float t) -> Tensor")
    torch.library.impl("torchvision::nms", "CPU")(lambda d, s, t: torch.tensor([8, 9]))

def _has_ops():
    return FITS

if FITS:
    load()
"""
META = """
import torch
import torchvision.extension

torchvision.extension._has_ops()
for name in ("nms", "qnms"):
    torch.library.register_fake(f"torchvision::{name}")(lambda d, s, t: d.new_empty(0))
"""


def _torchvision(folder: Path, *, fits: bool, more: str = "") -> None:
    package = folder / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text("from torchvision import extension, _meta\n" + more)
    (package / "extension.py").write_text(EXTENSION.replace("FITS", str(fits)))
    (package / "_meta.py").write_text(META)


def _tried(code: str, folder: Path) -> tuple[int, list[str], str]:
    """Code in a process that finds a package in this folder before what is installed."""
    code = f"import sys; sys.path.insert(0, {str(folder)!r})\n{code}"
    done = python(code, folder)
    return done.returncode, done.stdout.splitlines(), done.stderr


def test_a_torchvision_that_fits_is_used_whatever_its_files_are_called(tmp_path: Path) -> None:
    """That of 0.29 has no _C.so; operators of ours beside its own abort the process."""
    _torchvision(tmp_path, fits=True)
    assert _tried(TORCHVISION_TEST, tmp_path)[:2] == (0, ["True", "[8, 9]"])


def test_a_torchvision_that_does_not_fit_is_stood_in_for(tmp_path: Path) -> None:
    _torchvision(tmp_path, fits=False)
    code, lines, errors = _tried(
        TORCHVISION_TEST + "print(torchvision.extension._has_ops(), torchvision._meta)", tmp_path
    )
    assert (code, lines[:2]) == (0, ["False", "[0, 2]"]), errors
    assert lines[2].startswith("True <module 'torchvision._meta'")


def test_an_import_of_torchvision_that_failed_before_is_no_harm(tmp_path: Path) -> None:
    """It leaves submodules without their package."""
    _torchvision(tmp_path, fits=False)
    code = "try:\n    import torchvision\nexcept RuntimeError as error:\n    print(error)\n"
    status, lines, errors = _tried(code + TORCHVISION_TEST, tmp_path)
    expected = ["operator torchvision::nms does not exist", "False", "[0, 2]"]
    assert (status, lines) == (0, expected), errors


@pytest.mark.parametrize("fits", [True, False])
def test_a_torchvision_that_is_broken_otherwise_is_told_in_one_line(
    fits: bool, tmp_path: Path
) -> None:
    _torchvision(tmp_path, fits=fits, more="raise ImportError('no pictures')\n")
    code = "from federated_yolo.common.torchvision_nms import ensure_torchvision_nms\n"
    code += "try:\n    ensure_torchvision_nms()\nexcept ValueError as error:\n    print(error)\n"
    status, [line], errors = _tried(code, tmp_path)
    assert status == 0, errors
    assert line.startswith("torchvision ")
    assert " cannot be imported beside torch " in line
    assert line.endswith(": ImportError: no pictures; install the torchvision that belongs to it")


def test_no_torchvision_is_left_as_it_is(tmp_path: Path) -> None:
    code = "sys.modules['torchvision'] = None\n"
    code += "from federated_yolo.common.torchvision_nms import ensure_torchvision_nms\n"
    code += "print(ensure_torchvision_nms())\n"
    assert _tried(code, tmp_path)[:2] == (0, ["True"])


def test_the_installed_torchvision_finds_overlapping_boxes(tmp_path: Path) -> None:
    status, lines, errors = _tried(TORCHVISION_TEST, tmp_path)
    assert (status, lines[1:]) == (0, ["[0, 2]"]), errors
