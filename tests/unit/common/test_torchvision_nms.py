"""Suppression of boxes where torchvision's operator cannot be loaded."""

import pytest
import torch
from ultralytics.utils.nms import TorchNMS

from federated_yolo.common.torchvision_nms import BLOCK, nms


@pytest.mark.parametrize("num_boxes", [0, 1, 5, BLOCK - 1, BLOCK, BLOCK + 1, 700])
@pytest.mark.parametrize("extent", [50, 640])
def test_the_boxes_that_stay_are_those_of_ultralytics(num_boxes: int, extent: int) -> None:
    generator = torch.Generator().manual_seed(num_boxes + extent)
    corner = torch.rand(num_boxes, 2, generator=generator) * extent
    size = torch.rand(num_boxes, 2, generator=generator) * 120
    boxes = torch.cat([corner, corner + size], 1)
    if num_boxes > 500:
        boxes[:100] = boxes[0]  # equals, in more than one block
        boxes[200:220, 2:] = boxes[200:220, :2]  # without an area
    scores = torch.rand(num_boxes, generator=generator)
    found = nms(boxes, scores, 0.6)
    assert torch.equal(found, TorchNMS.nms(boxes, scores, 0.6))
    assert num_boxes < 100 or len(found) < num_boxes


def test_equal_scores_and_an_overlap_at_the_threshold_are_as_in_torchvision() -> None:
    """Which sorts stably and compares with the threshold in float64."""
    boxes = torch.tensor([[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 6]], dtype=torch.float32)
    scores = torch.tensor([0.5, 0.5, 0.5])
    assert float(torch.tensor(0.6)) > 0.6  # the overlap of the first and the third
    assert nms(boxes, scores, 0.6).tolist() == [0, 1]
    assert nms(boxes, scores, 0.61).tolist() == [0, 1, 2]
