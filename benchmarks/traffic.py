"""How many bytes a federation's arrays take by codec, and what the model loses by it.

    python benchmarks/traffic.py [--data BCCD] [--pretrained BACKBONE.pt] [--seeds 0 1 2]
        [--codecs none float16 int8 topk] [--shares all "head alone"]

Federations as those of quality.py: BCCD's iid3, one round an epoch, 25 rounds, scored on the test
split after the last; where parts stay with the clients (--shares), the mean of their models. Bytes
are those of results.csv, over all rounds and with the first download, beside all arrays in float32
(and int64 counters) once each way in each round.

Writes OUT/results.csv as it goes (a rerun continues there), and prints a table at the end.
"""

import statistics
import sys
from collections import defaultdict
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.quality import (
    Job,
    client_data,
    make_parser,
    models_of,
    parse,
    read_rows,
    run_missing,
    spread,
)
from utils.environment import prepare_environment, remove_private_settings
from utils.run_dir import read_csv

SPLIT = "iid3"
# What travels: name -> settings of federated.py. Where parts stay with the clients, each has a
# model of its own, which it keeps when it is evaluated.
SHARES: dict[str, list[str]] = {
    "all": [],
    "head alone": ["shared.parts=[head]", "evaluate.every=1000"],
    "backbone and neck": ["shared.parts=[backbone,neck]", "evaluate.every=1000"],
    "all but BatchNorm": ["shared.batchnorm=local", "evaluate.every=1000"],
}


def main() -> None:
    """Run what is missing in OUT/results.csv, then print the table."""
    parser = make_parser(__doc__ or "", Path("runs/traffic"))
    parser.add_argument(
        "--codecs", nargs="+", default=["none", "topk"], help="names, or topk:FRACTION"
    )
    parser.add_argument("--shares", nargs="+", default=["all"], choices=list(SHARES))
    options = parse(parser)
    prepare_environment()  # before Ultralytics is imported
    clients = client_data(options.data, SPLIT)
    jobs = [
        Job("federated", name_of(codec, share), SPLIT, seed, clients, settings_of(codec, share))
        for seed in options.seeds
        for share in options.shares
        for codec in options.codecs
    ]
    run_missing(jobs, options)
    print(markdown(options.out, len(clients)))
    remove_private_settings()


def name_of(codec: str, share: str) -> str:
    """What the table calls a run."""
    name = codec.replace(":", " ")
    return name if share == "all" else f"{name}, {share}"


def settings_of(codec: str, share: str) -> tuple[str, ...]:
    """Settings of federated.py. codec: `NAME` or `NAME:FRACTION`."""
    name, _, fraction = codec.partition(":")
    return (f"codec={name}", *([f"codec.fraction={fraction}"] if fraction else []), *SHARES[share])


def markdown(out: Path, num_clients: int) -> str:
    """Bytes of a client and round each way, their ratio to float32, and scores, by codec."""
    groups: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in read_rows(out):
        groups[row["name"]].append(row)
    rounds = {name: [rounds_of(out, row) for row in group] for name, group in groups.items()}
    lines = [
        "| codec | download, MB | upload, MB | float32 / download | float32 / upload "
        "| mAP50 | mAP50-95 | seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, group in groups.items():
        fields = [name]
        ratios = []
        for way in ("download_bytes", "upload_bytes"):
            found = statistics.mean(float(r[way]) for run in rounds[name] for r in run)
            fields.append(f"{found / num_clients / 1e6:.3f}")
            ratios.append(f"{size_of_model(out, group[0]) * num_clients / found:.1f}")
        fields += [*ratios, spread(group, "mAP50"), spread(group, "mAP50-95"), str(len(group))]
        lines.append(f"| {' | '.join(fields)} |")
    return "\n".join(lines)


def size_of_model(out: Path, row: dict[str, str]) -> int:
    """Bytes of all arrays of a run's model as they are, in float32 and int64."""
    from utils.model import load_checkpoint_module, to_arrays

    path = models_of(run_folder(out, row))[0]
    module = load_checkpoint_module(str(path), where=path.name).float()
    return sum(array.nbytes for array in to_arrays(module).values())


def run_folder(out: Path, row: dict[str, str]) -> Path:
    """Where quality.py has run it."""
    name = "-".join((row["name"], row["split"], row["seed"])).replace(" ", "_")
    return out / "runs" / name / "run"


def rounds_of(out: Path, row: dict[str, str]) -> list[dict[str, str]]:
    """The rows of a run's own results.csv."""
    return read_csv(run_folder(out, row) / "results.csv")


if __name__ == "__main__":
    main()
