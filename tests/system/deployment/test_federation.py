"""A federation over Flower's own engine: real processes, TLS and node authentication on."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from loopback import COMPLETED, LOCAL, Deployment, Run, deployment
from processes import ROOT, federated, wait_until
from recipes import assert_same, assert_same_training, make_checkpoint, make_dataset, outcome

from federated_yolo.runtime.certificates import make_certificates
from federated_yolo.storage.run_dir import read_csv

pytestmark = [
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


def start_site(flower: Deployment, site: str, data: Path, *options: str) -> None:
    folder = str(flower.home(site) / "private")
    config: dict[str, Any] = {"data": str(data), "folder": folder, "num-threads": 1}
    flower.start_supernode(site, *options, name=site, **config)


def run(flower: Deployment, *arguments: str, timeout_s: float = 600) -> Run:
    return flower.wait(flower.submit(ROOT, arguments=" ".join(arguments)), timeout_s)


def test_two_sites_train_as_a_simulation_does_bit_for_bit_also_when_resumed(tmp_path: Path) -> None:
    """The SuperLink is killed after the first round. The base is of other classes, as COCO's."""
    make_checkpoint(tmp_path / "base.pt", [f"thing {i}" for i in range(80)])
    data = {s: make_dataset(tmp_path / "data" / s, 4, 3, seed=i) for i, s in enumerate(SITES)}
    listed = [{"name": site, "data": str(path)} for site, path in data.items()]
    simulated = write_config(tmp_path, "simulated", listed)
    done = federated(str(simulated), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sites = [{"name": site} for site in SITES]
    deployed = write_config(tmp_path, "deployed", sites)
    run_dir = tmp_path / "runs" / "deployed"

    def rounds_done() -> int:
        return len(read_csv(run_dir / "results.csv")) if (run_dir / "results.csv").exists() else 0

    with deployment(tmp_path / "flower", SITES) as flower:
        flower.start_superlink()
        for site in SITES:
            flower.register(site)
            start_site(flower, site, data[site])
        run_id = flower.submit(ROOT, arguments=str(deployed))
        assert wait_until(lambda: rounds_done() == 1, 300)
        flower.kill("superlink")
        assert wait_until(lambda: not flower.processes("flwr-serverapp"), 120)
        flower.start_superlink()
        assert flower.run(run_id).status != COMPLETED
        assert rounds_done() == 1
        ended = run(flower, f"resume={run_dir}")
        assert ended.status == COMPLETED, ended.log
        assert "Going on after round 1" in ended.log
        assert str(tmp_path / "data") not in ended.log
    assert_same_training(outcome(run_dir), outcome(tmp_path / "runs" / "simulated"))


def test_a_site_of_other_classes_or_another_ca_is_refused_and_one_that_is_killed_is_left_out(
    tmp_path: Path,
) -> None:
    make_checkpoint(tmp_path / "base.pt")
    sites = (*SITES, "dogs", "elsewhere")
    classes = {"dogs": ("a", "b", "dog")}
    data = {
        site: make_dataset(tmp_path / "data" / site, 4, 3, classes.get(site, ("a", "b", "c")))
        for site in sites
    }
    config = write_config(
        tmp_path,
        "run",
        [{"name": site} for site in SITES],
        names=["a", "b", "c"],
        new_clients=True,
        min_clients=1,
        local_epochs=30,
    )
    other = tmp_path / "other"
    make_certificates(other, ["127.0.0.1"], [])
    with deployment(tmp_path / "flower", sites) as flower:
        flower.start_superlink()
        for site in sites:
            flower.register(site)
        start_site(flower, "dogs", data["dogs"])
        start_site(
            flower, "elsewhere", data["elsewhere"], "--root-certificates", str(other / "ca.crt")
        )
        flower.wait_online("dogs")
        for site in SITES:
            start_site(flower, site, data[site])
        run_id = flower.submit(ROOT, arguments=str(config))
        south = flower.home("south") / "private"
        # Ultralytics writes its arguments there when training begins.
        assert wait_until(lambda: any(south.glob("run-*/ultralytics")), 300)
        flower.kill("south")
        ended = flower.wait(run_id, 600)
        assert ended.status == COMPLETED, ended.log
        refusal = "SuperNode 'dogs': class 'dog' is not one of the federation's [a, b, c]"
        assert refusal in ended.log
        assert refusal in flower.output("dogs")
        assert flower.online() >= {"north", "dogs"}
        assert "elsewhere" not in flower.online()
        assert "CERTIFICATE_VERIFY_FAILED" in flower.output("elsewhere")
    rows = read_csv(tmp_path / "runs" / "run" / "clients.csv")
    trained = {(row["round"], row["client"]) for row in rows if row["train/box_loss"]}
    assert trained == {("1", "north"), ("2", "north")}
    assert any(row["client"] == "south" and row["round"] == "1" and row["note"] for row in rows)


def test_flwr_run_simulates_as_the_command_does(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "base.pt")
    listed = [
        {"name": site, "data": str(make_dataset(tmp_path / site, 4, 3, seed=i))}
        for i, site in enumerate(SITES)
    ]
    configs = [write_config(tmp_path, name, listed, num_rounds=1) for name in ("plain", "flower")]
    done = federated(str(configs[0]), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    with deployment(tmp_path / "flower", ()) as flower:
        flower.connect("operator", LOCAL)
        ended = flower.wait(
            flower.submit(
                ROOT, "num-supernodes=2 client-resources-num-cpus=1", arguments=str(configs[1])
            )
        )
        assert ended.status == COMPLETED, ended.log
    plain, flower_s = (outcome(tmp_path / "runs" / name) for name in ("plain", "flower"))
    assert_same(flower_s, plain)
