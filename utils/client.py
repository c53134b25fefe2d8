"""The client: `YoloClient(NumPyClient)` does the work, the ClientApp carries messages to it.

Subclass `YoloClient` to change what a client does; the handlers below it only unpack named arrays
from a message, call it, and pack the reply.
"""

import json
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
from pydantic import TypeAdapter

from utils.arrays import Arrays, Layout, select
from utils.attempts import LostWorkerError, attempt, reason_of
from utils.config import SharedConfig
from utils.data import NOT_ANNOTATED, in_label_space, read_data_yaml, write_private_yaml
from utils.evaluation import Evaluation, Evaluator
from utils.model import (
    build_model,
    load_checkpoint_module,
    load_into,
    save_checkpoint,
    shared_names,
    to_arrays,
)
from utils.run_dir import write_atomically
from utils.trainer import SliceSettings, SliceTrainer

CLIENT_ERROR = 2  # Flower's ErrorCode.CLIENT_APP_RAISED_EXCEPTION
LOCAL_BEST = "local_best"  # .pt and .json, in a client's private folder
SEED_STEP = 1000  # between two clients' seeds; Ultralytics itself adds small numbers


@dataclass(frozen=True)
class Partition:
    """One client of a simulation, where one machine has all data.

    data: path of its data.yaml. not_annotated: of its classes. has_test: whether it has a test
    split. show_images: how many of its val images it lets others see.
    """

    name: str
    data: str
    not_annotated: tuple[str, ...]
    has_test: bool
    show_images: int


@dataclass(frozen=True)
class Instructions:
    """What the server tells every client, in each message; JSON on the wire.

    run_id: unique for a run. digest: of the global model's layout. names: class names of the
    federation. train: resolved train arguments. clients: of each partition, and private_root the
    folder of their private folders; only in simulation. round_timeout_s: for one message.
    cross_client: without it no client gives its local model away.
    """

    run_id: str
    base_model: str
    task: str
    digest: str
    names: tuple[str, ...]
    shared: SharedConfig
    keep_optimizer: bool
    train: dict[str, Any]
    num_rounds: int
    local_epochs: int
    seed: int
    device: str
    num_threads: int
    round_timeout_s: float | None
    cross_client: bool
    clients: tuple[Partition, ...]
    private_root: str

    def to_json(self) -> str:
        """One line of JSON."""
        return _INSTRUCTIONS.dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> "Instructions":
        """Instructions from `to_json`."""
        return _INSTRUCTIONS.validate_json(text)


_INSTRUCTIONS = TypeAdapter(Instructions)


