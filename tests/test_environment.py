"""Suppression of boxes where torchvision's operator cannot be loaded."""

import pytest
import torch
from ultralytics.utils.nms import TorchNMS

from utils.environment import BLOCK, nms


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
