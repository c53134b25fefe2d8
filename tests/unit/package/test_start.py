"""A command ends as its work does, whatever its output, folder and packages are."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT, clean_environment, finished

START = "from federated_yolo.cli import start\n"
PRINTS = f"{START}start(lambda _: print('one\\ntwo …') or CODE, [])\n"
GOES_ON = """
import os
from federated_yolo.cli import start

def work(_):
    print("round 1", flush=True)
    os.read(0, 1)  # until the reader of stdout has ended
    for n in range(2, 9):
        print("round", n, flush=True)
    open("done", "w").close()
    return 0

start(work, [])
"""


def shell(line: str, code: str, folder: Path, **variables: str) -> tuple[int, str, str]:
    """The exit code, stdout and stderr of a line of shell, in which $PY runs this code."""
    (folder / "code.py").write_text(code)
    done = finished(
        ["bash", "-o", "pipefail", "-c", line],
        cwd=folder,
        timeout_s=60,
        PYTHONPATH=str(ROOT),
        PY=f"{sys.executable} {folder}/code.py",
        **variables,
    )
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("code", [0, 2, 1])
@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", "<&- >&- 2>&-"])
def test_a_stream_that_is_closed_does_not_change_how_a_command_ends(
    closed: str, code: int, tmp_path: Path
) -> None:
    status, _, errors = shell(f"$PY {closed}", PRINTS.replace("CODE", str(code)), tmp_path)
    assert (status, errors) == (code, "")


def test_a_file_that_is_opened_later_does_not_become_the_closed_output(tmp_path: Path) -> None:
    code = f"{START}\ndef work(_):\n    file = open('kept', 'w')\n    print('x', flush=True)\n"
    code += "    return 0\n\nstart(work, [])\n"
    assert shell("$PY >&-", code, tmp_path) == (0, "", "")
    assert (tmp_path / "kept").read_text() == ""


@pytest.mark.parametrize(
    "variables",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_letters_that_the_output_lacks_are_question_marks(
    variables: dict[str, str], tmp_path: Path
) -> None:
    status, output, errors = shell("$PY", PRINTS.replace("CODE", "0"), tmp_path, **variables)
    assert (status, output, errors) == (0, "one\ntwo ?\n", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_run_goes_on_when_nobody_reads_its_output_any_more(
    unbuffered: str, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", GOES_ON],
        cwd=tmp_path,
        env={**clean_environment(), "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == b"round 1\n"
        process.stdout.close()
        process.stdin.close()
        assert (process.stderr.read(), process.wait(60)) == (b"", 0)
    assert (tmp_path / "done").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="writes to /dev/full")
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_an_output_on_a_full_disk_is_one_line(unbuffered: str, tmp_path: Path) -> None:
    code = PRINTS.replace("CODE", "0")
    status, _, errors = shell("$PY > /dev/full", code, tmp_path, PYTHONUNBUFFERED=unbuffered)
    assert status == 1
    assert errors.startswith("error: ")
    assert "No space left on device" in errors
    assert errors.count("\n") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="a folder in use cannot be removed there")
@pytest.mark.parametrize("arguments", ["", "--help", "check c.yaml", "report runs"])
def test_a_working_directory_that_was_removed_is_one_line(arguments: str, tmp_path: Path) -> None:
    code = "from federated_yolo.cli import entry; entry()"
    line = f"mkdir gone; cd gone; rmdir ../gone; $PY {arguments}"
    status, output, errors = shell(line, code, tmp_path)
    assert (status, output) == (2, "")
    assert errors.startswith("error: the working directory: No such file or directory; ")
    assert errors.count("\n") == 1


def test_a_package_that_is_not_installed_is_named_in_one_line(tmp_path: Path) -> None:
    code = "import sys; sys.modules['psutil'] = None\nfrom federated_yolo.cli import entry; entry()"
    status, output, errors = shell("$PY check c.yaml", code, tmp_path)
    assert (status, output) == (2, "")
    assert errors.startswith("error: the package 'psutil' is not installed in this Python (")
    assert errors.endswith(f"; install all that is needed: pip install -e {ROOT}\n")


def test_a_module_of_ours_that_is_missing_is_our_fault_and_has_a_traceback(tmp_path: Path) -> None:
    code = f"{START}start(lambda _: __import__('federated_yolo.nothing'), [])"
    status, _, errors = shell("$PY", code, tmp_path)
    assert status == 1
    assert "Traceback" in errors
    assert os.fspath(ROOT) in errors