class YoloClient(NumPyClient):
    """Trains and evaluates a YOLO model on one data set, slice by slice.

    Parameters and results are lists of arrays in the order of `names`, which are those that are
    shared. Holds the trainer and the evaluator, so that data sets, loaders and optimiser live
    through the run.
    """

    def __init__(self, name: str, settings: SliceSettings, show_images: int = 0) -> None:
        self.name = name
        self.settings = settings
        self.show_images = show_images
        self.trainer = SliceTrainer(settings)
        self.data = read_data_yaml(settings.data, where=f"client '{name}'")
        self._private_start: Arrays = {}  # as `model` was built; of a client that has not trained

    @cached_property
    def model(self) -> torch.nn.Module:
        """The model to evaluate with, on the CPU; not the one in training."""
        s = self.settings
        model = build_model(s.base_model, s.task, self.data, s.train, s.seed)
        shared = set(shared_names(model, s.shared))
        self._private_start = {k: v.copy() for k, v in to_arrays(model).items() if k not in shared}
        return model

    @cached_property
    def evaluator(self) -> Evaluator:
        """Scores models on this client's data."""
        s = self.settings
        return Evaluator(self.data, s.task, s.train, s.private_dir, s.device, s.num_threads)

    @property
    def is_personal(self) -> bool:
        """Whether some arrays stay here, so that the model is this client's own."""
        return len(self.names) < len(self.model.state_dict())

    @property
    def layout(self) -> Layout:
        """Layout of this client's model."""
        return Layout.of(to_arrays(self.model))

    @cached_property
    def names(self) -> list[str]:
        """Names of the arrays in the lists below."""
        return shared_names(self.model, self.settings.shared)

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
        scores asked for ("local/fitness", ...), or a "note" why there are none.
        """
        started = time.perf_counter()
        round_number = int(config["server-round"])
        arrays = dict(zip(self.names, parameters, strict=True))
        proximal_mu = float(config.get("proximal-mu", 0.0))
        result = self.trainer.train(round_number, arrays, proximal_mu)
        seconds = time.perf_counter() - started
        metrics = {**result.losses, "num-steps": result.num_steps, "seconds": seconds}
        if config.get("keep-local"):
            try:
                metrics.update(self._score_local_model(round_number, result.arrays))
            except Exception as error:  # whatever it is, the training was good
                metrics["note"] = f"its local model was not scored: {reason_of(error)}"
        return [result.arrays[name] for name in self.names], result.num_examples, metrics

    def evaluate(
        self, parameters: list[np.ndarray], config: dict[str, Any]
    ) -> tuple[float, int, dict[str, Any]]:
        """Evaluate these global arrays, with the client's private ones.

        config: "split" is "val" or "test". Where there are private arrays, the model is the
        client's own, and it keeps the best by its val split.
        Returns 1 - fitness (Ultralytics' validator computes no loss here), the number of images,
        and Ultralytics' metrics, per class too, with "fitness" and "seconds".
        """
        started = time.perf_counter()
        round_number, split = int(config["server-round"]), str(config.get("split", "val"))
        self._load(dict(zip(self.names, parameters, strict=True)), round_number)
        result = self.evaluator(self.model, split)
        if self.is_personal and split == "val":
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
            private = self.trainer.private_arrays(round_number) or self._private_start
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


# The YoloClients of this process, by run and name: they live from round to round.
_clients: dict[tuple[str, str], YoloClient] = {}


def client_for(instructions: Instructions, partition: int) -> YoloClient:
    """The YoloClient of a partition, made on its first message in this process."""
    entry = instructions.clients[partition]
    key = (instructions.run_id, entry.name)
    if key not in _clients:
        private_dir = Path(instructions.private_root) / entry.name
        data = read_data_yaml(Path(entry.data), where=f"client '{entry.name}'")
        data = in_label_space(data, instructions.names, entry.not_annotated)
        settings = SliceSettings(
            base_model=instructions.base_model,
            task=instructions.task,
            data=write_private_yaml(data, private_dir),
            private_dir=private_dir,
            train=instructions.train,
            num_rounds=instructions.num_rounds,
            local_epochs=instructions.local_epochs,
            seed=instructions.seed + SEED_STEP * partition,
            device=instructions.device,
            num_threads=instructions.num_threads,
            shared=instructions.shared,
            keep_optimizer=instructions.keep_optimizer,
        )
        _clients[key] = YoloClient(entry.name, settings, entry.show_images)
    return _clients[key]


def to_record(arrays: Arrays) -> ArrayRecord:
    """Named arrays as a Flower record, which keeps names, shapes and dtypes."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def from_record(record: ArrayRecord) -> Arrays:
    """Named arrays of a Flower record."""
    return {name: array.numpy() for name, array in record.items()}


Handler = Callable[[Message, Context], Message]
app = ClientApp()


def _reporting_errors(handler: Handler) -> Handler:
    """Answer with the reason when the client raises, and keep the traceback in its folder."""

    @wraps(handler)
    def wrapped(message: Message, context: Context) -> Message:
        instructions = _instructions(message)
        name = instructions.clients[_partition(context)].name
        folder = Path(instructions.private_root) / name
        try:
            message_id = message.metadata.message_id
            with attempt(folder, message_id, instructions.round_timeout_s) as number:
                reply = handler(message, context)
            identity: Any = reply.content.setdefault("client", ConfigRecord())
            identity.update({"name": name, "attempt": number})
            return reply
        except Exception as error:  # whatever it is, the server must be told
            text = traceback.format_exc()
            kind = "" if isinstance(error, LostWorkerError) else f"{type(error).__name__}: "
            reason = " ".join(f"{kind}{error}".split())
            try:
                write_atomically(folder / "error.txt", lambda file: file.write(text.encode()))
            except OSError as full:  # the disk may be what failed
                reason += f" (and no traceback in {folder}: {full.strerror})"
            return Message(Error(CLIENT_ERROR, reason), reply_to=message)

    return wrapped


@app.query()
@_reporting_errors
def query(message: Message, context: Context) -> Message:
    """Say which classes are not annotated here, and check that the model is the server's."""
    instructions = _instructions(message)
    client = client_for(instructions, _partition(context))
    if client.layout.digest != instructions.digest:
        raise ValueError(
            f"client '{client.name}' builds another model from {instructions.base_model} than the "
            "server; use the same base model file and the same Ultralytics version"
        )
    about = ConfigRecord(
        {
            "not-annotated": client.data.get(NOT_ANNOTATED, []),
            "has-test": instructions.clients[_partition(context)].has_test,
            "show-images": client.show_images,
        }
    )
    return Message(RecordDict({"client": about}), reply_to=message)


@app.train()
@_reporting_errors
def train(message: Message, context: Context) -> Message:
    """Train one slice."""
    client, arrays, config = _unpack(message, context)
    parameters, num_examples, metrics = client.fit(arrays, config)
    note = metrics.pop("note", "")
    record = RecordDict(
        {
            "client": ConfigRecord({"note": note}),
            "arrays": to_record(dict(zip(client.names, parameters, strict=True))),
            "metrics": MetricRecord({"num-examples": num_examples, **metrics}),
        }
    )
    return Message(record, reply_to=message)


@app.evaluate()
@_reporting_errors
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the global model."""
    client, arrays, config = _unpack(message, context)
    return _score_message(client.evaluate(arrays, config), message)


@app.evaluate("whole")
@_reporting_errors
def evaluate_whole(message: Message, context: Context) -> Message:
    """Evaluate a whole model that may be another client's."""
    client = client_for(_instructions(message), _partition(context))
    arrays = from_record(message.content.array_records["arrays"])
    return _score_message(client.evaluate_whole(arrays), message)


@app.query("local")
@_reporting_errors
def local(message: Message, context: Context) -> Message:
    """Give the client's best local model away, if the federation's config allows it."""
    instructions = _instructions(message)
    client = client_for(instructions, _partition(context))
    _refuse_without_consent(instructions, client)
    return Message(RecordDict({"arrays": to_record(client.local_model())}), reply_to=message)


@app.query("personal")
@_reporting_errors
def personal(message: Message, context: Context) -> Message:
    """Give the client's own model away, as `local`."""
    client, arrays, config = _unpack(message, context)
    _refuse_without_consent(_instructions(message), client)
    model = client.personal_model(arrays, int(config["server-round"]))
    return Message(RecordDict({"arrays": to_record(model)}), reply_to=message)


def _refuse_without_consent(instructions: Instructions, client: YoloClient) -> None:
    if not instructions.cross_client:
        raise ValueError(f"client '{client.name}' keeps its model: evaluate.cross_client is false")


@app.query("pictures")
@_reporting_errors
def pictures(message: Message, context: Context) -> Message:
    """Draw predictions of the models sent on images that others may see."""
    client = client_for(_instructions(message), _partition(context))
    records = message.content.array_records
    picture = client.draw({title: from_record(record) for title, record in records.items()})
    return Message(RecordDict({"picture": ConfigRecord({"jpeg": picture})}), reply_to=message)


def _score_message(score: tuple[float, int, dict[str, Any]], message: Message) -> Message:
    loss, num_examples, metrics = score
    numbers = MetricRecord({"num-examples": num_examples, "loss": loss, **metrics})
    return Message(RecordDict({"metrics": numbers}), reply_to=message)


def _instructions(message: Message) -> Instructions:
    return Instructions.from_json(str(message.content.config_records["config"]["instructions"]))


def _partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


def _unpack(
    message: Message, context: Context
) -> tuple[YoloClient, list[np.ndarray], dict[str, Any]]:
    """The client and its arguments: arrays in the order of its names, found by name."""
    client = client_for(_instructions(message), _partition(context))
    received = from_record(message.content.array_records["arrays"])
    missing = [name for name in client.names if name not in received]
    if missing or len(received) != len(client.names):
        raise ValueError(
            f"client '{client.name}' received {len(received)} arrays, its model has "
            f"{len(client.names)} (missing: {', '.join(missing[:3]) or 'none'})"
        )
    config = dict(message.content.config_records["config"])
    return client, [received[name] for name in client.names], config
