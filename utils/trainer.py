"""One round is a slice of one Ultralytics training run.

A client's trainer is set up once, for all `num_rounds * local_epochs` epochs, and each round runs
the next `local_epochs` of them in Ultralytics' own loop. Learning-rate schedule, warm-up, closing
of mosaic and loss schedules are therefore right by construction, and a federation of one client
equals plain `yolo train` bit for bit.

What a training run carries from epoch to epoch beside the weights (optimiser, random states,
position of the data loader, mosaic buffer) is saved after each slice in the client's private
folder, so that the next slice may run in another process and still be the same.
"""

import gc
import itertools
import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.data import RandomSampler
from ultralytics.data import build_dataloader
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.utils.loss import RTDETRDetectionLoss
from ultralytics.utils.torch_utils import init_seeds, unset_deterministic, unwrap_model

from utils.arrays import Arrays, select
from utils.attempts import AbortedError
from utils.changes import SplitState, split_signature, told_changes
from utils.config import InputError, SharedConfig
from utils.data import (
    CLASS_MAP,
    NOT_ANNOTATED,
    build_dataset,
    read_data_yaml,
    usable_dataset,
)
from utils.environment import ensure_torchvision_nms
from utils.model import (
    MODEL_YAML,
    Architecture,
    is_rtdetr,
    load_into,
    model_of,
    shared_names,
    to_arrays,
    trainer_class,
)
from utils.plausible import leaves_single_out
from utils.run_dir import RoundMeta, load_arrays, save_arrays, write_atomically

PRIVATE_START = "start.npz"
CERTAINLY_NOT = -100.0  # a logit: its sigmoid is 0 beside any other loss
KEPT_STATES = 2  # of the last round, and of the one before it for a round that is tried again


@dataclass(frozen=True)
class SliceSettings:
    """What a client needs to know to train its slices.

    architecture: of the global model; weights come with each round.
    data: the private data.yaml. private_dir: folder for this client's files.
    train: Ultralytics train arguments. device: "cpu" or "0". num_threads: of PyTorch on the CPU.
    """

    architecture: Architecture
    task: str
    data: Path
    private_dir: Path
    train: Mapping[str, Any]
    num_rounds: int
    local_epochs: int
    seed: int
    device: str
    num_threads: int = 1
    shared: SharedConfig = field(default_factory=SharedConfig)
    keep_optimizer: bool = True


@dataclass(frozen=True)
class SliceResult:
    """Outcome of one slice.

    arrays: float32 weights (not the EMA's) and buffers; those that are shared.
    num_examples: training images. num_steps: steps of the optimiser.
    losses: mean over the slice's epochs, by Ultralytics' name, e.g. "train/box_loss".
    notes: what has changed in the data since the last slice.
    """

    arrays: Arrays
    num_examples: int
    num_steps: int
    losses: dict[str, float]
    notes: tuple[str, ...] = ()


class _SliceDone(Exception):
    """Leaves Ultralytics' loop at the end of a slice, without its final evaluation."""


class LossIsNotFiniteError(RuntimeError):
    """The loss or the weights became NaN or infinite."""


