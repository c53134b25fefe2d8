"""Draw pictures and pages of runs from their run directories alone.

    federated-yolo report RUN_DIR                  results.png, ..., report.html in RUN_DIR
    federated-yolo report RUN_DIR RUN_DIR ... [-o comparison.html]    one page that compares them

A comparison also accepts directories of `yolo train`, as centralised runs. Pictures and pages leave
out what a run directory lacks (the run was not evaluated, or an older version made it).

Exit codes: 0 done, 1 the files could not be written, 2 wrong input (nothing was written),
130 interrupted.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from federated_yolo.common.command_line import failed, parser_of
from federated_yolo.common.errors import InputError
from federated_yolo.reporting.comparison_page import comparison_page
from federated_yolo.reporting.page import write_page
from federated_yolo.reporting.plots import write_pictures
from federated_yolo.reporting.run_page import run_page
from federated_yolo.reporting.run_record import Run, read_run, read_runs

REPORT = "report.html"


def draw_report(run_dir: Path) -> None:
    """Write the pictures and report.html of a run.

    Raises InputError if the directory contains no finished round, or a damaged table.
    """
    _draw(read_run(run_dir))


def _draw(run: Run) -> list[Path]:
    """Write the pictures and report.html, and return their paths."""
    page = run.path / REPORT
    pictures = write_pictures(run)
    write_page(run_page(run), page)
    return [*pictures, page]


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises InputError."""
    parser = parser_of("report", __doc__)
    parser.add_argument("run_dirs", nargs="+", type=Path, metavar="RUN_DIR")
    parser.add_argument(
        "-o", "--output", type=Path, help="page of a comparison (default: comparison.html)"
    )
    options = parser.parse_args(arguments)
    if options.output is not None and len(options.run_dirs) == 1:
        raise InputError(
            f"--output {options.output}: it is the page of a comparison; one run's {REPORT} "
            "stays in its directory, so leave it out or name another run"
        )
    return options


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    try:
        options = parse(arguments)
        runs = read_runs(options.run_dirs)
        if len(runs) == 1:
            written = _draw_one(runs[0])
        else:
            written = [_compare(runs, options.output or Path("comparison.html"))]
        for path in written:
            print(path)
    except InputError as error:
        return failed(error.problems, 2)
    except OSError as error:  # a full disk, a directory that may not be written to
        return failed([f"{error.filename or 'writing'}: {error.strerror or error}"], 1)
    except KeyboardInterrupt:
        return failed(["interrupted"], 130)
    except Exception as error:  # edited tables can contain values that no check foresees
        reason = f"{type(error).__name__}: {error}"
        return failed([f"{' '.join(arguments)}: cannot be drawn ({reason}); restore the files"], 2)
    return 0


def _draw_one(run: Run) -> list[Path]:
    if not run.is_federated:
        raise InputError(
            f"{run.path}: a run of yolo train, which has pictures of its own; name it beside a "
            "federated run to compare them"
        )
    return _draw(run)


def _compare(runs: Sequence[Run], output: Path) -> Path:
    if not output.parent.is_dir() or (output.exists() and not output.is_file()):
        raise InputError(
            f"--output {output}: expected a file in a directory that is there; make the "
            "directory, or choose another"
        )
    if output.suffix != ".html":
        raise InputError(f"--output {output}: expected a name that ends in .html; choose another")
    write_page(comparison_page(runs), output)
    return output
