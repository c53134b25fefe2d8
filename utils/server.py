"""The server: one readable round loop over a Flower strategy."""

import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from utils.arrays import Arrays, Layout, cast_to, layout_problems, select, to_double
from utils.client import Instructions, from_record, to_record
from utils.config import Config
from utils.evaluation import Evaluation
from utils.model import load_into, save_checkpoint, shared_names, to_arrays
from utils.run_dir import RoundMeta, RunDir, save_arrays
from utils.strategies import EXAMPLES_KEY, STEPS_KEY, Aggregation, Update

POLL_S = 0.1


class FederationError(RuntimeError):
    """The run cannot go on; what is on disk stays usable."""


@dataclass(frozen=True)
class Score:
    """A client's checked reply to an evaluate message.

    metrics: with "fitness". per_class: as of `Evaluation`.
    """

    name: str
    num_examples: int
    metrics: dict[str, float]
    per_class: dict[str, float]


@dataclass(frozen=True)
class RoundResult:
    """What one round gave.

    score: the number that best.pt goes by, None if the round was not evaluated.
    row: the round's row of results.csv.
    """

    round: int
    score: float | None
    row: Mapping[str, object]


@dataclass(frozen=True)
class RunResult:
    """What a run gave: rounds in order, the best of them (None without evaluation)."""

    run_dir: Path
    rounds: list[RoundResult]
    best: RoundResult | None


class Display(Protocol):
    """Shows a run while it goes on; see utils/terminal.py."""

    def step(self, round_number: int, step: str, clients: list[str]) -> None:
        """A step of a round starts: clients are about to "train" or "evaluate"."""
        ...

    def client_done(self, name: str, text: str) -> None:
        """A client has answered."""
        ...

    def client_failed(self, name: str, reason: str) -> None:
        """A client has failed or its answer was refused."""
        ...

    def round_done(self, result: RoundResult) -> None:
        """A round is complete and on disk."""
        ...


