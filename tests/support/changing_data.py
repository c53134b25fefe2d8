"""Data that changes just before a round's message."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from local_grid import LocalGrid
from trainings import TRAIN

from federated_yolo.client import workspace as client_module

SMALL: dict[str, Any] = {**TRAIN, "imgsz": 64}  # any number of images can be trained
Change = Callable[[], object]
Changes = dict[tuple[str, int], Change]


class ChangingGrid(LocalGrid):
    """Changes data just before a round's first train or evaluate message.

    changes: by the kind of message and the round. forgetful: as if every message went to a new
    process.
    """

    def __init__(
        self,
        num_nodes: int,
        changes: Changes,
        *,
        forgetful: bool = False,
        sites: Any = (),
    ) -> None:
        super().__init__(num_nodes, sites=sites)
        self.changes = dict(changes)
        self.forgetful = forgetful

    def push_messages(self, messages: Any) -> list[str]:
        messages = list(messages)
        for message in messages:
            config = message.content.config_records.get("config", {})
            key = (message.metadata.message_type, int(config.get("server-round", 0)))
            self.changes.pop(key, lambda: None)()
            if self.forgetful:
                client_module.held_clients.clear()
        return super().push_messages(messages)


class Stopped(Exception):
    """As if the server's process had been killed."""


def stop() -> None:
    raise Stopped


def take(data: Path, *names: str, split: str = "train") -> Change:
    """Move images, with their labels, out of a data set."""

    def change() -> None:
        for kind, suffix in (("images", "jpg"), ("labels", "txt")):
            (data.parent / "away" / kind).mkdir(parents=True, exist_ok=True)
            for name in names:
                file = data.parent / kind / split / f"{name}.{suffix}"
                shutil.move(file, data.parent / "away" / kind / file.name)

    return change


def put_back(data: Path, split: str = "train") -> Change:
    """Move all of them back."""

    def change() -> None:
        for file in (data.parent / "away").rglob("*.*"):
            shutil.move(file, data.parent / file.parent.name / split / file.name)

    return change


def add(data: Path, *names: str) -> Change:
    """Copies of image 0 of the train split, with its label."""

    def change() -> None:
        for kind, suffix in (("images", "jpg"), ("labels", "txt")):
            folder = data.parent / kind / "train"
            for name in names:
                shutil.copy(folder / f"0.{suffix}", folder / f"{name}.{suffix}")

    return change


def replace(data: Path, name: str, height: int = 48, width: int = 96) -> Change:
    """Another image of another shape under the same name, and another label."""

    def change() -> None:
        rng = np.random.default_rng(9)
        image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        cv2.imwrite(str(data.parent / "images" / "train" / f"{name}.jpg"), image)
        label = data.parent / "labels" / "train" / f"{name}.txt"
        label.write_text("2 0.5 0.5 0.25 0.75\n1 0.25 0.25 0.25 0.25\n")

    return change


def in_turn(*changes: Change) -> Change:
    return lambda: [change() for change in changes]
