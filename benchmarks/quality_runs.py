"""Runs the trainings of the benchmark of quality, each in a process of its own, and scores them."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout

from benchmarks.quality_data import ROOT
from benchmarks.quality_jobs import Job, Setup, evaluation_of, keep, record_path, write_config
from federated_yolo.common.environment import remove_private_settings
from federated_yolo.common.errors import InputError

ONE_AT_A_TIME = threading.Lock()
PROCESS_FILE = "process.json"  # of a run directory, while something trains there


class Processes:
    """The trainings that run now. After `stop` none is begun any more."""

    def __init__(self) -> None:
        self._running: dict[subprocess.Popen[bytes], Path] = {}  # with where it works
        self._lock = threading.Lock()
        self.is_stopped = False

    def run(self, command: Sequence[str], folder: Path, directory: Path | None) -> int:
        """Run a command that works in `folder`, and return its exit code.

        folder: Gets what it prints, log.txt. directory: Where it is started; None is here.
        """
        with self._lock, (folder / "log.txt").open("w") as log:
            if self.is_stopped:
                raise InterruptedError("not begun")
            # In a session of its own: Ctrl-C comes here alone, and `stop` ends what runs.
            process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=directory, start_new_session=True
            )
            self._running[process] = folder
            note = {"pid": process.pid, "started": psutil.Process(process.pid).create_time()}
            (folder / PROCESS_FILE).write_text(json.dumps(note))
        code = process.wait()  # when it is interrupted, `stop` ends the process
        with self._lock:
            self._forget(process)
        return code

    def stop(self) -> None:
        """End all, and wait for their ends."""
        with self._lock:
            self.is_stopped = True
            for process in self._running:
                process.terminate()
            for process in list(self._running):
                process.wait()
                self._forget(process)

    def _forget(self, process: subprocess.Popen[bytes]) -> None:
        if folder := self._running.pop(process, None):
            (folder / PROCESS_FILE).unlink()


def end_leftovers(out: Path) -> None:
    """End what a killed benchmark left running: it would write where its successor writes."""
    for path in (out / "runs").glob(f"*/{PROCESS_FILE}"):
        with suppress(ValueError, psutil.NoSuchProcess):  # half written; ended
            note = json.loads(path.read_text())
            process = psutil.Process(note["pid"])
            if abs(process.create_time() - note["started"]) < 1:  # or the number is another's now
                family = [process, *process.children(recursive=True)]
                process.terminate()
                for remaining in psutil.wait_procs(family, timeout=60)[1]:
                    remaining.kill()
        path.unlink()


def run_missing(
    jobs: Iterable[Job],
    setup: Setup,
    failed: dict[str, str],
    tell: Callable[[], None] = lambda: None,
) -> None:
    """Run plain trainings two at a time, one thread each, then federations, of two workers.

    failed: gets the reason of each that failed, by its digest. tell: is called after each training.
    Raises InputError if another benchmark trains in the same folder.
    """
    missing = [job for job in jobs if not record_path(job, setup).exists()]
    try:
        with FileLock(setup.out / ".lock", timeout=0):
            end_leftovers(setup.out)
            run_all(missing, setup, failed, tell)
    except Timeout as error:
        raise InputError(
            f"{setup.out}: another benchmark trains here; wait for it, or give another --out"
        ) from error


def run_all(
    jobs: Sequence[Job], setup: Setup, failed: dict[str, str], tell: Callable[[], None]
) -> None:
    """`run_missing` of jobs that are all missing."""
    processes = Processes()

    def attempt(job: Job) -> None:
        try:
            run_job(job, setup, processes)
        except Exception as error:  # of any kind: the others are run all the same
            if not processes.is_stopped:
                failed[job.digest(setup)] = f"{job}: {error}"
                print(f"failed: {job}: {error}", flush=True)
        else:
            tell()

    pool = ThreadPoolExecutor(2)
    try:
        list(pool.map(attempt, [job for job in jobs if job.kind != "federated"]))
        for job in jobs:
            if job.kind == "federated":
                attempt(job)
    finally:  # also interrupted: then what runs ends, and what waits is not begun
        processes.stop()
        pool.shutdown(cancel_futures=True)


def run_job(job: Job, setup: Setup, processes: Processes) -> None:
    """Train in a process of its own, score the weights, keep the result."""
    started = time.perf_counter()
    digest = job.digest(setup)
    label = f"{job.name}-{job.split}-{job.seed}"[:80]
    label = "".join(c if c.isalnum() or c in ".-" else "_" for c in label)
    folder = setup.out / "runs" / f"{label}-{digest}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    is_federated = job.kind == "federated"
    command = (federated_command if is_federated else plain_command)(job, folder, setup)
    # A plain training may leave files where it runs; settings may name files from here.
    code = processes.run(command, folder, None if is_federated else folder)
    if code:
        raise RuntimeError(f"exit code {code}, see {folder / 'log.txt'}")
    seconds = time.perf_counter() - started
    with ONE_AT_A_TIME:  # libraries set themselves up on first use
        metrics, per_class = mean_score(models_of(folder / "run"), setup, folder)
    record = {
        **{k: v for k, v in asdict(job).items() if k != "data"},
        **{"digest": digest, "recipe": job.recipe(setup)},
        **{"frame": setup.frame, "folder": folder.name},
        **{"metrics": metrics, "per_class": per_class, "seconds": round(seconds, 1)},
    }
    keep(record, record_path(job, setup))
    tidy(folder / "run")
    print(json.dumps({"name": str(job), **metrics, "seconds": record["seconds"]}), flush=True)


def tidy(run: Path) -> None:
    """Delete what takes room in a run directory: rounds, and what clients keep but last.pt."""
    for path in [*run.rglob("*.npz"), *(run / "clients").glob("*/*")]:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "last.pt":
            path.unlink(missing_ok=True)


def federated_command(job: Job, folder: Path, setup: Setup) -> list[str]:
    """`python federated.py` with a config for this job."""
    path = write_config(job, folder, setup)
    settings = [*job.settings, *evaluation_of(path, job)]
    return [sys.executable, str(ROOT / "federated.py"), str(path), *settings]


def plain_command(job: Job, folder: Path, setup: Setup) -> list[str]:
    """`train_plainly` in a process of its own."""
    arguments = {
        "base": setup.base,
        "task": setup.data.task,
        "pretrained": setup.pretrained,
        "arguments": {
            **setup.train,
            "data": next(iter(job.data.values())),
            "epochs": setup.epochs,
            "imgsz": setup.imgsz,
            "seed": job.seed,
            "batch": job.batch,
            "nbs": job.batch,
            "project": str(folder),
        },
    }
    return [sys.executable, str(ROOT / "benchmarks/quality.py"), "--job", json.dumps(arguments)]


def train_plainly(base: str, task: str, pretrained: str | None, arguments: dict[str, Any]) -> None:
    """`yolo train` as it is, but for the private label caches of its data set."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch
    from ultralytics import YOLO

    from federated_yolo.common.torchvision_nms import ensure_torchvision_nms

    ensure_torchvision_nms()
    model = YOLO(base, task=task)
    model.add_callback("on_train_start", lambda _: torch.set_num_threads(1))
    model.train(
        trainer=private_trainer(base, task, Path(arguments["project"]) / "caches"),
        **({"pretrained": pretrained} if pretrained else {}),
        **arguments,
        val=False,  # only after the last epoch: no choice of a best one
        plots=False,
        name="run",
        exist_ok=True,
    )
    remove_private_settings()


