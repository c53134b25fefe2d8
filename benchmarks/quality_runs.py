"""Runs the trainings of the benchmark of quality, each in a process of its own, and scores them."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from benchmarks.quality_data import ROOT
from benchmarks.quality_jobs import Job, Setup
from federated_yolo.common.environment import remove_private_settings
from federated_yolo.common.errors import InputError

ONE_AT_A_TIME = threading.Lock()


def refuse_wrong(jobs: Iterable[Job], setup: Setup) -> None:
    """Check the federations that are to be run as federated.py would. Raises InputError."""
    from federated_yolo.checks.federation import checked
    from federated_yolo.config.loading import load_config

    problems: list[str] = []
    seen = set()
    for job in jobs:
        what = (job.split, job.settings, str(job.data))
        if job.kind != "federated" or what in seen or record_path(job, setup).exists():
            continue
        seen.add(what)
        try:
            path = write_config(job, setup.out / "data" / "config", setup)
            with checked(load_config(path, [*job.settings, *evaluation_of(path, job)])):
                pass
        except InputError as error:
            problems += [f"{job.name}, {job.split}: {line}" for line in error.problems]
    if problems:
        raise InputError(list(dict.fromkeys(problems)))


def run_missing(jobs: Iterable[Job], setup: Setup, failed: dict[str, str]) -> None:
    """Run plain trainings two at a time, one thread each, then federations, of two workers.

    failed: gets the reason of each that failed, by its digest.
    """
    missing = [job for job in jobs if not record_path(job, setup).exists()]
    running: set[subprocess.Popen[bytes]] = set()
    is_stopping = threading.Event()

    def attempt(job: Job) -> None:
        try:
            run_job(job, setup, running)
        except Exception as error:  # of any kind: the others are run all the same
            if not is_stopping.is_set():
                failed[job.digest(setup)] = f"{job}: {error}"
                print(f"failed: {job}: {error}", flush=True)

    pool = ThreadPoolExecutor(2)
    try:
        list(pool.map(attempt, [job for job in missing if job.kind != "federated"]))
        for job in missing:
            if job.kind == "federated":
                attempt(job)
    finally:  # also interrupted: then what runs ends, and what waits is not begun
        is_stopping.set()
        for process in running.copy():
            process.terminate()
        pool.shutdown(cancel_futures=True)


def record_path(job: Job, setup: Setup) -> Path:
    """Where the result of a run is kept."""
    return setup.out / "results" / f"{job.digest(setup)}.json"


def run_job(job: Job, setup: Setup, running: set[subprocess.Popen[bytes]]) -> None:
    """Train in a process of its own, score the weights, keep the result."""
    started = time.perf_counter()
    digest = job.digest(setup)
    label = f"{job.name}-{job.split}-{job.seed}"[:80]
    label = "".join(c if c.isalnum() or c in ".-" else "_" for c in label)
    folder = setup.out / "runs" / f"{label}-{digest}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = federated_command if job.kind == "federated" else plain_command
    log = folder / "log.txt"
    with log.open("w") as file:
        # A plain training may leave files where it runs; settings may name files from here.
        where = None if job.kind == "federated" else folder
        arguments = command(job, folder, setup)
        process = subprocess.Popen(arguments, stdout=file, stderr=file, cwd=where)
        running.add(process)
        try:
            code = process.wait()
        finally:
            running.discard(process)
    if code:
        raise RuntimeError(f"exit code {code}, see {log}")
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


def keep(record: dict[str, Any], path: Path) -> None:
    """Write a result; it is there as a whole or not at all."""
    from federated_yolo.common.files import write_atomically

    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda file: file.write(json.dumps(record, indent=1).encode()))


def tidy(run: Path) -> None:
    """Delete what takes room in a run directory: rounds, and what clients keep but last.pt."""
    for path in [*run.rglob("*.npz"), *(run / "clients").glob("*/*")]:
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != "last.pt":
            path.unlink(missing_ok=True)


def write_config(job: Job, folder: Path, setup: Setup) -> Path:
    """A config of federated.py for this job; `job.settings` come on top."""
    epochs = next((s for s in job.settings if s.startswith("local_epochs=")), "=1").split("=")[1]
    if not epochs.isdigit() or setup.epochs % max(int(epochs), 1):
        raise InputError(
            f"local_epochs={epochs}: found --epochs {setup.epochs}, expected a multiple of it"
        )
    train = {"imgsz": setup.imgsz, **setup.train}
    config: dict[str, Any] = {
        "base_model": setup.base,
        "datasets": [{"name": name, "data": path} for name, path in job.data.items()],
        "names": list(setup.data.names),
        "num_rounds": setup.epochs // int(epochs),
        "save_dir": str(folder),
        "name": "run",
        "seed": job.seed,
        "train": {**train, "pretrained": setup.pretrained} if setup.pretrained else train,
        "evaluate": {"every": 0},
    }
    if not any(setting.startswith(("train.batch=", "global_batch=")) for setting in job.settings):
        config["global_batch"] = setup.batch
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def evaluation_of(config: Path, job: Job) -> list[str]:
    """Where clients have models of their own, they keep them when they are evaluated."""
    from federated_yolo.config.loading import load_config

    is_said = any(setting.startswith("evaluate.") for setting in job.settings)
    is_partial = not is_said and load_config(config, job.settings).shared.is_partial
    return ["evaluate.every=1000"] if is_partial else []


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
