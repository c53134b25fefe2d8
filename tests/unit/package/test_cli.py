"""What the command says of itself."""

import sys
from pathlib import Path

import pytest
from processes import python

from federated_yolo.common.command_line import called_as


def test_the_version_is_told_whichever_distribution_ultralytics_came_in(tmp_path: Path) -> None:
    code = (
        "import importlib.metadata as metadata\n"
        "original = metadata.version\n"
        "def version(name):\n"
        "    if name.startswith('ultralytics'):\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return original(name)\n"
        "metadata.version = version\n"
        "from federated_yolo.cli import main\n"
        "raise SystemExit(main(['--version']))\n"
    )
    done = python(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("federated-yolo ")
    assert "ultralytics 8." in done.stdout


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("/venv/bin/federated-yolo", "federated-yolo report"),
        ("federated.py", "python federated.py report"),
        ("/x/federated_yolo/__main__.py", "python -m federated_yolo report"),
        ("/x/utils/report.py", "python utils/report.py"),
    ],
)
def test_help_shows_what_was_typed(
    script: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    assert called_as("report") == expected
