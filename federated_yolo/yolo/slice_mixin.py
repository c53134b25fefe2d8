"""An Ultralytics trainer that runs its epochs in slices."""

from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import RandomSampler
from ultralytics.data import build_dataloader
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.utils import DEFAULT_CFG_DICT
from ultralytics.utils.torch_utils import unwrap_model

from federated_yolo.common.errors import AbortedError, InputError
from federated_yolo.common.torchvision_nms import ensure_torchvision_nms
from federated_yolo.config.schema import SharedConfig
from federated_yolo.data.changes import split_signature
from federated_yolo.data.data_yaml import NOT_ANNOTATED, read_data_yaml
from federated_yolo.data.datasets import build_dataset
from federated_yolo.data.scan import usable_dataset
from federated_yolo.yolo.checkpoint import MODEL_YAML, is_rtdetr
from federated_yolo.yolo.class_branch import Architecture, model_of
from federated_yolo.yolo.losses import AnnotatedClassesLoss
from federated_yolo.yolo.model import trainer_class
from federated_yolo.yolo.passes import in_parts, place_part


@dataclass(frozen=True)
class SliceSettings:
    """What a client needs to know to train its slices.

    Attributes:
        architecture: What the global model is built from; weights come with each round.
        task: Ultralytics' task, such as "detect".
        data: The client's data.yaml in `private_dir`, which was written for its training.
        private_dir: A folder for this client's files of this run, which nobody else uses.
        train: Ultralytics' train arguments, the same at all clients.
        num_rounds: Rounds of the run.
        local_epochs: Epochs in a round; the learning-rate schedule spans all rounds' epochs.
        seed: The client's own seed.
        device: "cpu" or the index of a GPU, "0".
        num_threads: PyTorch's CPU threads.
        shared: Which arrays are federated; the others stay in `private_dir`.
        keep_optimizer: Whether the optimiser keeps its state between rounds.
        averages_per_round: Slices of a round. Each is followed by an average, and has
            `local_epochs` parts of passes; a pass has as many parts.
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
    averages_per_round: int = 1


class SliceDone(Exception):
    """Raised at the end of a slice to leave Ultralytics' loop before its final evaluation."""


class LossIsNotFiniteError(RuntimeError):
    """The loss or the weights became NaN or infinite."""


