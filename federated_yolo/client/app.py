"""The ClientApp: unpacks named arrays from a message, calls the client, packs the reply."""

import json
import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import ultralytics
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from federated_yolo.client.attempts import attempt
from federated_yolo.client.custom_class import client_class
from federated_yolo.client.device_slots import DeviceSlots, device_name, with_slot
from federated_yolo.client.history import remember
from federated_yolo.client.journal import journal_at
from federated_yolo.client.kept_arrays import HeldArrays, Residuals, missing_state
from federated_yolo.client.redaction import paths_at, without_paths
from federated_yolo.client.request import Request, read_request
from federated_yolo.client.site import is_site, prepared_data, read_site
from federated_yolo.client.workspace import client_for, held_clients
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
from federated_yolo.protocol.records import CLIENT_ERROR, LACKS_ARRAYS, UNCHANGED, to_record
from federated_yolo.yolo.checkpoint import TASKS
from federated_yolo.yolo.model import build_model, parameter_names, to_arrays
from federated_yolo.yolo.slice_state import PRIVATE_START, save_private_start

MAX_ON_DEVICE = 256

Handler = Callable[[Request], Message]
app = ClientApp()
log = logging.getLogger(__name__)


def _answers(handler: Handler) -> Callable[[Message, Context], Message]:
    """Wrap a handler: reply with its result, or with the reason if it raises an exception.

    The traceback is written to error.txt in the client's folder, except for AbortedError.
    """

    @wraps(handler)
    def wrapped(message: Message, context: Context) -> Message:
        folder = None
        try:
            request = read_request(message, context)
            folder = request.workspace.private_dir

            def work() -> tuple[Message, int]:
                message_id = message.metadata.message_id
                limit_s = request.instructions.round_timeout_s
                with attempt(request.workspace.private_dir, message_id, limit_s) as number:
                    try:
                        return handler(request), number
                    except LackingArraysError:  # the server then sends all arrays
                        lacks = ConfigRecord({LACKS_ARRAYS: True})
                        return request.reply(RecordDict({"client": lacks})), number

            # The attempt's time limit must not include the wait for a slot, so it starts inside.
            with _noted(request, context) as numbers:
                slots = _device_slots(request)
                (reply, number), shortage = with_slot(slots, work, held_clients.clear)
                numbers.update(_numbers_in(reply))
            identity: Any = reply.content.setdefault("client", ConfigRecord())
            notes = [str(note) for note in (identity.get("note"), shortage) if note]
            note = "; ".join(_for_others(notes, context))
            identity.update({"name": request.workspace.name, "attempt": number, "note": note})
            return reply
        # Whatever it is, the server must learn of it. A hook or a library may also raise an
        # exception that ends the process, but other clients work in the same process later.
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            if folder is not None and not isinstance(error, AbortedError):
                _keep_traceback(folder)
            return _error_reply(error, message, context)

    return wrapped


@contextmanager
def _noted(request: Request, context: Context) -> Iterator[dict[str, float]]:
    """Note a site's work in its journal; yield a dict for the numbers of the reply."""
    journal = journal_at(context.node_config)
    if journal is None:
        yield {}
        return
    kind, told = request.message.metadata.message_type, request.instructions
    round_number = int(request.config.get("server-round", 0)) or None
    with journal.work(kind, told.run_id, round_number, told.num_rounds) as numbers:
        yield numbers


def _numbers_in(reply: Message) -> dict[str, float]:
    # Not by `metric_records`, whose view and its owner refer to each other: the arrays would
    # stay in memory until Python collects cycles.
    found: Any = reply.content.get("metrics", {})
    return {name: float(value) for name, value in found.items() if not isinstance(value, list)}


def _keep_traceback(folder: Path) -> None:
    text = traceback.format_exc()
    try:
        write_atomically(folder / "error.txt", lambda file: file.write(text.encode()))
    except OSError as full:  # the disk may be what failed
        log.error("no traceback in %s: %s", folder, full.strerror)


def _error_reply(error: BaseException, message: Message, context: Context) -> Message:
    """Return the reason as a reply; a site logs it in full, and sends it without its paths."""
    if isinstance(error, InputError):
        problems = error.problems
    elif isinstance(error, LostWorkerError | AbortedError):
        problems = [str(error)]
    else:
        problems = [f"{type(error).__name__}: {error}"]
    if is_site(context.node_config):
        text = "; ".join(in_one_line(problem) for problem in problems)
        log.error("error: %s", text)
        if journal := journal_at(context.node_config):
            journal.note(text, is_error=True)
    if not isinstance(error, UnsoundInstructionsError):
        problems = _for_others(problems, context)
    reason = in_one_line("; ".join(problems))
    return Message(Error(CLIENT_ERROR, reason), reply_to=message)


