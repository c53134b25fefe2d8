"""What the toolkit survives: killed servers and workers, unusable replies, hostile input.

    python benchmarks/faults.py [--servers 20] [--workers 4] [--skip inputs ...] [--out runs/faults]

servers  SIGKILL at random moments of a run, up to twice in one, then `resume`: all arrays of all
         rounds, checkpoints and tables must be those of a run that nobody disturbed
workers  SIGKILL of the worker in every round: the same, but for the notes
replies  every unusable reply of tests/system/faults/test_bad_replies.py, and the like (see REPLIES)
inputs   every wrong or hostile input of tests/support/hostile.py, as a command of its own

What is added there is tried here. `--skip servers workers` leaves the two that take long out.

Prints a table: tried, survived, lost. Linux only: it finds processes in /proc.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.path.insert(1, f"{sys.path[0]}/tests/support")

import yaml

from federated_yolo.common.environment import prepare_environment, remove_private_settings

ROOT = Path(__file__).resolve().parents[1]
NUM_ROUNDS = 3
REPLIES = ("test_bad_*.py", "test_hostile_*.py")  # tests of messages, in tests/system/faults
# What is trained while servers are killed: each has another kind of state to keep.
SETTINGS: list[dict[str, Any]] = [
    {"strategy": "fedadam", "server_ema": 0.5},
    {"strategy": "fedavgm", "fraction_train": 0.6},
    {"shared": {"batchnorm": "local"}},
    {"strategy": "fedprox", "train": {"optimizer": "SGD", "mosaic": 1.0, "close_mosaic": 2}},
]


def main() -> int:
    """Run the campaigns and print the table; 1 when anything was lost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--servers", type=int, default=20, help="how many runs to kill")
    parser.add_argument("--workers", type=int, default=4, help="runs with a kill in every round")
    parser.add_argument("--skip", nargs="+", default=[], choices=list(CAMPAIGNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="keep what was lost here")
    options = parser.parse_args()
    prepare_environment()  # before Ultralytics is imported
    rows = []
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        for name, campaign in CAMPAIGNS.items():
            if name not in options.skip:
                rows.append((name, *campaign(Path(folder) / name, options)))
                print(*rows[-1], flush=True)
    remove_private_settings()
    print("\n| campaign | tried | survived | lost |\n|---|---|---|---|")
    for name, tried, lost in rows:
        print(f"| {name} | {tried} | {tried - lost} | {lost} |")
    return int(any(lost for _, _, lost in rows))


def write_config(folder: Path, settings: dict[str, Any]) -> Path:
    """A config of three small clients, made once in a folder."""
    from recipes import make_dataset

    sites = folder / "sites"
    if not sites.exists():
        for n in (4, 6, 8):
            make_dataset(sites / f"c{n}", num_train=n, num_val=2, seed=n)
        make_dataset(sites / "held_out", num_train=1, num_val=2, seed=9)
    train = {"imgsz": 32, "batch": 2, **settings.get("train", {})}
    evaluate: dict[str, Any] = {"cross_client": True}
    if "shared" not in settings:
        evaluate["data"] = str(sites / "held_out" / "data.yaml")
    config: dict[str, Any] = {
        "base_model": "yolov8n.yaml",
        "datasets": [str(sites / f"c{n}" / "data.yaml") for n in (4, 6, 8)],
        "num_rounds": NUM_ROUNDS,
        "save_dir": str(folder / "runs"),
        "evaluate": evaluate,
        **settings,
        "train": train,
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def undisturbed(folder: Path, settings: dict[str, Any]) -> tuple[Any, float]:
    """What a run of these settings gives, and how long it takes in seconds."""
    from processes import federated
    from recipes import outcome

    folder.mkdir(parents=True)
    started = time.monotonic()
    done = federated(str(write_config(folder, settings)), "name=whole", cwd=folder)
    if done.returncode:
        raise SystemExit(f"an undisturbed run failed:\n{done.stdout}{done.stderr}")
    return outcome(folder / "runs" / "whole"), time.monotonic() - started


def is_same(found: Any, expected: Any) -> bool:
    """Whether two outcomes are identical; says where not."""
    from recipes import assert_same

    try:
        assert_same(found, expected)
    except AssertionError as error:
        print(f"  differs: {error}", flush=True)
        return False
    return True


def kill_servers(folder: Path, options: argparse.Namespace) -> tuple[int, int]:
    """Kill each run at one or two random moments of it, resume, compare."""
    from processes import federated
    from recipes import outcome

    rng = random.Random(options.seed)
    references = [undisturbed(folder / f"s{i}", s) for i, s in enumerate(SETTINGS)]
    lost = 0
    for trial in range(options.servers):
        index = trial % len(SETTINGS)
        expected, seconds = references[index]
        place = folder / f"s{index}"
        name = f"name=trial{trial}"
        run_dir = place / "runs" / f"trial{trial}"
        moments = [rng.uniform(0, seconds) for _ in range(rng.choice((1, 2)))]
        for moment in moments:
            kill_server(start_or_resume(place, run_dir, name), moment, place)
        done = federated(*start_or_resume(place, run_dir, name), cwd=place)
        same = done.returncode == 0 and is_same(outcome(run_dir), expected)
        print(f"  {trial} {[round(m, 1) for m in moments]} {'same' if same else done.stderr}")
        if same:
            shutil.rmtree(run_dir)
        elif options.out:
            shutil.copytree(run_dir, options.out / run_dir.name, dirs_exist_ok=True)
        lost += not same
    return options.servers, lost


def start_or_resume(place: Path, run_dir: Path, name: str) -> list[str]:
    """Arguments that go on with a run, or begin it where the last one was killed before that."""
    if (run_dir / "args.yaml").exists():
        return [f"resume={run_dir}"]
    shutil.rmtree(run_dir, ignore_errors=True)
    return [str(place / "config.yaml"), name]


def kill_server(arguments: list[str], after_s: float, place: Path) -> None:
    """SIGKILL to the command after a while; the workers that it leaves are not waited for."""
    from processes import started

    with started(*arguments, cwd=place) as (process, _):
        try:
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()


def kill_workers(folder: Path, options: argparse.Namespace) -> tuple[int, int]:
    """Kill a worker at a random moment of each round's training; compare but for the notes."""
    from processes import started, wait_until, working_since
    from recipes import outcome

    rng = random.Random(options.seed)
    settings = {"strategy": "fedavgm"}
    expected, _ = undisturbed(folder, settings)
    lost = kills = 0
    for trial in range(options.workers):
        run_dir = folder / "runs" / f"trial{trial}"
        client = run_dir / "clients" / "c6"
        config = str(folder / "config.yaml")
        with started(config, f"name=trial{trial}", cwd=folder) as (process, marker):
            for number in range(NUM_ROUNDS):
                wait_until((run_dir / "weights" / f"round{number}.npz").exists, 120)
                wait_until(lambda c=client, m=marker: working_since(m, c) is not None, 60)
                time.sleep(rng.uniform(0, 0.5))
                victim = working_since(marker, client)
                if victim is not None:
                    os.kill(victim, signal.SIGKILL)
                    kills += 1
            process.communicate(timeout=300)
        found = outcome(run_dir) if process.returncode == 0 else {}
        for row in found.get("clients.csv", ()):
            row.pop("note", None)
        lost += not is_same(found, expected)
    print(f"  {kills} workers killed in {options.workers} runs")
    return options.workers, lost


def spoil_replies(folder: Path, options: argparse.Namespace) -> tuple[int, int]:
    """The tests of unusable messages, counted."""
    tests = sorted(str(p) for like in REPLIES for p in (ROOT / "tests/system/faults").glob(like))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *tests, "-q", "-rA", "-n", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    # Of a test, and not of the log that -rA shows, which has lines of ERROR too.
    passed = sum(line.startswith("PASSED tests/") for line in lines)
    failed = [line for line in lines if line.startswith(("FAILED tests/", "ERROR tests/"))]
    print(*failed, sep="\n")
    if done.returncode and not failed:  # they could not even be collected
        raise SystemExit(f"{done.stdout}{done.stderr}")
    return passed + len(failed), len(failed)


def feed_inputs(folder: Path, options: argparse.Namespace) -> tuple[int, int]:
    """Each wrong input as a command: exit code 2, lines of errors, no code run."""
    from hostile import command, verdict
    from hostile_recipes import CASES
    from processes import finished

    lost = 0
    for number, name in enumerate(CASES):
        place = folder / str(number)
        place.mkdir(parents=True)
        try:
            done = finished(command(name, place), cwd=place)
            problem = verdict(place, done.returncode, done.stdout, done.stderr)
            problem = problem and f"{problem}: {done.stderr[-500:]}"
        except Exception as error:  # it hangs, or cannot even be made: the others are tried
            problem = f"{type(error).__name__}: {error}"
        if problem:
            print(f"  {name}: {problem}", flush=True)
            lost += 1
        shutil.rmtree(place)
    return len(CASES), lost


CAMPAIGNS: dict[str, Callable[[Path, argparse.Namespace], tuple[int, int]]] = {
    "servers": kill_servers,
    "workers": kill_workers,
    "replies": spoil_replies,
    "inputs": feed_inputs,
}

if __name__ == "__main__":
    sys.exit(main())
