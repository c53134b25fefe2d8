"""How good a federation's model is beside the model of the pooled data and of each client alone.

    python benchmarks/quality.py [--data DIR] [--splits NAME ...] [--num-clients 3]
    python benchmarks/quality.py --clients A/data.yaml B/data.yaml [--pooled P] [--test T]
        [--base MODEL] [--pretrained BACKBONE.pt] [--seeds 0 1 2] [--epochs 25] [--imgsz 160]
        [--batches 16 ...] [--local-epochs 1] [--settings NAME|KEY=VALUE ...]
        [--train KEY=VALUE ...] [--always KEY=VALUE ...] [--alone N] [--federated]
        [--masking [CLASS]] [--shared ../shared] [--out runs/quality]
    python benchmarks/quality.py --suite [SET ...] [--settings ...] [--out runs/suite]

DIR has all/data.yaml and fed/SPLIT/CLIENT/data.yaml, or is a data set of any task (its data.yaml, a
folder with one, class folders), which utils/partition.py then splits by each scheme of --splits.

Every run sees each image `--epochs` times, starts from the same base and is scored on the common
test split (val, where not all have one) after its last epoch, without choosing a best one. Where
only some clients train in a round (`fraction_train`), there are as many rounds more:

centralised  `yolo train` on the pooled data, with each of --batches and nbs = batch (the default of
             64, which takes a quarter of the steps, learns much less); by default with 16, and with
             a client's share of 16
local        `yolo train` on one client's data, with its share of the first of --batches
federated    `python federated.py` with --local-epochs a round, for each of --settings: a name of
             SETTINGS, or settings of federated.py, such as "strategy=fedprox server_ema=0.5"; on
             top of those of --always

OUT/results has a file for each finished run, named by a digest of all that it depends on: a rerun
does what is missing. OUT/results.csv, table.md and quality.png are written in any case: of the runs
so far of this data, base, test split, epochs, imgsz and versions; failed ones are named.
`--masking [CLASS]` trains federations of the first split in which a class (the first) of one client
is not labelled: with it left out of its loss, as background, and without those images; and of two.

`--suite` does this for the data sets that quality_suite.py lists, with pooled batches of 4, 8 and
16, and writes a summary of all: summary.md, summary.csv, settings.csv and summary.png.

Exit codes: 0 done, 1 a run failed, 2 wrong input (nothing was trained), 130 interrupted.
"""

import argparse
import json
import signal
import sys
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    from federated_yolo.common.environment import prepare_environment

    prepare_environment()  # before Ultralytics is imported, which the modules below do

from benchmarks.quality_data import SHARED, find_data, with_whole_paths
from benchmarks.quality_jobs import refuse_wrong
from benchmarks.quality_plan import make_setup, plan_jobs
from benchmarks.quality_runs import run_missing, train_plainly
from benchmarks.quality_suite import run_suite
from benchmarks.quality_tables import write_tables
from federated_yolo.common.command_line import Parser, show_problems
from federated_yolo.common.environment import remove_private_settings
from federated_yolo.common.errors import InputError


def main() -> int:
    """Run what is missing, then write the tables and the plot of what there is."""
    if sys.argv[1:2] == ["--job"]:  # a plain training in its own process
        train_plainly(**json.loads(sys.argv[2]))
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        parser = make_quality_parser()
        options = parse(parser)
        if options.suite is not None:
            return run_suite(parser, options, sys.argv[1:])
        setup = make_setup(options, find_data(options))
        jobs = plan_jobs(options, setup)
        refuse_wrong(jobs, setup)
        failed: dict[str, str] = {}
        try:
            run_missing(jobs, setup, failed)
        finally:
            write_tables(jobs, setup, failed)
        return int(bool(failed))
    except InputError as error:
        show_problems(error.problems)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        remove_private_settings()


def make_parser(description: str, out: Path) -> argparse.ArgumentParser:
    """The arguments of all benchmarks that train. description: a module's docstring."""
    parser = Parser(description=description.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=SHARED, help="folder of data/ and weights/")
    parser.add_argument("--data", type=Path, metavar="DIR", help="default: the shared BCCD")
    parser.add_argument("--base", help="model YAML or checkpoint; default: yolov8n of the task")
    parser.add_argument(
        "--pretrained",
        help="checkpoint that a base without weights takes over what fits from, or 'none'; "
        "default: the shared backbone, for a yolov8n",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--imgsz", type=int, default=160)
    parser.add_argument("--out", type=Path, default=out)
    return parser


def make_quality_parser() -> argparse.ArgumentParser:
    """The arguments of this benchmark."""
    parser = make_parser(__doc__ or "", Path("runs/quality"))
    parser.add_argument("--clients", type=Path, nargs="+", help="data of each client, for --data")
    parser.add_argument("--pooled", type=Path, help="data of all; default: that of the clients")
    parser.add_argument("--test", type=Path, help="what to score on; default: the pooled data")
    parser.add_argument("--splits", nargs="+", help="below fed/; or schemes of utils/partition.py")
    parser.add_argument("--num-clients", type=int, default=3, help="where --data is one data set")
    parser.add_argument("--batches", type=int, nargs="+", help="default: 16 and a client's share")
    parser.add_argument("--local-epochs", type=int, default=1)
    parser.add_argument("--settings", nargs="+", default=["defaults"])
    parser.add_argument("--train", nargs="+", default=[], help="train arguments of all runs")
    parser.add_argument("--masking", nargs="?", const="", metavar="CLASS")
    parser.add_argument(
        "--suite", nargs="*", metavar="SET", help="run the data sets of quality_suite.py, or these"
    )
    parser.add_argument("--alone", type=int, metavar="N", help="train only the N largest alone")
    parser.add_argument("--always", nargs="+", default=[], help="settings of all federations")
    parser.add_argument("--federated", action="store_true", help="leave out the plain trainings")
    return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The arguments, with absolute paths. Raises InputError."""
    options = with_whole_paths(parser.parse_args())
    problems = [
        f"found --{name} {value}, expected >= 1"
        for name in ("epochs", "imgsz", "alone")
        if (value := getattr(options, name, None)) is not None and value < 1
    ]
    if problems:
        raise InputError(problems)
    options.out.mkdir(parents=True, exist_ok=True)
    return options


if __name__ == "__main__":
    sys.exit(main())
