"""A simulation on a running Ray cluster, and which GPU its workers see."""

from pathlib import Path

import pytest
from recipes import make_dataset
from sound_configs import config_of, problems_of

from federated_yolo.checks.cluster import Machine, cluster_gpus, cpus_of_worker, resource_problems
from federated_yolo.config.schema import ClientResources, Config


def machines(*sizes: tuple[float, float]) -> list[Machine]:
    return [Machine(f"n{i}", f"10.0.0.{i}", *size) for i, size in enumerate(sizes)]


@pytest.mark.parametrize(
    ("sizes", "num_cpus", "num_clients", "expected"),
    [
        ([(8, 0), (8, 0)], 1, 4, 4),  # 4 workers for 4 clients
        ([(8, 0), (8, 0)], 1, 40, 1),  # as many as fit
        ([(2, 0), (2, 0), (2, 0)], 1, 1, 2),  # a worker has to fit on a machine
    ],
)
def test_workers_on_a_cluster_are_about_as_many_as_clients(
    sizes: list[tuple[float, float]], num_cpus: float, num_clients: int, expected: float
) -> None:
    assert cpus_of_worker(machines(*sizes), num_cpus, num_clients) == expected


def test_a_client_that_fits_on_no_machine_of_the_cluster_is_refused() -> None:
    cluster = machines((4, 0), (2, 1))
    assert not resource_problems(ClientResources(num_cpus=4.0, num_gpus=0.0), cluster, "head:1")
    assert not resource_problems(ClientResources(num_cpus=2.0, num_gpus=0.5), cluster, "head:1")
    (problem,) = resource_problems(ClientResources(num_cpus=4.0, num_gpus=1.0), cluster, "head:1")
    assert problem == (
        "client_resources: found num_cpus 4 and num_gpus 1, which no machine of the Ray cluster at "
        "head:1 has (CPUs and GPUs of 10.0.0.0: 4 and 0, 10.0.0.1: 2 and 1); lower them"
    )


def test_auto_on_a_cluster_is_a_gpu_for_each_client_where_there_are_gpus() -> None:
    assert [cluster_gpus(machines((2, gpus))) for gpus in (0, 4)] == [0, 1]


@pytest.mark.parametrize("address", ["ray://head:10001", "head", "10.0.0.1:port"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match="address"):
        Config.model_validate(
            {"base_model": "a.pt", "datasets": ["b.yaml"], "ray": {"address": address}}
        )


def test_a_cluster_that_nobody_answers_for_is_refused_before_round_1(tmp_path: Path) -> None:
    site = make_dataset(tmp_path / "north", num_train=2, num_val=1)
    config = config_of(tmp_path, {"north": site}, ray={"address": "127.0.0.1:9"})
    (problem,) = problems_of(config)
    assert problem.startswith("ray.address: found 127.0.0.1:9, where no Ray cluster can be joined")
    assert "run 'ray start --head' here" in problem


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK", "WORLD_SIZE"])
def test_what_torchrun_leaves_in_the_environment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    site = make_dataset(tmp_path / "north", num_train=2, num_val=1)
    (problem,) = problems_of(config_of(tmp_path, {"north": site}))
    assert problem.startswith(f"{variable}=1 in the environment: left by torchrun")
