"""About how long a round will take, and how much memory: from a few training steps that are timed.

They are real ones, of the client that takes most, with the run's batch, image size and threads, in
as many processes at a time as a simulation has workers: each is slower than one alone would be.
Nothing of them is kept.
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

MAX_TOGETHER = 8  # processes that try at a time; more would hardly be slower
NUM_STEPS = 6  # the first of which is not counted: libraries choose their kernels in it
FORWARD = 1 / 3  # of the seconds that training takes for an image: backward costs two forwards
SAMPLE_S = 0.02


@dataclass(frozen=True)
class Trial:
    """Seconds of one training step; bytes that its process has at most, and of GPU memory."""

    step_s: float
    memory: int
    gpu_memory: int


@dataclass(frozen=True)
class RoundEstimate:
    """tried: the client whose steps were timed. num_steps, seconds: of each client's training.

    at_once: how many clients are at work at the same time. round_s: of a round without evaluation;
    evaluation_s: of all val splits, where a round is evaluated. memory, gpu_memory: bytes of one
    client's process; 0 without a GPU.
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
    """Try a few steps of the largest client, and estimate. For clients of this machine.

    num_server_val: images on which the server evaluates. Raises InputError when a step fails.
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
            if errors:  # others than the first may only have missed it at the barrier
                raise min(errors, key=lambda error: isinstance(error, BrokenBarrierError))
            trials = [done.result() for done in tries]
    except BrokenProcessPool as error:  # of no error of its own, so it is not the data's fault
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
    """What a round takes if each step takes as long as in the trial."""
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
    """Seconds until all are done: each client takes the first place that is free.

    Of a round that only some are drawn for, each counts as the mean of all.
    """
    times = list(seconds.values())
    if per_round < len(times):
        times = [fmean(times)] * per_round
    free_at = [0.0] * at_once
    for time_s in times:
        heapq.heapreplace(free_at, free_at[0] + time_s)
    return max(free_at)


def num_at_once(config: ResolvedConfig) -> int:
    """How many clients work at the same time on this machine.

    Those that share a GPU count as one: they take turns, more or less.
    """
    resources = config.client_resources
    num = math.floor(num_cpus() / resources.num_cpus)
    if resources.num_gpus:
        num = min(num, torch.cuda.device_count())
    return max(1, min(num, len(config.clients)))


_barrier: Any = None  # of a process that tries, shared with the others


def _meet_at(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _try(settings: SliceSettings) -> Trial:
    """In a process of its own; its steps are timed from when all processes have done one."""
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
    """The most memory (bytes, resident) that this process has meanwhile, as the one element.

    It is sampled, since the system's own count would begin with the parent's memory.
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
