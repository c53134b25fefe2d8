"""The ClientApp: unpacks named arrays from a message, calls the client, packs the reply."""

import json
import logging
import traceback
from collections.abc import Callable
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import ultralytics
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from federated_yolo.client.attempts import attempt
from federated_yolo.client.custom_class import ROOT, client_class
from federated_yolo.client.device_slots import Room, device_name, with_room
from federated_yolo.client.history import remember
from federated_yolo.client.instruction_checks import MAX_BYTES, MAX_PICTURES, refuse_unsound
from federated_yolo.client.kept_arrays import HeldArrays, Residuals, missing_state
from federated_yolo.client.redaction import paths_at, without_paths
from federated_yolo.client.site import is_site, read_site
from federated_yolo.client.workspace import (
    Place,
    client_for,
    held_clients,
    instructions_of,
    place_of,
    seat_of,
)
from federated_yolo.client.yolo_client import YoloClient
from federated_yolo.common.arrays import Layout, changed_names, select
from federated_yolo.common.errors import AbortedError, InputError, LostWorkerError, nearest
from federated_yolo.common.files import write_atomically
from federated_yolo.common.text import in_one_line
from federated_yolo.data.changes import one_note
from federated_yolo.data.data_yaml import read_data
from federated_yolo.data.scan import check_dataset
from federated_yolo.protocol.clipping import noise_source, privatised
from federated_yolo.protocol.delta import Encoding, LackingArraysError
from federated_yolo.protocol.handshake import Hello, Introduction, version_problems
from federated_yolo.protocol.instructions import Instructions, UnsoundInstructionsError
from federated_yolo.protocol.records import (
    CLIENT_ERROR,
    LACKS_ARRAYS,
    UNCHANGED,
    from_record,
    to_record,
)
from federated_yolo.yolo.checkpoint import TASKS
from federated_yolo.yolo.model import build_model, parameter_names, to_arrays
from federated_yolo.yolo.slice_state import KEPT_STATES, PRIVATE_START, save_private_start

MAX_ON_DEVICE = 256

Handler = Callable[[Message, Context], Message]
app = ClientApp()
log = logging.getLogger(__name__)


def _reporting_errors(handler: Handler) -> Handler:
    """Answer with the reason when the client raises, and keep the traceback in its folder."""

    @wraps(handler)
    def wrapped(message: Message, context: Context) -> Message:
        folder = None
        try:
            if is_site(context.node_config):
                _check_what_is_told(message)
            instructions, place = instructions_of(message), place_of(message, context)
            folder = place.private_dir

            def work() -> tuple[Message, int]:
                message_id, limit_s = message.metadata.message_id, instructions.round_timeout_s
                with attempt(place.private_dir, message_id, limit_s) as number:
                    try:
                        return handler(message, context), number
                    except LackingArraysError:  # the server sends all of them
                        lacks = ConfigRecord({LACKS_ARRAYS: True})
                        return Message(RecordDict({"client": lacks}), reply_to=message), number

            # Waiting for room is not part of the client's time, so it is outside of the attempt.
            (reply, number), shortage = with_room(
                _room(instructions, place), work, held_clients.clear
            )
            identity: Any = reply.content.setdefault("client", ConfigRecord())
            notes = [str(note) for note in (identity.get("note"), shortage) if note]
            note = "; ".join(_for_others(notes, context))
            identity.update({"name": place.name, "attempt": number, "note": note})
            return reply
        # Whatever it is, the server must be told; also of what a hook or a library raises to end
        # the process, which would be that of all clients in turn.
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if folder is not None and not isinstance(error, AbortedError):
                _keep_traceback(folder)
            return _error_reply(error, message, context)

    return wrapped


def _check_what_is_told(message: Message) -> None:
    """Raise UnsoundInstructionsError where a server tells a site what it must not do."""
    config = dict(message.content.config_records["config"])
    size, titles = len(str(config["instructions"])), list(message.content.array_records)
    if size > MAX_BYTES:
        raise UnsoundInstructionsError(f"told by the server: {size} bytes of instructions; refused")
    if len(titles) > MAX_PICTURES:
        raise UnsoundInstructionsError(f"told by the server: {len(titles)} models at once; refused")
    kind = message.metadata.message_type
    refuse_unsound(instructions_of(message), seat_of(message), config, kind, ROOT)


