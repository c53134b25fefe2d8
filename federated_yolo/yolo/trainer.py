"""Train a client in slices: one round is a slice of one Ultralytics training run.

A client's trainer is set up once, for all `num_rounds * local_epochs` epochs, and each round runs
the next `local_epochs` of them in Ultralytics' own loop. Learning-rate schedule, warm-up, closing
of mosaic and loss schedules are therefore right by construction, and a federation of one client
equals plain `yolo train` bit for bit.

The state that a training run carries from epoch to epoch beside the weights (optimiser, random
states, position of the data loader, mosaic buffer) is saved after each slice in the client's
private folder, so the next slice gives the same result even in another process.
"""

import gc
import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics.utils.torch_utils import init_seeds, unset_deterministic, unwrap_model

from federated_yolo.common.arrays import Arrays, select
from federated_yolo.common.errors import AbortedError
from federated_yolo.common.files import write_atomically
from federated_yolo.data.changes import SplitState, split_signature, told_changes
from federated_yolo.data.data_yaml import CLASS_MAP
from federated_yolo.yolo.model import load_into, shared_names, to_arrays
from federated_yolo.yolo.passes import kept_slices, place_part, slice_number
from federated_yolo.yolo.slice_mixin import (
    LossIsNotFiniteError,
    SliceDone,
    SliceSettings,
    make_trainer,
)
from federated_yolo.yolo.slice_state import (
    KEPT_STATES,
    load_private_start,
    restore_random_states,
    restore_state,
    saved_states,
    state_of,
    state_path,
)


@dataclass(frozen=True)
class SliceResult:
    """Outcome of one slice, the epochs that a client trains in one round.

    Attributes:
        arrays: The shared arrays after the last step, with their names and shapes in the model's
            `state_dict`: weights (not the EMA's) and statistics, float32, and BatchNorm's
            counters, int64.
        num_examples: Images of the train split; each was trained on once per epoch.
        num_steps: Optimiser steps in the slice.
        losses: Mean losses over the slice's epochs, by Ultralytics' names, such as
            "train/box_loss".
        notes: Changes of the data since the last slice, one sentence each.
    """

    arrays: Arrays
    num_examples: int
    num_steps: int
    losses: dict[str, float]
    notes: tuple[str, ...] = ()


