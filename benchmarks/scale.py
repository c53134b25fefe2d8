"""Whether memory and time stay bounded as clients and rounds grow.

    python benchmarks/scale.py updates [--counts 10 100 1000] [--base yolov8m.yaml] [--strategy ...]
    python benchmarks/scale.py rounds [--clients 1000] [--sampled 10] [--rounds 20]

updates  so many synthetic updates of one round, as messages of the shape of a real model, read,
         checked and added one after the other as by the server; each count in a process of its own.
         Peak memory beyond what the process had before, in models (float32); and time of an update
         as a ratio to NumPy's `total += weight * array` of the same arrays into float64, in turns.
         "first one late": the first by name comes last, so that all others wait on disk.
rounds   a simulated federation of many small clients of which a few are sampled in a round: seconds
         of each round, memory of the server's process and the workers after it, and their slopes.

Linux only: memory is what /proc says.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.path.insert(1, f"{sys.path[0]}/tests/support")

import numpy as np

from federated_yolo.common.environment import prepare_environment, remove_private_settings

MIB = 2**20
NUM_LATE = 10  # all but one are on disk at once
NUM_TIMED = 30


def main() -> None:
    """Parse the command line and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    updates = commands.add_parser("updates")
    updates.add_argument("--counts", type=int, nargs="+", default=[10, 100, 1000])
    updates.add_argument("--base", default="yolov8m.yaml")
    updates.add_argument("--strategy", default="fedavg")
    updates.add_argument("--late", action="store_true", help=argparse.SUPPRESS)
    updates.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    rounds = commands.add_parser("rounds")
    rounds.add_argument("--clients", type=int, default=1000)
    rounds.add_argument("--sampled", type=int, default=10)
    rounds.add_argument("--rounds", type=int, default=20)
    rounds.add_argument("--base", default="yolov8n.yaml")
    options = parser.parse_args()
    prepare_environment()  # before Ultralytics is imported
    try:
        if options.command == "rounds":
            measure_rounds(options)
        elif options.measure:
            print(json.dumps(measure_updates(options)))
        else:
            compare_counts(options)
    finally:
        remove_private_settings()


# Updates.


def compare_counts(options: argparse.Namespace) -> None:
    """Measure each count in a process of its own and print its row."""
    print("| updates | arrival | peak, models | adding, × NumPy | with checks, × NumPy |")
    print("|---|---|---|---|---|")
    for count, late in [*((count, False) for count in options.counts), (NUM_LATE, True)]:
        command = [sys.executable, __file__, "updates", "--measure", str(count)]
        command += ["--base", options.base, "--strategy", options.strategy, *["--late"] * late]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.splitlines()[-1])
        order = "first one late" if late else "in order"
        numbers = " | ".join(f"{found[key]:.2f}" for key in ("models", "adding", "checked"))
        print(f"| {count} | {order} | {numbers} |", flush=True)


