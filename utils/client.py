"""The client: `YoloClient(NumPyClient)` does the work, the ClientApp carries messages to it.

Subclass `YoloClient` to change what a client does (its hooks are `prepare`, `train`, `evaluate` and
`finish`), and name the class in the config as `client: FILE.py:CLASS`. The handlers below it only
unpack named arrays from a message, call it, and pack the reply.
"""

import gc
import importlib.util
import inspect
import json
import logging
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
import ultralytics
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from pydantic import TypeAdapter, ValidationError

from utils.arrays import Arrays, Layout, changed_names, select
from utils.attempts import AbortedError, LostWorkerError, attempt, in_one_line, reason_of
from utils.changes import one_note
from utils.config import (
    CLIENT_NAME,
    CodecConfig,
    InputError,
    PrivacyConfig,
    SharedConfig,
    nearest,
)
from utils.data import (
    check_dataset,
    form_of,
    form_problems,
    in_label_space,
    read_data,
    read_data_yaml,
    write_private_yaml,
)
from utils.environment import num_cpus
from utils.evaluation import Evaluation, Evaluator
from utils.greeting import Hello, Introduction, Seat, version_problems
from utils.history import recall, remember
from utils.increments import Encoding, HeldArrays, LackingArraysError, Residuals
from utils.instruction_checks import (
    MAX_BYTES,
    MAX_PICTURES,
    UnsoundInstructionsError,
    refuse_unsound,
)
from utils.model import (
    TASKS,
    Architecture,
    build_model,
    load_checkpoint_module,
    load_into,
    moved_names,
    parameter_names,
    save_checkpoint,
    shared_names,
    to_arrays,
)
from utils.privacy import noise_source, privatised
from utils.room import OUT_OF_MEMORY, Room, device_name, with_room
from utils.run_dir import write_atomically
from utils.site import Site, is_site, paths_at, read_site, without_paths
from utils.trainer import (
    KEPT_STATES,
    PRIVATE_START,
    SliceResult,
    SliceSettings,
    SliceTrainer,
    save_private_start,
    saved_states,
    state_path,
)

ROOT = Path(__file__).resolve().parents[1]
CLIENT_ERROR = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION
LOCAL_BEST = "local_best"  # .pt and .json, in a client's private folder
LACKS_ARRAYS, UNCHANGED = "lacks-arrays", "unchanged"  # in the "client" record of a reply
MAX_ON_DEVICE = 256
MAX_CLIENTS = 4  # held by a worker: each has a model, an optimiser and its data set
SEED_STEP = 1000  # between two clients' seeds; Ultralytics itself adds small numbers


