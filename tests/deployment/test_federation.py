"""A federation over Flower's own engine: real processes, TLS and node authentication on."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import assert_same_training, make_checkpoint, make_dataset, outcome
from loopback import COMPLETED, Deployment, Run, deployment
from processes import ROOT, federated

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds processes in /proc"),
]

SITES = ("north", "south")
TRAIN = {"imgsz": 32, "batch": 2, "optimizer": "SGD", "lr0": 0.01, "warmup_epochs": 1.0}


def write_config(folder: Path, name: str, datasets: Any, **settings: Any) -> Path:
    config = {
        "base_model": str(folder / "base.pt"),
        "datasets": datasets,
        "num_rounds": 2,
        "name": name,
        "save_dir": str(folder / "runs"),
        "train": TRAIN,
        **settings,
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start_site(flower: Deployment, site: str, data: Path, **node_config: Any) -> None:
    folder = flower.home(site) / "private"
    flower.start_supernode(
        site, data=str(data), name=site, folder=str(folder), **{"num-threads": 1, **node_config}
    )


def run(flower: Deployment, *arguments: str, timeout_s: float = 600) -> Run:
    return flower.wait(flower.submit(ROOT, arguments=" ".join(arguments)), timeout_s)


def test_two_sites_train_as_a_simulation_does_bit_for_bit(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base.pt")
    data = {s: make_dataset(tmp_path / "data" / s, 4, 3, seed=i) for i, s in enumerate(SITES)}
    listed = [{"name": site, "data": str(path)} for site, path in data.items()]
    simulated = write_config(tmp_path, "simulated", listed)
    done = federated(str(simulated), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    deployed = write_config(tmp_path, "deployed", [{"name": site} for site in SITES])
    with deployment(tmp_path / "flower", SITES) as flower:
        flower.start_superlink()
        for site in SITES:
            flower.register(site)
            start_site(flower, site, data[site])
        ended = run(flower, str(deployed))
        assert ended.status == COMPLETED, ended.log
        assert str(tmp_path / "data") not in ended.log
    found, expected = (outcome(tmp_path / "runs" / n) for n in ("deployed", "simulated"))
    assert_same_training(found, expected)