def measure_updates(options: argparse.Namespace) -> dict[str, float]:
    """Peak memory in models, and medians of the ratios, of one count."""
    from federated_yolo.common.arrays import cast

    round_ = SyntheticRound(options)
    one_model = sum(array.nbytes for array in round_.origin.values())
    base = memory(os.getpid(), "VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    order = round_.names[1:] + round_.names[:1] if options.late else round_.names
    for name in order:
        round_.take(name)
    updates = [round_.inbox.updates[name] for name in round_.names]
    combined = round_.aggregation.aggregate(1, updates)
    assert combined is not None
    result = {n: cast(combined.pop(n), array.dtype.name) for n, array in round_.origin.items()}
    peak = memory(os.getpid(), "VmHWM")
    round_.inbox.close()
    del result
    # Once more for the time, since what NumPy's own sum takes would count as memory.
    totals = {name: np.full(array.shape, 1.0) for name, array in round_.origin.items()}
    round_.start()
    for name in order[:NUM_TIMED]:
        round_.take(name, totals)
    return {
        "models": (peak - base) / one_model,
        "adding": statistics.median(round_.adding),
        "checked": statistics.median(round_.checked),
    }


class SyntheticRound:
    """A round whose clients all send the same. Holds the ratios of each update's times."""

    def __init__(self, options: argparse.Namespace) -> None:
        from flwr.app import ConfigRecord
        from flwr.supercore.task_identity import TaskIdentity

        from federated_yolo.aggregation.aggregator import Aggregation
        from federated_yolo.aggregation.inbox import Inbox
        from federated_yolo.common.arrays import Layout
        from federated_yolo.config.schema import StrategyConfig
        from federated_yolo.protocol.records import to_record
        from federated_yolo.yolo.model import (
            build_model,
            class_row_names,
            parameter_names,
            to_arrays,
        )

        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 1, 1, 1
        data = {"names": dict(enumerate("abc")), "nc": 3}
        model = build_model(options.base, "detect", data)
        self.origin = {name: array.copy() for name, array in to_arrays(model).items()}
        self.parameters = [name for name in self.origin if name in parameter_names(model)]
        self.layout = Layout.of(self.origin)
        self.template = to_record(self.origin)
        self.names = [f"client{number:04}" for number in range(options.measure)]
        strategy = StrategyConfig(name=options.strategy)
        self.aggregation = Aggregation(strategy, frozenset(self.parameters), class_row_names(model))
        self.aggregation.configure(1, self.origin, ConfigRecord({}), [1])
        self.inbox = Inbox(Path(tempfile.mkdtemp(prefix="scale-")) / "updates")
        self.adding: list[float] = []
        self.checked: list[float] = []
        self.start()

    def start(self) -> None:
        """Begin a round."""
        self.inbox.start(self.names, lambda update: self.aggregation.add(update, ()))

    def take(self, name: str, totals: dict[str, np.ndarray] | None = None) -> None:
        """One client's reply arrives: a message of its own, read, checked and put in the inbox.

        totals: to add its arrays to by NumPy alone, whose time is what the others are compared to.
        """
        from flwr.app import Array, ArrayRecord

        from federated_yolo.aggregation.aggregator import Update
        from federated_yolo.common.arrays import distance, layout_problems, negative_statistics
        from federated_yolo.protocol.records import views

        copies = {n: bytes(memoryview(array.data)) for n, array in self.template.items()}
        record = ArrayRecord(
            {n: Array(a.dtype, a.shape, a.stype, copies.pop(n)) for n, a in self.template.items()}
        )
        started = time.perf_counter()
        arrays = views(record)
        assert not layout_problems(arrays, self.layout) + negative_statistics(arrays)
        norm = distance(arrays, self.origin, self.parameters)
        read = time.perf_counter()
        self.inbox.put(Update(name, arrays, 69, 14, {}, 0.0, norm))
        added = time.perf_counter()
        if totals is None:
            return
        weight = np.float64(69)
        for n, total in totals.items():
            total += weight * arrays[n]
        plain = time.perf_counter() - added
        self.adding.append((added - read) / plain)
        self.checked.append((added - started) / plain)


# Rounds.


def measure_rounds(options: argparse.Namespace) -> None:
    """Run the federation and print a row for each round, and the slopes."""
    from federated_yolo.checks.federation import checked
    from federated_yolo.common.torchvision_nms import ensure_torchvision_nms
    from federated_yolo.config.schema import Config
    from federated_yolo.runtime.simulation import simulate
    from federated_yolo.storage.run_dir import RunDir

    ensure_torchvision_nms()
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        config = Config.model_validate(
            {
                "base_model": options.base,
                "datasets": make_datasets(Path(folder), options.clients),
                "num_rounds": options.rounds,
                "fraction_train": options.sampled / options.clients,
                "train": {"imgsz": 32, "batch": 2, "optimizer": "SGD"},
                "evaluate": {"every": 0},
                "save_dir": folder,
            }
        )
        display = Watch()
        with checked(config) as federation:
            simulate(federation, display, RunDir.create(Path(folder), "run"))
    print("| round | s | server MiB | workers MiB |\n|---|---|---|---|")
    for number, row in enumerate(display.rows, 1):
        print("| " + " | ".join([str(number), *(f"{value:.1f}" for value in row)]) + " |")
    settled = display.rows[len(display.rows) // 4 :]  # workers fill up to MAX_CLIENTS first
    slopes = [slope([row[column] for row in settled]) for column in range(3)]
    print("per round: " + ", ".join(f"{value:+.2f} %" for value in slopes))


def make_datasets(folder: Path, count: int) -> list[dict[str, str]]:
    """Clients that share two images of 32 pixels, each with a data.yaml of its own."""
    from recipes import make_dataset

    shared = make_dataset(folder / "shared", num_train=2, num_val=2, size=32).parent
    datasets = []
    for number in range(count):
        path = folder / "sites" / f"client{number:04}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"path: {shared}\ntrain: images/train\nval: images/val\nnames: [a, b, c]\n")
        datasets.append({"name": path.stem, "data": str(path)})
    return datasets


class Watch:
    """A display that notes of each round its seconds and the MiB of the server and its workers."""

    def __init__(self) -> None:
        self.rows: list[list[float]] = []

    def step(self, round_number: int, step: str, clients: list[str]) -> None: ...
    def client_done(self, name: str, text: str) -> None: ...
    def client_failed(self, name: str, reason: str) -> None:
        print(f"{name}: {reason}", file=sys.stderr)

    def notice(self, text: str) -> None:
        print(text, file=sys.stderr)

    def round_done(self, result: Any) -> None:
        workers = sum(memory(pid, "VmRSS") for pid in worker_processes())
        server = memory(os.getpid(), "VmRSS")
        self.rows.append([float(result.row["seconds"]), server / MIB, workers / MIB])


def worker_processes() -> list[int]:
    """Ray's workers that run clients, of this process and of no other."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_bytes()
            environment = (folder / "environ").read_bytes()
        except OSError:  # ended meanwhile, or another user's
            continue
        mine = f"YOLO_CONFIG_DIR={os.environ['YOLO_CONFIG_DIR']}".encode()
        if line.startswith(b"ray::") and mine in environment:
            found.append(int(folder.name))
    return found


def memory(pid: int, kind: str) -> int:
    """Bytes that a process has in memory: VmRSS now, VmHWM at most so far."""
    status = Path(f"/proc/{pid}/status").read_text()
    match = re.search(rf"{kind}:\s+(\d+) kB", status)
    return int(match.group(1)) * 1024 if match else 0


def slope(values: Sequence[float]) -> float:
    """Growth per round by least squares, in percent of the median."""
    gradient = np.polyfit(np.arange(len(values)), values, 1)[0]
    return 100 * float(gradient) / statistics.median(values)


if __name__ == "__main__":
    main()
