"""The client: `YoloClient(NumPyClient)` does the work, the ClientApp passes messages to it.

Subclass `YoloClient` to change what a client does (its hooks are `prepare`, `train`, `evaluate` and
`finish`), and name the class in the config as `client: FILE.py:CLASS`. The handlers in app.py only
unpack named arrays from a message, call it, and pack the reply.
"""

import json
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flwr.app import RecordDict
from flwr.client import NumPyClient

from federated_yolo.client.device_slots import OUT_OF_MEMORY
from federated_yolo.client.history import recall
from federated_yolo.client.personal import PersonalResult, personalise
from federated_yolo.common.arrays import Arrays, select
from federated_yolo.common.errors import AbortedError
from federated_yolo.common.files import write_atomically
from federated_yolo.common.text import reason_of
from federated_yolo.data.data_yaml import read_data_yaml
from federated_yolo.yolo.checkpoint import load_checkpoint_module, save_checkpoint
from federated_yolo.yolo.evaluator import Evaluation, Evaluator
from federated_yolo.yolo.model import build_model, load_into, moved_names, shared_names, to_arrays
from federated_yolo.yolo.slice_mixin import SliceSettings
from federated_yolo.yolo.trainer import SliceResult, SliceTrainer

LOCAL_BEST = "local_best"  # stem of a .pt and a .json in a client's private folder


