"""`num_gpus: auto`: how many clients share a GPU, measured by a trial run of one client.

The try trains a few batches of one client in a process of its own, before the simulation starts,
because Flower fixes the number of its workers then. Memory of an evaluation is not tried; where the
estimate was too good, client/device_slots.py lets fewer clients in.
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

MARGIN = 0.1  # of the free memory: batches differ in boxes, and memory falls to pieces
NUM_BATCHES = 8
GIB = 2**30


class MemoryProbe(Protocol):
    """What is known of a device's memory, in bytes. Pickled: the try is in another process."""

    device: str

    def num_gpus(self) -> int:
        """How many devices like this there are."""
        ...

    def free(self) -> int:
        """Of the device, whichever processes have the rest."""
        ...

    def allocated(self) -> int:
        """Of this process's tensors now."""
        ...

    def reserved(self) -> int:
        """By this process's PyTorch now."""
        ...

    def peak_reserved(self) -> int:
        """By this process's PyTorch at its highest."""
        ...


class CudaMemory:
    """The memory of GPU 0; where there are more, they are taken to be alike."""

    device = "0"

    def num_gpus(self) -> int:
        """See MemoryProbe."""
        return torch.cuda.device_count()

    def free(self) -> int:
        """As the driver says; with this process's CUDA context, which the call makes."""
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
    """Bytes. free: of a GPU before any client is there. peak: of a worker that trains one client,
    its CUDA context included. kept: what a worker keeps of each client that it has trained.
    """

    free: int
    peak: int
    kept: int


def clients_per_gpu(
    memory: ClientMemory, num_clients: int, num_gpus: int, num_workers: float
) -> int:
    """How many workers share a GPU; 0 when not even one client fits.

    num_clients: of the federation; more workers have no use. num_workers: as many as have CPUs.
    Any worker may come to train every client, and keeps something of the last MAX_CLIENTS.
    """
    if memory.peak > memory.free:
        return 0
    of_worker = memory.peak + (min(num_clients, MAX_CLIENTS) - 1) * memory.kept
    wanted = math.ceil(min(num_clients, max(1, math.floor(num_workers))) / num_gpus)
    return max(1, min(wanted, math.floor(memory.free * (1 - MARGIN) / of_worker)))


def as_share(num_clients: int) -> float:
    """num_gpus with which so many clients share one; Ray counts ten-thousandths."""
    return math.floor(10_000 / num_clients) / 10_000


def largest_client(
    clients: Sequence[ClientData], batch: int, summaries: Mapping[str, DataSummary]
) -> ClientData:
    """The client that takes most memory: its batches are full, and have most boxes.

    batch: images in one.
    """

    def size(data: ClientData) -> tuple[int, float]:
        summary = summaries[data.name]
        return min(batch, summary.num_train), sum(summary.class_counts) / summary.num_train

    return max(clients, key=size)


def measure(settings: SliceSettings, probe: MemoryProbe) -> ClientMemory:
    """Try a client in a process of its own. Raises what the try raises."""
    free = probe.free()
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        free_after, peak_above, kept = process.submit(_try, settings, probe).result()
    return ClientMemory(free, free - free_after + peak_above, kept)


def _try(settings: SliceSettings, probe: MemoryProbe) -> tuple[int, int, int]:
    """In a process of its own: the device's free memory while it has trained, how much more than
    now PyTorch had at its peak, and what the client keeps.
    """
    trainer = try_batches(settings, NUM_BATCHES)
    above = probe.peak_reserved() - probe.reserved()
    kept = probe.allocated()
    del trainer  # it had to live until here
    return probe.free(), above, kept


def gpu_share(
    config: ResolvedConfig,
    task: str,
    architecture: Architecture,
    summaries: Mapping[str, DataSummary],
    caches: Path,
    probe: MemoryProbe,
) -> tuple[float, str]:
    """The number for `num_gpus: auto`, and a sentence that says how it came about.

    Where there is no GPU, or sites have machines of their own, it is 0, and nothing is tried.

    architecture: of the global model. caches: label caches, one folder a client.
    Raises InputError when a client does not fit on a GPU.
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
    """Settings of a try, in a new private folder beside the label caches, which it uses."""
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
