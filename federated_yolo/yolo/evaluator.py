"""Evaluate one model on one data set: the metrics that `yolo val` would print."""

import random
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader

from federated_yolo.common.arrays import Arrays
from federated_yolo.common.errors import InputError
from federated_yolo.common.torchvision_nms import ensure_torchvision_nms
from federated_yolo.data.changes import SplitState, split_signature, told_changes
from federated_yolo.data.data_yaml import CLASS_MAP, write_private_yaml
from federated_yolo.data.datasets import build_dataset
from federated_yolo.data.scan import usable_dataset
from federated_yolo.yolo.checkpoint import is_rtdetr
from federated_yolo.yolo.drawing import drawing_class, side_by_side
from federated_yolo.yolo.model import load_into, validator_class

# Train arguments that also matter in validation. The batch size is not among them: it changes the
# padding of rectangular batches, and `yolo val` uses 16 whatever the model was trained with.
VALIDATION_ARGS = ("imgsz", "single_cls", "classes", "conf", "iou", "max_det", "agnostic_nms")
VALIDATION_ARGS += ("augment", "nms", "workers", "overlap_mask", "mask_ratio", "fraction")
BATCH = 16


@dataclass(frozen=True)
class Evaluation:
    """Scores of a model on one split.

    metrics: Values by Ultralytics' names, e.g. "metrics/mAP50-95(B)". fitness: The number that
    Ultralytics ranks models by. num_examples: Images evaluated. per_class: Values by
    "class/NAME/METRIC", with the metrics of `class_metrics`, for the classes that occur in these
    labels. notes: Changes of the images since the last evaluated round.
    """

    metrics: dict[str, float]
    fitness: float
    num_examples: int
    per_class: dict[str, float]
    notes: tuple[str, ...] = ()


def class_metrics(task: str) -> tuple[str, ...]:
    """Return the names of the metrics of single classes: those of boxes, or of a classifier."""
    return ("accuracy_top1",) if task == "classify" else ("mAP50", "mAP50-95")


