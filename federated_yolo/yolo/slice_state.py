"""State of a client between slices: optimiser, loss scaler, data order, random states, arrays."""

import itertools
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from federated_yolo.common.arrays import Arrays
from federated_yolo.storage.archive import RoundMeta, load_arrays, save_arrays
from federated_yolo.yolo.model import load_into
from federated_yolo.yolo.passes import place_part

PRIVATE_START = "start.npz"

KEPT_STATES = 2  # the last round's, and the one before it for a round that is tried again


def state_path(private_dir: Path, slice_number: int) -> Path:
    """Return the path of a client's state after a slice (1-based; a round has one or more)."""
    return private_dir / "state" / f"round{slice_number}.pt"


def saved_states(private_dir: Path) -> list[int]:
    """Return the slices whose state a client has saved."""
    names = (private_dir / "state").glob("round*.pt")
    return [int(m.group(1)) for p in names if (m := re.fullmatch(r"round(\d+)", p.stem))]


def save_private_start(private_dir: Path, arrays: Arrays) -> None:
    """Save the base model's values of the private arrays."""
    if arrays:
        save_arrays(private_dir / PRIVATE_START, arrays, RoundMeta(0, (), "", ""))


def load_private_start(private_dir: Path) -> Arrays:
    """Read the base model's values of the private arrays; empty if all arrays are shared."""
    path = private_dir / PRIVATE_START
    return load_arrays(path)[0] if path.exists() else {}


def state_of(trainer: Any, private: Arrays) -> dict[str, Any]:
    """Return a client's state between rounds beside the shared arrays, as tensors and numbers."""
    return {
        "private": {name: torch.from_numpy(array) for name, array in private.items()},
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "epochs_with_mosaic": trainer.epochs_with_mosaic,
        "epochs_without_mosaic": trainer.epochs_without_mosaic,
        "mosaic_buffer": _mosaic_buffer(trainer),
        "random": _random_states(),
    }


def restore_state(trainer: Any, state: dict[str, Any]) -> None:
    private = {name: tensor.numpy() for name, tensor in state["private"].items()}
    load_into(trainer.model, private, private)
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.scaler.load_state_dict(state["scaler"])
    trainer.epochs_with_mosaic = state["epochs_with_mosaic"]
    trainer.epochs_without_mosaic = state["epochs_without_mosaic"]
    _replay_loader(trainer)
    if hasattr(trainer.train_loader.dataset, "buffer"):
        _refill_mosaic_buffer(trainer, state["mosaic_buffer"])


# unstable: torch.utils.data.DataLoader._get_iterator
# unstable: torch.utils.data.dataloader._BaseDataLoaderIter._next_index
# unstable: ultralytics.data.build.InfiniteDataLoader says 'self.iterator'
def _replay_loader(trainer: Any) -> None:
    """Advance the loader's image order to the end of these epochs without reading any image.

    If the number of images has changed, the order is as if it had been the present one throughout.

    Ultralytics resets the loader where it closes mosaic. Loader workers (GPU only) read ahead, so
    their order cannot be replayed; it starts from the seed again instead.
    """
    loader, num_parts = trainer.train_loader, trainer.settings.averages_per_round
    num_epochs = [trainer.epochs_with_mosaic, trainer.epochs_without_mosaic]
    loader.reset()
    loader.generator.manual_seed(loader.generator.initial_seed())
    if num_parts > 1:
        part = sum(num_epochs) % num_parts if loader.num_workers else 0
        loader.batch_sampler.sampler.rewind(part)
    if loader.num_workers:
        return
    epochs = iter(range(sum(num_epochs)))
    for count in filter(None, num_epochs):
        loader.iterator = loader._get_iterator()
        for epoch in itertools.islice(epochs, count):
            place_part(loader, epoch, num_parts)
            for _ in range(len(loader)):
                loader.iterator._next_index()


def _mosaic_buffer(trainer: Any) -> list[tuple[int, str]]:
    """Return index and file of the images from which mosaic draws its neighbours."""
    indices = getattr(trainer.train_loader.dataset, "buffer", ())
    files = _files(trainer) if indices else []
    return [(index, files[index]) for index in indices]


# unstable: ultralytics.data.base.BaseDataset says 'self.buffer'
# unstable: ultralytics.data.base.BaseDataset says 'self.im_hw0[i], self.im_hw[i]'
def _refill_mosaic_buffer(trainer: Any, images: list[tuple[int, str]]) -> None:
    """Read the images that still exist again, whatever their index is now."""
    dataset = trainer.train_loader.dataset
    for i in dataset.buffer:
        dataset.ims[i] = dataset.im_hw0[i] = dataset.im_hw[i] = None
    dataset.buffer = []
    files = _files(trainer)
    index_of = {file: index for index, file in enumerate(files)}
    for index, file in images:  # a list may name an image twice, so its old index is tried first
        found = index if files[index : index + 1] == [file] else index_of.get(file)
        if found is not None:
            dataset.load_image(found)


def _files(trainer: Any) -> list[str]:
    """Return the image files by index, relative to the split's folder, which may be moved."""
    folder = trainer.data["train"]
    prefix = folder if isinstance(folder, str) else ""
    return [file.removeprefix(prefix) for file in trainer.train_loader.dataset.im_files]


def _random_states() -> dict[str, Any]:
    state: Any = np.random.get_state(legacy=True)
    name, keys, position, has_gauss, cached = state
    assert name == "MT19937"
    return {
        "python": random.getstate(),
        "numpy": (torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
