"""The RT-DETR loss for clients that do not annotate all classes."""

from typing import Any

import torch
from ultralytics.models.utils.loss import RTDETRDetectionLoss

CERTAINLY_NOT = -100.0  # a logit whose sigmoid adds nothing to the loss


# unstable: ultralytics.models.utils.loss.RTDETRDetectionLoss._get_loss_class
class AnnotatedClassesLoss(RTDETRDetectionLoss):
    """RT-DETR's loss without the classes that this client does not annotate.

    missing: Indices of those classes.
    """

    def __init__(self, num_classes: int, missing: list[int]) -> None:
        super().__init__(nc=num_classes, use_vfl=True)  # as RTDETRDetectionModel makes it
        self.missing = missing

    def _get_loss_class(
        self, pred_scores: torch.Tensor, targets: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        """Treat those classes as certainly absent, which adds no loss and no gradient.

        pred_scores: (images, queries, classes), logits. targets: (images, queries), class indices;
        an index equal to the number of classes is background.
        """
        missing = torch.tensor(self.missing, device=pred_scores.device)
        pred_scores = pred_scores.index_fill(-1, missing, CERTAINLY_NOT)
        targets = targets.masked_fill(torch.isin(targets, missing), self.nc)
        return super()._get_loss_class(pred_scores, targets, *args, **kwargs)