class Evaluator:
    """Scores models on one data set. Holds each split's data loader until the split changes.

    Its methods raise InputError for a split that cannot be used in its present state.
    """

    def __init__(
        self,
        data: Mapping[str, Any],
        task: str,
        train: Mapping[str, Any],
        private_dir: Path,
        device: str = "cpu",
        num_threads: int = 1,
        read_again: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """Keep the data set and the validation arguments; nothing is read yet.

        data: Result of `read_data`. private_dir: The folder of its data.yaml and of the caches.
        read_again: Returns the present `data`; None if the caller takes care of changes.
        """
        self.data = {"channels": 3, **data}
        self.read_again = read_again
        self.private_dir = private_dir
        self.num_threads = num_threads
        self.args = {k: train[k] for k in VALIDATION_ARGS if k in train}
        self.args.update(
            task=task,
            mode="val",
            rect=True,
            batch=BATCH,
            device=device,
            save_dir=str(private_dir / "ultralytics"),
            plots=False,
            verbose=False,
        )
        self._loaders: dict[str, Any] = {}
        self._signatures: dict[str, str] = {}  # signature of each loader's split

    def __call__(
        self, model: Any, split: str = "val", round_number: int | None = None
    ) -> Evaluation:
        """Evaluate a model without changing it (Ultralytics fuses a copy).

        round_number: The present round; None to leave changes of the data out of `notes`.
        """
        loader = self.loader(model, split)
        validator = self._validate(
            model, validator_class(self.args["task"], model.yaml), loader, split
        )
        results = dict(validator.metrics.results_dict)
        fitness = float(results.pop("fitness"))
        return Evaluation(
            {name: float(value) for name, value in results.items()},
            fitness,
            len(loader.dataset),
            _per_class(validator, model),
            () if round_number is None else self._changes(split, round_number),
        )

    def _changes(self, split: str, round_number: int) -> tuple[str, ...]:
        dataset = self._loaders[split].dataset
        now = SplitState(self._signatures[split], len(dataset), self.data.get(CLASS_MAP))
        return tuple(told_changes(self.private_dir, split, round_number, now, dataset.num_damaged))

    def draw(self, model: Any, versions: Mapping[str, Arrays], num_images: int) -> bytes:
        """Draw some val images with their labels, and with each version's predictions.

        model: The arrays of each version are loaded into it in turn; the last version's remain.
        versions: All arrays of each version, by the title to show above its predictions.
        num_images: Largest number of images; they are drawn from those with labels and are always
        the same.
        Returns a JPEG.
        """
        folder = self.private_dir / "pictures"
        folder.mkdir(exist_ok=True)
        loader = self._loader_of_some(model, folder / "images.txt", num_images)
        panels: dict[str, Path] = {}
        validator = validator_class(self.args["task"], model.yaml)
        for number, (title, arrays) in enumerate(versions.items()):
            load_into(model, arrays)
            drawing = self._validate(model, drawing_class(validator), loader, "val")
            labels, predictions = drawing.pictures
            panels.setdefault("labels", labels.replace(folder / "labels.jpg"))
            panels[title] = predictions.replace(folder / f"{number}.jpg")
        return side_by_side(panels)

    def _loader_of_some(self, model: torch.nn.Module, path: Path, num_images: int) -> Any:
        """Load some labelled val images. path: File for their list, written if one is needed."""
        # Not every n-th image: files often alternate between kinds.
        rng = random.Random(0)
        if self.args["task"] == "classify":
            dataset = self._build_dataset(model, "val")
            dataset.samples = rng.sample(dataset.samples, min(num_images, len(dataset)))
            return self._build_loader(dataset)
        dataset = self.loader(model, "val").dataset
        labelled = sorted(label["im_file"] for label in dataset.labels if len(label["cls"]))
        if not labelled:
            raise ValueError("none of the val images has a label (of train.classes)")
        chosen = rng.sample(labelled, min(num_images, len(labelled)))
        path.write_text("".join(f"{file}\n" for file in chosen))
        return self._build_loader(self._build_dataset(model, "val", path))

    # unstable: ultralytics.engine.validator.BaseValidator.__init__ says '_callbacks'
    def _validate(self, model: Any, validator: type, loader: Any, split: str) -> Any:
        ensure_torchvision_nms()
        callbacks = defaultdict(list, on_val_start=[self._set_threads])
        with self._data_argument(split) as data:
            args = {**self.args, "data": data, "split": split}
            running = validator(loader, args=args, _callbacks=callbacks)
            running(model=model)
        return running

    @contextmanager
    def _data_argument(self, split: str) -> Iterator[str]:
        """Yield the validator's argument `data`, which it inspects although it has a loader.

        For classify it needs training images, and would make them from others if it finds none; so
        it gets a folder in which this split stands for all three.
        """
        if self.args["task"] != "classify":
            yield str(self.private_dir / "data.yaml")
            return
        with tempfile.TemporaryDirectory(prefix="federated-yolo-links-") as folder:
            for name in ("train", "val", "test"):
                (Path(folder) / name).symlink_to(self.data[split], target_is_directory=True)
            yield folder

    def _set_threads(self, _: Any) -> None:
        # Selecting the CPU set PyTorch's threads to nearly all cores.
        torch.set_num_threads(self.num_threads)

    def loader(self, model: Any, split: str) -> Any:
        """Return the data loader of a split, rebuilt if its images or labels have changed."""
        self._look_at_data()
        if split not in self.data:
            raise InputError(f"{split}: the data set has no such split now; put it back")
        signature = split_signature(self.data[split])
        if split not in self._loaders or self._signatures[split] != signature:
            self._loaders.pop(split, None)
            self._loaders[split] = self._build_loader(self._build_dataset(model, split))
            self._signatures[split] = signature
        return self._loaders[split]

    def _look_at_data(self) -> None:
        if self.read_again is None:
            return
        data = {"channels": 3, **self.read_again()}
        if data != self.data:
            self.data = data
            self._loaders.clear()
            write_private_yaml(data, self.private_dir)

    def _build_dataset(self, model: Any, split: str, images: Path | None = None) -> Any:
        """Build the data set of a split.

        images: A file that lists the images to use instead; its caches go beside it.
        """
        args = get_cfg(overrides={**self.args, "split": split})
        stride = max(int(model.stride.max()), 32)
        source = str(images) if images else self.data[split]
        caches = images.parent if images else self.private_dir / "caches"
        squares = is_rtdetr(model.yaml)
        build = build_dataset if images else usable_dataset
        return build(args, source, BATCH, self.data, "val", stride, caches, squares)

    def _build_loader(self, dataset: Any) -> Any:
        on_cpu = self.args["device"] == "cpu"
        workers = 0 if on_cpu else get_cfg(overrides=self.args).workers * 2
        device = torch.device("cpu") if on_cpu else torch.device("cuda", 0)
        return build_dataloader(dataset, BATCH, workers, shuffle=False, device=device)


def _per_class(validator: Any, model: Any) -> dict[str, float]:
    """Return the average precision of each class that occurs; Ultralytics gives others the mean.

    For classify, it is the share of a class's images that the model assigns to that class.
    """
    result = {}
    if validator.args.task == "classify":
        matrix = validator.confusion_matrix.matrix  # images by predicted class (row) and true class
        for index in np.flatnonzero(matrix.sum(0)):
            share = matrix[index, index] / matrix[:, index].sum()
            result[f"class/{model.names[int(index)]}/accuracy_top1"] = float(share)
        return result
    box = validator.metrics.box
    for position, index in enumerate(box.ap_class_index):
        name = f"class/{model.names[int(index)]}"
        result[f"{name}/mAP50"] = float(box.ap50[position])
        result[f"{name}/mAP50-95"] = float(box.ap[position])
    return result
