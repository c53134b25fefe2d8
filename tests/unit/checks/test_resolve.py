"""What a checked config has settled, and how often the base model is read for that."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from recipes import make_checkpoint
from sound_configs import Sites, config_of

from federated_yolo.checks.federation import checked
from federated_yolo.checks.resolve import _spread_factor, with_averages
from federated_yolo.config.schema import Config, ResolvedConfig
from federated_yolo.yolo import checkpoint as checkpoint_module

SETTLED: dict[str, Any] = {
    "base_model": "yolov8n.yaml",
    "datasets": [{"name": "a", "data": "/data.yaml"}],
    "names": ["x"],
    "client_resources": {"num_gpus": 0.5},
    "loggers": ["mlflow"],
    "personalise": {"lr0": 0.01},
    "averages_per_round": 2,
    "train": {"batch": 2},
}


@pytest.mark.parametrize(
    "open_setting",
    [
        {"datasets": "demo"},
        {"datasets": "supernodes"},
        {"names": None},
        {"client_resources": {"num_gpus": "auto"}},
        {"global_batch": 16},
        {"personalise": {"lr0": None}},
        {"averages_per_round": "auto"},
        {"loggers": "settings"},
    ],
)
def test_a_resolved_config_leaves_nothing_open(open_setting: dict[str, Any]) -> None:
    Config.model_validate({**SETTLED, **open_setting})
    with pytest.raises(ValidationError):
        ResolvedConfig.model_validate({**SETTLED, **open_setting})


def test_a_resolved_config_is_written_as_a_config_is() -> None:
    assert ResolvedConfig.model_validate(SETTLED).to_yaml() == Config(**SETTLED).to_yaml()


def test_the_checks_change_only_what_was_open(tmp_path: Path, sites: Sites) -> None:
    config = config_of(tmp_path, sites, train={"imgsz": 33, "batch": 2}, global_batch=None)
    with checked(config) as federation:
        before, after = (
            yaml.safe_load(text) for text in (config.to_yaml(), federation.config.to_yaml())
        )
    changed = {name: after[name] for name in after if after[name] != before[name]}
    assert list(before) == list(after)
    assert changed == {
        "names": ["a", "b", "c"],
        "client_resources": {
            "num_cpus": 1.0,
            "num_gpus": after["client_resources"]["num_gpus"],  # of the machine
        },
        "train": {
            "imgsz": 64,
            "batch": 2,
            "nbs": 2,
            "optimizer": "AdamW",
            "lr0": round(0.002 * 5 / (4 + 3), 6),
            "momentum": 0.9,
            "warmup_bias_lr": 0.0,
        },
        "averages_per_round": 1,
        "personalise": {"epochs": 0, "lr0": round(0.002 * 5 / (4 + 3), 6)},
    }
    assert isinstance(after["client_resources"]["num_gpus"], float)


@pytest.mark.parametrize("has_pretrained", [False, True])
def test_each_checkpoint_is_read_once_by_the_checks(
    tmp_path: Path, sites: Sites, has_pretrained: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ultralytics reads the weights again where it builds the model, as `yolo train` does."""
    files = [make_checkpoint(tmp_path / f"{name}.pt", ["a", "z"]) for name in ("base", "weights")]
    read: list[str] = []
    load = checkpoint_module.torch_safe_load

    def counted(path: str, **settings: Any) -> Any:
        read.append(path)
        return load(path, **settings)

    monkeypatch.setattr(checkpoint_module, "torch_safe_load", counted)
    train = {"pretrained": str(files[1])} if has_pretrained else {}
    config = config_of(tmp_path, sites, base_model=str(files[0]), train={"imgsz": 32, **train})
    with checked(config) as federation:
        assert federation.class_change.startswith("2 classes before, 3 now; 1 of them")
    assert read == [str(file) for file in files[: 1 + has_pretrained]]


def averages(num_images: list[int], **settings: Any) -> Any:
    clients = [f"sites/c{i}/data.yaml" for i in range(len(num_images))]
    config = Config.model_validate({"base_model": "yolo11n.pt", "datasets": clients, **settings})
    return with_averages(config, num_images).averages_per_round


@pytest.mark.parametrize(
    ("num_images", "settings", "expected"),
    [
        ([69, 68, 68], {"num_rounds": 25}, 4),  # 14 batches of 5
        ([101, 101, 101, 102], {"num_rounds": 25}, 6),  # 26 batches of 4
        ([45, 45], {"num_rounds": 25}, 2),  # 6 batches of 8
        ([400, 400], {"num_rounds": 10}, 8),  # at most
        ([144, 41, 20], {"num_rounds": 25}, 2),  # 9 batches of 5 at the median
        ([200, 200, 10], {"num_rounds": 25}, 2),  # 2 batches at the smallest
        ([70] * 3, {"num_rounds": 143}, 1),  # 2002 steps
        ([70] * 3, {"num_rounds": 142}, 4),
        ([69], {"num_rounds": 25}, 1),
        ([7] * 30, {"fraction_train": 0.3}, 1),  # 4 batches of 2
        ([69, 68, 68], {"averages_per_round": 3, "train": {"batch": 2}}, 3),
        ([69, 68, 68], {"train": {"batch": 5}}, 1),
        ([69, 68, 68], {"local_epochs": 2}, 1),
        ([69, 68, 68], {"codec": "int8"}, 1),
        ([69, 68, 68], {"strategy": "fedavgm"}, 1),
        ([69, 68, 68], {"strategy": "fedmedian"}, 1),
        ([69, 68, 68], {"strategy": "fedprox"}, 4),
        ([69, 68, 68], {"server_ema": 0.5}, 1),
        ([69, 68, 68], {"client": "mine.py:Mine"}, 1),
        ([69, 68, 68], {"privacy": {"mode": "local"}}, 1),
        ([69, 68, 68], {"datasets": "supernodes"}, 1),
    ],
)
def test_a_short_run_averages_every_few_steps(
    num_images: list[int], settings: dict[str, Any], expected: int
) -> None:
    assert averages(num_images, **settings) == expected


@pytest.mark.parametrize(
    ("averages_per_round", "global_batch", "factor"),
    [(1, 16, 2.0), (4, 16, 4.0), (4, 32, 4.0), (4, 8, 2.0), (4, 2, 1.0), (1, 2, 1.0)],
)
def test_the_learning_rate_grows_with_the_batch_that_is_spread(
    averages_per_round: int, global_batch: int, factor: float, tmp_path: Path, sites: Sites
) -> None:
    config = config_of(
        tmp_path, sites, averages_per_round=averages_per_round, global_batch=global_batch
    )
    assert _spread_factor(config, 4) == factor
