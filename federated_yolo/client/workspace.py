"""Where a client works, and the clients that this process holds."""

import gc
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message

from federated_yolo.client.custom_class import client_class
from federated_yolo.client.site import Site, is_site, read_site
from federated_yolo.client.yolo_client import YoloClient
from federated_yolo.common.environment import num_cpus
from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import CLIENT_NAME
from federated_yolo.data.data_yaml import read_data, write_private_yaml
from federated_yolo.data.label_space import in_label_space
from federated_yolo.data.summary import form_of, form_problems
from federated_yolo.protocol.handshake import Seat
from federated_yolo.protocol.instructions import Instructions
from federated_yolo.yolo.slice_mixin import SliceSettings

MAX_CLIENTS = 4  # held by a worker: each has a model, an optimiser and its data set
SEED_STEP = 1000  # between two clients' seeds; Ultralytics itself adds small numbers


@dataclass(frozen=True)
class Place:
    """Where a client works: a folder and a data set of this machine.

    is_site: it has a SuperNode of its own. index: tells its seed from the others'. gives_models:
    whether its own model may be sent to others.
    """

    is_site: bool
    index: int
    name: str
    data: Path
    not_annotated: tuple[str, ...]
    show_images: int
    private_dir: Path
    device: str
    num_threads: int
    gives_models: bool


# The YoloClients of this process, by start and name, the last used at the end. They live from round
# to round, which then need no set-up; beyond MAX_CLIENTS the one unused for longest goes, and is
# made again from its saved state.
held_clients: OrderedDict[tuple[str, str], YoloClient] = OrderedDict()


def client_for(message: Message, context: Context) -> YoloClient:
    """The YoloClient that this message is for, made where this process does not hold it."""
    instructions, place = instructions_of(message), place_of(message, context)
    key = (instructions.start_id, place.name)
    data = _data_of(place, instructions, seat_of(message))
    if key in held_clients and held_clients[key].source != data:
        del held_clients[key]  # it goes on from its saved state, with the data of now
        gc.collect()
    if key not in held_clients:
        settings = SliceSettings(
            architecture=instructions.architecture,
            task=instructions.task,
            data=write_private_yaml(data, place.private_dir),
            private_dir=place.private_dir,
            train=instructions.train,
            num_rounds=instructions.num_rounds,
            local_epochs=instructions.local_epochs,
            seed=instructions.seed + SEED_STEP * place.index,
            device=place.device,
            num_threads=place.num_threads,
            shared=instructions.shared,
            keep_optimizer=instructions.keep_optimizer,
        )
        while len(held_clients) >= MAX_CLIENTS:
            held_clients.popitem(last=False)
            gc.collect()  # trainers are in cycles, whose tensors Python does not see as large
        kind = client_class(instructions.client)
        client = kind(place.name, settings, show_images=place.show_images)
        client.keeps_models = place.is_site
        client.source = data
        client.state = context.state
        client.prepare()
        held_clients[key] = client
    held_clients.move_to_end(key)
    client = held_clients[key]
    client.state, client.notes = context.state, []
    return client


def _data_of(place: Place, instructions: Instructions, seat: Seat) -> dict[str, Any]:
    """The client's data as its data.yaml says now, with the federation's classes.

    Raises InputError where it has other classes than the server knows of, by which updates are
    averaged, or another form. Their order may be another: labels are renumbered by name.
    """
    where = f"client '{place.name}'"
    data = read_data(place.data, instructions.task, where=where)
    found, expected = form_of(data), seat.summary or form_of(data)
    problems = form_problems(found, {"its data at the start": expected})
    for what, now, before in (
        ("names", found.names, expected.names),
        ("node-config: not-annotated", place.not_annotated, seat.not_annotated),
    ):
        if set(now) != set(before):
            problems.append(
                f"{what}: found [{', '.join(now)}], expected what it was at the start "
                f"[{', '.join(before)}], in any order; put it back, or stop the run and resume it "
                "with this"
            )
    if problems:
        raise InputError(f"{where} ({place.data}): {problem}" for problem in problems)
    return in_label_space(data, instructions.names, place.not_annotated)


def place_of(message: Message, context: Context) -> Place:
    """Where this message is to be worked on. Raises InputError for a site that says it wrongly.

    A site goes by its node config alone, whatever data a message names.
    """
    instructions = instructions_of(message)
    seat = seat_of(message)
    if not is_site(context.node_config):
        return Place(
            is_site=False,
            index=seat.index,
            name=seat.name,
            data=Path(seat.data),
            not_annotated=seat.not_annotated,
            show_images=seat.show_images,
            private_dir=Path(seat.private_dir),
            device=instructions.device,
            num_threads=instructions.num_threads,
            gives_models=True,
        )
    site = read_site(context.node_config)
    return Place(
        is_site=True,
        index=seat.index,
        name=site.name,
        data=site.data,
        not_annotated=site.not_annotated,
        show_images=site.show_images,
        private_dir=site_folder(site, instructions.run_id),
        device="0" if torch.cuda.is_available() else "cpu",
        num_threads=site.num_threads or num_cpus(),
        gives_models=site.share_model,
    )


def site_folder(site: Site, run_id: str) -> Path:
    """Where a site keeps its files of a run. Raises ValueError for a name that is none."""
    if not CLIENT_NAME.fullmatch(run_id):
        raise ValueError(f"found run {run_id!r}, expected letters, digits, '.', '_' and '-'")
    return site.folder / run_id


def instructions_of(message: Message) -> Instructions:
    return Instructions.from_json(str(message.content.config_records["config"]["instructions"]))


def seat_of(message: Message) -> Seat:
    return Seat.from_json(str(message.content.config_records["config"]["seat"]))
