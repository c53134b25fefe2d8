"""What a client keeps between two slices: optimiser, loss, random states, private arrays."""

import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch

from federated_yolo.common.arrays import Arrays
from federated_yolo.storage.archive import RoundMeta, load_arrays, save_arrays
from federated_yolo.yolo.model import load_into

PRIVATE_START = "start.npz"

KEPT_STATES = 2  # of the last round, and of the one before it for a round that is tried again


def state_path(private_dir: Path, round_number: int) -> Path:
    """Where a client keeps its state after a round."""
    return private_dir / "state" / f"round{round_number}.pt"


def saved_states(private_dir: Path) -> list[int]:
    """Rounds of which a client has a state."""
    names = (private_dir / "state").glob("round*.pt")
    return [int(m.group(1)) for p in names if (m := re.fullmatch(r"round(\d+)", p.stem))]


def save_private_start(private_dir: Path, arrays: Arrays) -> None:
    """Keep what the base model has for the arrays that are not shared."""
    if arrays:
        save_arrays(private_dir / PRIVATE_START, arrays, RoundMeta(0, (), "", ""))


def load_private_start(private_dir: Path) -> Arrays:
    """Read it; empty when all arrays are shared."""
    path = private_dir / PRIVATE_START
    return load_arrays(path)[0] if path.exists() else {}


def state_of(trainer: Any, private: Arrays) -> dict[str, Any]:
    """All that a client carries between rounds beside the shared arrays; tensors and numbers."""
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
    _replay_loader(
        trainer.train_loader, [trainer.epochs_with_mosaic, trainer.epochs_without_mosaic]
    )
    if hasattr(trainer.train_loader.dataset, "buffer"):
        _refill_mosaic_buffer(trainer, state["mosaic_buffer"])


# unstable: torch.utils.data.DataLoader._get_iterator
# unstable: torch.utils.data.dataloader._BaseDataLoaderIter._next_index
# unstable: ultralytics.data.build.InfiniteDataLoader says 'self.iterator'
def _replay_loader(loader: Any, num_epochs: list[int]) -> None:
    """Bring the order of the images to where it stands after these epochs, without reading any.

    Where their number has changed, it is as if it had been this one from the start.

    num_epochs: epochs before and after closing mosaic, at which Ultralytics resets the loader.
    Loader workers (GPU only) read ahead, so their order cannot be replayed; it goes on from the
    seed instead.
    """
    loader.reset()
    loader.generator.manual_seed(loader.generator.initial_seed())
    if loader.num_workers:
        return
    for count in filter(None, num_epochs):
        loader.iterator = loader._get_iterator()
        for _ in range(count * len(loader)):
            loader.iterator._next_index()


def _mosaic_buffer(trainer: Any) -> list[tuple[int, str]]:
    """Index and file of the images that mosaic draws its neighbours from."""
    indices = getattr(trainer.train_loader.dataset, "buffer", ())
    files = _files(trainer) if indices else []
    return [(index, files[index]) for index in indices]


# unstable: ultralytics.data.base.BaseDataset says 'self.buffer'
# unstable: ultralytics.data.base.BaseDataset says 'self.im_hw0[i], self.im_hw[i]'
def _refill_mosaic_buffer(trainer: Any, images: list[tuple[int, str]]) -> None:
    """Read those images again that are still there, wherever they are in the order now."""
    dataset = trainer.train_loader.dataset
    for i in dataset.buffer:
        dataset.ims[i] = dataset.im_hw0[i] = dataset.im_hw[i] = None
    dataset.buffer = []
    files = _files(trainer)
    index_of = {file: index for index, file in enumerate(files)}
    for index, file in images:  # a list may name an image twice, so its own index comes first
        found = index if files[index : index + 1] == [file] else index_of.get(file)
        if found is not None:
            dataset.load_image(found)


def _files(trainer: Any) -> list[str]:
    """The images by index; where they are below the split's folder, also if that is moved."""
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