def _keep_traceback(folder: Path) -> None:
    text = traceback.format_exc()
    try:
        write_atomically(folder / "error.txt", lambda file: file.write(text.encode()))
    except OSError as full:  # the disk may be what failed
        log.error("no traceback in %s: %s", folder, full.strerror)


def _error_reply(error: BaseException, message: Message, context: Context) -> Message:
    """Tell the server why; a site says it in full in its own log, and keeps paths to itself."""
    if isinstance(error, InputError):
        problems = error.problems
    elif isinstance(error, LostWorkerError | AbortedError):
        problems = [str(error)]
    else:
        problems = [f"{type(error).__name__}: {error}"]
    if is_site(context.node_config):
        log.error("error: %s", "; ".join(in_one_line(problem) for problem in problems))
    if not isinstance(error, UnsoundInstructionsError):
        problems = _for_others(problems, context)
    reason = in_one_line("; ".join(problems))
    return Message(Error(CLIENT_ERROR, reason), reply_to=message)


def _for_others(texts: list[str], context: Context) -> list[str]:
    """What may be told of these; a site's paths are its own."""
    if not texts or not is_site(context.node_config):
        return texts
    known = paths_at(context.node_config)
    return [without_paths(text, known) for text in texts]


@app.query("hello")
def introduce(message: Message, context: Context) -> Message:
    """Say who this is and what the data set holds; the first message that a node gets."""
    try:
        theirs = Hello.from_json(str(message.content.config_records["config"]["hello"]))
        text = _introduction(theirs, context).to_json()
    except Exception as error:  # whatever it is, the server must be told
        return _error_reply(error, message, context)
    return Message(RecordDict({"introduction": ConfigRecord({"json": text})}), reply_to=message)


def _introduction(theirs: Hello, context: Context) -> Introduction:
    node = context.node_config
    if not is_site(node):
        return Introduction(partition=(int(node["partition-id"]), int(node["num-partitions"])))
    site = read_site(node)
    if theirs.task not in TASKS:
        raise UnsoundInstructionsError(f"told by the server: task {theirs.task[:99]!r}; refused")
    different = version_problems(theirs)
    if different:
        raise InputError(f"site '{site.name}': {', '.join(different)}; install what the server has")
    caches = site.folder / "caches"
    try:
        caches.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"site '{site.name}': node-config: folder: cannot be written ({error.strerror}): "
            f"'{site.folder}'; give another one, or make it writable"
        ) from error
    summary = check_dataset(
        site.data,
        theirs.task,
        caches,
        where=f"site '{site.name}'",
        splits=("train", "val"),
        fraction=theirs.fraction,
    )
    if site.not_annotated and theirs.task == "classify":
        raise InputError(
            f"site '{site.name}': node-config: not-annotated: an image of one class says that it "
            "is of no other, so a classifier has nothing to leave out; remove it"
        )
    unknown = [name for name in site.not_annotated if name not in summary.names]
    if unknown:
        raise InputError(
            f"site '{site.name}': node-config: not-annotated: '{unknown[0]}' is not one of its "
            f"classes [{', '.join(summary.names)}]{nearest(unknown[0], summary.names)}"
        )
    return Introduction(
        name=site.name,
        summary=summary,
        not_annotated=site.not_annotated,
        show_images=site.show_images,
    )


@app.query("refused")
def refused(message: Message, context: Context) -> Message:
    """Show at the site why the server does not take it."""
    reason = in_one_line(str(message.content.config_records["config"]["reason"]))
    log.error("refused by the server: %s", reason)
    return Message(RecordDict(), reply_to=message)