@dataclass(frozen=True)
class Instructions:
    """What the server tells every client, in each message; JSON on the wire.

    run_id: unique for a run, and usable as the name of a folder. start_id: unique for each start of
    its server; what processes remember is of one start, so that a resumed run goes on from disk.
    architecture: what the global model is built from, and digest of its layout. names: class names
    of the federation. train: resolved train arguments. num_clients: that may work on one machine.
    device, num_threads: of a client in a simulation. round_timeout_s: for one message.
    client: see `client_class`. cross_client: without it no client gives its local model away.
    incremental: arrays travel as increments, see utils/increments.py, with the differences that
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
    incremental: bool
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


# unstable: flwr.client.NumPyClient
class YoloClient(NumPyClient):
    """Trains and evaluates a YOLO model on one data set, slice by slice.

    Parameters and results are lists of arrays in the order of `names`, which are those that are
    shared. Holds the trainer and the evaluator, so that data sets, loaders and optimiser live
    through the run.

    A subclass may override these and nothing else; each has something of use to call by `super()`:

        prepare()    when it has been made: in each process that works for this client, and again
                     when it had to give way to others, or its data.yaml has changed
        train()      the epochs of a round; again if memory was short
        evaluate()   the score of the global model, or of this client's own
        finish()     after the run; again when a finished run is resumed

    Raise AbortedError (utils/attempts.py) in any of them to leave this client out of the round.
    state: Flower's `Context.state`, for whatever should live from round to round; `history` is in
    it. A run that is resumed begins with an empty one. notes: what the server is told with the next
    reply beside its numbers, for clients.csv.
    """

    def __init__(self, name: str, settings: SliceSettings, *, show_images: int = 0) -> None:
        self.name = name
        self.settings = settings
        self.show_images = show_images
        self.keeps_models = False  # also those that are not its own
        self.trainer = SliceTrainer(settings)
        self.data = read_data_yaml(settings.data, where=f"client '{name}'")
        self.state = RecordDict()
        self.notes: list[str] = []
        self.source: dict[str, Any] = {}  # the data as it was read when this object was made

    def prepare(self) -> None:
        """Get ready; called when this object has been made, which may happen more than once.

        A process holds a few clients and makes the others anew when it needs them, so that what
        should live on belongs into `state`.
        """

    def train(self, round_number: int, arrays: Arrays, config: dict[str, Any]) -> SliceResult:
        """Train the epochs of this round, starting from these global arrays; config as for `fit`.

        A subclass may change the result, or call this with other arrays. It has to call it, or
        raise AbortedError: what the next round needs (optimiser, private arrays) is kept here.
        """
        proximal_mu = float(config.get("proximal-mu", 0.0))
        return self.trainer.train(round_number, arrays, proximal_mu)

    def finish(self) -> None:
        """Clean up; called after the last round, in any one process."""

    def abort(self, reason: str) -> None:
        """Leave this client out of the round that it is training, after the present batch.

        The server is told the reason and asks it again in the next round. It may be called from a
        callback (`add_callback`), from another thread or a signal handler.
        """
        self.trainer.abort(reason)

    def add_callback(self, event: str, function: Callable[[Any], None]) -> None:
        """Call a function of Ultralytics' trainer at an event, such as "on_train_batch_end".

        For `prepare`. Ultralytics' own page lists the events; those of validation and saving do not
        occur in a client.
        """
        self.trainer.add_callback(event, function)

    def history(self, kind: str) -> dict[str, list[float]]:
        """Numbers of all rounds so far that this client took part in, oldest first.

        kind: "train" (losses, seconds, ...) or "evaluate" (metrics on the val split, "fitness").
        Returns a list for each name, with NaN where a round has no such number, and "round".
        """
        return recall(self.state, kind)

    @cached_property
    def model(self) -> torch.nn.Module:
        """The model to evaluate with, on the CPU; not the one in training."""
        s = self.settings
        return build_model(s.architecture, s.task, self.data, s.train, s.seed)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Scores models on this client's data."""
        s = self.settings
        return Evaluator(self.data, s.task, s.train, s.private_dir, s.device, s.num_threads)

    @property
    def is_personal(self) -> bool:
        """Whether some arrays stay here, so that the model is this client's own."""
        return len(self.names) < len(self.model.state_dict())

    @cached_property
    def names(self) -> list[str]:
        """Names of the arrays in the lists below."""
        return shared_names(self.model, self.settings.shared)

    @property
    def moved_names(self) -> list[str]:
        """Those of `names` that training moves."""
        moved = moved_names(self.model, self.settings.train.get("freeze"))
        return [name for name in self.names if name in moved]

    def get_parameters(self, config: dict[str, Any]) -> list[np.ndarray]:
        """Arrays of the model as it would start."""
        return list(select(to_arrays(self.model), self.names).values())

    def fit(
        self, parameters: list[np.ndarray], config: dict[str, Any]
    ) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        """Train the slice of round `config["server-round"]` from these global arrays.

        config: "proximal-mu" is FedProx's, if there. "keep-local": score the trained model, and
        keep the best of all rounds as local_best.pt.
        Returns the trained arrays, the number of training images, and the mean losses of the
        slice ("train/box_loss", ...) with its "num-steps" of the optimiser, "seconds", and the
        scores asked for ("local/fitness", ...); `notes` say why there are none.
        """
        started = time.perf_counter()
        round_number = int(config["server-round"])
        arrays = dict(zip(self.names, parameters, strict=True))
        try:
            result: Any = self.train(round_number, arrays, config)
            if not isinstance(result, SliceResult):
                raise TypeError(
                    f"{type(self).__name__}.train returned {type(result).__name__}, expected the "
                    "SliceResult of super().train(...)"
                )
        except AbortedError:
            self.trainer.forget(round_number)
            raise
        self.notes += result.notes
        seconds = time.perf_counter() - started
        metrics = {**result.losses, "num-steps": result.num_steps, "seconds": seconds}
        if config.get("keep-local"):
            try:
                metrics.update(self._score_local_model(round_number, result.arrays))
            except (AbortedError, *OUT_OF_MEMORY):  # the latter is done again with more room
                raise
            except Exception as error:  # whatever it is, the training was good
                self.notes.append(f"its local model was not scored: {reason_of(error)}")
        return [result.arrays[name] for name in self.names], result.num_examples, metrics

    def evaluate(
        self, parameters: list[np.ndarray], config: dict[str, Any]
    ) -> tuple[float, int, dict[str, Any]]:
        """Evaluate these global arrays, with the client's private ones.

        config: "split" is "val" or "test". Where there are private arrays, the model is the
        client's own, and it keeps the last and the best by its val split; so does a site.
        Returns 1 - fitness (Ultralytics' validator computes no loss here), the number of images,
        and Ultralytics' metrics, per class too, with "fitness" and "seconds".
        """
        started = time.perf_counter()
        round_number, split = int(config["server-round"]), str(config.get("split", "val"))
        self._load(dict(zip(self.names, parameters, strict=True)), round_number)
        result = self.evaluator(self.model, split, round_number)
        self.notes += result.notes
        if (self.is_personal or self.keeps_models) and split == "val":
            save_checkpoint(self.settings.private_dir / "last.pt", self.model, self.settings.train)
            self._keep_best("best", round_number, result.fitness)
        return _as_reply(result, started)

    def evaluate_whole(self, arrays: Arrays) -> tuple[float, int, dict[str, Any]]:
        """Evaluate a whole model of anyone's on the val split; returns as `evaluate`."""
        started = time.perf_counter()
        load_into(self.model, arrays)
        return _as_reply(self.evaluator(self.model), started)

    def local_model(self) -> Arrays:
        """The best model of this client straight after its own epochs. ValueError without one."""
        path = self.settings.private_dir / f"{LOCAL_BEST}.pt"
        if not path.exists():
            raise ValueError(
                f"client '{self.name}' has no {path.name}: it has not trained in a round that was "
                "evaluated"
            )
        return to_arrays(load_checkpoint_module(str(path), where=f"client '{self.name}'"))

    def personal_model(self, parameters: list[np.ndarray], round_number: int) -> Arrays:
        """These global arrays with the client's private ones: the model that is its own."""
        self._load(dict(zip(self.names, parameters, strict=True)), round_number)
        return to_arrays(self.model)

    def draw(self, versions: Mapping[str, Arrays]) -> bytes:
        """A JPEG of the val images that others may see, with predictions of whole models.

        versions: their arrays by the title above the predictions. Raises ValueError when no image
        may be seen.
        """
        if not self.show_images:
            raise ValueError(f"client '{self.name}' shows no images: its show_images is 0")
        return self.evaluator.draw(self.model, versions, self.show_images)

    def _load(self, shared: Arrays, round_number: int) -> None:
        """Put these arrays, and the private ones as of this round, into `model`."""
        load_into(self.model, shared, self.names)
        if self.is_personal:
            private = self.trainer.private_arrays(round_number)
            load_into(self.model, private, private)

    def _score_local_model(self, round_number: int, trained: Arrays) -> dict[str, float]:
        self._load(trained, round_number)
        result = self.evaluator(self.model)
        self._keep_best(LOCAL_BEST, round_number, result.fitness)
        scores = {**result.metrics, "fitness": result.fitness}
        return {f"local/{name}": value for name, value in scores.items()}

    def _keep_best(self, stem: str, round_number: int, fitness: float) -> None:
        """Write STEM.pt if no round before scored higher; STEM.json remembers by what."""
        folder = self.settings.private_dir
        record = folder / f"{stem}.json"
        best = json.loads(record.read_text()) if record.exists() else None
        if best is None or fitness >= best["fitness"] or best["round"] >= round_number:
            save_checkpoint(folder / f"{stem}.pt", self.model, self.settings.train)
            text = json.dumps({"round": round_number, "fitness": fitness})
            write_atomically(record, lambda file: file.write(text.encode()))


