"""Which GPU each worker of a simulation sees, of two that are only declared to Ray.

python tests/support/placement.py NUM_GPUS NUM_CLIENTS      prints what each client saw, as JSON
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp


def where(message: Message, _: Context) -> Message:
    """The GPU that a worker sees, before and after Ultralytics has selected its device."""
    from ultralytics.utils import torch_utils

    from federated_yolo.client.device_slots import device_name

    visible = os.environ["CUDA_VISIBLE_DEVICES"]
    torch.cuda.is_available = lambda: True  # in a worker of this test alone
    torch.cuda.device_count = lambda: 1
    torch.cuda.set_device = lambda index: None
    torch_utils.get_gpu_info = lambda index: f"GPU {index}"
    device = torch_utils.select_device("0")
    time.sleep(5)  # so that every worker gets a client
    seen = {
        "process": str(os.getpid()),
        "before": visible,
        "after": os.environ["CUDA_VISIBLE_DEVICES"],
        "device": str(device),
        "room": device_name("0"),
    }
    return Message(RecordDict({"seen": ConfigRecord(dict(seen))}), reply_to=message)


def main(share: float, num_clients: int) -> None:
    from federated_yolo.common.environment import prepare_environment, remove_private_settings
    from federated_yolo.config.schema import ResolvedConfig
    from federated_yolo.runtime.simulation import _local_backend

    prepare_environment()
    torch.cuda.device_count = lambda: 2
    config = ResolvedConfig.model_validate(
        {
            "base_model": "yolov8n.yaml",
            "datasets": [{"name": str(i), "data": f"{i}.yaml"} for i in range(num_clients)],
            "names": ["a"],
            "client_resources": {"num_cpus": 0.25, "num_gpus": share},
        }
    )
    seen: list[Any] = []
    server, client = ServerApp(), ClientApp()
    client.query()(where)

    @server.main()
    def _(grid: Grid, _: Context) -> None:
        nodes: list[int] = []
        while len(nodes) < num_clients:
            nodes = list(grid.get_node_ids())
            time.sleep(0.1)
        messages = [Message(RecordDict(), node, "query") for node in nodes]
        for reply in grid.send_and_receive(messages, timeout=200):
            seen.append(dict(reply.content.config_records["seen"]))

    from flwr.simulation import run_simulation

    run_simulation(server, client, num_clients, backend_config=_local_backend(config))
    remove_private_settings()
    print(json.dumps(seen))


if __name__ == "__main__":
    main(float(sys.argv[1]), int(sys.argv[2]))
