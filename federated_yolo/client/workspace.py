"""The clients that this process keeps in memory."""

import gc
from collections import OrderedDict
from typing import Any

from federated_yolo.client.custom_class import client_class
from federated_yolo.client.request import Request
from federated_yolo.client.yolo_client import YoloClient
from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import read_data, write_private_yaml
from federated_yolo.data.label_space import in_label_space
from federated_yolo.data.summary import form_of, form_problems
from federated_yolo.yolo.slice_mixin import SliceSettings

MAX_CLIENTS = 4  # kept by a worker; each has a model, an optimiser and its data set
SEED_STEP = 1000  # difference between two clients' seeds; Ultralytics itself adds small numbers


# The YoloClients of this process, by (start id, name), the last used at the end. They live from
# round to round, so that rounds need no set-up; beyond MAX_CLIENTS the one unused for longest is
# dropped, and later made again from its saved state.
held_clients: OrderedDict[tuple[str, str], YoloClient] = OrderedDict()


def client_for(request: Request) -> YoloClient:
    """Return the YoloClient for this request; make it if this process does not have it."""
    instructions, workspace = request.instructions, request.workspace
    key = (instructions.start_id, workspace.name)
    data = _data_of(request)
    if key in held_clients and held_clients[key].source != data:
        del held_clients[key]  # it continues from its saved state, with the present data
        gc.collect()
    if key not in held_clients:
        settings = SliceSettings(
            architecture=instructions.architecture,
            task=instructions.task,
            data=write_private_yaml(data, workspace.private_dir),
            private_dir=workspace.private_dir,
            train=instructions.train,
            num_rounds=instructions.num_rounds,
            local_epochs=instructions.local_epochs,
            averages_per_round=instructions.averages_per_round,
            seed=instructions.seed + SEED_STEP * workspace.index,
            device=workspace.device,
            num_threads=workspace.num_threads,
            shared=instructions.shared,
            keep_optimizer=instructions.keep_optimizer,
        )
        while len(held_clients) >= MAX_CLIENTS:
            held_clients.popitem(last=False)
            gc.collect()  # trainers are in reference cycles, and their tensors seem small to Python
        kind = client_class(instructions.client)
        client = kind(workspace.name, settings, show_images=workspace.show_images)
        client.keeps_models = workspace.is_site
        client.source = data
        client.state = request.state
        client.prepare()
        held_clients[key] = client
    held_clients.move_to_end(key)
    client = held_clients[key]
    client.state, client.notes = request.state, []
    return client


def _data_of(request: Request) -> dict[str, Any]:
    """Return the client's data by its present data.yaml, in the federation's label space.

    Raises InputError if its classes or its form differ from what the server knows: updates are
    averaged by those classes. Their order may differ, since labels are renumbered by name.
    """
    workspace, assignment = request.workspace, request.assignment
    where = f"client '{workspace.name}'"
    data = read_data(workspace.data, request.instructions.task, where=where)
    found, expected = form_of(data), assignment.summary or form_of(data)
    problems = form_problems(found, {"its data at the start": expected})
    for what, now, before in (
        ("names", found.names, expected.names),
        ("node-config: not-annotated", workspace.not_annotated, assignment.not_annotated),
    ):
        if set(now) != set(before):
            problems.append(
                f"{what}: found [{', '.join(now)}], expected what it was at the start "
                f"[{', '.join(before)}], in any order; put it back, or stop the run and resume it "
                "with this"
            )
    if problems:
        raise InputError(f"{where} ({workspace.data}): {problem}" for problem in problems)
    return in_label_space(data, request.instructions.names, workspace.not_annotated)
