"""A message as the handlers get it: parsed and checked once, before any work."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from flwr.app import Context, Message, RecordDict

from federated_yolo.client.custom_class import ROOT
from federated_yolo.client.instruction_checks import MAX_BYTES, MAX_PICTURES, refuse_unsound
from federated_yolo.client.site import Site, is_site, prepared_data, read_site
from federated_yolo.common.arrays import Arrays
from federated_yolo.common.environment import num_cpus
from federated_yolo.config.schema import CLIENT_NAME
from federated_yolo.protocol.handshake import ClientAssignment
from federated_yolo.protocol.instructions import Instructions, UnsoundInstructionsError
from federated_yolo.protocol.records import from_record
from federated_yolo.yolo.passes import slice_number


@dataclass(frozen=True)
class Workspace:
    """Where a client works: a folder and a data set on this machine.

    is_site: Whether the client is a site, not in a simulation. index: Its index in the federation,
    which makes its seed differ from the others'. gives_models: Whether its own model may be sent
    to others.
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


@dataclass(frozen=True)
class Request:
    """One message of the server to a client, parsed; at a site it has passed the checks.

    instructions_json: The instructions as received, the same for all clients of a run. config: The
    message's "config" record. state: Flower's `Context.state`.
    """

    message: Message
    instructions: Instructions
    instructions_json: str
    assignment: ClientAssignment
    workspace: Workspace
    config: Mapping[str, Any]
    state: RecordDict

    @property
    def round_number(self) -> int:
        """The message's round. Raises KeyError if it belongs to no round."""
        return int(self.config["server-round"])

    @property
    def slice_number(self) -> int:
        """The slice that the message asks for, among those of all rounds (1-based).

        For a message that does not ask to train, the last one of its round.
        """
        parts = self.instructions.averages_per_round
        part = int(self.config.get("part", parts))
        return slice_number(self.round_number, part, parts)

    def arrays(self, name: str) -> Arrays:
        """Return the named arrays of a record of the message."""
        return from_record(self.message.content.array_records[name])

    def reply(self, content: RecordDict) -> Message:
        """Return the reply with this content."""
        return Message(content, reply_to=self.message)


def read_request(message: Message, context: Context) -> Request:
    """Parse a message; at a site, check that it asks for nothing that the site must refuse.

    Raises UnsoundInstructionsError if it does, and InputError if the site's node config is invalid.
    """
    config = dict(message.content.config_records["config"])
    text = str(config["instructions"])
    at_site = is_site(context.node_config)
    if at_site:
        _refuse_large(len(text), len(message.content.array_records))
    instructions = Instructions.from_json(text)
    assignment = ClientAssignment.from_json(str(config["assignment"]))
    if at_site:
        refuse_unsound(instructions, assignment, config, message.metadata.message_type, ROOT)
    site = read_site(context.node_config) if at_site else None
    workspace = _workspace_of(instructions, assignment, site)
    return Request(message, instructions, text, assignment, workspace, config, context.state)


def _refuse_large(num_bytes: int, num_models: int) -> None:
    """Raise UnsoundInstructionsError if a message is larger than this project's server sends."""
    if num_bytes > MAX_BYTES:
        raise UnsoundInstructionsError(
            f"told by the server: {num_bytes} bytes of instructions; refused"
        )
    if num_models > MAX_PICTURES:
        raise UnsoundInstructionsError(f"told by the server: {num_models} models at once; refused")


def _workspace_of(
    instructions: Instructions, assignment: ClientAssignment, site: Site | None
) -> Workspace:
    """Return the workspace for a message.

    site: Settings that count at a site, whatever data a message names; None in a simulation.
    """
    if site is None:
        return Workspace(
            is_site=False,
            index=assignment.index,
            name=assignment.name,
            data=Path(assignment.data),
            not_annotated=assignment.not_annotated,
            show_images=assignment.show_images,
            private_dir=Path(assignment.private_dir),
            device=instructions.device,
            num_threads=instructions.num_threads,
            gives_models=True,
        )
    return Workspace(
        is_site=True,
        index=assignment.index,
        name=site.name,
        data=prepared_data(site, instructions.task),
        not_annotated=site.not_annotated,
        show_images=site.show_images,
        private_dir=site_folder(site, instructions.run_id),
        device="0" if torch.cuda.is_available() else "cpu",
        num_threads=site.num_threads or num_cpus(),
        gives_models=site.share_model,
    )


def site_folder(site: Site, run_id: str) -> Path:
    """Return a site's folder for a run. Raises ValueError if `run_id` is not a valid name."""
    if not CLIENT_NAME.fullmatch(run_id):
        raise ValueError(f"found run {run_id!r}, expected letters, digits, '.', '_' and '-'")
    return site.folder / run_id
