"""Draw predictions of models beside the labels, with Ultralytics' own validators."""

import io
import math
import queue
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from ultralytics.models.yolo.detect import DetectionValidator as _Base
else:
    _Base = object

PANEL_PX = 800  # width and height of the square in which Ultralytics arranges a panel's images
TIMEOUT_S = 300.0  # time limit for drawing one panel


class _DrawingMixin(_Base):
    """A validator that draws its first batch, like `val_batch0_labels.jpg` and `..._pred.jpg`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._drawn: queue.Queue[Path] = queue.Queue()
        self.pictures: list[Path] = []

    def update_metrics(self, preds: Any, batch: dict[str, Any]) -> None:
        """Draw labels and predictions, each on a copy, because Ultralytics' drawing changes it.

        Ultralytics draws in another thread, so the second picture waits for the first.
        """
        super().update_metrics(preds, batch)
        height, width = batch["img"].shape[2:]
        per_row = math.ceil(math.sqrt(len(batch["img"])))
        scale = PANEL_PX / (per_row * max(height, width))
        # Labels are fractions of the image, predictions are pixels.
        if self.args.task == "classify":  # its predictions have no coordinates
            enlarged = preds
        else:
            enlarged = [_enlarged(pred, scale) for pred in preds]
        self.plot_val_samples(_drawable(batch, scale), 0)
        self.pictures.append(self._drawn.get(timeout=TIMEOUT_S))
        self.plot_predictions(_drawable(batch, scale), enlarged, 0)
        self.pictures.append(self._drawn.get(timeout=TIMEOUT_S))

    def on_plot(self, name: Any, data: Any = None) -> None:
        """Note that Ultralytics has saved a picture."""
        self._drawn.put(Path(name))


@cache
def drawing_class(validator: type) -> type:
    """Return a subclass that also draws; its `pictures` are the labels, then the predictions."""
    return type(f"Drawing{validator.__name__}", (_DrawingMixin, validator), {})


def _drawable(batch: dict[str, Any], scale: float) -> dict[str, Any]:
    """Copy a batch with its images resized and without their file names."""
    copy = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.items()}
    size = [round(side * scale) for side in copy["img"].shape[2:]]
    mode = "bilinear" if scale < 1 else "bicubic"
    resized = torch.nn.functional.interpolate(copy["img"].float(), size, mode=mode, antialias=True)
    copy["img"] = resized.clamp(0, 1)
    if "im_file" in copy:
        copy["im_file"] = [""] * len(copy["im_file"])  # a file name may contain a person's name
    return copy


def _enlarged(pred: dict[str, torch.Tensor], scale: float) -> dict[str, torch.Tensor]:
    """Copy one image's predictions, scaled to the resized image."""
    copy = {name: tensor.clone() for name, tensor in pred.items()}
    copy["bboxes"][:, :4] *= scale  # the fifth of an oriented box is its angle
    if "keypoints" in copy:
        copy["keypoints"][..., :2] *= scale
    return copy


def side_by_side(panels: Mapping[str, Path]) -> bytes:
    """Return a JPEG of the pictures in a row, each below its title."""
    from PIL import Image

    from federated_yolo.common.figures import new_figure

    inches = PANEL_PX / 100
    figure = new_figure(inches * len(panels), inches + 0.35, dpi=100)
    for index, (title, path) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), index + 1)
        with Image.open(path) as image:
            axes.imshow(image)
        axes.set_title(title, fontsize=20, loc="left")
        axes.axis("off")
    file = io.BytesIO()
    figure.savefig(file, format="jpeg", pil_kwargs={"quality": 88})
    return file.getvalue()