# unstable: ultralytics.engine.trainer.BaseTrainer._setup_train
# unstable: ultralytics.engine.trainer.BaseTrainer._close_dataloader_mosaic
class SliceTrainer:
    """Trains one client's slices. Holds the Ultralytics trainer between rounds."""

    def __init__(self, settings: SliceSettings) -> None:
        self.settings = settings
        self._trainer: Any = None
        self._last = 0  # the slice that `_trainer` has trained
        self._training: Any = None  # the trainer while it trains
        self._other: SliceTrainer | None = None  # while it trains (`train_alone`)
        self._callbacks: list[tuple[str, Callable[[Any], None]]] = []

    def abort(self, reason: str) -> None:
        """End the slice that is being trained after its present batch, with AbortedError.

        May be called from a callback, another thread or a signal handler; has no effect while
        nothing trains.
        """
        trainer = self._training
        if trainer is not None:
            trainer.abort_reason = reason
        if self._other is not None:
            self._other.abort(reason)

    def add_callback(self, event: str, function: Callable[[Any], None]) -> None:
        """Register a function for an event of Ultralytics' trainer; call before the first slice."""
        self._callbacks.append((event, function))

    def forget(self, round_number: int, part: int = 1) -> None:
        """Discard the state after this slice, whether or not it was trained."""
        self._path(self._number(round_number, part)).unlink(missing_ok=True)
        self._trainer = None

    def train(
        self, round_number: int, arrays: Arrays, proximal_mu: float = 0.0, part: int = 1
    ) -> SliceResult:
        """Train a slice of this round (1-based), starting from the given global arrays.

        arrays: The shared arrays; private ones continue from this client's last slice.
        proximal_mu: FedProx's coefficient, which pulls the weights towards `arrays`. part: Which
        slice of the round (1-based), if the round has several (`averages_per_round`).
        Raises any error of the training; the next call then starts from the last saved state.
        """
        number = self._number(round_number, part)
        trainer, state = self._take_trainer(number)
        shared = shared_names(trainer.model, self.settings.shared)
        load_into(trainer.model, arrays, shared)
        _place_schedules(trainer, number, self.settings)
        _place_options(trainer, number, self.settings, shared, proximal_mu)
        if state is not None:
            init_seeds(trainer.args.seed, deterministic=trainer.args.deterministic)
            restore_random_states(state["random"])
        trainer.abort_reason = ""
        self._training = trainer
        try:
            trainer.train()
        except SliceDone:
            if trainer.abort_reason:  # during the last batch, or after it
                raise AbortedError(trainer.abort_reason) from None
        else:
            raise AssertionError("Ultralytics' loop ended before its slice")
        finally:
            self._training = None
        _apply_pending_gradients(trainer)
        trained = to_arrays(trainer.model)
        _refuse_infinite(trained)
        private = {name: array for name, array in trained.items() if name not in set(shared)}
        self._save_state(state_of(trainer, private), number)
        self._trainer, self._last = trainer, number
        dataset = trainer.train_loader.dataset
        now = SplitState(trainer.signature, len(dataset), trainer.data.get(CLASS_MAP))
        private_dir = self.settings.private_dir
        notes = told_changes(private_dir, "train", number, now, dataset.num_damaged)
        return SliceResult(
            arrays=select(trained, shared),
            num_examples=len(dataset),
            num_steps=trainer.num_steps,
            losses=_mean_losses(trainer),
            notes=tuple(notes),
        )

    def train_alone(self, settings: SliceSettings, arrays: Arrays) -> SliceResult:
        """Train a whole other training of one round, with the callbacks of this one.

        No state of it is kept. The memory of this one is freed first; its next slice starts from
        its saved state.

        settings: Settings with another `private_dir`. arrays: All arrays that are shared there.
        Raises any error of the training.
        """
        self._trainer = None
        gc.collect()  # trainers are in reference cycles
        settings.private_dir.mkdir(parents=True, exist_ok=True)
        self._other = SliceTrainer(settings)
        self._other._callbacks = self._callbacks
        try:
            return self._other.train(1, arrays)
        finally:
            self._other.forget(1)
            self._other = None

    def private_arrays(self, round_number: int) -> Arrays:
        """Return the private arrays after the last round that this client trained up to this one.

        Before its first round they are the base model's; empty if all arrays are shared.
        """
        end = self._number(round_number, self.settings.averages_per_round)
        last = max((n for n in self._saved() if n <= end), default=0)
        if not last:
            return load_private_start(self.settings.private_dir)
        return {name: tensor.numpy() for name, tensor in self._load_state(last)["private"].items()}

    def _number(self, round_number: int, part: int) -> int:
        """Return the number of a slice among those of all rounds, 1 for the first."""
        return slice_number(round_number, part, self.settings.averages_per_round)

    def _take_trainer(self, number: int) -> tuple[Any, dict[str, Any] | None]:
        """Return a trainer in the state after this client's last slice before this one.

        Returns also that state. The trainer held here is used as it is if it trained that slice. It
        is set to the saved state if the client has meanwhile trained in another process or the
        slice is tried again. If images or labels have changed, a new trainer continues from it.
        """
        last = max((n for n in self._saved() if n < number), default=0)
        state = self._load_state(last) if last else None
        trainer, self._trainer = self._trainer, None  # kept again only if the slice succeeds
        if trainer is not None and trainer.signature != split_signature(trainer.data["train"]):
            trainer = None
            gc.collect()  # the old trainer is in reference cycles
        if trainer is not None and self._last != last:
            mosaic_open = state is not None and not state["epochs_without_mosaic"]
            if state is None or (mosaic_open and trainer.mosaic_is_closed):
                trainer = None  # Ultralytics cannot go back to these states
        if trainer is None:
            trainer = make_trainer(self.settings)
            for event, function in self._callbacks:
                trainer.add_callback(event, function)
            trainer._setup_train()
            trainer.nominal_accumulate = trainer.accumulate
            self._last = 0
            start = load_private_start(self.settings.private_dir)
            load_into(trainer.model, start, start)
        if state is not None and self._last != last:
            restore_state(trainer, state)
        return trainer, state

    def _saved(self) -> list[int]:
        return saved_states(self.settings.private_dir)

    def _path(self, number: int) -> Path:
        return state_path(self.settings.private_dir, number)

    def _load_state(self, number: int) -> dict[str, Any]:
        return torch.load(self._path(number), weights_only=True)

    def _save_state(self, state: dict[str, Any], number: int) -> None:
        path = self._path(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(state, file))
        saved = self._saved()
        kept = kept_slices(saved, number, self.settings.averages_per_round, KEPT_STATES)
        for other in set(saved) - kept:
            self._path(other).unlink(missing_ok=True)