def _as_reply(result: Evaluation, started: float) -> tuple[float, int, dict[str, Any]]:
    """What `NumPyClient.evaluate` returns."""
    seconds = time.perf_counter() - started
    metrics = {**result.metrics, **result.per_class, "fitness": result.fitness, "seconds": seconds}
    return 1.0 - result.fitness, result.num_examples, metrics


# The YoloClients of this process, by start and name, the last used at the end. They live from round
# to round, which then need no set-up; beyond MAX_CLIENTS the one unused for longest goes, and is
# made again from its saved state.
_clients: OrderedDict[tuple[str, str], YoloClient] = OrderedDict()


@lru_cache
def client_class(name: str) -> type[YoloClient]:
    """The class that does the clients' work.

    name: of a subclass of YoloClient, as FILE.py:CLASS, relative to the project's folder, which
    travels to SuperNodes; empty for YoloClient. Raises InputError when it cannot be had.
    """
    if not name:
        return YoloClient
    file, _, class_name = name.rpartition(":")
    path = ROOT / file
    if path.suffix != ".py" or not path.is_file():
        raise InputError(
            f"client: found '{name}', expected FILE.py:CLASS, with a file in the working directory "
            f"or {ROOT}, and a subclass of utils.client.YoloClient in it"
        )
    found = vars(_module_of(path))
    classes = {n: v for n, v in found.items() if isinstance(v, type) and issubclass(v, YoloClient)}
    if class_name not in classes:
        own = ", ".join(sorted(set(classes) - {"YoloClient"})) or "none"
        raise InputError(
            f"client: '{class_name}' is not a subclass of YoloClient in {path} (there: {own})"
            f"{nearest(class_name, classes)}"
        )
    _check_hooks(classes[class_name], path)
    return classes[class_name]


