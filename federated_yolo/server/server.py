"""The server: one readable round loop over a Flower strategy."""

import random
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from federated_yolo.aggregation.aggregator import Aggregation, Update
from federated_yolo.aggregation.inbox import Inbox
from federated_yolo.aggregation.privacy import SPENT, ServerPrivacy
from federated_yolo.client.attempts import MAX_ATTEMPTS
from federated_yolo.client.kept_arrays import missing_state
from federated_yolo.common.arrays import (
    Arrays,
    Layout,
    Shortened,
    cast,
    checksum,
    distance,
    layout_problems,
    select,
)
from federated_yolo.common.errors import FederationError, InputError
from federated_yolo.common.text import in_one_line
from federated_yolo.config.schema import Config
from federated_yolo.data.summary import DataSummary, without_unlabelled_test
from federated_yolo.protocol.codec import halved
from federated_yolo.protocol.delta import Encoding
from federated_yolo.protocol.handshake import Seat
from federated_yolo.protocol.instructions import Instructions
from federated_yolo.protocol.records import EXAMPLES_KEY, STEPS_KEY, UNCHANGED, to_record, views
from federated_yolo.server.broadcast import Downloads
from federated_yolo.server.journal import Clock, Traffic
from federated_yolo.server.plausible import (
    MAX_IMAGES,
    Numbers,
    counted,
    counter_problems,
    fixed_problems,
    is_statistic,
    seconds_problem,
    size_problem,
    statistics_factors,
    statistics_problems,
)
from federated_yolo.server.registry import Members, reason_in
from federated_yolo.server.replies import (
    MAX_NUMBERS,
    Score,
    checked_arrays,
    numbers_of,
    positive_integer,
    record_of,
    refuse_own_names,
    refuse_problems,
    size_of,
    work_of,
)
from federated_yolo.server.results import Display, RoundResult, RunResult, result_of
from federated_yolo.server.round_tables import weighted_means
from federated_yolo.server.tracking import Loggers
from federated_yolo.server.transport import POLL_S, SITE_POLL_S, exchange, num_bytes
from federated_yolo.storage.archive import RoundMeta
from federated_yolo.storage.run_dir import CONFIG_FILE, RESULTS, SERVER, RunDir
from federated_yolo.yolo.checkpoint import save_checkpoint
from federated_yolo.yolo.evaluator import Evaluation, Evaluator, class_metrics
from federated_yolo.yolo.model import load_into, moved_names, shared_names, to_arrays

ROUND_TRIES = 3

RETRY_WAIT_S = 5.0  # for what may pass: a folder that comes back, a worker that starts again