class Server:
    """Runs the rounds. Holds the global arrays, their moving average and the best score.

    Only the shared arrays are global. Where clients keep some to themselves, there is no model to
    evaluate or save here: each client has its own.
    """

    def __init__(
        self,
        config: Config,
        instructions: Instructions,
        model: torch.nn.Module,
        meta: RoundMeta,
        aggregation: Aggregation,
        run_dir: RunDir,
        display: Display,
        evaluate_on_server: Callable[[torch.nn.Module], Evaluation] | None = None,
    ) -> None:
        self.config = config
        self.instructions = instructions
        self.model = model
        self.meta = meta
        self.aggregation = aggregation
        self.run_dir = run_dir
        self.display = display
        self.evaluate_on_server = evaluate_on_server
        self.arrays = select(to_arrays(model), shared_names(model, config.shared))
        self.layout = Layout.of(self.arrays)
        self.average: Arrays | None = None
        self.names_by_node: dict[int, str] = {}
        self.best: RoundResult | None = None
        self._stopping = threading.Event()

    def stop(self) -> None:
        """Make `run` raise FederationError at its next step; from any thread."""
        self._stopping.set()

    def run(self, grid: Grid) -> RunResult:
        """Run all rounds; every finished one is on disk.

        Raises FederationError when no client answers usefully or nothing can be written.
        """
        rounds = []
        try:
            self.run_dir.save_round(self.arrays, self._meta(0))
            self.greet(grid)
            for round_number in range(1, self.config.num_rounds + 1):
                rounds.append(self.run_round(grid, round_number))
        except OSError as error:  # a full disk, a folder that is gone
            raise FederationError(
                f"round {len(rounds) + 1}: {error.filename or self.run_dir.path}: "
                f"{error.strerror or error}"
            ) from error
        return RunResult(self.run_dir.path, rounds, self.best)

    def greet(self, grid: Grid) -> None:
        """Learn which node is which client, and that all have the same model."""
        record = RecordDict({"config": self._config_record()})
        nodes = list(grid.get_node_ids())
        messages = [Message(record, node, "query") for node in nodes]
        problems = []
        for reply in self._exchange(grid, messages):
            if reply.has_error():
                problems.append(reply.error.reason or "no reason given")
            else:
                self.names_by_node[reply.metadata.src_node_id] = _name(reply)
        if problems:
            raise FederationError("\n".join(problems))

    def run_round(self, grid: Grid, round_number: int) -> RoundResult:
        """One round: train, aggregate, evaluate, save."""
        started = time.perf_counter()
        updates = self.train_clients(grid, round_number)
        self.arrays = self.aggregate(round_number, updates)
        self.average = self.move_average()
        self.save_arrays(round_number)
        scores, on_server = self.evaluate(grid, round_number)
        result = self.summarise(round_number, updates, scores, on_server, started)
        self.save_checkpoints(result)
        self.write_rows(result, updates, scores, on_server)
        self.display.round_done(result)
        return result

    # The steps of a round, in their order.

    def train_clients(self, grid: Grid, round_number: int) -> list[Update]:
        """Send the global arrays, receive and check the clients' updates."""
        nodes = self.sample(round_number)
        self.display.step(round_number, "train", sorted(self.names_by_node[n] for n in nodes))
        messages = self.aggregation.configure(
            round_number, self.arrays, self._config_record(), nodes
        )
        updates = []
        for reply in self._exchange(grid, messages):
            update = self._checked(reply, self._read_update)
            if update is not None:
                loss = sum(update.losses.values())
                self.display.client_done(update.name, f"loss {loss:.3g}, {update.seconds:.1f} s")
                updates.append(update)
        if not updates:
            raise FederationError(
                f"round {round_number}: no client returned a usable update; the reasons are above "
                f"and in {self.run_dir.clients}/*/error.txt"
            )
        return sorted(updates, key=lambda update: update.name)  # sums depend on the order

    def sample(self, round_number: int) -> list[int]:
        """Node ids of the clients that train in this round: by name, so that a rerun agrees."""
        nodes = sorted(self.names_by_node, key=lambda node: self.names_by_node[node])
        rng = random.Random(f"{self.config.seed}/{round_number}")
        return sorted(rng.sample(nodes, self.config.clients_per_round), key=nodes.index)

    def aggregate(self, round_number: int, updates: list[Update]) -> Arrays:
        """Combine updates by the strategy, in float64, and cast back to the layout."""
        combined = self.aggregation.aggregate(round_number, updates)
        if combined is None:
            raise FederationError(
                f"round {round_number}: {len(updates)} updates are too few for strategy "
                f"'{self.config.strategy.name}'"
            )
        arrays = cast_to(combined, self.layout)
        problems = layout_problems(arrays, self.layout)
        if problems:
            raise FederationError(f"round {round_number}: aggregation: {'; '.join(problems[:3])}")
        return arrays

    def move_average(self) -> Arrays | None:
        """decay * average + (1 - decay) * global arrays, from the first round's on; or None."""
        decay = self.config.server_ema
        if not decay:
            return None
        if self.average is None:
            return self.arrays
        new, old = to_double(self.arrays), to_double(self.average)
        mixed = {name: decay * old[name] + (1 - decay) * new[name] for name in new}
        return cast_to(mixed, self.layout)

    @property
    def deployed(self) -> Arrays:
        """What is evaluated and made into checkpoints: the average if there is one."""
        return self.arrays if self.average is None else self.average

    @property
    def has_model(self) -> bool:
        """Whether the shared arrays are all there is to the model."""
        return len(self.arrays) == len(self.model.state_dict())

    def evaluate(self, grid: Grid, round_number: int) -> tuple[list[Score], Evaluation | None]:
        """Score the global model on the clients' val splits and on the server's data."""
        every = self.config.evaluate.every
        if not every or (round_number % every and round_number != self.config.num_rounds):
            return [], None
        self.display.step(round_number, "evaluate", sorted(self.names_by_node.values()))
        config = self._config_record()
        config["server-round"] = round_number
        record = RecordDict({"arrays": to_record(self.deployed), "config": config})
        messages = [Message(record, node, "evaluate") for node in self.names_by_node]
        scores = []
        for reply in self._exchange(grid, messages):
            score = self._checked(reply, self._read_score)
            if score is not None:
                self.display.client_done(score.name, f"fitness {score.metrics['fitness']:.3f}")
                scores.append(score)
        on_server = None
        if self.evaluate_on_server:
            load_into(self.model, self.deployed)
            on_server = self.evaluate_on_server(self.model)
        return sorted(scores, key=lambda score: score.name), on_server

    def summarise(
        self,
        round_number: int,
        updates: list[Update],
        scores: list[Score],
        on_server: Evaluation | None,
        started: float,
    ) -> RoundResult:
        """The row of results.csv: losses and metrics are means weighted by images.

        The score is the fitness on the server's data if it has any, else on the clients'.
        """
        examples = [update.num_examples for update in updates]
        row: dict[str, object] = {
            "round": round_number,
            "epoch": round_number * self.config.local_epochs,
            "seconds": round(time.perf_counter() - started, 3),
            "num_clients": len(updates),
            "num_examples": sum(examples),
            **_weighted_means([update.losses for update in updates], examples),
        }
        means = _weighted_means(
            [score.metrics for score in scores], [score.num_examples for score in scores]
        )
        score = means.pop("fitness", None)
        row.update(means)
        if on_server is not None:
            row.update({f"server/{name}": value for name, value in on_server.metrics.items()})
            score = on_server.fitness
        row["fitness"] = score
        return RoundResult(round_number, score, row)

    def save_arrays(self, round_number: int) -> None:
        """Write the global arrays of the round, and their average."""
        self.run_dir.save_round(self.arrays, self._meta(round_number))
        if self.average is not None:
            path = self.run_dir.weights / f"ema{round_number}.npz"
            save_arrays(path, self.average, self._meta(round_number))

    def save_checkpoints(self, result: RoundResult) -> None:
        """Write last.pt, and best.pt if no round before scored higher."""
        score = result.score
        is_best = score is not None and (
            # As in Ultralytics, the latest of equals: it has trained longest.
            self.best is None or self.best.score is None or score >= self.best.score
        )
        if is_best:
            self.best = result
        if not self.has_model:
            return
        load_into(self.model, self.deployed)
        save_checkpoint(self.run_dir.weights / "last.pt", self.model, self.instructions.train)
        if is_best:
            save_checkpoint(self.run_dir.weights / "best.pt", self.model, self.instructions.train)

    def write_rows(
        self,
        result: RoundResult,
        updates: list[Update],
        scores: list[Score],
        on_server: Evaluation | None,
    ) -> None:
        """Append to results.csv, clients.csv and classes.csv."""
        self.run_dir.append_rows("results.csv", [result.row])
        rows: dict[str, dict[str, object]] = {}
        for update in updates:
            rows[update.name] = {
                "num_examples": update.num_examples,
                "num_steps": update.num_steps,
                "seconds": round(update.seconds, 3),
                **update.losses,
            }
        for score in scores:  # also of clients that did not train in this round
            row = rows.setdefault(score.name, {})
            row.update({"num_val": score.num_examples, **score.metrics})
        rows = {
            name: {"round": result.round, "client": name, **rows[name]} for name in sorted(rows)
        }
        self.run_dir.append_rows("clients.csv", rows.values())
        self.write_class_rows(result.round, scores, on_server)

    def write_class_rows(
        self, round_number: int, scores: list[Score], on_server: Evaluation | None
    ) -> None:
        """Append to classes.csv; a class that a data set's labels lack is left empty."""
        per_class = {score.name: score.per_class for score in scores}
        if on_server is not None:
            per_class["(server)"] = on_server.per_class
        rows = [
            {
                "round": round_number,
                "client": client,
                "class": name,
                "mAP50": values.get(f"class/{name}/mAP50"),
                "mAP50-95": values.get(f"class/{name}/mAP50-95"),
            }
            for client, values in per_class.items()
            for name in self.meta.names
        ]
        if rows:
            self.run_dir.append_rows("classes.csv", rows)

    # Messages.

    def _exchange(self, grid: Grid, messages: Iterable[Message]) -> Iterable[Message]:
        """Send messages and yield each reply when it arrives."""
        waiting = set(grid.push_messages(messages))
        while waiting:
            if self._stopping.is_set():
                raise FederationError("stopped")
            for reply in grid.pull_messages(waiting):
                waiting.discard(reply.metadata.reply_to_message_id)
                yield reply
            time.sleep(POLL_S if waiting else 0)

    def _checked(self, reply: Message, read: Callable[[Message], Any]) -> Any:
        """What a reply holds, or None after showing why it cannot be used."""
        name = self.names_by_node.get(reply.metadata.src_node_id, "unknown client")
        try:
            if reply.has_error():
                raise ValueError(reply.error.reason or "no reason given")
            return read(reply)
        except (ValueError, KeyError, TypeError) as error:
            self.display.client_failed(name, str(error))
            return None

    def _read_update(self, reply: Message) -> Update:
        arrays = from_record(reply.content.array_records["arrays"])
        problems = layout_problems(arrays, self.layout)
        if problems:
            raise ValueError("its arrays were refused: " + "; ".join(problems[:3]))
        losses = _numbers(reply)
        num_examples = _positive(losses.pop(EXAMPLES_KEY), EXAMPLES_KEY)
        num_steps = _positive(losses.pop(STEPS_KEY), STEPS_KEY)
        seconds = losses.pop("seconds")
        return Update(_name(reply), arrays, num_examples, num_steps, losses, seconds)

    def _read_score(self, reply: Message) -> Score:
        numbers = _numbers(reply)
        num_examples = _positive(numbers.pop(EXAMPLES_KEY), EXAMPLES_KEY)
        for name in ("loss", "seconds"):
            numbers.pop(name)
        per_class = {k: v for k, v in numbers.items() if k.startswith("class/")}
        metrics = {k: v for k, v in numbers.items() if k not in per_class}
        return Score(_name(reply), num_examples, metrics, per_class)

    def _config_record(self) -> ConfigRecord:
        return ConfigRecord({"instructions": self.instructions.to_json()})

    def _meta(self, round_number: int) -> RoundMeta:
        return RoundMeta(round_number, self.meta.names, self.meta.task, self.meta.base_model)


def _weighted_means(rows: list[dict[str, float]], weights: list[int]) -> dict[str, float]:
    names = rows[0] if rows else {}
    total = sum(weights)
    return {
        name: sum(row[name] * w for row, w in zip(rows, weights, strict=True)) / total
        for name in names
    }


def _numbers(reply: Message) -> dict[str, float]:
    """The numbers of a reply, which must be finite."""
    record = reply.content.metric_records["metrics"]
    numbers = {name: float(value) for name, value in record.items() if not isinstance(value, list)}
    if not np.isfinite(list(numbers.values())).all():
        raise ValueError(f"its numbers are not finite: {numbers}")
    return numbers


def _positive(value: float, name: str) -> int:
    if not value > 0 or value != int(value):
        raise ValueError(f"{name}: found {value}, expected a positive whole number")
    return int(value)


def _name(reply: Message) -> str:
    return str(reply.content.config_records["client"]["name"])
