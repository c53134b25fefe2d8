"""Decides `num_gpus: auto`: how many clients share a GPU, measured by a trial run of one client.

The trial trains a few batches of one client in a separate process before the simulation starts,
because Flower fixes the number of its workers at the start. It does not measure the memory of an
evaluation; if the estimate was too low, client/device_slots.py lets fewer clients work at once.
"""

import math
import multiprocessing
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from federated_yolo.client.device_slots import OUT_OF_MEMORY
from federated_yolo.client.workspace import MAX_CLIENTS
from federated_yolo.common.environment import num_cpus
from federated_yolo.common.errors import InputError
from federated_yolo.common.text import reason_of
from federated_yolo.config.schema import ClientData, ResolvedConfig
from federated_yolo.data.data_yaml import read_data, write_private_yaml
from federated_yolo.data.label_space import in_label_space
from federated_yolo.data.summary import DataSummary
from federated_yolo.yolo.class_branch import Architecture
from federated_yolo.yolo.slice_mixin import SliceSettings
from federated_yolo.yolo.trainer import try_batches

MARGIN = 0.1  # share of the free memory: batches differ in boxes, and memory becomes fragmented
NUM_BATCHES = 8
GIB = 2**30


class MemoryProbe(Protocol):
    """Memory figures of one device, in bytes. Picklable: the trial runs in another process."""

    device: str

    def num_gpus(self) -> int:
        """Return the number of devices of this kind."""
        ...

    def free(self) -> int:
        """Return the device's free memory, whichever processes use the rest."""
        ...

    def allocated(self) -> int:
        """Return the memory of this process's tensors now."""
        ...

    def reserved(self) -> int:
        """Return the memory that this process's PyTorch has reserved now."""
        ...

    def peak_reserved(self) -> int:
        """Return the most memory that this process's PyTorch has ever reserved."""
        ...


class CudaMemory:
    """The memory of GPU 0; further GPUs are assumed to be like it."""

    device = "0"

    def num_gpus(self) -> int:
        """See MemoryProbe."""
        return torch.cuda.device_count()

    def free(self) -> int:
        """Return what the driver reports; the call creates this process's CUDA context first."""
        return torch.cuda.mem_get_info(0)[0]

    def allocated(self) -> int:
        """See MemoryProbe."""
        return torch.cuda.memory_allocated(0)

    def reserved(self) -> int:
        """See MemoryProbe."""
        return torch.cuda.memory_reserved(0)

    def peak_reserved(self) -> int:
        """See MemoryProbe."""
        return torch.cuda.max_memory_reserved(0)


@dataclass(frozen=True)
class ClientMemory:
    """Memory in bytes. free: Free memory of a GPU before any client uses it.

    peak: Most memory of a worker that trains one client, its CUDA context included.
    kept: Memory that a worker keeps for each client that it has trained.
    """

    free: int
    peak: int
    kept: int


def clients_per_gpu(
    memory: ClientMemory, num_clients: int, num_gpus: int, num_workers: float
) -> int:
    """Return how many workers can share a GPU; 0 if not even one client fits.

    num_clients: Clients of the federation; more workers would be idle. num_workers: Workers for
    which there are CPUs. Any worker may train every client, one after another, and keeps memory
    for the last MAX_CLIENTS of them.
    """
    if memory.peak > memory.free:
        return 0
    of_worker = memory.peak + (min(num_clients, MAX_CLIENTS) - 1) * memory.kept
    wanted = math.ceil(min(num_clients, max(1, math.floor(num_workers))) / num_gpus)
    return max(1, min(wanted, math.floor(memory.free * (1 - MARGIN) / of_worker)))


def as_share(num_clients: int) -> float:
    """Return the num_gpus with which so many clients share a GPU; Ray counts ten-thousandths."""
    return math.floor(10_000 / num_clients) / 10_000