# unstable: flwr.client.NumPyClient
class YoloClient(NumPyClient):
    """Trains and evaluates a YOLO model on one data set, slice by slice.

    It keeps the trainer and the evaluator, so that data sets, loaders and optimiser live from round
    to round. Lists of arrays are in the order of `names`; shapes and dtypes are the same as in the
    model's `state_dict`: float32, and int64 for counters of BatchNorm.

    A subclass may override these methods and no others; each can call its original by `super()`:

        prepare()    called after creation: in each process that works for this client, and again
                     if it had to make room for other clients, or its data.yaml has changed
        train()      trains the epochs of a round; called again if memory ran out
        evaluate()   scores the global model, or this client's own
        finish()     called after the run; again if a finished run is resumed

    Raise AbortedError in any of them to leave this client out of the round.

    Attributes:
        name: The client's name in the federation.
        settings: Settings of its training; `settings.private_dir` is its folder.
        state: Flower's `Context.state`, for values that should live from round to round; it also
            holds `history`. A resumed run begins with an empty state.
        notes: Texts for the server, sent with the next reply and written to clients.csv.
    """

    def __init__(self, name: str, settings: SliceSettings, *, show_images: int = 0) -> None:
        self.name = name
        self.settings = settings
        self.show_images = show_images
        self.keeps_models = False  # also if all arrays are shared; true at a site
        self.trainer = SliceTrainer(settings)
        self.data = read_data_yaml(settings.data, where=f"client '{name}'")
        self.state = RecordDict()
        self.notes: list[str] = []
        self.source: dict[str, Any] = {}  # the data as read when this object was created

    def prepare(self) -> None:
        """Get ready; called when this object has been created, which may happen more than once.

        A process keeps a few clients and creates the others again when it needs them, so values
        that should survive belong in `state`.
        """

    def train(self, round_number: int, arrays: Arrays, config: dict[str, Any]) -> SliceResult:
        """Train the epochs of this round, starting from these global arrays.

        Called once in a round, or `averages_per_round` times, each for its part of them. A subclass
        may change the result, or call this method with other arrays. It must call it or raise
        AbortedError, because this method saves the optimiser and the private arrays, which the next
        round needs.

        Args:
            round_number: 1 for the first round.
            arrays: The shared arrays, read-only, by their names in the `state_dict`.
            config: As for `fit`.

        Returns:
            The trained arrays, with losses and counts.

        Raises:
            AbortedError: If `abort` was called meanwhile.
        """
        proximal_mu = float(config.get("proximal-mu", 0.0))
        return self.trainer.train(round_number, arrays, proximal_mu, _part(config))

    def finish(self) -> None:
        """Clean up; called after the last round, in one of the client's processes."""

    def abort(self, reason: str) -> None:
        """Leave this client out of the round that it is training, after the present batch.

        It may be called from a callback (`add_callback`), another thread or a signal handler.

        Args:
            reason: Text for the server, which asks this client again in the next round.
        """
        self.trainer.abort(reason)

    def add_callback(self, event: str, function: Callable[[Any], None]) -> None:
        """Register a function for an event of the training; call this in `prepare`.

        Args:
            event: Name of the event, such as "on_train_batch_end". Ultralytics' documentation lists
                the events; validation and saving events do not occur in a client.
            function: Function that is called with Ultralytics' trainer.
        """
        self.trainer.add_callback(event, function)

    def history(self, kind: str) -> dict[str, list[float]]:
        """Return the numbers of all rounds so far that this client took part in, oldest first.

        Args:
            kind: "train" (losses, seconds, ...) or "evaluate" (metrics on the val split,
                "fitness").

        Returns:
            A list for each name, with NaN if a round has no such number, and "round" with the
            rounds' numbers.
        """
        return recall(self.state, kind)

    @cached_property
    def model(self) -> torch.nn.Module:
        """The model for evaluation, on the CPU; the trainer has its own."""
        s = self.settings
        return build_model(s.architecture, s.task, self.data, s.train, s.seed)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Scores models on this client's data."""
        s = self.settings
        return Evaluator(self.data, s.task, s.train, s.private_dir, s.device, s.num_threads)

    @property
    def is_personal(self) -> bool:
        """Whether some arrays are private, so that the model is this client's own."""
        return len(self.names) < len(self.model.state_dict())

    @cached_property
    def names(self) -> list[str]:
        """Names of the shared arrays, in the order of every list of arrays."""
        return shared_names(self.model, self.settings.shared)

    @property
    def moved_names(self) -> list[str]:
        """Shared arrays that training changes."""
        moved = moved_names(self.model, self.settings.train.get("freeze"))
        return [name for name in self.names if name in moved]

    def get_parameters(self, config: dict[str, Any]) -> list[np.ndarray]:
        """Return the shared arrays of the freshly built model."""
        return list(select(to_arrays(self.model), self.names).values())

    def fit(
        self, parameters: list[np.ndarray], config: dict[str, Any]
    ) -> tuple[list[np.ndarray], int, dict[str, Any]]:
        """Train the slice of round `config["server-round"]` from these global arrays.

        Args:
            parameters: The shared arrays, in the order of `names`.
            config: "part" of the round, from 1. "proximal-mu", if present, is FedProx's mu.
                "keep-local" asks to score the model, and to keep the best as local_best.pt.

        Returns:
            The trained arrays, the number of training images, and the mean losses of the slice
            ("train/box_loss", ...) with "num-steps" of the optimiser, "seconds", and the requested
            scores ("local/fitness", ...); `notes` says why if scores are missing.

        Raises:
            AbortedError: If the client is left out of the round.
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
            self.trainer.forget(round_number, _part(config))
            raise
        self.notes += result.notes
        seconds = time.perf_counter() - started
        metrics = {**result.losses, "num-steps": result.num_steps, "seconds": seconds}
        if config.get("keep-local"):
            try:
                metrics.update(self._score_local_model(round_number, result.arrays))
            except (AbortedError, *OUT_OF_MEMORY):  # the latter repeats the work with more room
                raise
            except Exception as error:  # whatever it is, the training has succeeded
                self.notes.append(f"its local model was not scored: {reason_of(error)}")
        return [result.arrays[name] for name in self.names], result.num_examples, metrics

    def evaluate(
        self, parameters: list[np.ndarray], config: dict[str, Any]
    ) -> tuple[float, int, dict[str, Any]]:
        """Evaluate these global arrays, with the client's private ones.

        With private arrays the model is the client's own. Such a client, and every site, keeps the
        last model and the best one by its val split.

        Args:
            parameters: The shared arrays, in the order of `names`.
            config: "server-round" is the round. "split" is "val" (the default) or "test".

        Returns:
            1 - fitness (Ultralytics' validator computes no loss here), the number of images, and
            Ultralytics' metrics, overall and for each class, with "fitness" and "seconds".
        """
        started = time.perf_counter()
        round_number, split = int(config["server-round"]), str(config.get("split", "val"))
        self._load(dict(zip(self.names, parameters, strict=True)), round_number)
        result = self.evaluator(self.model, split, round_number)
        self.notes += result.notes
        if (self.is_personal or self.keeps_models) and split == "val":
            save_checkpoint(self.settings.private_dir / "last.pt", self.model, self.settings.train)
            _keep_best(self.settings, self.model, "best", round_number, result.fitness)
        return _as_reply(result, started)

    def personalise(self, parameters: list[np.ndarray], config: dict[str, Any]) -> PersonalResult:
        """Train on from these global arrays, with the client's private ones, for itself alone.

        parameters: As for `evaluate`. config: As for `personalise` in personal.py, and
        "server-round".
        """
        shared = dict(zip(self.names, parameters, strict=True))
        self._load(shared, int(config["server-round"]))
        return personalise(self, config)

    def evaluate_whole(self, arrays: Arrays) -> tuple[float, int, dict[str, Any]]:
        """Evaluate a whole model of any client on the val split; returns the same as `evaluate`."""
        started = time.perf_counter()
        load_into(self.model, arrays)
        return _as_reply(self.evaluator(self.model), started)

    def local_model(self) -> Arrays:
        """Return this client's best model after its own epochs; ValueError if none exists."""
        return _arrays_of(self.settings.private_dir / f"{LOCAL_BEST}.pt", f"client '{self.name}'")

    def personal_model(self, parameters: list[np.ndarray], round_number: int) -> Arrays:
        """Return these global arrays with the client's private ones: its own model."""
        self._load(dict(zip(self.names, parameters, strict=True)), round_number)
        return to_arrays(self.model)

    def draw(self, versions: Mapping[str, Arrays]) -> bytes:
        """Return a JPEG of the val images that others may see, with predictions of whole models.

        versions: Arrays of each model, by the title above its predictions. Raises ValueError if
        others may see no image.
        """
        if not self.show_images:
            raise ValueError(f"client '{self.name}' shows no images: its show_images is 0")
        return self.evaluator.draw(self.model, versions, self.show_images)

    def _load(self, shared: Arrays, round_number: int) -> None:
        """Load these arrays, and the private arrays of this round, into `model`."""
        load_into(self.model, shared, self.names)
        if self.is_personal:
            private = self.trainer.private_arrays(round_number)
            load_into(self.model, private, private)

    def _score_local_model(self, round_number: int, trained: Arrays) -> dict[str, float]:
        self._load(trained, round_number)
        result = self.evaluator(self.model)
        _keep_best(self.settings, self.model, LOCAL_BEST, round_number, result.fitness)
        scores = {**result.metrics, "fitness": result.fitness}
        return {f"local/{name}": value for name, value in scores.items()}


def _arrays_of(path: Path, where: str) -> Arrays:
    """Return the arrays of a client's local model. Raises ValueError if there is none."""
    if not path.exists():
        raise ValueError(
            f"{where} has no {path.name}: it has not trained in a round that was evaluated"
        )
    return to_arrays(load_checkpoint_module(str(path), where=where))


def _part(config: Mapping[str, Any]) -> int:
    """Return which slice of its round a message asks for, 1 if the round has one."""
    return int(config.get("part", 1))


def _keep_best(
    settings: SliceSettings, model: torch.nn.Module, stem: str, round_number: int, fitness: float
) -> None:
    """Write STEM.pt if no earlier round scored higher; STEM.json records its round and score."""
    folder = settings.private_dir
    record = folder / f"{stem}.json"
    best = json.loads(record.read_text()) if record.exists() else None
    if best is None or fitness >= best["fitness"] or best["round"] >= round_number:
        save_checkpoint(folder / f"{stem}.pt", model, settings.train)
        text = json.dumps({"round": round_number, "fitness": fitness})
        write_atomically(record, lambda file: file.write(text.encode()))


def _as_reply(result: Evaluation, started: float) -> tuple[float, int, dict[str, Any]]:
    """Return an evaluation in the form of `NumPyClient.evaluate`'s result."""
    seconds = time.perf_counter() - started
    metrics = {**result.metrics, **result.per_class, "fitness": result.fitness, "seconds": seconds}
    return 1.0 - result.fitness, result.num_examples, metrics