def _for_others(texts: list[str], context: Context) -> list[str]:
    """Return these texts as others may read them: a site's paths are removed."""
    if not texts or not is_site(context.node_config):
        return texts
    known = paths_at(context.node_config)
    return [without_paths(text, known) for text in texts]


@app.query("hello")
def introduce(message: Message, context: Context) -> Message:
    """Answer the first message to a node: who it is and, at a site, what its data set holds."""
    try:
        theirs = Hello.from_json(str(message.content.config_records["config"]["hello"]))
        text = _introduction(theirs, context).to_json()
    except Exception as error:  # whatever it is, the server must learn of it
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
        prepared_data(site, theirs.task),
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
    if journal := journal_at(node):
        counts = f"{summary.num_train} train and {summary.num_val} val images"
        journal.note(f"introduced to the server: {counts}")
    return Introduction(
        name=site.name,
        summary=summary,
        not_annotated=site.not_annotated,
        show_images=site.show_images,
    )


@app.query("refused")
def refused(message: Message, context: Context) -> Message:
    """Log at the site why the server refused it."""
    reason = in_one_line(str(message.content.config_records["config"]["reason"]))
    log.error("refused by the server: %s", reason)
    if journal := journal_at(context.node_config):
        journal.note(f"refused by the server: {reason}", is_error=True)
    return Message(RecordDict(), reply_to=message)


@app.query()
@_answers
def query(request: Request) -> Message:
    """Check that this client builds the server's model; save the start of its private arrays."""
    instructions, workspace = request.instructions, request.workspace
    client_class(instructions.client)
    data = read_data(workspace.data, instructions.task, where=f"client '{workspace.name}'")
    form = {key: data[key] for key in ("channels", "kpt_shape") if key in data}
    told = _ToldModel(request.instructions_json, json.dumps(form), instructions, form)
    if _digest_here(told) != instructions.digest:
        raise ValueError(
            f"client '{workspace.name}' builds another model than the server from the same "
            f"architecture: its Ultralytics is {ultralytics.__version__}, or its data.yaml has "
            "other channels or kpt_shape"
        )
    if "private" in request.message.content:
        save_private_start(workspace.private_dir, request.arrays("private"))
    return request.reply(RecordDict())


@dataclass(frozen=True)
class _ToldModel:
    """What a client builds its model from; two are equal if both their texts are (a cache key)."""

    instructions_json: str
    form_json: str
    instructions: Instructions = field(compare=False)
    form: Mapping[str, Any] = field(compare=False)


@lru_cache(maxsize=1)  # usually the same for all clients of a simulation
def _digest_here(told: _ToldModel) -> str:
    """Return the digest of the layout of the model that this machine builds."""
    instructions = told.instructions
    names = dict(enumerate(instructions.names))
    data = {**told.form, "names": names, "nc": len(names)}
    model = build_model(instructions.architecture, instructions.task, data, instructions.train)
    return Layout.of(to_arrays(model)).digest


@app.train()
@_answers
def train(request: Request) -> Message:
    """Train one slice."""
    client, arrays = _unpack(request)
    instructions, round_number = request.instructions, request.round_number
    number = request.slice_number
    lost = _lost_state(client, request, number - 1)
    parameters, num_examples, metrics = client.fit(arrays, dict(request.config))
    about = ConfigRecord({"note": one_note([*client.notes, lost])})
    remember(request.state, "train", round_number, metrics)
    record = RecordDict(
        {"client": about, "metrics": MetricRecord({"num-examples": num_examples, **metrics})}
    )
    received = dict(zip(client.names, arrays, strict=True))
    trained = dict(zip(client.names, parameters, strict=True))
    if instructions.privacy.mode == "local":  # noise is added before encoding
        trained = privatised(
            trained, received, client.moved_names, instructions.privacy, noise_source()
        )
    if instructions.sends_deltas:
        residuals = Residuals(client.settings.private_dir, instructions.averages_per_round)
        delta, residual = _encoding(client, instructions).delta(
            trained, received, residuals.before(number)
        )
        if residual:
            residuals.save(number, residual)
        record["encoded"] = to_record(delta)
    else:  # arrays that have not changed, such as frozen layers, are not sent
        changed = changed_names(trained, received)
        about[UNCHANGED] = [name for name in client.names if name not in set(changed)]
        record["arrays"] = to_record(select(trained, changed))
    return request.reply(record)


