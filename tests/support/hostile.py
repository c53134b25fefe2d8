"""Wrong and hostile input, each to be refused with exit code 2 and one clear line.

CASES: name -> what makes it in a folder, and gives the command's arguments. Those that hold code
would make `folder / MARKER` if it ran.
"""

import sys
from pathlib import Path

import hostile_inputs  # noqa: F401  adds its cases
import hostile_models  # noqa: F401  adds its cases
from hostile_recipes import CASES, MARKER
from processes import ROOT


def command(case_name: str, folder: Path) -> list[str]:
    """What to execute for a case, made in this folder."""
    script, *arguments = CASES[case_name](folder)
    return [sys.executable, str(ROOT / script), *arguments]


def verdict(folder: Path, exit_code: int, output: str, errors: str) -> str:
    """What is wrong with how a case ended; empty when it was refused as it should be."""
    lines = errors.splitlines()
    problems = {
        f"exit code {exit_code}": exit_code != 2,
        "code was run": (folder / MARKER).exists(),
        "a traceback": "Traceback" in output + errors,
        "no line that begins with 'error: '": not lines,
        "lines beside those of errors": not all(line.startswith("error: ") for line in lines),
        "something was printed": bool(output),
        "a run directory": (folder / "runs").exists(),
        "a model was written": (folder / "out.pt").exists(),
    }
    return ", ".join(problem for problem, is_so in problems.items() if is_so)
