"""One model on one data set: the metrics that `yolo val` would print."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ultralytics.cfg import get_cfg
from ultralytics.data import build_dataloader

from utils.data import build_dataset
from utils.environment import ensure_torchvision_nms
from utils.model import validator_class

# Train arguments that also matter in validation. The batch size is not among them: it changes the
# padding of rectangular batches, and `yolo val` uses 16 whatever the model was trained with.
VALIDATION_ARGS = ("imgsz", "single_cls", "classes", "conf", "iou", "max_det", "agnostic_nms")
VALIDATION_ARGS += ("augment", "nms", "workers", "overlap_mask", "mask_ratio", "fraction")
BATCH = 16


@dataclass(frozen=True)
class Evaluation:
    """metrics: by Ultralytics' name, e.g. "metrics/mAP50-95(B)". fitness: what it ranks by.

    num_examples: images evaluated. per_class: "class/NAME/mAP50" and "class/NAME/mAP50-95" of the
    boxes, for the classes that the labels of these images have.
    """

    metrics: dict[str, float]
    fitness: float
    num_examples: int
    per_class: dict[str, float]


class Evaluator:
    """Scores models on the val split of one data set. Holds the data loader between calls."""

    def __init__(
        self,
        data: Mapping[str, Any],
        task: str,
        train: Mapping[str, Any],
        private_dir: Path,
        device: str = "cpu",
        num_threads: int = 1,
    ) -> None:
        """data: as of `read_data_yaml`; private_dir has its data.yaml and takes the caches."""
        self.data = {"channels": 3, **data}
        self.private_dir = private_dir
        self.num_threads = num_threads
        self.args = {k: train[k] for k in VALIDATION_ARGS if k in train}
        self.args.update(
            task=task,
            mode="val",
            split="val",
            rect=True,
            batch=BATCH,
            device=device,
            data=str(private_dir / "data.yaml"),
            save_dir=str(private_dir / "ultralytics"),
            plots=False,
            verbose=False,
        )
        self._loader: Any = None

    def __call__(self, model: torch.nn.Module) -> Evaluation:
        """Evaluate a model, which stays as it is (Ultralytics fuses a copy)."""
        ensure_torchvision_nms()
        if self._loader is None:
            self._loader = self._build_loader(model)
        callbacks = defaultdict(list, on_val_start=[self._set_threads])
        validator = validator_class(self.args["task"])(
            self._loader, args=self.args, _callbacks=callbacks
        )
        validator(model=model)
        results = dict(validator.metrics.results_dict)
        fitness = float(results.pop("fitness"))
        return Evaluation(
            {name: float(value) for name, value in results.items()},
            fitness,
            len(self._loader.dataset),
            _per_class(validator.metrics.box, model),
        )

    def _set_threads(self, _: Any) -> None:
        # Selecting the CPU set PyTorch's threads to nearly all cores.
        torch.set_num_threads(self.num_threads)

    def _build_loader(self, model: Any) -> Any:
        args = get_cfg(overrides=self.args)
        device = torch.device("cuda", 0) if self.args["device"] != "cpu" else torch.device("cpu")
        args.workers = 0 if device.type == "cpu" else args.workers * 2
        stride = max(int(model.stride.max()), 32)
        caches = self.private_dir / "caches"
        dataset = build_dataset(args, self.data["val"], BATCH, self.data, "val", stride, caches)
        return build_dataloader(dataset, BATCH, args.workers, shuffle=False, device=device)


def _per_class(box: Any, model: Any) -> dict[str, float]:
    """Average precision of each class that occurs; Ultralytics has the mean for the others."""
    result = {}
    for position, index in enumerate(box.ap_class_index):
        name = f"class/{model.names[int(index)]}"
        result[f"{name}/mAP50"] = float(box.ap50[position])
        result[f"{name}/mAP50-95"] = float(box.ap[position])
    return result