def _lost_state(client: YoloClient, request: Request, last: int) -> str:
    """Return a note if the client's folder has lost its saved state, else an empty text.

    last: As in `missing_state`. Raises ValueError if private arrays are lost with the state.
    """
    trained, folder = request.assignment.trained, client.settings.private_dir
    if trained:
        has_lost = missing_state(folder, request.instructions, trained, last) is not None
    else:
        has_lost = client.is_personal and not (folder / PRIVATE_START).exists()
    if not has_lost:
        return ""
    round_number = math.ceil(trained / request.instructions.averages_per_round)
    since = f"after round {round_number}" if trained else "so far"
    lost = f"its folder has lost what it kept {since}"
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
@_answers
def evaluate(request: Request) -> Message:
    """Evaluate the global model."""
    client, arrays = _unpack(request)
    _lost_state(client, request, request.slice_number)
    score: Any = client.evaluate(arrays, dict(request.config))
    if not (isinstance(score, tuple) and len(score) == 3):
        raise TypeError(
            f"{type(client).__name__}.evaluate returned {type(score).__name__}, expected the loss, "
            "number of images and metrics of super().evaluate(...)"
        )
    loss, num_examples, metrics = score
    if request.config.get("split", "val") == "val":
        remember(request.state, "evaluate", request.round_number, metrics)
    reply = _score_message((loss, num_examples, metrics), request)
    reply.content["client"] = ConfigRecord({"note": one_note(client.notes)})
    return reply


@app.evaluate("whole")
@_answers
def evaluate_whole(request: Request) -> Message:
    """Evaluate a whole model, which may be another client's."""
    client = client_for(request)
    return _score_message(client.evaluate_whole(request.arrays("arrays")), request)


@app.train("personalise")
@_answers
def personalise(request: Request) -> Message:
    """Let the client train on for itself; its model stays with it, and scores are sent."""
    client, arrays = _unpack(request)
    _lost_state(client, request, request.slice_number)
    result = client.personalise(arrays, dict(request.config))
    about = ConfigRecord({"is-kept": result.is_kept, "note": one_note(client.notes)})
    numbers = MetricRecord({"num-examples": result.num_examples, **result.scores})
    return request.reply(RecordDict({"client": about, "metrics": numbers}))


@app.query("local")
@_answers
def local(request: Request) -> Message:
    """Send the client's best local model, if the federation's config and the site allow it."""
    client = client_for(request)
    _refuse_without_consent(request)
    return request.reply(RecordDict({"arrays": to_record(client.local_model())}))


@app.query("personal")
@_answers
def personal(request: Request) -> Message:
    """Send the client's own model, under the same conditions as `local`."""
    client, arrays = _unpack(request)
    _lost_state(client, request, request.slice_number)
    _refuse_without_consent(request)
    model = client.personal_model(arrays, request.round_number)
    return request.reply(RecordDict({"arrays": to_record(model)}))


def _refuse_without_consent(request: Request) -> None:
    workspace = request.workspace
    if not request.instructions.cross_client:
        raise ValueError(
            f"client '{workspace.name}' keeps its model: evaluate.cross_client is false"
        )
    if not workspace.gives_models:
        raise ValueError(f"client '{workspace.name}' keeps its model: its share-model is false")


@app.query("pictures")
@_answers
def pictures(request: Request) -> Message:
    """Draw the received models' predictions on images that others may see."""
    client = client_for(request)
    titles = list(request.message.content.array_records)
    picture = client.draw({title: request.arrays(title) for title in titles})
    return request.reply(RecordDict({"picture": ConfigRecord({"jpeg": picture})}))


@app.query("finish")
@_answers
def finish(request: Request) -> Message:
    """Call the client's `finish` hook: the run has ended."""
    client_for(request).finish()
    return request.reply(RecordDict())


def _device_slots(request: Request) -> DeviceSlots:
    """Return the slots of the client's device; a site has the device to itself."""
    instructions, workspace = request.instructions, request.workspace
    folder = workspace.private_dir if workspace.is_site else workspace.private_dir.parent
    num_slots = 1 if workspace.is_site else min(instructions.num_clients, MAX_ON_DEVICE)
    return DeviceSlots(
        folder / ".devices" / device_name(workspace.device), instructions.run_id, num_slots
    )


def _score_message(score: tuple[float, int, dict[str, Any]], request: Request) -> Message:
    loss, num_examples, metrics = score
    numbers = MetricRecord({"num-examples": num_examples, "loss": loss, **metrics})
    return request.reply(RecordDict({"metrics": numbers}))


def _unpack(request: Request) -> tuple[YoloClient, list[np.ndarray]]:
    """Return the client and the arrays sent to it, matched by name, in the order of its names."""
    client = client_for(request)
    if "encoded" in request.message.content.array_records:
        held = HeldArrays(client.settings.private_dir)
        encoding = _encoding(client, request.instructions)
        delta, expected = request.arrays("encoded"), str(request.config["checksum"])
        received = held.receive(delta, expected, encoding)
    else:
        received = request.arrays("arrays")
    missing = [name for name in client.names if name not in received]
    if missing or len(received) != len(client.names):
        raise ValueError(
            f"client '{client.name}' received {len(received)} arrays, its model has "
            f"{len(client.names)} (missing: {', '.join(missing[:3]) or 'none'})"
        )
    for array in received.values():
        array.flags.writeable = False  # replies are computed as a difference from these
    return client, [received[name] for name in client.names]