# unstable: ultralytics.models.utils.loss.RTDETRDetectionLoss._get_loss_class
class AnnotatedClassesLoss(RTDETRDetectionLoss):
    """RT-DETR's loss without that of classes that nobody annotated here.

    missing: their indices.
    """

    def __init__(self, num_classes: int, missing: list[int]) -> None:
        super().__init__(nc=num_classes, use_vfl=True)  # as RTDETRDetectionModel makes it
        self.missing = missing

    def _get_loss_class(
        self, pred_scores: torch.Tensor, targets: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Take those classes as certainly not there, which costs nothing and has no gradient.

        pred_scores: (images, queries, classes), logits. targets: (images, queries), class indices;
        the number of classes is background.
        """
        missing = torch.tensor(self.missing, device=pred_scores.device)
        pred_scores = pred_scores.index_fill(-1, missing, CERTAINLY_NOT)
        targets = targets.masked_fill(torch.isin(targets, missing), self.nc)
        return super()._get_loss_class(pred_scores, targets, *args, **kwargs)


# unstable: ultralytics.engine.trainer.BaseTrainer._setup_train
# unstable: ultralytics.engine.trainer.BaseTrainer._build_train_pipeline
# unstable: ultralytics.engine.trainer.BaseTrainer._handle_nan_recovery
# unstable: ultralytics.engine.trainer.BaseTrainer._model_train
# unstable: ultralytics.engine.trainer.BaseTrainer._close_dataloader_mosaic
# unstable: ultralytics.engine.trainer.BaseTrainer says 'self.tloss'
# unstable: ultralytics.engine.trainer.BaseTrainer says 'self.start_epoch'
# unstable: ultralytics.engine.trainer.BaseTrainer says 'self.accumulate'
# unstable: ultralytics.utils.loss.v8DetectionLoss says 'getattr(model, "class_weights", None)'
# unstable: torch.nn.modules.batchnorm._BatchNorm
class _SliceMixin(BaseTrainer if TYPE_CHECKING else object):
    """Put before an Ultralytics trainer, makes it run its epochs in slices.

    State: what Ultralytics keeps, and below, what it would keep in local variables of its loop.
    """

    def __init__(self, settings: SliceSettings) -> None:
        ensure_torchvision_nms()
        self.settings = settings
        self.mosaic_is_closed = False
        self.epochs_with_mosaic = 0  # epochs drawn from the loader before and after closing:
        self.epochs_without_mosaic = 0  # closing resets the loader
        self.epoch_losses: list[dict[str, float]] = []
        self.slice_end = 0
        self.num_steps = 0
        self.proximal_mu = 0.0
        self.proximal_pairs: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self.batchnorm_is_frozen = False
        self.abort_reason = ""
        self.signature = ""  # of the images that it trains on
        super().__init__(overrides=self._overrides(settings))
        # Ultralytics' integrations (loggers, its platform) have no business in a client.
        self.callbacks = defaultdict(list)
        self.add_callback("on_train_start", self._set_threads)
        self.add_callback("on_train_batch_end", self._leave_if_aborted)
        self.add_callback("on_train_epoch_end", self._count_epoch)
        self.add_callback("on_fit_epoch_end", self._leave_after_slice)

    @staticmethod
    def _overrides(settings: SliceSettings) -> dict[str, Any]:
        return {
            **settings.train,
            "task": settings.task,
            "mode": "train",
            "model": MODEL_YAML,
            "data": str(settings.data),
            "epochs": settings.num_rounds * settings.local_epochs,
            "seed": settings.seed,
            "device": settings.device,
            "save_dir": str(settings.private_dir / "ultralytics"),
            "exist_ok": True,
            "save": False,
            "val": False,
            "plots": False,
            "verbose": False,
        }

    # What follows replaces methods of BaseTrainer.

    def setup_model(self) -> None:
        """Build the model as plain training does from the base model."""
        if not isinstance(self.model, torch.nn.Module):
            self.model = model_of(self.settings.architecture, self)

    def get_dataset(self) -> dict[str, Any]:
        """Read a classifier's data as that of the other tasks.

        For classify Ultralytics would take a folder, and its classes for the federation's.
        """
        if self.settings.task != "classify":
            return super().get_dataset()
        return read_data_yaml(self.settings.data, where="training")

    def build_dataset(self, img_path: Any, mode: str = "train", batch: int | None = None) -> Any:
        """Build the data set with its caches in the private folder."""
        model: Any = unwrap_model(self.model)  # pyright: ignore[reportArgumentType]
        stride = max(int(model.stride.max()), 32)
        caches = self.settings.private_dir / "caches"
        squares = is_rtdetr(self.settings.architecture.yaml)
        arguments = (self.args, img_path, batch, self.data, mode, stride, caches, squares)
        if mode == "train":
            self.signature = split_signature(img_path)  # before it is read, while it may change
            return usable_dataset(*arguments)
        # Nothing is evaluated here, so a val split that cannot be used is no reason not to train.
        dataset = None
        with suppress(OSError, RuntimeError, ValueError, AssertionError):
            dataset = build_dataset(*arguments)
        return dataset if dataset is not None and len(dataset) else self.train_loader.dataset

    def get_dataloader(
        self, dataset_path: Any, batch_size: int = 16, rank: int = 0, mode: str = "train"
    ) -> Any:
        """Leave a last batch of one image out of its epoch where Ultralytics refuses to train.

        The next epoch draws another order, so that it is another image.
        """
        loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
        num, batch = len(loader.dataset), loader.batch_size
        smallest = smallest_imgsz(self.args.imgsz, self.args.multi_scale, self.stride)
        is_small = smallest < 2 * self.stride
        if mode != "train" or not (is_small and leaves_single_out(num, batch)):
            return loader
        shuffle = isinstance(loader.sampler, RandomSampler)
        return build_dataloader(
            loader.dataset,
            batch_size,
            self.args.workers,
            shuffle=shuffle,
            rank=rank,
            drop_last=True,
            device=self.device,
        )

    def _setup_train(self) -> None:
        """Set up once; later slices only put the schedule in place."""
        if self.ema is None:
            super()._setup_train()
            ema: Any = self.ema
            ema.enabled = False  # the raw weights are federated
            self.optimizer.register_step_pre_hook(self._before_step)
        self.scheduler.last_epoch = self.start_epoch - 1

    def _build_train_pipeline(self) -> None:
        """Refuse Ultralytics' way out of memory shortage, which is a smaller batch."""
        if self.ema is not None:
            raise MemoryError(f"with train.batch={self.settings.train.get('batch')}")
        try:
            super()._build_train_pipeline()
        except InputError:
            raise
        except ValueError as error:
            if not hasattr(self, "train_loader"):
                raise
            # About the last batch, which depends on how many images there are.
            num_images = len(self.train_loader.dataset)  # pyright: ignore[reportArgumentType]
            raise InputError(f"train: with its {num_images} images of now: {error}") from error

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Refuse to go on from a checkpoint: the round fails, the federation keeps its model."""
        if self.loss is not None and not self.loss.isfinite():
            raise LossIsNotFiniteError(
                f"the loss is {float(self.loss)} in epoch {epoch + 1}; lower train.lr0"
            )
        return False

    def _model_train(self) -> None:
        """Keep BatchNorm in evaluation mode once its statistics are frozen (FixBN)."""
        super()._model_train()
        if self.batchnorm_is_frozen:
            model: Any = self.model
            for module in model.modules():
                if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def set_class_weights(self) -> None:
        """Give classes that nobody annotated here no weight in the classification loss.

        All of Ultralytics' YOLO heads (also the end-to-end ones, for each of their two losses)
        multiply the binary cross-entropy of each class by these weights, so that such a class has
        no gradient here, from any anchor. RT-DETR's loss knows no weights; ours leaves them out.
        """
        super().set_class_weights()
        data: Any = self.data
        # An image of one class says of all others that it does not show them.
        missing = data.get(NOT_ANNOTATED) if self.settings.task != "classify" else None
        if missing and not self.args.single_cls:
            model: Any = unwrap_model(self.model)  # pyright: ignore[reportArgumentType]
            if is_rtdetr(self.settings.architecture.yaml):
                model.criterion = AnnotatedClassesLoss(model.nc, missing)
                return
            weights = getattr(model, "class_weights", None)
            weights = torch.ones(data["nc"], device=self.device) if weights is None else weights
            weights[missing] = 0.0
            model.class_weights = weights

    def _before_step(self, *_: Any) -> None:
        # Here gradients are unscaled and clipped; FedProx's term is not part of the loss they
        # come from. Li et al. 2020, arXiv 1812.06127: mu / 2 * |w - w_global|^2.
        self.num_steps += 1
        with torch.no_grad():
            for parameter, start in self.proximal_pairs:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - start, alpha=self.proximal_mu)

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()
        self.mosaic_is_closed = True

    def validate(self) -> tuple[dict[str, float], None]:
        """Skip: evaluation is a step of its own, and would draw from the random state."""
        return {}, None

    def save_metrics(self, metrics: dict[str, float]) -> None:
        """Skip: the run directory has the results."""

    def save_model(self) -> Any:
        """Skip: Ultralytics would save the EMA, rounded to half precision."""
        return False

    # Callbacks.

    def _set_threads(self, _: Any) -> None:
        # Ultralytics sets PyTorch's threads to nearly all cores whenever it selects the CPU.
        torch.set_num_threads(self.settings.num_threads)

    def _count_epoch(self, _: Any) -> None:
        if self.mosaic_is_closed:
            self.epochs_without_mosaic += 1
        else:
            self.epochs_with_mosaic += 1
        self.epoch_losses.append({k: float(v) for k, v in self.tloss.items()})

    def _leave_if_aborted(self, _: Any) -> None:
        if self.abort_reason:
            raise AbortedError(self.abort_reason)

    def _leave_after_slice(self, _: Any) -> None:
        if self.epoch + 1 >= self.slice_end:
            raise _SliceDone


def smallest_imgsz(imgsz: int, multi_scale: float, stride: int) -> int:
    """The smallest size, in pixels, that images are trained at, as Ultralytics (8.4) reckons it.

    Below two strides the smallest feature map has one value for each image, and BatchNorm cannot
    train on a batch of one.
    """
    return max(stride, int(imgsz * (1 - multi_scale))) // stride * stride


@cache
def _slice_class(base: type) -> type:
    return type(f"{base.__name__}OfSlices", (_SliceMixin, base), {})


def _make_trainer(settings: SliceSettings) -> Any:
    return _slice_class(trainer_class(settings.task, settings.architecture.yaml))(settings)


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


class SliceTrainer:
    """Trains one client's slices. Holds the Ultralytics trainer between rounds."""

    def __init__(self, settings: SliceSettings) -> None:
        self.settings = settings
        self._trainer: Any = None
        self._last_round = 0
        self._training: Any = None  # the same, while it trains
        self._callbacks: list[tuple[str, Callable[[Any], None]]] = []

    def abort(self, reason: str) -> None:
        """End the slice that is being trained after its present batch, by AbortedError.

        From a callback, another thread or a signal handler; without effect when nothing trains.
        """
        trainer = self._training
        if trainer is not None:
            trainer.abort_reason = reason

    def add_callback(self, event: str, function: Callable[[Any], None]) -> None:
        """Call a function at an event of Ultralytics' trainer; before the first slice."""
        self._callbacks.append((event, function))

    def forget(self, round_number: int) -> None:
        """Go back to before this round, which has been trained, or not."""
        self._path(round_number).unlink(missing_ok=True)
        self._trainer = None

    def train(self, round_number: int, arrays: Arrays, proximal_mu: float = 0.0) -> SliceResult:
        """Train the slice of this round (1-based), starting from the given global arrays.

        arrays: those that are shared; the private ones go on as this client's last round left them.
        proximal_mu: FedProx's pull towards `arrays`.
        Raises what the training raises; the next call then starts from the last saved state.
        """
        trainer, state = self._take_trainer(round_number)
        shared = shared_names(trainer.model, self.settings.shared)
        load_into(trainer.model, arrays, shared)
        _place_schedules(trainer, round_number, self.settings.local_epochs)
        _place_options(trainer, round_number, self.settings, shared, proximal_mu)
        if state is not None:
            init_seeds(trainer.args.seed, deterministic=trainer.args.deterministic)
            _restore_random_states(state["random"])
        trainer.abort_reason = ""
        self._training = trainer
        try:
            trainer.train()
        except _SliceDone:
            if trainer.abort_reason:  # by the last batch, or after it
                raise AbortedError(trainer.abort_reason) from None
        else:
            raise AssertionError("Ultralytics' loop ended before its slice")
        finally:
            self._training = None
        _apply_pending_gradients(trainer)
        trained = to_arrays(trainer.model)
        _refuse_infinite(trained)
        private = {name: array for name, array in trained.items() if name not in set(shared)}
        self._save_state(_state_of(trainer, private), round_number)
        self._trainer, self._last_round = trainer, round_number
        dataset = trainer.train_loader.dataset
        now = SplitState(trainer.signature, len(dataset), trainer.data.get(CLASS_MAP))
        private_dir = self.settings.private_dir
        notes = told_changes(private_dir, "train", round_number, now, dataset.num_damaged)
        return SliceResult(
            arrays=select(trained, shared),
            num_examples=len(dataset),
            num_steps=trainer.num_steps,
            losses=_mean_losses(trainer),
            notes=tuple(notes),
        )

    def private_arrays(self, round_number: int) -> Arrays:
        """The arrays that are not shared, as this client's last round up to this one left them.

        Those of the base model before its first round; empty when all are shared.
        """
        last = max((r for r in self._saved() if r <= round_number), default=0)
        if not last:
            return load_private_start(self.settings.private_dir)
        return {name: tensor.numpy() for name, tensor in self._load_state(last)["private"].items()}

    def _take_trainer(self, round_number: int) -> tuple[Any, dict[str, Any] | None]:
        """A trainer as after this client's last round before `round_number`, and that state.

        The trainer kept here is used as it is if it trained that round, and brought to the saved
        state if the client has meanwhile trained in another process or the round is tried again.
        Where the images or their labels have changed, a new one goes on from that state.
        """
        last = max((r for r in self._saved() if r < round_number), default=0)
        state = self._load_state(last) if last else None
        trainer, self._trainer = self._trainer, None  # kept again only if the slice succeeds
        if trainer is not None and trainer.signature != split_signature(trainer.data["train"]):
            trainer = None
            gc.collect()  # it is in cycles
        if trainer is not None and self._last_round != last:
            mosaic_open = state is not None and not state["epochs_without_mosaic"]
            if state is None or (mosaic_open and trainer.mosaic_is_closed):
                trainer = None  # Ultralytics cannot go back to these
        if trainer is None:
            trainer = _make_trainer(self.settings)
            for event, function in self._callbacks:
                trainer.add_callback(event, function)
            trainer._setup_train()
            trainer.nominal_accumulate = trainer.accumulate
            self._last_round = 0
            start = load_private_start(self.settings.private_dir)
            load_into(trainer.model, start, start)
        if state is not None and self._last_round != last:
            _restore(trainer, state)
        return trainer, state

    def _saved(self) -> list[int]:
        return saved_states(self.settings.private_dir)

    def _path(self, round_number: int) -> Path:
        return state_path(self.settings.private_dir, round_number)

    def _load_state(self, round_number: int) -> dict[str, Any]:
        return torch.load(self._path(round_number), weights_only=True)

    def _save_state(self, state: dict[str, Any], round_number: int) -> None:
        path = self._path(round_number)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: torch.save(state, file))
        saved = self._saved()
        kept = sorted(r for r in saved if r <= round_number)[-KEPT_STATES:]
        for other in set(saved) - set(kept):
            self._path(other).unlink(missing_ok=True)


