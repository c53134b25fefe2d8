"""Connects a simulation to the machines of a running Ray cluster: `ray.address`.

The cluster's workers do not inherit this process's environment, and may be on other machines. So
they are given the variables they need, and before round 1 every machine is asked whether it sees
this project, the data and the directory of the results.
"""

import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from federated_yolo.common.environment import worker_variables
from federated_yolo.common.text import reason_of
from federated_yolo.config.schema import ClientResources, Config

CONNECT_TIMEOUT_S = 10.0
LOOK_TIMEOUT_S = 120.0
PACKAGES = ("flwr", "torch", "numpy")


@dataclass(frozen=True)
class Machine:
    """A node of the Ray cluster, with the CPUs and GPUs that Ray may assign there."""

    node_id: str
    address: str
    num_cpus: float
    num_gpus: float


@contextmanager
def connected(address: str, variables: dict[str, str], *, verbose: bool) -> Iterator[list[Machine]]:
    """Join a cluster, whose workers get these environment variables; yield its machines.

    Flower uses the connection that exists. Raises any error that Ray raises.
    """
    import ray

    if address != "auto":  # Ray would wait, and end the process when nobody answers
        host, _, port = address.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
    pythonpath = os.pathsep.join(path for path in sys.path if path)
    try:
        ray.init(
            address=address,
            runtime_env={"env_vars": {**variables, "PYTHONPATH": pythonpath}},
            log_to_driver=verbose,
            logging_level=logging.INFO if verbose else logging.CRITICAL,
        )
        yield _machines(ray.nodes())
    finally:
        ray.shutdown()


@contextmanager
def joined(config: Config, folder: Path) -> Iterator[list[Machine]]:
    """Join the config's cluster for a run.

    folder: Folder in the run directory, in which the workers find Ultralytics' settings meanwhile.
    """
    assert config.ray.address is not None
    settings = folder / "settings"
    shutil.copytree(os.environ["YOLO_CONFIG_DIR"], settings, dirs_exist_ok=True)
    variables = {**worker_variables(), "YOLO_CONFIG_DIR": str(settings)}
    try:
        with connected(config.ray.address, variables, verbose=config.verbose) as machines:
            yield machines
    finally:
        shutil.rmtree(settings, ignore_errors=True)


def inspected(config: Config) -> tuple[list[Machine], list[str]]:
    """Return the machines of the config's cluster, and the problems that a run would have there."""
    address = str(config.ray.address)
    try:
        with connected(address, worker_variables(), verbose=False) as machines:
            problems = resource_problems(config.client_resources, machines, address)
            return machines, problems + _sight_problems(config, machines)
    except Exception as error:  # Ray raises errors of any kind
        return [], [
            f"ray.address: found {address}, where no Ray cluster can be joined "
            f"({reason_of(error)[:300]}); run 'ray start --head' here, or 'ray start --address "
            "HOST:PORT' to join another machine's, or leave ray.address out"
        ]


def resource_problems(
    resources: ClientResources, machines: Sequence[Machine], address: str
) -> list[str]:
    """Return a problem if no machine can hold a client: Flower would wait for one without end."""
    gpus = 0.0 if resources.num_gpus == "auto" else resources.num_gpus
    if gpus > 1:
        return [
            f"client_resources.num_gpus: found {gpus:g}, but a client trains on one GPU; use 1, or "
            "a fraction to share it"
        ]
    if any(m.num_cpus >= resources.num_cpus and m.num_gpus >= gpus for m in machines):
        return []
    offers = ", ".join(f"{m.address}: {m.num_cpus:g} and {m.num_gpus:g}" for m in machines)
    return [
        f"client_resources: found num_cpus {resources.num_cpus:g} and num_gpus {gpus:g}, which no "
        f"machine of the Ray cluster at {address} has (CPUs and GPUs of {offers}); lower them"
    ]


def cluster_gpus(machines: Sequence[Machine]) -> float:
    """Return the value of `num_gpus: auto` on a cluster: 1 if any machine has a GPU, else 0."""
    return float(any(machine.num_gpus >= 1 for machine in machines))


def cpus_of_worker(machines: Sequence[Machine], num_cpus: float, num_clients: int) -> float:
    """Return the CPUs to reserve for a worker, so that Ray starts about one worker per client.

    Flower starts as many workers as fit, whether or not there are clients for them.
    """
    fair = sum(machine.num_cpus for machine in machines) / num_clients
    largest = max(machine.num_cpus for machine in machines)
    return max(num_cpus, min(fair, largest))


def look(paths: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the paths that this machine does not have, and its versions of packages.

    Runs on a machine of the cluster.
    """
    return [path for path in paths if not Path(path).exists()], _versions()


def _versions() -> dict[str, str]:
    return {name: _version(name) for name in (*PACKAGES, "ultralytics")}


def _version(name: str) -> str:
    names = (name, f"{name}-opencv-headless") if name == "ultralytics" else (name,)
    for distribution in names:
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return "none"


def _machines(nodes: Sequence[dict[str, Any]]) -> list[Machine]:
    return [
        Machine(
            node["NodeID"],
            node["NodeManagerAddress"],
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
        )
        for node in nodes
        if node["Alive"] and node["Resources"]
    ]


def _sight_problems(config: Config, machines: Sequence[Machine]) -> list[str]:
    """Ask each machine that may get workers which paths and versions it has; return problems."""
    with _marker(Path(config.save_dir).absolute()) as marker:
        paths = [str(Path(data.data).absolute()) for data in config.clients if data.data]
        paths += (
            [str(Path(config.base_model).absolute())] if Path(config.base_model).exists() else []
        )
        here = [path for path in paths if Path(path).exists()]  # others are reported elsewhere
        return [
            problem
            for machine in machines
            if machine.num_cpus
            for problem in _sight_of(machine, [str(marker), *here], marker)
        ]


def _sight_of(machine: Machine, paths: list[str], marker: Path) -> list[str]:
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    where = f"ray.address: machine {machine.address}"
    there: Any = NodeAffinitySchedulingStrategy(machine.node_id, soft=False)
    task: Any = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(look)
    try:
        missing, versions = ray.get(task.remote(paths), timeout=LOOK_TIMEOUT_S)
    except Exception as error:  # an import that fails there arrives as an error of Ray's
        return [
            f"{where}: cannot run this project ({reason_of(error)[-300:]}); put it and its Python "
            f"packages at the same paths there as here ({Path(__file__).resolve().parents[1]})"
        ]
    problems = []
    if str(marker) in missing:
        problems.append(
            f"{where}: does not see what is written here to {marker.parent}; put save_dir on "
            "storage that all machines share, since clients go on from their folders there"
        )
    problems += [
        f"{where}: {path}: no such file there; put it on storage that all machines share"
        for path in missing
        if path != str(marker)
    ]
    problems += [
        f"{where}: has {name} {found}, this machine {wanted}; install the same"
        for (name, found), wanted in zip(versions.items(), _versions().values(), strict=True)
        if found != wanted
    ]
    return problems


@contextmanager
def _marker(save_dir: Path) -> Iterator[Path]:
    """Create a temporary file where the results will be, for the machines to look for."""
    folder = next(path for path in (save_dir, *save_dir.parents) if path.is_dir())
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".federated-yolo-") as file:
        yield Path(file.name)
