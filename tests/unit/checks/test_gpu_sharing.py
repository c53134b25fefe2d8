"""`num_gpus: auto`: from what one client takes in a try to how many share a GPU."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from recipes import make_dataset
from rich.console import Console
from sound_configs import config_of
from trainings import TRAIN

from federated_yolo.checks.federation import checked
from federated_yolo.checks.gpu_sharing import (
    GIB,
    ClientMemory,
    as_share,
    clients_per_gpu,
    largest_client,
)
from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import Config
from federated_yolo.data.summary import DataSummary
from federated_yolo.runtime import terminal
from federated_yolo.storage.run_dir import RunDir


@dataclass
class FakeMemory:
    """A GPU whose numbers are given, and which is the CPU. In GiB.

    before and after: free before and after the try.
    """

    before: float = 16.0
    after: float = 14.0
    gpus: int = 1
    device: str = "cpu"
    asked: list[str] = field(default_factory=list)

    def num_gpus(self) -> int:
        return self.gpus

    def free(self) -> int:
        self.asked.append("free")
        # The try is in another process, which has a copy of this.
        return int((self.before if len(self.asked) == 1 else self.after) * GIB)

    def allocated(self) -> int:
        self.asked.append("allocated")
        return int(0.25 * GIB)

    def reserved(self) -> int:
        self.asked.append("reserved")
        return 1 * GIB

    def peak_reserved(self) -> int:
        self.asked.append("peak")
        return 2 * GIB


class FullMemory(FakeMemory):
    """Every call in the try says that there is no more."""

    def peak_reserved(self) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")


def memory(free: float, peak: float, kept: float = 0.0) -> ClientMemory:
    return ClientMemory(int(free * GIB), int(peak * GIB), int(kept * GIB))


@pytest.mark.parametrize(
    ("found", "num_clients", "num_gpus", "num_workers", "expected"),
    [
        (memory(20, 4), 10, 1, 16, 4),  # 18 of 20 are given away
        (memory(20, 4.5), 10, 1, 16, 4),  # exactly
        (memory(20, 4.6), 10, 1, 16, 3),
        (memory(20, 4), 3, 1, 16, 3),  # no more than clients
        (memory(20, 4), 10, 1, 2, 2),  # no more than have CPUs
        (memory(20, 4), 10, 1, 0.5, 1),
        (memory(80, 1), 5, 2, 16, 3),  # 5 clients on 2 GPUs: at most 3 on one
        (memory(20, 4, 0.6), 5, 1, 16, 3),  # each worker keeps 3 other clients' 0.6: 18 / 5.8
        (memory(20, 19), 10, 1, 16, 1),  # the margin is for company
        (memory(20, 10, 2), 10, 1, 16, 1),
        (memory(20, 20.1), 10, 1, 16, 0),
    ],
)
def test_as_many_share_a_gpu_as_fit_and_have_a_use(
    found: ClientMemory, num_clients: int, num_gpus: int, num_workers: float, expected: int
) -> None:
    assert clients_per_gpu(found, num_clients, num_gpus, num_workers) == expected


@pytest.mark.parametrize("num_gpus", [1, 2, 8])
def test_flower_starts_as_many_workers_for_a_share_as_were_meant(num_gpus: int) -> None:
    for num in range(1, 31):
        assert int(num_gpus / as_share(num)) == num * num_gpus


def summary(num_train: int, *boxes: int) -> DataSummary:
    return DataSummary(("a", "b"), num_train, 1, 0, boxes)


def test_the_client_that_is_tried_has_full_batches_and_most_boxes_in_them() -> None:
    config = Config.model_validate(
        {
            "base_model": "yolov8n.yaml",
            "datasets": ["one.yaml", "many.yaml", "dense.yaml", "few.yaml"],
            "train": {"batch": 8},
        }
    )
    summaries = {
        "one": summary(8, 8, 8),
        "many": summary(100, 100, 150),
        "dense": summary(9, 20, 40),
        "few": summary(2, 200, 0),  # of which no batch can have 8 images
    }
    assert largest_client(config.clients, 8, summaries).name == "dense"


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sites")
    return {
        name: make_dataset(folder / name, num_train=num, num_val=1, seed=num)
        for name, num in (("north", 2), ("south", 6), ("west", 2))
    }


def test_a_try_decides_and_the_start_and_args_yaml_say_so(
    tmp_path: Path, sites: dict[str, Path]
) -> None:
    config = config_of(
        tmp_path, sites, train={**TRAIN, "batch": 3}, client_resources={"num_cpus": 0.1}
    )
    before = {p for path in sites.values() for p in path.parent.rglob("*")}
    with checked(config, probe=FakeMemory(before=16, after=14)) as federation:
        # 2 + 1 at the peak, and 2 other clients' 0.25 GiB: 4 would fit, there are 3 clients.
        assert federation.config.client_resources.num_gpus == 0.3333
        assert federation.gpu_choice == (
            "num_gpus auto: 0.3333, at most 3 at once on a GPU with 16.0 GiB free; 'south' took "
            "3.0 GiB in a try"
        )
        console = Console(record=True, width=200)
        terminal.show_start(console, federation, RunDir.create(tmp_path / "runs", "train"))
        assert federation.gpu_choice in console.export_text()
        settings = yaml.safe_load(federation.config.to_yaml())
        assert settings["client_resources"]["num_gpus"] == 0.3333
    assert {p for path in sites.values() for p in path.parent.rglob("*")} == before


@pytest.mark.parametrize(
    ("probe", "expected"),
    [
        (
            FullMemory(),
            r"datasets\[[01]\] '\w+': does not fit on a GPU with train.batch 2: CUDA out",
        ),
        (FakeMemory(before=2, after=0), r"it takes 3.0 GiB of 2.0 GiB that are free; lower train."),
    ],
)
def test_a_client_that_does_not_fit_is_an_error_before_round_1(
    tmp_path: Path, sites: dict[str, Path], probe: FakeMemory, expected: str
) -> None:
    config = config_of(tmp_path, sites, train=TRAIN)
    with pytest.raises(InputError, match=expected), checked(config, probe=probe):
        pass


def test_without_a_gpu_nothing_is_tried(tmp_path: Path, sites: dict[str, Path]) -> None:
    probe = FakeMemory(gpus=0)
    with checked(config_of(tmp_path, sites, train=TRAIN), probe=probe) as federation:
        assert federation.config.client_resources.num_gpus == 0
        assert (federation.gpu_choice, probe.asked) == ("", [])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="measures the memory of a CUDA device")
def test_a_real_gpu_is_shared_by_clients_that_fit(tmp_path: Path, sites: dict[str, Path]) -> None:
    settings: dict[str, Any] = {"train": {**TRAIN, "amp": False}}
    with checked(config_of(tmp_path, sites, **settings)) as federation:
        share = federation.config.client_resources.num_gpus
    assert isinstance(share, float)
    assert 0 < share <= 1