def try_batches(
    settings: SliceSettings, num_batches: int, after_batch: Callable[[], None] = lambda: None
) -> Any:
    """Train at most so many batches of the first slice, with a step; for what it takes.

    Returns Ultralytics' trainer. Nothing is saved.
    """
    trainer = _make_trainer(settings)
    batches = itertools.count(1)

    def leave(_: Any) -> None:
        after_batch()
        if next(batches) >= num_batches:
            raise _SliceDone

    trainer._setup_train()
    trainer.nominal_accumulate = trainer.accumulate
    shared = shared_names(trainer.model, settings.shared)
    _place_schedules(trainer, 1, settings.local_epochs)
    _place_options(trainer, 1, settings, shared, proximal_mu=0.0)
    trainer.add_callback("on_train_batch_end", leave)
    with suppress(_SliceDone):
        trainer.train()
    _apply_pending_gradients(trainer)  # optimisers take their memory in the first step
    return trainer


def set_up(settings: SliceSettings) -> None:
    """Set up a training and read its first batch, to see that it can be; nothing is kept."""
    num_threads = torch.get_num_threads()
    try:
        trainer = _make_trainer(settings)
        trainer._setup_train()
        next(iter(trainer.train_loader))
        trainer.train_loader.close()
    finally:
        unset_deterministic()
        torch.set_num_threads(num_threads)


