"""Losses that leave out classes that a client did not annotate."""

from typing import Any

import pytest
import torch

from federated_yolo.yolo.losses import AnnotatedClassesLoss


def test_rtdetrs_loss_of_a_class_that_is_not_annotated_is_that_of_background() -> None:
    """One query that matches an object of class 1, which was labelled all the same."""
    loss: Any = AnnotatedClassesLoss(3, [1])
    scores = torch.tensor([[[0.5, 2.0, -1.0]]], requires_grad=True)
    score = torch.tensor([[0.9]])
    found = loss._get_loss_class(scores, torch.tensor([[1]]), score, 1)["loss_class"]
    nothing = loss._get_loss_class(scores, torch.tensor([[3]]), 0 * score, 1)["loss_class"]
    assert found.item() == pytest.approx(nothing.item())
    assert found.item() > 0  # of the other two classes
    found.backward()
    assert scores.grad is not None
    assert (scores.grad != 0).tolist() == [[[True, False, True]]]
