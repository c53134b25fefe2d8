"""Try a wheel where nothing else of the project is: in an environment of its own, an empty folder.

    python .ci/try_wheel.py dist/federated_yolo-0.1.0-py3-none-any.whl

What the wheel needs is not installed again: the environment also sees the packages of the Python
that runs this. Ends with an error where the wheel lacks a file, has one too many, or its command
cannot run the demo; also where the sdist beside it lacks a file that its README points at.
"""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
import zipfile
from pathlib import Path

NEEDED = (
    "federated_yolo/py.typed",
    "federated_yolo/configs/demo.yaml",
    "federated_yolo/configs/example.yaml",
    "federated_yolo/reporting/report.html.md",
    "federated_yolo/consortium/templates/nginx.conf.md",
)


def content_problems(wheel: Path) -> list[str]:
    """Say which files a wheel lacks, and what it has beside the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    strange = {top for top in tops if not re.fullmatch(r"federated_yolo(-.*\.dist-info)?", top)}
    return [f"{wheel.name}: {name} is missing" for name in NEEDED if name not in names] + [
        f"{wheel.name}: has {top} beside federated_yolo" for top in sorted(strange)
    ]


def source_problems(sdist: Path) -> list[str]:
    """Say which files of its own README an sdist lacks: those linked to, and scripts to start."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        [readme] = [name for name in archive.getnames() if re.fullmatch("[^/]+/README.md", name)]
        file = archive.extractfile(readme)
        assert file is not None
        text = file.read().decode()
    pointed = set(re.findall(r"\]\(([^)#\s:]+)[)#]", text))
    pointed |= set(re.findall(r"\bpython ((?:\w+/)*\w+\.py)", text))
    return [f"{sdist.name}: {name} is missing" for name in sorted(pointed - names)]


def try_wheel(wheel: Path) -> None:
    """Install the wheel, and run its command from an empty folder."""
    with tempfile.TemporaryDirectory(prefix="federated-yolo-wheel-") as name:
        environment, folder = Path(name) / "venv", Path(name) / "empty"
        folder.mkdir()
        venv.create(environment, with_pip=False)
        site = next(environment.glob("lib/python*/site-packages"))
        # As one plain line: .pth files there, such as that of an editable install, are not read.
        (site / "installed.pth").write_text(sysconfig.get_path("purelib") + "\n")
        run([sys.executable, "-m", "pip", "--python", str(environment), "install", "--quiet",
             "--no-deps", "--no-index", str(wheel)], folder)  # fmt: skip
        command = str(environment / "bin" / "federated-yolo")
        run([command, "--version"], folder)
        run([command, "demo", "num_rounds=1"], folder)
        if not (folder / "runs" / "federated" / "demo" / "report.html").is_file():
            sys.exit(f"{wheel.name}: the demo left no report.html")


def run(command: list[str], folder: Path) -> None:
    """Run a command as a user would, who has not set anything up."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_"))}
    subprocess.run(command, cwd=folder, env=environment, check=True)


if __name__ == "__main__":
    [path] = map(Path, sys.argv[1:])
    problems = content_problems(path.resolve())
    for sdist in path.resolve().parent.glob("*.tar.gz"):
        problems += source_problems(sdist)
    if problems:
        sys.exit("\n".join(problems))
    try_wheel(path.resolve())
