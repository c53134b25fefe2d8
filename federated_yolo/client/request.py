"""A message as the handlers get it: what it tells is parsed and checked once, before any work."""

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


@dataclass(frozen=True)
class Workspace:
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


@dataclass(frozen=True)
class Request:
    """What a server asks of a client with one message, which its site has found to be sound.

    instructions_json: as they came; the same for all clients of a run. config: what else the
    message tells, by the keys of its "config" record. state: Flower's `Context.state`.
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
        """The round that the message is of. Raises KeyError for one that is of none."""
        return int(self.config["server-round"])

    def arrays(self, name: str) -> Arrays:
        """The named arrays of a record of the message."""
        return from_record(self.message.content.array_records[name])

    def reply(self, content: RecordDict) -> Message:
        """The answer with this content."""
        return Message(content, reply_to=self.message)


def read_request(message: Message, context: Context) -> Request:
    """Parse a message, and check at a site that it tells nothing that the site must not do.

    Raises UnsoundInstructionsError where it does, and InputError for a site that says wrongly what
    it has.
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
    """Raise UnsoundInstructionsError for more than this project's server would send."""
    if num_bytes > MAX_BYTES:
        raise UnsoundInstructionsError(
            f"told by the server: {num_bytes} bytes of instructions; refused"
        )
    if num_models > MAX_PICTURES:
        raise UnsoundInstructionsError(f"told by the server: {num_models} models at once; refused")


def _workspace_of(
    instructions: Instructions, assignment: ClientAssignment, site: Site | None
) -> Workspace:
    """Where a message is to be worked on.

    site: goes by its own settings, whatever data a message names; None for a simulation.
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
    """Where a site keeps its files of a run. Raises ValueError for a name that is none."""
    if not CLIENT_NAME.fullmatch(run_id):
        raise ValueError(f"found run {run_id!r}, expected letters, digits, '.', '_' and '-'")
    return site.folder / run_id