def _check_hooks(found: type[YoloClient], path: Path) -> None:
    """Raise InputError for a hook that cannot be called as it will be."""
    for hook in ("prepare", "train", "evaluate", "finish"):
        expected = inspect.signature(getattr(YoloClient, hook))
        try:
            inspect.signature(getattr(found, hook)).bind(*expected.parameters)
        except TypeError as error:
            raise InputError(
                f"client: {path}: {found.__name__}.{hook}: {error}; expected "
                f"{hook}({', '.join(expected.parameters)})"
            ) from error


def _module_of(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"client_of_config_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look their module up there
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # it may do anything
        raise InputError(f"client: {path}: {reason_of(error)}; correct it") from error
    return module


def client_for(message: Message, context: Context) -> YoloClient:
    """The YoloClient that this message is for, made where this process does not hold it."""
    instructions, place = _instructions(message), place_of(message, context)
    key = (instructions.start_id, place.name)
    data = _data_of(place, instructions, _seat(message))
    if key in _clients and _clients[key].source != data:
        del _clients[key]  # it goes on from its saved state, with the data of now
        gc.collect()
    if key not in _clients:
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
        while len(_clients) >= MAX_CLIENTS:
            _clients.popitem(last=False)
            gc.collect()  # trainers are in cycles, whose tensors Python does not see as large
        kind = client_class(instructions.client)
        client = kind(place.name, settings, show_images=place.show_images)
        client.keeps_models = place.is_site
        client.source = data
        client.state = context.state
        client.prepare()
        _clients[key] = client
    _clients.move_to_end(key)
    client = _clients[key]
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
    instructions = _instructions(message)
    seat = _seat(message)
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


def missing_state(folder: Path, instructions: Instructions, trained: int, last: int) -> Path | None:
    """A file without which a client cannot go on as if nothing had happened.

    folder: its private one. trained: the last round in which it has trained, at least 1. last: the
    round that it goes on from; states of later ones are of work that is done again.
    """
    kept = {state_path(folder, trained): saved_states(folder)}
    if instructions.codec.name != "none":
        residuals = Residuals(folder, KEPT_STATES)
        kept[residuals.path(trained)] = residuals.rounds()
    lost = (path for path, rounds in kept.items() if not any(trained <= n <= last for n in rounds))
    return next(lost, None)


def site_folder(site: Site, run_id: str) -> Path:
    """Where a site keeps its files of a run. Raises ValueError for a name that is none."""
    if not CLIENT_NAME.fullmatch(run_id):
        raise ValueError(f"found run {run_id!r}, expected letters, digits, '.', '_' and '-'")
    return site.folder / run_id


def to_record(arrays: Arrays) -> ArrayRecord:
    """Named arrays as a Flower record, which keeps names, shapes and dtypes."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Named arrays of a Flower record."""
    return {name: array.numpy() for name, array in record.items()}


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
            instructions, place = _instructions(message), place_of(message, context)
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
            (reply, number), shortage = with_room(_room(instructions, place), work, _clients.clear)
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
    refuse_unsound(_instructions(message), _seat(message), config, kind, ROOT)


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
    instructions, place = _instructions(message), place_of(message, context)
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
    instructions = _instructions(message)
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
    trained, folder = _seat(message).trained, client.settings.private_dir
    if trained:
        has_lost = missing_state(folder, _instructions(message), trained, last) is not None
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
    if not _instructions(message).cross_client:
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


def _instructions(message: Message) -> Instructions:
    return Instructions.from_json(str(message.content.config_records["config"]["instructions"]))


def _seat(message: Message) -> Seat:
    return Seat.from_json(str(message.content.config_records["config"]["seat"]))


def _unpack(
    message: Message, context: Context
) -> tuple[YoloClient, list[np.ndarray], dict[str, Any]]:
    """The client and its arguments: arrays in the order of its names, found by name."""
    instructions = _instructions(message)
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