def try_batches(
    settings: SliceSettings, num_batches: int, after_batch: Callable[[], None] = lambda: None
) -> Any:
    """Train at most `num_batches` of the first slice, with a step, to measure time and memory.

    Returns Ultralytics' trainer. Nothing is saved.
    """
    trainer = make_trainer(settings)
    batches = itertools.count(1)

    def leave(_: Any) -> None:
        after_batch()
        if next(batches) >= num_batches:
            raise SliceDone

    trainer._setup_train()
    trainer.nominal_accumulate = trainer.accumulate
    shared = shared_names(trainer.model, settings.shared)
    _place_schedules(trainer, 1, settings)
    _place_options(trainer, 1, settings, shared, proximal_mu=0.0)
    trainer.add_callback("on_train_batch_end", leave)
    with suppress(SliceDone):
        trainer.train()
    _apply_pending_gradients(trainer)  # optimisers allocate their memory in the first step
    return trainer


def set_up(settings: SliceSettings) -> None:
    """Set up a training and read its first batch to check that both work; nothing is kept."""
    num_threads = torch.get_num_threads()
    try:
        trainer = make_trainer(settings)
        trainer._setup_train()
        next(iter(trainer.train_loader))
        trainer.train_loader.close()
    finally:
        unset_deterministic()
        torch.set_num_threads(num_threads)


def _place_schedules(trainer: Any, number: int, settings: SliceSettings) -> None:
    """Set everything that Ultralytics counts by epoch to the start of this slice."""
    start = (number - 1) * settings.local_epochs
    trainer.start_epoch, trainer.slice_end = start, start + settings.local_epochs
    place_part(trainer.train_loader, start, settings.averages_per_round)
    trainer.stop = False
    trainer.epoch_losses = []
    trainer.accumulate = trainer.nominal_accumulate  # warm-up leaves a smaller value
    args = trainer.args
    model: Any = unwrap_model(trainer.model)
    if args.close_mosaic and start > trainer.epochs - args.close_mosaic:
        # An earlier slice closed it; the loop would close it again and reset the data loader.
        if not trainer.mosaic_is_closed:
            trainer._close_dataloader_mosaic()
        args.close_mosaic = 0
    if start:
        if getattr(model, "criterion", None) is None:
            model.criterion = model.init_criterion()
        if hasattr(model.criterion, "update"):  # the loss of an end-to-end head has a schedule
            model.criterion.updates = start - 1
            model.criterion.update()


def _place_options(
    trainer: Any, number: int, settings: SliceSettings, shared: list[str], proximal_mu: float
) -> None:
    """Apply the options of strategy and sharing to this slice; weights are already loaded."""
    trainer.num_steps = 0
    names = set(shared)
    trainer.proximal_mu = proximal_mu
    trainer.proximal_pairs = [
        (parameter, parameter.detach().clone())
        for name, parameter in unwrap_model(trainer.model).named_parameters()
        if proximal_mu and parameter.requires_grad and name in names
    ]
    round_number, part = divmod(number - 1, settings.averages_per_round)
    trainer.batchnorm_is_frozen = settings.shared.batchnorm_is_frozen(
        round_number + 1, settings.num_rounds
    )
    if not settings.keep_optimizer and part == 0:
        trainer.optimizer.state.clear()


def _apply_pending_gradients(trainer: Any) -> None:
    """Step with gradients that accumulation (nbs > batch) has left at the end of the slice."""
    if any(p.grad is not None for p in trainer.model.parameters()):
        trainer.optimizer_step()


def _refuse_infinite(arrays: Arrays) -> None:
    """Raise LossIsNotFiniteError before the client saves a state it could never recover from."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise LossIsNotFiniteError(f"the last step made {name} infinite; lower train.lr0")


def _mean_losses(trainer: Any) -> dict[str, float]:
    epochs = trainer.epoch_losses
    return {f"train/{name}": sum(e[name] for e in epochs) / len(epochs) for name in epochs[0]}
