"""A simulation on a running Ray cluster, and which GPU its workers see."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import ROOT, federated, finished
from recipes import assert_same, make_dataset, outcome
from sound_configs import write_config
from trainings import TRAIN


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of a cluster of this machine alone, which knows nothing of this project."""
    folder = tempfile.mkdtemp(prefix="ray-", dir="/tmp")  # sockets need short paths
    private = ("YOLO_", "FEDERATED_YOLO", "FLWR_", "RAY_", "ULTRALYTICS_", "PYTHONPATH")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(private)}
    options = "--head --block --port=0 --num-cpus=2 --num-gpus=0 --node-ip-address=127.0.0.1"
    options += " --include-dashboard=false --disable-usage-stats --dashboard-agent-listen-port=0"
    ray = str(Path(sys.executable).with_name("ray"))
    process = subprocess.Popen(
        [ray, "start", *options.split(), f"--temp-dir={folder}"],
        env={**clean, "RAY_TMPDIR": folder},
        cwd="/",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = (re.search(r"--address='([^']+)'", line) for line in process.stdout)
        yield next(found[1] for found in lines if found)
    finally:
        process.terminate()
        process.communicate(timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


def test_a_run_on_a_cluster_is_that_of_this_machine_bit_for_bit(
    tmp_path: Path, cluster: str
) -> None:
    for index, name in enumerate(("north", "south")):
        make_dataset(tmp_path / name, num_train=4, num_val=2, seed=index)
    data = [{"name": n, "data": str(tmp_path / n / "data.yaml")} for n in ("north", "south")]
    config = write_config(tmp_path, datasets=data, train=TRAIN)
    for name, *more in (("plain",), ("cluster", f"ray.address={cluster}")):
        done = federated(str(config), f"name={name}", *more, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
    found, expected = (outcome(tmp_path / "runs" / name) for name in ("cluster", "plain"))
    assert_same(found, expected)
    assert not (tmp_path / "runs" / "cluster" / "server" / "settings").exists()


# Placement


@pytest.mark.parametrize(("share", "per_gpu"), [(1.0, 1), (0.5, 2)])
def test_each_worker_uses_the_gpu_that_ray_gave_it_and_no_other(
    tmp_path: Path, share: float, per_gpu: int
) -> None:
    script = str(ROOT / "tests" / "support" / "placement.py")
    done = finished([sys.executable, script, str(share), str(2 * per_gpu)], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    assert all(found["before"] == found["after"] for found in seen)
    assert {found["device"] for found in seen} == {"cuda:0"}
    by_process = {found["process"]: found["before"] for found in seen}
    assert Counter(by_process.values()) == {"0": per_gpu, "1": per_gpu}
    assert len({found["room"] for found in seen}) == 2
