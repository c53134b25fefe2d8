"""How a checked federation is put onto this machine."""

import pytest

from federated_yolo.config.schema import ResolvedConfig
from federated_yolo.runtime.simulation import _local_backend


@pytest.mark.parametrize("num_clients", [1, 2, 3, 40])
@pytest.mark.parametrize("share", [0.125, 0.5, 1.0])
def test_no_more_workers_start_than_there_are_clients(num_clients: int, share: float) -> None:
    config = ResolvedConfig.model_validate(
        {
            "base_model": "yolov8n.yaml",
            "datasets": [{"name": str(i), "data": f"{i}.yaml"} for i in range(num_clients)],
            "names": ["a"],
            "client_resources": {"num_cpus": share, "num_gpus": 0},
        }
    )
    backend = _local_backend(config)
    available = backend["init_args"]["num_cpus"]
    taken = backend["client_resources"]["num_cpus"]
    assert 1 <= available // taken <= num_clients  # Flower starts as many as fit
    assert taken >= share
