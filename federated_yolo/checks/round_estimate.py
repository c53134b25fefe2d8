"""Estimates the time and memory of a round from a few training steps that are timed.

The steps are real: they train the client that needs the most memory, with the run's batch, image
size and threads, in as many processes at once as a simulation has workers, because each of these
is slower than one process alone. Their results are not kept.
"""

import dataclasses
import heapq
import math
import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean
from threading import BrokenBarrierError
from typing import Any

import psutil
import torch

from federated_yolo.checks.federation import Federation
from federated_yolo.checks.gpu_sharing import largest_client, settings_of_try
from federated_yolo.common.environment import num_cpus, quiet_stdout
from federated_yolo.common.errors import InputError
from federated_yolo.common.text import reason_of
from federated_yolo.config.schema import ResolvedConfig
from federated_yolo.yolo.slice_mixin import SliceSettings
from federated_yolo.yolo.trainer import try_batches

MAX_TOGETHER = 8  # processes that try steps at once; with more, each would hardly be slower
NUM_STEPS = 6  # the first does not count: libraries choose their kernels in it
FORWARD = 1 / 3  # share of an image's training time: a backward pass costs two forward passes
SAMPLE_S = 0.02


@dataclass(frozen=True)
class Trial:
    """Seconds of one training step; the most memory and GPU memory of its process, in bytes."""

    step_s: float
    memory: int
    gpu_memory: int


@dataclass(frozen=True)
class RoundEstimate:
    """The estimate. tried: Client whose steps were timed.

    num_steps, seconds: Steps and seconds of each client's training in a round. at_once: How many
    clients work at the same time. round_s: Seconds of a round without evaluation; evaluation_s:
    Additional seconds of a round that is evaluated. memory, gpu_memory: Bytes of one client's
    process; gpu_memory is 0 without a GPU.
    """

    tried: str
    num_steps: dict[str, int]
    seconds: dict[str, float]
    at_once: int
    round_s: float
    evaluation_s: float
    memory: int
    gpu_memory: int


def estimate_round(federation: Federation, num_server_val: int) -> RoundEstimate:
    """Try a few steps of the largest client, and estimate. Only for clients on this machine.

    num_server_val: Images on which the server evaluates. Raises InputError if a step fails.
    """
    config = federation.config
    data = largest_client(config.clients, config.train["batch"], federation.summaries)
    device = "0" if config.client_resources.num_gpus else "cpu"
    settings = settings_of_try(
        config, federation.task, federation.architecture, data, federation.caches, device
    )
    settings = dataclasses.replace(
        settings,
        local_epochs=NUM_STEPS,  # enough of them, with one batch each
        num_threads=max(1, math.floor(config.client_resources.num_cpus)),
    )
    num = 1 if device != "cpu" else min(num_at_once(config), config.clients_per_round, MAX_TOGETHER)
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(num)
    try:
        with ProcessPoolExecutor(num, context, _meet_at, (barrier,)) as processes:
            tries = [processes.submit(_try, settings) for _ in range(num)]
            errors = [e for e in (done.exception() for done in tries) if e is not None]
            if errors:  # the other processes then fail too, but only because the barrier broke
                raise min(errors, key=lambda error: isinstance(error, BrokenBarrierError))
            trials = [done.result() for done in tries]
    except BrokenProcessPool as error:  # no Python error was raised: the data is not at fault
        fewer = "raise client_resources.num_cpus, so that fewer run at once, or " if num > 1 else ""
        raise InputError(
            f"a process that tried a training step, of {num} at once, was killed, most likely for "
            f"want of memory; {fewer}lower train.batch or train.imgsz"
        ) from error
    except Exception as error:  # Ultralytics and PyTorch raise errors of any kind
        where = f"datasets[{config.clients.index(data)}] '{data.name}'"
        raise InputError(
            f"{where}: a training step failed: {reason_of(error)}; correct its data or train "
            "arguments"
        ) from error
    trial = Trial(
        fmean(one.step_s for one in trials),
        max(one.memory for one in trials),
        max(one.gpu_memory for one in trials),
    )
    return estimate(federation, data.name, trial, num_server_val)


def estimate(
    federation: Federation, tried: str, trial: Trial, num_server_val: int
) -> RoundEstimate:
    """Estimate a round in which each step takes as long as in the trial."""
    config, summaries = federation.config, federation.summaries
    batch = int(config.train["batch"])
    steps, seconds, evaluation = {}, {}, {}
    for name, summary in summaries.items():
        steps[name] = math.ceil(summary.num_train / batch) * config.local_epochs
        seconds[name] = steps[name] * trial.step_s
        evaluation[name] = summary.num_val / batch * trial.step_s * FORWARD
    num = num_at_once(config)
    per_round = config.clients_per_round
    return RoundEstimate(
        tried,
        steps,
        seconds,
        min(num, per_round),
        _together(seconds, per_round, num),
        _together(evaluation, len(evaluation), num)
        + num_server_val / batch * trial.step_s * FORWARD,
        trial.memory,
        trial.gpu_memory,
    )


def _together(seconds: dict[str, float], per_round: int, at_once: int) -> float:
    """Return the seconds until all clients are done; each takes the first worker that is free.

    If only some clients are drawn for a round, each counts with the mean time of all.
    """
    times = list(seconds.values())
    if per_round < len(times):
        times = [fmean(times)] * per_round
    free_at = [0.0] * at_once
    for time_s in times:
        heapq.heapreplace(free_at, free_at[0] + time_s)
    return max(free_at)


def num_at_once(config: ResolvedConfig) -> int:
    """Return how many clients work at the same time on this machine.

    Clients that share a GPU count as one: they take turns, more or less.
    """
    resources = config.client_resources
    num = math.floor(num_cpus() / resources.num_cpus)
    if resources.num_gpus:
        num = min(num, torch.cuda.device_count())
    return max(1, min(num, len(config.clients)))


_barrier: Any = None  # in each process of a trial; all of them share it


def _meet_at(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _try(settings: SliceSettings) -> Trial:
    """Time the steps in a process of the pool, after all processes have done the first step."""
    is_on_gpu = settings.device != "cpu"
    ends: list[float] = []

    def after_batch() -> None:
        if is_on_gpu:
            torch.cuda.synchronize()
        if not ends:
            _barrier.wait()
        ends.append(time.perf_counter())

    try:
        with _peak_memory() as peak, quiet_stdout(verbose=False):
            try_batches(settings, NUM_STEPS, after_batch)
    except BaseException:
        _barrier.abort()
        raise
    gpu_memory = torch.cuda.max_memory_reserved() if is_on_gpu else 0
    return Trial((ends[-1] - ends[0]) / (len(ends) - 1), peak[0], gpu_memory)


@contextmanager
def _peak_memory() -> Iterator[list[int]]:
    """Yield a list of one element: the most resident memory of this process meanwhile, in bytes.

    It is sampled, because the system's own peak would begin with the parent's memory.
    """
    process, done = psutil.Process(), threading.Event()
    peak = [process.memory_info().rss]

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            peak[0] = max(peak[0], process.memory_info().rss)

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