def largest_client(
    clients: Sequence[ClientData], batch: int, summaries: Mapping[str, DataSummary]
) -> ClientData:
    """Return the client that needs the most memory: the fullest batches, then the most boxes.

    batch: Images in a batch.
    """

    def size(data: ClientData) -> tuple[int, float]:
        summary = summaries[data.name]
        return min(batch, summary.num_train), sum(summary.class_counts) / summary.num_train

    return max(clients, key=size)


def measure(settings: SliceSettings, probe: MemoryProbe) -> ClientMemory:
    """Measure the memory of one client in a separate process. Raises any error of the trial."""
    free = probe.free()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        free_after, peak_above, kept = process.submit(_try, settings, probe).result()
    return ClientMemory(free, free - free_after + peak_above, kept)


def _try(settings: SliceSettings, probe: MemoryProbe) -> tuple[int, int, int]:
    """Train a few batches; runs in a separate process.

    Returns bytes: the device's free memory after training, how much more PyTorch had reserved at
    its peak, and the memory of the tensors that the client keeps.
    """
    trainer = try_batches(settings, NUM_BATCHES)
    above = probe.peak_reserved() - probe.reserved()
    kept = probe.allocated()
    del trainer  # it must exist until its memory has been read
    return probe.free(), above, kept


def gpu_share(
    config: ResolvedConfig,
    task: str,
    architecture: Architecture,
    summaries: Mapping[str, DataSummary],
    caches: Path,
    probe: MemoryProbe,
) -> tuple[float, str]:
    """Return the number for `num_gpus: auto`, and a sentence on how it was decided.

    Without a GPU, or if the clients are sites, it is 0, and nothing is tried.

    architecture: Architecture of the global model. caches: Label caches, one folder per client.
    Raises InputError if a client does not fit on a GPU.
    """
    if config.has_sites or not probe.num_gpus():
        return 0.0, ""
    data = largest_client(config.clients, config.train["batch"], summaries)
    where = f"datasets[{config.clients.index(data)}] '{data.name}'"
    too_large = f"{where}: does not fit on a GPU with train.batch {config.train['batch']}"
    advice = (
        "lower train.batch or train.imgsz, or train on the CPU with client_resources.num_gpus=0"
    )
    try:
        settings = settings_of_try(config, task, architecture, data, caches, probe.device)
        memory = measure(settings, probe)
    except OUT_OF_MEMORY as error:
        raise InputError(f"{too_large}: {error}; {advice}") from error
    except Exception as error:  # Ultralytics and CUDA raise errors of any kind
        raise InputError(
            f"{where}: trying how much GPU memory it takes failed: {reason_of(error)}; "
            "correct it, or give client_resources.num_gpus, for which nothing is tried"
        ) from error
    num_workers = num_cpus() / config.client_resources.num_cpus
    num = clients_per_gpu(memory, len(config.clients), probe.num_gpus(), num_workers)
    taken, free = (f"{x / GIB:.1f} GiB" for x in (memory.peak, memory.free))
    if not num:
        raise InputError(f"{too_large}: it takes {taken} of {free} that are free; {advice}")
    return as_share(num), (
        f"num_gpus auto: {as_share(num):g}, at most {num} at once on a GPU with {free} free; "
        f"'{data.name}' took {taken} in a try"
    )


def settings_of_try(
    config: ResolvedConfig,
    task: str,
    architecture: Architecture,
    data: ClientData,
    caches: Path,
    device: str,
) -> SliceSettings:
    """Return the settings of a trial that uses these label caches, in a new folder beside them."""
    private_dir = Path(tempfile.mkdtemp(prefix=".try-", dir=caches))
    (private_dir / "caches").symlink_to(caches / data.name, target_is_directory=True)
    source: dict[str, Any] = read_data(Path(data.data or ""), task, where=f"client '{data.name}'")
    source = in_label_space(source, config.names, data.not_annotated)
    return SliceSettings(
        architecture=architecture,
        task=task,
        data=write_private_yaml(source, private_dir),
        private_dir=private_dir,
        train=config.train,
        num_rounds=config.num_rounds,
        local_epochs=config.local_epochs,
        seed=config.seed,
        device=device,
        shared=config.shared,
    )
