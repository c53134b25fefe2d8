"""How many bytes a federation's arrays take by codec, and what the model loses by it.

    python benchmarks/traffic.py [--data BCCD] [--pretrained BACKBONE.pt] [--seeds 0 1 2]
        [--codecs none float16 int8 topk] [--shares all "head alone"]

Federations as those of quality.py: BCCD's iid3, one round an epoch, 25 rounds, scored on the test
split after the last; where parts stay with the clients (--shares), the mean of their models. Bytes
are those of results.csv, over all rounds and with the first download, beside all arrays in float32
(and int64 counters) once each way in each round.

Keeps results below OUT as quality.py does (a rerun continues there), and prints a table at the end.
"""

import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
if __name__ == "__main__":
    from federated_yolo.common.environment import prepare_environment

    prepare_environment()  # before Ultralytics is imported, which the modules below do

from benchmarks.quality import make_parser, parse
from benchmarks.quality_data import find_data
from benchmarks.quality_jobs import Job, refuse_wrong
from benchmarks.quality_plan import make_setup
from benchmarks.quality_runs import models_of, run_missing
from benchmarks.quality_tables import read_records, spread
from federated_yolo.common.command_line import show_problems
from federated_yolo.common.environment import remove_private_settings
from federated_yolo.common.errors import InputError
from federated_yolo.storage.run_dir import read_csv

SPLIT = "iid3"
# What travels: name -> settings of federated.py.
SHARES: dict[str, list[str]] = {
    "all": [],
    "head alone": ["shared.parts=[head]"],
    "backbone and neck": ["shared.parts=[backbone,neck]"],
    "all but BatchNorm": ["shared.batchnorm=local"],
}


def main() -> int:
    """Run what is missing below OUT, then print the table."""
    parser = make_parser(__doc__ or "", Path("runs/traffic"))
    parser.set_defaults(splits=[SPLIT])
    parser.add_argument(
        "--codecs", nargs="+", default=["none", "topk"], help="names, or topk:FRACTION"
    )
    parser.add_argument("--shares", nargs="+", default=["all"], choices=list(SHARES))
    failed: dict[str, str] = {}
    try:
        options = parse(parser)
        setup = make_setup(options, find_data(options))
        clients = setup.data.clients[SPLIT]
        jobs = [
            Job("federated", name_of(codec, share), SPLIT, seed, clients, settings_of(codec, share))
            for seed in options.seeds
            for share in options.shares
            for codec in options.codecs
        ]
        refuse_wrong(jobs, setup)
        try:
            run_missing(jobs, setup, failed)
        finally:
            print(markdown(read_records(jobs, setup), setup.out, len(clients)))
    except InputError as error:
        show_problems(error.problems)
        return 2
    finally:
        remove_private_settings()
    return int(bool(failed))


def name_of(codec: str, share: str) -> str:
    """What the table calls a run."""
    name = codec.replace(":", " ")
    return name if share == "all" else f"{name}, {share}"


def settings_of(codec: str, share: str) -> tuple[str, ...]:
    """Settings of federated.py. codec: `NAME` or `NAME:FRACTION`."""
    name, _, fraction = codec.partition(":")
    chosen = [f"codec={name}", *([f"codec.fraction={fraction}"] if fraction else [])]
    # By default, a federation without a codec would average more often than one with a codec.
    return ("averages_per_round=1", *chosen, *SHARES[share])


def markdown(records: Sequence[Mapping[str, Any]], out: Path, num_clients: int) -> str:
    """Bytes of a client and round each way, their ratio to float32, and scores, by codec."""
    groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for record in records:
        groups[record["name"]].append(record)
    metrics = list(records[0]["metrics"]) if records else []
    lines = [
        "| codec | download, MB | upload, MB | float32 / download | float32 / upload "
        f"| {' | '.join(metrics)} | seeds |",
        "|---|---|---|---|---|" + "---|" * (len(metrics) + 1),
    ]
    for name, group in groups.items():
        rounds = [row for r in group for row in read_csv(run_dir_of(out, r) / "results.csv")]
        fields = [name]
        ratios = []
        for way in ("download_bytes", "upload_bytes"):
            found = statistics.mean(float(row[way]) for row in rounds)
            fields.append(f"{found / num_clients / 1e6:.3f}")
            ratios.append(f"{size_of_model(out, group[0]) * num_clients / found:.1f}")
        scores = [spread(group, "metrics", metric) for metric in metrics]
        fields += [*ratios, *scores, str(len(group))]
        lines.append(f"| {' | '.join(fields)} |")
    return "\n".join(lines)


def size_of_model(out: Path, record: Mapping[str, Any]) -> int:
    """Bytes of all arrays of a run's model as they are, in float32 and int64."""
    from federated_yolo.yolo.checkpoint import load_checkpoint_module
    from federated_yolo.yolo.model import to_arrays

    path = models_of(run_dir_of(out, record))[0]
    module = load_checkpoint_module(str(path), where=path.name).float()
    return sum(array.nbytes for array in to_arrays(module).values())


def run_dir_of(out: Path, record: Mapping[str, Any]) -> Path:
    """Where quality.py has run it."""
    return out / "runs" / record["folder"] / "run"


if __name__ == "__main__":
    sys.exit(main())