class Server:
    """Runs the rounds. Holds the global arrays, their moving average and the rounds' results.

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
        members: Members,
        evaluator: Evaluator | None = None,
    ) -> None:
        self.config = config
        self.instructions = instructions
        self.model = model
        self.meta = meta
        self.aggregation = aggregation
        self.run_dir = run_dir
        self.display = display
        self.evaluator = evaluator
        self.loggers: Loggers | None = None
        self.arrays = select(to_arrays(model), shared_names(model, config.shared))
        if instructions.codec.name != "none":  # half the bytes of the first download
            self.arrays = halved(self.arrays, aggregation.parameters)
        self.layout = Layout.of(self.arrays)
        self.whole_layout = Layout.of(to_arrays(model))
        moved = moved_names(model, config.train.get("freeze"))
        self.fixed = [n for n in self.arrays if n not in moved and not is_statistic(n)]
        self.work = work_of(config, instructions, model)
        self.bounds = Numbers.of(meta.task, meta.names, class_metrics(meta.task), config.train)
        self.privacy = self._make_privacy()
        self.encoding = Encoding(self.layout, instructions.codec, aggregation.parameters)
        self.downloads = Downloads(self.encoding, self.arrays) if instructions.incremental else None
        self.average: Arrays | None = None
        self.inbox = Inbox(run_dir.server / "updates")
        self.members = members
        self.summaries: dict[str, DataSummary] = {}  # by client
        self.number_names: dict[str, set[str]] = defaultdict(set)  # in replies so far, by client
        self.trained: dict[str, int] = {}  # the last round that each client has trained in
        self.greeted: set[int] = set()  # nodes that have the model
        self.rounds: list[RoundResult] = []
        # Of the round, by client.
        self.notes: dict[str, list[str]] = defaultdict(list)
        self.failed: set[str] = set()
        self.traffic: dict[str, Traffic] = defaultdict(Traffic)
        self._asked_at = 0.0  # when the messages were sent that are being answered
        self._stopping = threading.Event()

    @property
    def names_by_node(self) -> dict[int, str]:
        """Names of the clients by node, also of those that have gone."""
        return self.members.names_by_node

    @property
    def nodes(self) -> list[int]:
        """Nodes of the clients that are there, by name."""
        return [self.members.by_name[name].node for name in sorted(self.members.present)]

    @property
    def nodes_with_test(self) -> list[int]:
        """Of these, the nodes that have a test split."""
        return [n for n in self.nodes if self.summaries[self.names_by_node[n]].num_test]

    @property
    def nodes_with_pictures(self) -> list[int]:
        """Of these, the nodes that let others see images."""
        shown = {data.name for data in self.members.clients if data.show_images}
        return [node for node in self.nodes if self.names_by_node[node] in shown]

    @property
    def absent(self) -> dict[str, list[int]]:
        """Indices of the classes that a client does not annotate, by its name."""
        if self.config.train.get("single_cls"):
            return {}
        annotated = {
            data.name: set(self.summaries[data.name].names) - set(data.not_annotated)
            for data in self.members.clients
            if data.name in self.summaries
        }
        return {
            client: [index for index, name in enumerate(self.meta.names) if name not in names]
            for client, names in annotated.items()
        }

    def _make_privacy(self) -> ServerPrivacy | None:
        if self.config.privacy.mode == "none":
            return None
        moved = moved_names(self.model, self.config.train.get("freeze"))
        names = [name for name in self.arrays if name in moved]
        return ServerPrivacy(self.config.privacy, names, self.run_dir.server / SPENT)

    def stop(self) -> None:
        """Make `run` raise FederationError at its next step; from any thread."""
        self._stopping.set()

    def finish_loggers(self) -> None:
        """End what follows the run, with its best round as the summary; from any thread."""
        if self.loggers:
            best = self.best
            numbers = {"best/round": best.round, "best/fitness": best.score or 0} if best else {}
            self.loggers.finish(numbers, is_done=self.is_done)

    def restore(self) -> None:
        """Take up a run after its last complete round.

        Raises InputError when the run directory does not fit this server, or is damaged.
        """
        run_dir = self.run_dir
        try:
            if run_dir.round_path(0).exists():
                start = run_dir.load_round(0, self.layout)
                if checksum(start) != checksum(self.arrays):
                    raise ValueError(
                        f"{run_dir.round_path(0)}: the run began from other weights than "
                        f"base_model '{self.config.base_model}' gives now; put back what it was"
                    )
            last = run_dir.last_round()
            self.trained = {
                row["client"]: int(row["round"])
                for row in run_dir.rows("clients.csv")
                if row.get("num_examples")
            }
            if not self.config.has_sites:  # a site has its own state, and says itself if it is gone
                self._check_states(last)
            if last:
                self.arrays = run_dir.load_round(last, self.layout)
                if self.config.server_ema:
                    self.average = run_dir.load_average(last, self.layout)
                if self.aggregation.has_state:
                    self.aggregation.restore(run_dir.load_state("strategy", last))
                if self.downloads:
                    self.downloads.restore(run_dir.load_state("downloads", last), self.arrays)
            if self.privacy:
                self.privacy.restore(last)
            elif (spent := run_dir.server / SPENT).exists():
                raise ValueError(
                    f"{spent}: the rounds before had differential privacy, found privacy.mode "
                    "none; set it to what it was, or start a new run"
                )
        except ValueError as error:
            raise InputError(f"resume: {error}") from error
        self.rounds = [result_of(row) for row in run_dir.rows(RESULTS)]

    def _check_states(self, last: int) -> None:
        """Raise ValueError when a client that has trained could not go on from where it was."""
        for name, trained in self.trained.items():
            folder = self.run_dir.client_dir(name)
            missing = missing_state(folder, self.instructions, trained, last)
            if missing:
                raise ValueError(
                    f"{missing}: no such file, so client '{name}' cannot go on where it was; put "
                    "it back, or start a new run from weights/last.pt"
                )

    @property
    def best(self) -> RoundResult | None:
        """The round with the highest score; as in Ultralytics, the latest of equals."""
        scored = [result for result in self.rounds if result.score is not None]
        return max(scored, key=lambda result: (result.score, result.round), default=None)

    @property
    def result(self) -> RunResult:
        """What the run has given so far."""
        return RunResult(self.run_dir.path, self.rounds, self.best)

    @property
    def is_done(self) -> bool:
        """Whether all rounds are complete."""
        return len(self.rounds) >= self.config.num_rounds

    @contextmanager
    def disk_errors(self, where: str) -> Iterator[None]:
        """Turn an error of the disk (full, or a folder that is gone) into FederationError."""
        try:
            yield
        except OSError as error:
            raise FederationError(
                f"{where}: {error.filename or self.run_dir.path}: {error.strerror or error}"
            ) from error

    def run(self, grid: Grid) -> RunResult:
        """Run the rounds that are left; every finished one is on disk.

        Raises FederationError when no client answers usefully or nothing can be written.
        """
        first = len(self.rounds) + 1
        with self.disk_errors("before round 1"):
            if first == 1:
                self.run_dir.save_round(self.arrays, self._meta(0))
            self.greet(grid)
        for round_number in range(first, self.config.num_rounds + 1):
            with self.disk_errors(f"round {round_number}"), closing(self.inbox):
                self.run_round(grid, round_number)
        return self.result

    def greet(self, grid: Grid) -> None:
        """Before the first round: give the clients the model.

        Those of a simulation are all there soon. Sites have been waited for
        (runtime/deployment.py); others join later.
        """
        self.meet(grid)
        while self.members.missing and not self.members.has_sites:
            self._pause(POLL_S)
            self.meet(grid)

    def meet(self, grid: Grid) -> None:
        """Look which clients are there, and give those that are new the model.

        Sites that do not fit are left out. Raises FederationError in a simulation, where a client
        that does not fit is a mistake in the run.
        """
        refused = list(self.members.refresh(grid, lambda messages: self.exchange(grid, messages)))
        new = [node for node in self.nodes if node not in self.greeted]
        messages = [Message(self.greeting(node), node, "query") for node in new]
        for reply in self.exchange(grid, messages):
            node = reply.metadata.src_node_id
            if reply.has_error():
                name, reason = self.names_by_node[node], reason_in(reply)
                self.members.refuse(grid, name, reason)
                refused.append((f"client '{name}'", reason))
            else:
                self.greeted.add(node)
        if refused and not self.members.has_sites:
            raise FederationError(f"before round 1: {'; '.join(reason for _, reason in refused)}")
        for who, reason in refused:
            self.display.notice(f"{who} is refused: {reason}")
        for name, before, now in self.members.moved:
            self.display.notice(
                f"client '{name}': it is node {now} now, and was node {before}: another key"
            )
        self.members.moved.clear()
        self._record_new_clients()

    def wait_for_enough(self, grid: Grid) -> None:
        """Look who is there before a round; sites that have gone may come back."""
        self.meet(grid)
        if self.members.has_sites and len(self.members.present) < self.min_updates:
            there = ", ".join(self.members.present) or "none"
            self.display.notice(f"waiting: a round needs {self.min_updates} clients, found {there}")
            while len(self.members.present) < self.min_updates:
                self._pause(SITE_POLL_S)
                self.meet(grid)

    def greeting(self, node: int) -> RecordDict:
        """What a client gets before its first round: all of the model but the global arrays."""
        record = RecordDict({"config": self.config_record(node)})
        if not self.has_model:
            whole = to_arrays(self.model)
            names = [name for name in whole if name not in self.arrays]  # a set has no fixed order
            record["private"] = to_record(select(whole, names))
        return record

    def _record_new_clients(self) -> None:
        """Write down who has joined, so that a resumed run gives each the same seat."""
        for name, summary in self.members.summaries.items():
            self.summaries[name] = without_unlabelled_test(summary, self.members.classes)
        if len(self.members.clients) > len(self.config.clients):
            self.config = self.config.model_copy(update={"datasets": self.members.clients})
            self.run_dir.write_text(CONFIG_FILE, self.config.to_yaml())

    def run_round(self, grid: Grid, round_number: int) -> RoundResult:
        """One round: train, aggregate, evaluate, save. Its row in results.csv makes it complete."""
        self.wait_for_enough(grid)
        clock = Clock()
        self.notes.clear()
        self.failed.clear()
        self.traffic.clear()
        updates = self.train_clients(grid, round_number)
        clock.stop("train_seconds")
        if not any(update.norm for update in updates):
            self.display.notice(
                f"round {round_number}: no weight has moved at any client (one step at the start "
                "of a warm-up has a learning rate of 0; see train.batch and train.warmup_epochs)"
            )
        updates = self.limit_norms(round_number, updates)
        self.arrays = self.aggregate(round_number, updates)
        if self.downloads:  # and what of it can be sent
            self.arrays = self.downloads.advance(self.arrays)
        self.average = self.move_average()
        self.save_arrays(round_number)
        clock.stop("")
        scores, on_server = self.evaluate(grid, round_number)
        clock.stop("evaluate_seconds")
        result = self.summarise(round_number, updates, scores, on_server, clock)
        self.rounds.append(result)
        self.save_checkpoints(result)
        self.write_rows(result, updates, scores, on_server)
        if self.loggers:
            self.loggers.log()
        self.display.round_done(result)
        return result

    # The steps of a round, in their order.

    @property
    def min_updates(self) -> int:
        """How many usable updates make a round."""
        return max(self.config.min_clients, self.aggregation.min_clients)

    def train_clients(self, grid: Grid, round_number: int) -> list[Update]:
        """Send the global arrays, receive and check the clients' updates.

        They are added to the mean as soon as those of all clients before them, by name, are there
        (aggregation/inbox.py); what a client that failed would hold up waits for the round's end.

        While there are too few of them, the clients that gave none are asked again: from the same
        arrays, they do the same work.
        """
        nodes = self.sample(round_number)
        needed = self.min_updates
        add = None if self.needs_all_updates else self._add
        self.inbox.start([self.names_by_node[node] for node in nodes], add)
        updates = self.inbox.updates
        found = ""
        for tries_left in reversed(range(ROUND_TRIES)):
            missing = [node for node in nodes if self.names_by_node[node] not in updates]
            self._train(grid, round_number, missing)
            if len(updates) >= needed:
                return [updates[name] for name in sorted(updates)]
            found = f"{len(updates)} of {len(nodes)} clients returned a usable update"
            if tries_left:
                self.display.notice(
                    f"round {round_number}: {found}, it needs {needed}: asking those that failed "
                    "again"
                )
                self._pause(RETRY_WAIT_S)
        self.write_client_rows(round_number, list(updates.values()), [])
        raise FederationError(
            f"round {round_number}: {found}, it needs {needed} (min_clients, strategy); tried "
            f"{ROUND_TRIES} times, the reasons are in {self.run_dir.path}/clients.csv"
        )

    @property
    def needs_all_updates(self) -> bool:
        """Whether a round's updates are combined at its end; else they can be added one by one."""
        return (
            self.aggregation.needs_all
            or self.config.update_norm.outliers != "keep"
            or self.config.privacy.mode == "central"
        )

    def _add(self, update: Update) -> None:
        self.aggregation.add(update, self.absent.get(update.name, ()))

    def _train(self, grid: Grid, round_number: int, nodes: list[int]) -> None:
        self.display.step(round_number, "train", sorted(self.names_by_node[n] for n in nodes))
        record = self.config_record()
        evaluate = self.config.evaluate
        if evaluate.cross_client and evaluate.is_due(round_number, self.config.num_rounds):
            record["keep-local"] = True
        messages = self.aggregation.configure(round_number, self.arrays, record, nodes)
        for reply in self.exchange(grid, self.addressed(messages)):
            self._take_in(reply, round_number)
            del reply  # its arrays, which would stay until the next one is there

    def _take_in(self, reply: Message, round_number: int) -> None:
        if self.privacy and not reply.has_error():  # has left its client, whatever it is
            self.privacy.count(self.names_by_node[reply.metadata.src_node_id])
        update: Update | None = self.checked(reply, self._read_update)
        if update is not None:
            self.trained[update.name] = round_number
            self.inbox.put(update)
            text = f"loss {update.loss:.3g}, {update.seconds:.1f} s"
            self.display.client_done(update.name, text)

    def sample(self, round_number: int) -> list[int]:
        """Node ids of the clients that train in this round: by name, so that a rerun agrees."""
        nodes = self.nodes
        rng = random.Random(f"{self.config.seed}/{round_number}")
        number = min(len(nodes), self.config.clients_per_round)
        return sorted(rng.sample(nodes, number), key=nodes.index)

    def limit_norms(self, round_number: int, updates: list[Update]) -> list[Update]:
        """Clip or refuse updates that are far longer than the others, as `update_norm` says."""
        setting = self.config.update_norm
        median = statistics.median(update.norm for update in updates)
        if setting.outliers == "keep" or not median:
            return updates
        limit = setting.times_median * median
        result = []
        for update in updates:
            if update.norm <= limit:
                result.append(update)
                continue
            found = (
                f"its update_norm is {update.norm:.4g}, {update.norm / median:.3g} times the "
                "round's median"
            )
            if setting.outliers == "refuse":
                self._fail(update.name, f"{found}; refused")
                continue
            self._note(update.name, f"{found}; shortened to {setting.times_median:g} times")
            arrays = Shortened(update.arrays, self.arrays, limit / update.norm)
            result.append(replace(update, arrays=arrays))
        if len(result) < self.min_updates:
            self.write_client_rows(round_number, result, [])
            raise FederationError(
                f"round {round_number}: update_norm left {len(result)} of {len(updates)} updates, "
                f"it needs {self.min_updates}; raise update_norm.times_median, or clip"
            )
        return result

    def aggregate(self, round_number: int, updates: list[Update]) -> Arrays:
        """Combine updates by the strategy, in float64, and cast back to the layout."""
        absent = self.absent
        if self.privacy and self.config.privacy.mode == "central":
            # All that follows sees the noisy mean alone. It is of all clients: rows of a class
            # that some do not annotate would otherwise carry others' updates without noise.
            updates, absent = [self.noisy_mean(updates)], {}
        combined = self.aggregation.aggregate(round_number, updates, absent)
        if combined is None:
            raise FederationError(
                f"round {round_number}: {len(updates)} updates are too few for strategy "
                f"'{self.config.strategy.name}'"
            )
        # One by one, so that they need not be in memory as a whole in both precisions.
        arrays = {name: cast(combined.pop(name), dtype) for name, _, dtype in self.layout.entries}
        problems = layout_problems(arrays, self.layout)
        if problems:
            raise FederationError(f"round {round_number}: aggregation: {'; '.join(problems[:3])}")
        return arrays

    def noisy_mean(self, updates: list[Update]) -> Update:
        """All updates of a round as one, under central differential privacy."""
        assert self.privacy
        arrays = self.privacy.release((update.arrays for update in updates), self.arrays)
        return Update(SERVER, arrays, num_examples=1, num_steps=1, losses={}, seconds=0.0, norm=0.0)

    def move_average(self) -> Arrays | None:
        """decay * average + (1 - decay) * global arrays, from the first round's on; or None."""
        decay = self.config.server_ema
        if not decay:
            return None
        if self.average is None:
            return self.arrays
        result: Arrays = {}
        for name, new in self.arrays.items():
            old = self.average[name].astype(np.float64)
            result[name] = cast(decay * old + (1 - decay) * new.astype(np.float64), new.dtype.name)
        return result

    @property
    def deployed(self) -> Arrays:
        """What is evaluated and made into checkpoints: the average if there is one."""
        return self.arrays if self.average is None else self.average

    def load_deployed(self, round_number: int) -> Arrays | None:
        """What was `deployed` in an earlier round, from disk; None if it is not there any more."""
        run_dir = self.run_dir
        if self.config.server_ema:
            path = run_dir.average_path(round_number)
            return run_dir.load_average(round_number, self.layout) if path.exists() else None
        path = run_dir.round_path(round_number)
        return run_dir.load_round(round_number, self.layout) if path.exists() else None

    @property
    def has_model(self) -> bool:
        """Whether the shared arrays are all there is to the model."""
        return len(self.arrays) == len(self.model.state_dict())

    def evaluate(self, grid: Grid, round_number: int) -> tuple[list[Score], Evaluation | None]:
        """Score the global model on the clients' val splits and on the server's data."""
        if not self.config.evaluate.is_due(round_number, self.config.num_rounds):
            return [], None
        self.display.step(round_number, "evaluate", sorted(self.members.present))
        scores = self.scores(grid, round_number, self.nodes)
        on_server = None
        if self.evaluator:
            on_server = self.score_here(self.deployed, "val", round_number)
        return scores, on_server

    def score_here(
        self, arrays: Arrays, split: str, round_number: int | None = None
    ) -> Evaluation | None:
        """Score a whole model on the server's data; None, told, where that cannot be used now."""
        assert self.evaluator
        load_into(self.model, arrays)
        try:
            result = self.evaluator(self.model, split, round_number)
        except (InputError, FileNotFoundError) as error:  # the latter: an image went meanwhile
            self.failed.add(SERVER)
            self.display.notice(f"evaluate.data: not scored: {in_one_line(str(error))}")
            return None
        for note in result.notes:
            self.display.notice(f"evaluate.data: {note}")
        return result

    def scores(
        self, grid: Grid, round_number: int, nodes: list[int], split: str = "val"
    ) -> list[Score]:
        """Have clients score the model of this round on one of their splits; ordered by name."""
        config = self.config_record()
        config.update({"server-round": round_number, "split": split})
        record = RecordDict({"arrays": to_record(self.deployed), "config": config})
        messages = [Message(record, node, "evaluate") for node in nodes]
        return self.read_scores(grid, self.addressed(messages))

    def read_scores(self, grid: Grid, messages: list[Message]) -> list[Score]:
        """Send evaluate messages; the scores of those clients that gave one, ordered by name."""
        scores = []
        for reply in self.exchange(grid, messages):
            score = self.checked(reply, self._read_score)
            if score is not None:
                self.display.client_done(score.name, f"fitness {score.metrics['fitness']:.3f}")
                scores.append(score)
        return sorted(scores, key=lambda score: score.name)

    def summarise(
        self,
        round_number: int,
        updates: list[Update],
        scores: list[Score],
        on_server: Evaluation | None,
        clock: "Clock",
    ) -> RoundResult:
        """The row of results.csv: losses and metrics are means, weighted as the models are.

        The score is the fitness on the server's data if it has any, else on the clients'. Where
        that data could not be used the round has none: the two do not compare.
        """
        examples = [update.num_examples for update in updates]
        row: dict[str, object] = {
            "round": round_number,
            "epoch": round_number * self.config.local_epochs,
            "seconds": clock.total(),
            **clock.parts,
            "num_clients": len(updates),
            "num_examples": sum(examples),
            **(self.privacy.row() if self.privacy else {}),
            "download_bytes": sum(traffic.download_bytes for traffic in self.traffic.values()),
            "upload_bytes": sum(traffic.upload_bytes for traffic in self.traffic.values()),
            **weighted_means(
                [update.losses for update in updates], self.aggregation.weights(examples)
            ),
        }
        means = weighted_means(
            [score.metrics for score in scores],
            self.aggregation.weights([score.num_examples for score in scores]),
        )
        score = means.pop("fitness", None)
        row.update(means)
        if on_server is not None:
            row.update({f"server/{name}": value for name, value in on_server.metrics.items()})
        if self.evaluator is not None:
            score = on_server.fitness if on_server else None
        row["fitness"] = score
        return RoundResult(round_number, score, row)

    def save_arrays(self, round_number: int) -> None:
        """Write the global arrays of the round, their average and what the strategy remembers."""
        meta = self._meta(round_number)
        self.run_dir.save_round(self.arrays, meta)
        if self.average is not None:
            self.run_dir.save_average(self.average, meta)
        if self.aggregation.has_state:
            self.run_dir.save_state("strategy", self.aggregation.state(), meta)
        if self.downloads:
            self.run_dir.save_state("downloads", self.downloads.state(), meta)

    def save_checkpoints(self, result: RoundResult) -> None:
        """Write last.pt, and best.pt if no round before scored higher."""
        if not self.has_model:
            return
        load_into(self.model, self.deployed)
        save_checkpoint(self.run_dir.weights / "last.pt", self.model, self.instructions.train)
        if result is self.best:
            save_checkpoint(self.run_dir.weights / "best.pt", self.model, self.instructions.train)

    def write_rows(
        self,
        result: RoundResult,
        updates: list[Update],
        scores: list[Score],
        on_server: Evaluation | None,
    ) -> None:
        """Append to classes.csv, clients.csv and, when all else is on disk, results.csv."""
        self.write_class_rows(result.round, scores, on_server)
        self.write_client_rows(result.round, updates, scores)
        self.run_dir.append_rows(RESULTS, [result.row])

    def write_client_rows(
        self, round_number: int, updates: list[Update], scores: list[Score]
    ) -> None:
        """Append to clients.csv a row for each client that did something, or failed to."""
        rows: dict[str, dict[str, object]] = defaultdict(dict)
        for update in updates:
            rows[update.name] = {
                "num_examples": update.num_examples,
                "num_steps": update.num_steps,
                "seconds": round(update.seconds, 3),
                "update_norm": update.norm,
                "statistics_factor": update.statistics_factor,
                **asdict(Traffic()),  # their place among the columns
                **update.losses,
                **update.local,
            }
        columns = dict.fromkeys(column for row in rows.values() for column in row)
        for score in scores:  # also of clients that did not train in this round
            rows[score.name].update({"num_val": score.num_examples, **score.metrics})
        for name in {**rows, **self.notes}:
            rows[name].update(asdict(self.traffic[name]))
        for name, notes in self.notes.items():
            rows[name]["note"] = "; ".join(dict.fromkeys(notes))
        self.run_dir.append_rows(
            "clients.csv",
            # The columns of training first, also where the first client did not train.
            [
                {"round": round_number, "client": name, **columns, **rows[name]}
                for name in sorted(rows)
            ],
        )

    def write_class_rows(
        self, round_number: int, scores: list[Score], on_server: Evaluation | None
    ) -> None:
        """Append to classes.csv; a class that a data set's labels lack is left empty."""
        per_class = {score.name: score.per_class for score in scores}
        if on_server is not None:
            per_class[SERVER] = on_server.per_class
        rows = [
            {
                "round": round_number,
                "client": client,
                "class": name,
                **{m: values.get(f"class/{name}/{m}") for m in class_metrics(self.meta.task)},
            }
            for client, values in per_class.items()
            for name in self.meta.names
        ]
        if rows:
            self.run_dir.append_rows("classes.csv", rows)

    # Messages.

    def messages(self, content: RecordDict, nodes: Iterable[int], kind: str) -> list[Message]:
        """The same for each of these nodes, but for the client's seat."""
        return self._seated([Message(content, node, kind) for node in nodes])

    def _seated(self, messages: Iterable[Message]) -> list[Message]:
        """Tell each client which one it is."""
        result = []
        for message in messages:
            content, node = message.content, message.metadata.dst_node_id
            config = ConfigRecord(dict(content.config_records["config"]))
            config["seat"] = self.seat(node).to_json()
            own = RecordDict({**dict(content), "config": config})
            result.append(Message(own, node, message.metadata.message_type))
        return result

    def seat(self, node: int) -> Seat:
        """Which client a node is."""
        name = self.names_by_node[node]
        index = self.members.seat(name)
        data = self.members.clients[index]
        seat = Seat(
            index,
            name,
            self.trained.get(name, 0),
            not_annotated=data.not_annotated,
            summary=self.summaries.get(name),
        )
        if data.data is None:
            return seat
        return replace(
            seat,
            data=data.data,
            show_images=data.show_images,
            private_dir=str(self.run_dir.client_dir(name)),
        )

    def addressed(self, messages: Iterable[Message]) -> list[Message]:
        """Messages with the global arrays for each client, as increments where these are used."""
        seated = self._seated(messages)
        if self.downloads is None:
            return seated
        return [self.downloads.addressed(message) for message in seated]

    def exchange(self, grid: Grid, messages: Iterable[Message]) -> Iterator[Message]:
        """Send messages and yield each reply when it arrives, counting the bytes of both."""
        messages = list(messages)
        self._asked_at = time.monotonic()
        for message in messages:
            self._traffic_of(message.metadata.dst_node_id).download_bytes += num_bytes(message)
        replies = exchange(
            grid,
            messages,
            self._limit_s(len(messages)),
            self._pause,
            poll_s=SITE_POLL_S if self.members.has_sites else POLL_S,
            again=self._sent_again,
        )
        for reply in replies:
            self._traffic_of(reply.metadata.src_node_id).upload_bytes += num_bytes(reply)
            yield reply
            del reply  # its arrays, which would stay until the next one is there

    def _limit_s(self, num_messages: int) -> float | None:
        """For all answers: sites work side by side, clients of a simulation may wait in a queue."""
        timeout_s = self.config.round_timeout_s
        return timeout_s and timeout_s * (1 if self.members.has_sites else num_messages)

    def _sent_again(self, message: Message, reply: Message) -> Message | None:
        """The message with all arrays, for a client that lacked what it builds on."""
        if self.downloads is None or self.downloads.confirm(message, reply):
            return None
        whole = self.downloads.whole(message)
        self._traffic_of(message.metadata.dst_node_id).download_bytes += num_bytes(whole)
        return whole

    def _traffic_of(self, node: int) -> Traffic:
        return self.traffic[self.names_by_node.get(node, "")]

    def _pause(self, seconds: float) -> None:
        if self._stopping.wait(seconds):
            raise FederationError("stopped")

    def _fail(self, name: str, reason: str) -> None:
        """A client is left out of this step."""
        reason = in_one_line(reason)
        self.notes[name].append(reason)
        self.failed.add(name)
        self.display.client_failed(name, reason)

    def _note(self, name: str, text: str) -> None:
        """Something about a client that is not left out."""
        text = in_one_line(text)
        self.notes[name].append(text)
        self.display.notice(f"client '{name}': {text}")

    def checked(self, reply: Message, read: Callable[[str, Message], Any]) -> Any:
        """What a reply holds, or None after showing why it cannot be used."""
        name = self.names_by_node[reply.metadata.src_node_id]  # `exchange` has seen to that
        try:
            if reply.has_error():
                raise ValueError(reason_in(reply))
            self._check_size(reply)
            result = read(name, reply)
            client = record_of(reply, "client", ConfigRecord)
            attempt = client["attempt"]
            if attempt not in range(1, MAX_ATTEMPTS + 1):
                raise ValueError(f"attempt: found {attempt!r}, expected 1 to {MAX_ATTEMPTS}")
            if attempt != 1:
                self._note(name, "its worker died at work; it did the work again in another one")
            if client.get("note"):
                self._note(name, str(client["note"]))
            return result
        except KeyError as error:
            self._fail(name, f"its reply has no {error}")
        except (ValueError, TypeError, OverflowError) as error:
            self._fail(name, str(error))
        return None

    def _read_update(self, name: str, reply: Message) -> Update:
        numbers = numbers_of(reply)
        num_images = positive_integer(numbers.pop(EXAMPLES_KEY), EXAMPLES_KEY, MAX_IMAGES)
        num_steps = positive_integer(numbers.pop(STEPS_KEY), STEPS_KEY)
        seconds = numbers.pop("seconds")
        self._check_numbers(name, numbers, seconds)
        known = self._known_images(name, num_images, ("train",))
        # A user's class may say another number, by which it is to count.
        trained = num_images if self.work.is_plain else max(num_images, known)
        refuse_problems([self.work.step_problem(trained, num_steps)])
        local = {k: v for k, v in numbers.items() if k.startswith("local/")}
        losses = {k: v for k, v in numbers.items() if k not in local}
        arrays = checked_arrays(self._rebuilt(reply), self.layout, "arrays were")
        factor = self._check_work(arrays, self.work.num_batches(trained))
        num_examples, num_steps = counted(num_images, num_steps, known)
        parameters = [name for name in self.arrays if name in self.aggregation.parameters]
        norm = distance(arrays, self.arrays, parameters)
        return Update(name, arrays, num_examples, num_steps, losses, seconds, norm, local, factor)

    def _check_size(self, reply: Message) -> None:
        """Before anything in a reply is unpacked or copied."""
        num_numbers = MAX_NUMBERS + len(self.bounds.names) * len(self.bounds.class_metrics)
        refuse_problems([size_problem(size_of(reply), self.whole_layout, num_numbers)])

    def _check_numbers(self, name: str, numbers: Mapping[str, float], seconds: float) -> None:
        """Refuse losses, metrics and a time that cannot be, and names that are not a client's."""
        refuse_problems([seconds_problem(seconds, time.monotonic() - self._asked_at)])
        self._check_names(name, [key for key in numbers if not key.startswith("class/")])
        refuse_problems(self.bounds.problems(numbers))

    def _check_work(self, arrays: Arrays, num_batches: int) -> float:
        """Refuse arrays that so many batches of training cannot have made of the global ones.

        Returns by how much BatchNorm's statistics have moved at most.
        """
        factors = statistics_factors(arrays, self.arrays)
        problems = statistics_problems(factors, self.config.max_statistics_factor)
        if self.work.is_plain:
            problems += fixed_problems(arrays, self.arrays, self.fixed)
            problems += counter_problems(arrays, self.arrays, num_batches)
        refuse_problems(problems, "its arrays were refused: ")
        return max(factors.values(), default=1.0)

    def _check_names(self, name: str, numbers: Collection[str]) -> None:
        """Keep a client's numbers out of the server's own columns, and the tables small."""
        refuse_own_names(numbers)
        so_far = self.number_names[name] | set(numbers)
        if len(so_far) > MAX_NUMBERS:
            raise ValueError(
                f"found {len(so_far)} names of numbers in its replies, expected at most "
                f"{MAX_NUMBERS} in a run"
            )
        self.number_names[name] = so_far

    def _known_images(self, name: str, found: int, splits: tuple[str, ...]) -> int:
        """How many images a client had to begin with, and counts with at most.

        They are its weight in means. Its data may have grown; it may also claim what it has not.
        """
        summary = self.summaries.get(name)
        known = max(getattr(summary, f"num_{split}") for split in splits) if summary else found
        if found > known:
            self._note(name, f"it has {found} images now; it counts with the {known} of its start")
        return known

    def _rebuilt(self, reply: Message) -> Arrays:
        """All arrays of an update, of which the client has sent what it has changed."""
        if self.instructions.incremental:
            increment = views(record_of(reply, "encoded", ArrayRecord))
            return self.encoding.rebuilt(increment, self.arrays)
        unchanged: Any = record_of(reply, "client", ConfigRecord).get(UNCHANGED, [])
        arrays = {name: self.arrays[name] for name in unchanged}
        return arrays | views(record_of(reply, "arrays", ArrayRecord))

    def _read_score(self, name: str, reply: Message) -> Score:
        numbers = numbers_of(reply)
        num_images = positive_integer(numbers.pop(EXAMPLES_KEY), EXAMPLES_KEY, MAX_IMAGES)
        loss, seconds = numbers.pop("loss"), numbers.pop("seconds")
        self._check_numbers(name, numbers, seconds)
        fitness = numbers["fitness"]  # a score without it is none
        if not self.config.client and abs(loss - (1 - fitness)) > 1e-6:
            raise ValueError(f"loss: found {loss:g}, expected 1 - fitness = {1 - fitness:g}")
        per_class = {k: v for k, v in numbers.items() if k.startswith("class/")}
        metrics = {k: v for k, v in numbers.items() if k not in per_class}
        known = self._known_images(name, num_images, ("val", "test"))
        return Score(name, min(num_images, known), metrics, per_class)

    def config_record(self, node: int | None = None) -> ConfigRecord:
        """What every message says; with the seat of one client."""
        record = ConfigRecord({"instructions": self.instructions.to_json()})
        if node is not None:
            record["seat"] = self.seat(node).to_json()
        return record

    def _meta(self, round_number: int) -> RoundMeta:
        return RoundMeta(round_number, self.meta.names, self.meta.task, self.meta.base_model)
