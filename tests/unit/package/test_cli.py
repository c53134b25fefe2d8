"""What the command says of itself."""

import ast
import re
import sys
from pathlib import Path

import pytest
from processes import ROOT, python

from federated_yolo.cli import COMMANDS, RUN_COMMANDS, USAGE, parse
from federated_yolo.common import command_line
from federated_yolo.common.command_line import called_as, install_hint
from federated_yolo.common.errors import InputError
from federated_yolo.runtime import certificates


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
        ("/x y/federated.py", "python '/x y/federated.py' report"),
        ("utils/report.py", "python utils/report.py"),
        ("utils/partition.py", "python federated.py report"),
        ("sweep.py", "federated-yolo report"),
        ("utils/of_mine.py", "federated-yolo report"),
    ],
)
def test_help_shows_what_was_typed(
    script: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    assert called_as("report") == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("resume false", "resume=false: found no run to go on with and no config to start; "),
        ("resume null", "resume=null: found no run to go on with and no config to start; "),
        ("resume resume=False", "resume=False: found no run to go on with"),
        ("resume c.yaml resume=false", "resume=false: found no run to go on with"),
        ("resume=false", "resume=false: found no run to go on with"),
        ("num_rounds=1 resume=null", "resume=null: found no run to go on with"),
        ("check resume=false", "resume=false: found no run to go on with"),
        (
            "num_rounds=1 check c.yaml",
            "'check': found a command as argument 2, expected it first: ",
        ),
        ("c.yaml report", "'report': found a command as argument 2, expected it first: "),
        ("num_rounds=1 demo", "'demo': found a command as argument 2, expected it first: "),
        ("help", "'help': expected federated-yolo --help, without other arguments"),
        ("version", "'version': expected federated-yolo --version, without other arguments"),
        ("-V", "'-V': expected federated-yolo --version, without other arguments"),
        ("--version x", "'--version': expected federated-yolo --version, without other argu"),
        ("--verbose", "'--verbose': unknown option; settings are key=value, e.g. verbose=..., and"),
        ("c.yaml EMPTY", "argument 2 of 2 is empty, expected CONFIG.yaml or key=value; leave it"),
        ("check EMPTY", "argument 1 of 1 is empty, expected CONFIG.yaml or key=value; leave it"),
    ],
)
def test_what_starts_no_run_says_what_would(
    line: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["federated-yolo"])
    with pytest.raises(InputError, match=f"^{re.escape(expected)}"):
        parse([word.replace("EMPTY", "") for word in line.split()])


def test_a_config_that_is_not_to_resume_starts_a_run() -> None:
    """As resume=false in a line that is kept for both."""
    for words in (["c.yaml", "resume=false"], ["resume=null", "r.yaml"], ["demo", "resume=false"]):
        command = parse(words)
        assert command.run_dir is None
        assert command.overrides == []


def test_files_named_as_commands_and_options_are_configs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("help", "report"):
        Path(name).touch()
        assert parse(["num_rounds=1", name]).config_file == Path(name)


def test_help_tells_of_every_command_and_every_command_of_its_options(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for command in (*RUN_COMMANDS[1:], *COMMANDS):
        assert f"    {{name}} {command} " in USAGE
    with pytest.raises(SystemExit):
        certificates.main(["--help"])
    options = capsys.readouterr().out.split("options:")[1]
    assert "for which server.pem is valid" in " ".join(options.split())
    assert "get a key pair each" in " ".join(options.split())


def test_an_extra_is_installed_where_this_package_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert install_hint("onnx") == 'pip install -e ".[onnx]"'
    monkeypatch.chdir(tmp_path)
    assert install_hint("onnx") == f'pip install -e "{ROOT}[onnx]"'
    assert install_hint() == f"pip install -e {ROOT}"
    installed = tmp_path / "site-packages" / "federated_yolo" / "common" / "command_line.py"
    monkeypatch.setattr(command_line, "__file__", str(installed))
    assert install_hint("onnx") == 'pip install "federated-yolo[onnx]"'
    assert install_hint() == "pip install federated-yolo"


def test_what_users_read_names_no_script_that_only_a_clone_has() -> None:
    """Docstrings may: they are for whoever reads the clone; called_as says what is there."""
    for path in (ROOT / "federated_yolo").rglob("*.py"):
        tree = ast.parse(path.read_text())
        told = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
        told = [text for text in told if isinstance(text, str)]
        docs = {
            node.body[0].value.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and isinstance(node.body[0], ast.Expr)
            and isinstance(node.body[0].value, ast.Constant)
        }
        for text in set(told) - docs:
            named = re.search(r"python federated\.py|python utils/|pip install -e \S*\[\w", text)
            assert not named, f"{path.name}: {text}"
    page = (ROOT / "federated_yolo" / "reporting" / "report.html.md").read_text()
    assert "utils/" not in page