@app.query()
@_reporting_errors
def query(message: Message, context: Context) -> Message:
    """Check that the model is the server's, and take what the base model has for private arrays."""
    instructions, place = instructions_of(message), place_of(message, context)
    client_class(instructions.client)
    data = read_data(place.data, instructions.task, where=f"client '{place.name}'")
    form = {key: data[key] for key in ("channels", "kpt_shape") if key in data}
    if _digest_here(instructions.to_json(), json.dumps(form)) != instructions.digest:
        raise ValueError(
            f"client '{place.name}' builds another model than the server from the same "
            f"architecture: its Ultralytics is {ultralytics.__version__}, or its data.yaml has "
            "other channels or kpt_shape"
        )
    if "private" in message.content:
        save_private_start(place.private_dir, from_record(message.content.array_records["private"]))
    return Message(RecordDict(), reply_to=message)


@lru_cache(maxsize=1)  # clients of a simulation are alike
def _digest_here(instructions_json: str, form_json: str) -> str:
    """Digest of the layout of the model that this machine builds."""
    instructions = Instructions.from_json(instructions_json)
    names = dict(enumerate(instructions.names))
    data = {**json.loads(form_json), "names": names, "nc": len(names)}
    model = build_model(instructions.architecture, instructions.task, data, instructions.train)
    return Layout.of(to_arrays(model)).digest


@app.train()
@_reporting_errors
def train(message: Message, context: Context) -> Message:
    """Train one slice."""
    client, arrays, config = _unpack(message, context)
    lost = _lost_state(client, message, int(config["server-round"]) - 1)
    parameters, num_examples, metrics = client.fit(arrays, config)
    about = ConfigRecord({"note": one_note([*client.notes, lost])})
    remember(context.state, "train", int(config["server-round"]), metrics)
    record = RecordDict(
        {"client": about, "metrics": MetricRecord({"num-examples": num_examples, **metrics})}
    )
    received = dict(zip(client.names, arrays, strict=True))
    trained = dict(zip(client.names, parameters, strict=True))
    instructions = instructions_of(message)
    if instructions.privacy.mode == "local":  # what is encoded is private already
        trained = privatised(
            trained, received, client.moved_names, instructions.privacy, noise_source()
        )
    if instructions.incremental:
        residuals = Residuals(client.settings.private_dir, KEPT_STATES)
        round_number = int(config["server-round"])
        increment, residual = _encoding(client, instructions).increment(
            trained, received, residuals.before(round_number)
        )
        if residual:
            residuals.save(round_number, residual)
        record["encoded"] = to_record(increment)
    else:  # what has not changed, such as frozen layers, need not travel
        changed = changed_names(trained, received)
        about[UNCHANGED] = [name for name in client.names if name not in set(changed)]
        record["arrays"] = to_record(select(trained, changed))
    return Message(record, reply_to=message)


def _lost_state(client: YoloClient, message: Message, last: int) -> str:
    """What to tell of a client whose folder has lost what it kept; last: as in `missing_state`.

    Raises ValueError where it has lost a part of its own model.
    """
    trained, folder = seat_of(message).trained, client.settings.private_dir
    if trained:
        has_lost = missing_state(folder, instructions_of(message), trained, last) is not None
    else:
        has_lost = client.is_personal and not (folder / PRIVATE_START).exists()
    if not has_lost:
        return ""
    lost = f"its folder has lost what it kept {f'after round {trained}' if trained else 'so far'}"
    if client.is_personal:
        raise ValueError(
            f"{lost}, and with it the arrays that are its own; put it back, or take part under "
            "another name as a new client"
        )
    return f"{lost}, so it goes on from the global arrays alone"


def _encoding(client: YoloClient, instructions: Instructions) -> Encoding:
    layout = Layout.of(select(to_arrays(client.model), client.names))
    return Encoding(layout, instructions.codec, parameter_names(client.model))