def private_trainer(base: str, task: str, caches: Path) -> type:
    """Ultralytics' trainer, which writes its label caches to this folder and not beside the data.

    Several trainings read the same data at once here, and each would rewrite the other's cache.
    """
    from federated_yolo.data.datasets import build_dataset
    from federated_yolo.yolo.checkpoint import is_rtdetr, structure_of
    from federated_yolo.yolo.model import trainer_class

    structure = structure_of(base, where="--base")
    caches.mkdir(exist_ok=True)
    parent: Any = trainer_class(task, structure)

    class Trainer(parent):
        def build_dataset(self, img_path: Any, mode: str = "train", batch: Any = None) -> Any:
            stride = max(int(self.model.stride.max()), 32)
            squares = is_rtdetr(structure)
            return build_dataset(
                self.args, img_path, batch, self.data, mode, stride, caches, squares
            )

    return Trainer


def models_of(run: Path) -> list[Path]:
    """The last model of a run; where parts of it stay with the clients, that of each."""
    weights = run / "weights" / "last.pt"
    return [weights] if weights.exists() else sorted(run.glob("clients/*/last.pt"))


def mean_score(
    models: list[Path], setup: Setup, folder: Path
) -> tuple[dict[str, float], dict[str, float]]:
    """Means of the metrics of several models, and of those of the classes that were tested."""
    if not models:
        raise RuntimeError(f"no last.pt in {folder}")
    scores = [score(path, setup, folder) for path in models]
    means = [
        {name: round(statistics.mean(s[name] for s in part), 4) for name in part[0]}
        for part in zip(*scores, strict=True)
    ]
    return means[0], means[1]


def score(weights: Path, setup: Setup, folder: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Metrics of a .pt as `yolo val` gives them, the judged one first; and those of each class."""
    from federated_yolo.data.data_yaml import read_data, write_private_yaml
    from federated_yolo.reporting.run_numbers import output_of
    from federated_yolo.reporting.run_record import PRIMARY
    from federated_yolo.runtime.run_tables import short_name
    from federated_yolo.yolo.checkpoint import load_checkpoint_module
    from federated_yolo.yolo.evaluator import Evaluator

    task = setup.data.task
    data = read_data(Path(setup.data.test), task, where="data")
    data["val"] = data[setup.data.scored]
    write_private_yaml(data, folder / "test")
    evaluator = Evaluator(data, task, {"imgsz": setup.imgsz, **setup.train}, folder / "test")
    result = evaluator(load_checkpoint_module(str(weights), where="weights").float())
    judged = next(name for name in PRIMARY if name in result.metrics)
    kept = [name for name in result.metrics if "mAP" in name or "accuracy" in name]
    kept.sort(key=lambda name: (output_of(name) != output_of(judged), name != judged))
    per_class = {n.removeprefix("class/"): value for n, value in result.per_class.items()}
    return {short_name(name): result.metrics[name] for name in kept}, per_class
