"""Splits of a data set, made by the command in this process."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from federated_yolo.partitioning import command as command_module

NUM_TRAIN, NUM_VAL = 12, 6


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, list[str]]:
    """Run the command in this process: exit code, stdout, lines of stderr."""
    code = command_module.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err.splitlines()


def listed(folder: Path, split: str = "train") -> list[list[str]]:
    """The images of each client, by the lists of its data.yaml."""
    clients = sorted(folder.glob("client_*"))
    return [(client / f"{split}.txt").read_text().splitlines() for client in clients]


def read_image(path: Path) -> np.ndarray:
    """(height, width, 3) uint8, BGR."""
    image = cv2.imread(str(path))
    assert image is not None
    return image
