"""The instructions that the server sends to every client in each message."""

from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from federated_yolo.common.errors import InputError
from federated_yolo.config.schema import CodecConfig, PrivacyConfig, SharedConfig
from federated_yolo.yolo.class_branch import Architecture


@dataclass(frozen=True)
class Instructions:
    """The same instructions for every client, sent as JSON in each message.

    run_id: Unique for a run, and usable as a folder's name. start_id: Unique for each start of the
    server; clients keep objects in memory for one start only, so that a resumed run continues from
    disk. architecture: Architecture of the global model. digest: Digest of the model's layout.
    names: Class names of the federation. train: Resolved train arguments. num_clients: Number of
    clients that may work on one machine. averages_per_round: Averages in a round, and so the parts
    of its epochs. device, num_threads: For a client in a simulation. round_timeout_s: Time limit
    for one message. client: Name of a class, see `client_class`. cross_client: Whether clients may
    send their local models. sends_deltas: Whether arrays are sent as deltas, see protocol/delta.py,
    with differences that codec encodes. privacy: Clients apply mode "local" themselves.
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
    averages_per_round: int
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
        """Return one line of JSON."""
        return _INSTRUCTIONS.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Instructions":
        """Return the Instructions that `to_json` wrote.

        Raises UnsoundInstructionsError for anything else.
        """
        try:
            return _INSTRUCTIONS.validate_json(text)
        except ValidationError as error:
            places = (".".join(map(str, e["loc"])) for e in error.errors(include_input=False))
            text = f"told by the server: wrong or missing: {', '.join(places)}; refused"
            raise UnsoundInstructionsError(text) from error


_INSTRUCTIONS = TypeAdapter(Instructions)


class UnsoundInstructionsError(InputError):
    """A server sent instructions that a site refuses; its text tells the server nothing new."""
