"""What the server tells every client, in each message."""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import CodecConfig, PrivacyConfig, SharedConfig
from federated_yolo.yolo.class_branch import Architecture


@dataclass(frozen=True)
class Instructions:
    """What the server tells every client, in each message; JSON on the wire.

    run_id: unique for a run, and usable as the name of a folder. start_id: unique for each start of
    its server; what processes remember is of one start, so that a resumed run goes on from disk.
    architecture: what the global model is built from, and digest of its layout. names: class names
    of the federation. train: resolved train arguments. num_clients: that may work on one machine.
    device, num_threads: of a client in a simulation. round_timeout_s: for one message.
    client: see `client_class`. cross_client: without it no client gives its local model away.
    sends_deltas: arrays travel as deltas, see protocol/delta.py, with the differences that
    codec encodes. privacy: clients see to its mode "local" themselves.
    """

    run_id: str
    start_id: str
    architecture: Architecture
    task: str
    digest: str
    names: tuple[str, ...]
    shared: SharedConfig
    keep_optimizer: bool
    train: dict[str, Any]
    num_rounds: int
    local_epochs: int
    seed: int
    num_clients: int
    device: str
    num_threads: int
    round_timeout_s: float | None
    cross_client: bool
    client: str
    sends_deltas: bool
    codec: CodecConfig
    privacy: PrivacyConfig

    def to_json(self) -> str:
        """One line of JSON."""
        return _INSTRUCTIONS.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Instructions":
        """Instructions from `to_json`. Raises UnsoundInstructionsError for anything else."""
        try:
            return _INSTRUCTIONS.validate_json(text)
        except ValidationError as error:
            places = (".".join(map(str, e["loc"])) for e in error.errors(include_input=False))
            text = f"told by the server: wrong or missing: {', '.join(places)}; refused"
            raise UnsoundInstructionsError(text) from error


_INSTRUCTIONS = TypeAdapter(Instructions)


class UnsoundInstructionsError(InputError):
    """A server tells a site what it must not do. The lines say nothing that the server has not."""