# unstable: ultralytics.engine.trainer.BaseTrainer._setup_train
# unstable: ultralytics.engine.trainer.BaseTrainer._build_train_pipeline
# unstable: ultralytics.engine.trainer.BaseTrainer._setup_scheduler
# unstable: ultralytics.engine.trainer.BaseTrainer._handle_nan_recovery
# unstable: ultralytics.engine.trainer.BaseTrainer._model_train
# unstable: ultralytics.engine.trainer.BaseTrainer._close_dataloader_mosaic
# unstable: ultralytics.engine.trainer.BaseTrainer says 'self.tloss'
# unstable: ultralytics.engine.trainer.BaseTrainer says 'self.start_epoch'
# unstable: ultralytics.engine.trainer.BaseTrainer says 'self.accumulate'
# unstable: ultralytics.utils.loss.v8DetectionLoss says 'getattr(model, "class_weights", None)'
# unstable: torch.nn.modules.batchnorm._BatchNorm
class _SliceMixin(BaseTrainer if TYPE_CHECKING else object):
    """Makes an Ultralytics trainer run its epochs in slices; it precedes the trainer as a base.

    The attributes below hold what Ultralytics would keep in local variables of its loop.
    """

    def __init__(self, settings: SliceSettings) -> None:
        ensure_torchvision_nms()
        self.settings = settings
        self.mosaic_is_closed = False
        self.epochs_with_mosaic = 0  # epochs drawn from the loader before mosaic was closed, and
        self.epochs_without_mosaic = 0  # after: closing resets the loader
        self.epoch_losses: list[dict[str, float]] = []
        self.slice_end = self.epoch = 0
        self.num_steps = 0
        self.proximal_mu = 0.0
        self.proximal_pairs: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
        self.batchnorm_is_frozen = False
        self.abort_reason = ""
        self.signature = ""  # signature of the train split
        super().__init__(overrides=self._overrides(settings))
        # A client must not run Ultralytics' integrations (loggers, its platform).
        self.callbacks = defaultdict(list)
        self.add_callback("on_train_start", self._set_threads)
        self.add_callback("on_train_epoch_start", self._place_part)
        self.add_callback("on_train_batch_end", self._leave_if_aborted)
        self.add_callback("on_train_epoch_end", self._count_epoch)
        self.add_callback("on_fit_epoch_end", self._leave_after_slice)

    @staticmethod
    def _overrides(settings: SliceSettings) -> dict[str, Any]:
        parts, epochs = settings.averages_per_round, settings.num_rounds * settings.local_epochs
        counted: dict[str, Any] = {}
        if parts > 1:  # to Ultralytics, a part of a pass is an epoch
            given = {**DEFAULT_CFG_DICT, **settings.train}
            counted = {
                "close_mosaic": given["close_mosaic"] * parts,
                "warmup_epochs": min(given["warmup_epochs"], epochs - 1) * parts,
            }
        return {
            **settings.train,
            **counted,
            "task": settings.task,
            "mode": "train",
            "model": MODEL_YAML,
            "data": str(settings.data),
            "epochs": epochs * parts,
            "seed": settings.seed,
            "device": settings.device,
            "save_dir": str(settings.private_dir / "ultralytics"),
            "exist_ok": True,
            "save": False,
            "val": False,
            "plots": False,
            "verbose": False,
        }

    # The methods below replace those of BaseTrainer.

    def setup_model(self) -> None:
        """Build the model that plain training would build from the base model."""
        if not isinstance(self.model, torch.nn.Module):
            self.model = model_of(self.settings.architecture, self)

    def get_dataset(self) -> dict[str, Any]:
        """Read a classifier's data in the same way as data of the other tasks.

        For classify, Ultralytics would read a folder and use its classes as the federation's.
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
            self.signature = split_signature(img_path)  # before reading: the split may change then
            return usable_dataset(*arguments)
        # Nothing is evaluated here, so a val split that cannot be used does not prevent training.
        dataset = None
        with suppress(OSError, RuntimeError, ValueError, AssertionError):
            dataset = build_dataset(*arguments)
        return dataset if dataset is not None and len(dataset) else self.train_loader.dataset

    def get_dataloader(
        self, dataset_path: Any, batch_size: int = 16, rank: int = 0, mode: str = "train"
    ) -> Any:
        """Drop the last batch of an epoch if it has one image and Ultralytics would refuse it.

        The next epoch draws another order, so another image is left out.
        """
        loader = self._whole_loader(dataset_path, batch_size, rank, mode)
        parts = self.settings.averages_per_round
        return in_parts(loader, parts) if mode == "train" and parts > 1 else loader

    def _whole_loader(self, dataset_path: Any, batch_size: int, rank: int, mode: str) -> Any:
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
        """Set up once; later slices only place the learning-rate schedule."""
        if self.ema is None:
            super()._setup_train()
            ema: Any = self.ema
            ema.enabled = False  # the raw weights are federated
            self.optimizer.register_step_pre_hook(self._before_step)
        self.scheduler.last_epoch = self.start_epoch - 1

    def _setup_scheduler(self) -> None:
        """Let the learning rate change once in a pass, as in plain training."""
        super()._setup_scheduler()
        parts = self.settings.averages_per_round
        of_part: Any = self.lf
        if parts > 1:
            self.lf = lambda epoch: of_part(epoch // parts * parts)
            optimizer: Any = self.optimizer
            self.scheduler = LambdaLR(optimizer, lr_lambda=self.lf)

    def _build_train_pipeline(self) -> None:
        """Raise MemoryError where Ultralytics would retry with a smaller batch."""
        if self.ema is not None:
            raise MemoryError(f"with train.batch={self.settings.train.get('batch')}")
        try:
            super()._build_train_pipeline()
        except InputError:
            raise
        except ValueError as error:
            if not hasattr(self, "train_loader"):
                raise
            # The error concerns the last batch, which depends on the number of images.
            num_images = len(self.train_loader.dataset)  # pyright: ignore[reportArgumentType]
            raise InputError(f"train: with its {num_images} images of now: {error}") from error

    def _handle_nan_recovery(self, epoch: int) -> bool:
        """Raise instead of continuing from a checkpoint: the round fails, the model is kept."""
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
        """Give classes that this client does not annotate no weight in the classification loss.

        All of Ultralytics' YOLO heads (also the end-to-end ones, for each of their two losses)
        multiply the binary cross-entropy of each class by these weights, so such a class gets no
        gradient here, from any anchor. RT-DETR's loss has no weights; ours leaves the classes out.
        """
        super().set_class_weights()
        data: Any = self.data
        # For classify, an image's class implies that it shows none of the other classes.
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
        # At this point gradients are unscaled and clipped; FedProx's term is added to them, not to
        # the loss. Li et al. 2020, arXiv 1812.06127: mu / 2 * |w - w_global|^2.
        self.num_steps += 1
        with torch.no_grad():
            for parameter, start in self.proximal_pairs:
                if parameter.grad is not None:
                    parameter.grad.add_(parameter - start, alpha=self.proximal_mu)

    def _close_dataloader_mosaic(self) -> None:
        super()._close_dataloader_mosaic()
        self.mosaic_is_closed = True
        parts, loader = self.settings.averages_per_round, self.train_loader
        if parts > 1 and loader.num_workers:  # they have read ahead, and begin anew after this
            epoch = max(self.start_epoch, self.epoch)
            loader.batch_sampler.sampler.rewind(epoch % parts)

    def validate(self) -> tuple[dict[str, float], None]:
        """Skip: evaluation is a separate step, and here it would draw from the random state."""
        return {}, None

    def save_metrics(self, metrics: dict[str, float]) -> None:
        """Skip: the run directory contains the results."""

    def save_model(self) -> Any:
        """Skip: Ultralytics would save the EMA, rounded to half precision."""
        return False

    # Callbacks.

    def _set_threads(self, _: Any) -> None:
        # Ultralytics sets PyTorch's threads to nearly all cores whenever it selects the CPU.
        torch.set_num_threads(self.settings.num_threads)

    def _place_part(self, _: Any) -> None:
        place_part(self.train_loader, self.epoch, self.settings.averages_per_round)

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
            raise SliceDone


def smallest_imgsz(imgsz: int, multi_scale: float, stride: int) -> int:
    """Return the smallest training image size in pixels, computed as in Ultralytics (8.4).

    Below two strides, the smallest feature map has one value for each image, and BatchNorm cannot
    train on a batch of one image.
    """
    return max(stride, int(imgsz * (1 - multi_scale))) // stride * stride


@cache
def _slice_class(base: type) -> type:
    return type(f"{base.__name__}OfSlices", (_SliceMixin, base), {})


def make_trainer(settings: SliceSettings) -> Any:
    return _slice_class(trainer_class(settings.task, settings.architecture.yaml))(settings)


def leaves_single_out(num_images: int, batch: int) -> bool:
    """Whether the last batch of an epoch has one image while the others have more."""
    return num_images % min(batch, num_images) == 1