def _place_schedules(trainer: Any, round_number: int, local_epochs: int) -> None:
    """Put what Ultralytics counts by epoch where the slice of this round starts."""
    start = (round_number - 1) * local_epochs
    trainer.start_epoch, trainer.slice_end = start, start + local_epochs
    trainer.stop = False
    trainer.epoch_losses = []
    trainer.accumulate = trainer.nominal_accumulate  # warm-up leaves it somewhere below
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
        if hasattr(model.criterion, "update"):  # the loss of end-to-end heads has a schedule
            model.criterion.updates = start - 1
            model.criterion.update()


def _place_options(
    trainer: Any, round_number: int, settings: SliceSettings, shared: list[str], proximal_mu: float
) -> None:
    """Put what strategy and sharing ask of this slice in place; weights are loaded already."""
    trainer.num_steps = 0
    names = set(shared)
    trainer.proximal_mu = proximal_mu
    trainer.proximal_pairs = [
        (parameter, parameter.detach().clone())
        for name, parameter in unwrap_model(trainer.model).named_parameters()
        if proximal_mu and parameter.requires_grad and name in names
    ]
    trainer.batchnorm_is_frozen = settings.shared.batchnorm_is_frozen(
        round_number, settings.num_rounds
    )
    if not settings.keep_optimizer:
        trainer.optimizer.state.clear()


def _apply_pending_gradients(trainer: Any) -> None:
    """Step with what gradient accumulation (nbs > batch) has left at the end of the slice."""
    if any(p.grad is not None for p in trainer.model.parameters()):
        trainer.optimizer_step()


def _refuse_infinite(arrays: Arrays) -> None:
    """Raise before a client keeps a state from which it could never recover."""
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise LossIsNotFiniteError(f"the last step made {name} infinite; lower train.lr0")


def _mean_losses(trainer: Any) -> dict[str, float]:
    epochs = trainer.epoch_losses
    return {f"train/{name}": sum(e[name] for e in epochs) / len(epochs) for name in epochs[0]}


def _state_of(trainer: Any, private: Arrays) -> dict[str, Any]:
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


def _restore(trainer: Any, state: dict[str, Any]) -> None:
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


def _restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