@app.evaluate()
@_reporting_errors
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model."""
    client, arrays, config = _unpack(message, context)
    _lost_state(client, message, int(config["server-round"]))
    score: Any = client.evaluate(arrays, config)
    if not (isinstance(score, tuple) and len(score) == 3):
        raise TypeError(
            f"{type(client).__name__}.evaluate returned {type(score).__name__}, expected the loss, "
            "number of images and metrics of super().evaluate(...)"
        )
    loss, num_examples, metrics = score
    if config.get("split", "val") == "val":
        remember(context.state, "evaluate", int(config["server-round"]), metrics)
    reply = _score_message((loss, num_examples, metrics), message)
    reply.content["client"] = ConfigRecord({"note": one_note(client.notes)})
    return reply


@app.evaluate("whole")
@_reporting_errors
def evaluate_whole(message: Message, context: Context) -> Message:
    """Evaluate a whole model that may be another client's."""
    client = client_for(message, context)
    arrays = from_record(message.content.array_records["arrays"])
    return _score_message(client.evaluate_whole(arrays), message)


@app.query("local")
@_reporting_errors
def local(message: Message, context: Context) -> Message:
    """Give the client's best local model away, if the federation's config allows it."""
    client = client_for(message, context)
    _refuse_without_consent(message, context)
    return Message(RecordDict({"arrays": to_record(client.local_model())}), reply_to=message)


@app.query("personal")
@_reporting_errors
def personal(message: Message, context: Context) -> Message:
    """Give the client's own model away, as `local`."""
    client, arrays, config = _unpack(message, context)
    _lost_state(client, message, int(config["server-round"]))
    _refuse_without_consent(message, context)
    model = client.personal_model(arrays, int(config["server-round"]))
    return Message(RecordDict({"arrays": to_record(model)}), reply_to=message)


def _refuse_without_consent(message: Message, context: Context) -> None:
    place = place_of(message, context)
    if not instructions_of(message).cross_client:
        raise ValueError(f"client '{place.name}' keeps its model: evaluate.cross_client is false")
    if not place.gives_models:
        raise ValueError(f"client '{place.name}' keeps its model: its share-model is false")


@app.query("pictures")
@_reporting_errors
def pictures(message: Message, context: Context) -> Message:
    """Draw predictions of the models sent on images that others may see."""
    client = client_for(message, context)
    records = message.content.array_records
    picture = client.draw({title: from_record(record) for title, record in records.items()})
    return Message(RecordDict({"picture": ConfigRecord({"jpeg": picture})}), reply_to=message)


@app.query("finish")
@_reporting_errors
def finish(message: Message, context: Context) -> Message:
    """The run has ended."""
    client_for(message, context).finish()
    return Message(RecordDict(), reply_to=message)


def _room(instructions: Instructions, place: Place) -> Room:
    """The places on the device, which a site has for itself."""
    folder = place.private_dir if place.is_site else place.private_dir.parent
    num_places = 1 if place.is_site else min(instructions.num_clients, MAX_ON_DEVICE)
    return Room(folder / ".devices" / device_name(place.device), instructions.run_id, num_places)


def _score_message(score: tuple[float, int, dict[str, Any]], message: Message) -> Message:
    loss, num_examples, metrics = score
    numbers = MetricRecord({"num-examples": num_examples, "loss": loss, **metrics})
    return Message(RecordDict({"metrics": numbers}), reply_to=message)


def _unpack(
    message: Message, context: Context
) -> tuple[YoloClient, list[np.ndarray], dict[str, Any]]:
    """The client and its arguments: arrays in the order of its names, found by name."""
    instructions = instructions_of(message)
    client = client_for(message, context)
    config = dict(message.content.config_records["config"])
    records = message.content.array_records
    if "encoded" in records:
        held = HeldArrays(client.settings.private_dir)
        encoding = _encoding(client, instructions)
        increment = from_record(records["encoded"])
        received = held.receive(increment, str(config["checksum"]), encoding)
    else:
        received = from_record(records["arrays"])
    missing = [name for name in client.names if name not in received]
    if missing or len(received) != len(client.names):
        raise ValueError(
            f"client '{client.name}' received {len(received)} arrays, its model has "
            f"{len(client.names)} (missing: {', '.join(missing[:3]) or 'none'})"
        )
    for array in received.values():
        array.flags.writeable = False  # what is sent back is told by what differs from these
    return client, [received[name] for name in client.names], config
