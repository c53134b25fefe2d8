"""The server: one readable round loop over a Flower strategy."""

from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from flwr.app import Message
from flwr.serverapp import Grid

from federated_yolo.aggregation.aggregator import Aggregation, Update
from federated_yolo.aggregation.inbox import Inbox
from federated_yolo.aggregation.outliers import limit_norms
from federated_yolo.aggregation.privacy import ServerPrivacy
from federated_yolo.common.arrays import Arrays
from federated_yolo.common.errors import FederationError
from federated_yolo.config.schema import ResolvedConfig
from federated_yolo.server.enrolment import Enrolment
from federated_yolo.server.global_model import GlobalModel
from federated_yolo.server.journal import RoundJournal
from federated_yolo.server.messenger import Messenger
from federated_yolo.server.registry import ClientRegistry
from federated_yolo.server.replies import ReplyReader, Score
from federated_yolo.server.results import Display, RoundResult, RunResult, is_done
from federated_yolo.server.round_tables import (
    RoundOutcome,
    class_rows,
    client_rows,
    joined,
    summarise,
)
from federated_yolo.server.scorer import Scorer
from federated_yolo.server.tracking import Loggers
from federated_yolo.storage.run_dir import CLASSES, CLIENTS, RESULTS, SERVER, RunDir
from federated_yolo.yolo.evaluator import Evaluation, Evaluator
from federated_yolo.yolo.passes import slice_number

ROUND_TRIES = 3
RETRY_WAIT_S = 5.0  # for passing problems: a folder that returns, a worker that restarts


@contextmanager
def disk_errors(where: str, run_dir: RunDir) -> Iterator[None]:
    """Turn an error of the disk (full, or a missing folder) into FederationError."""
    try:
        yield
    except OSError as error:
        raise FederationError(
            f"{where}: {error.filename or run_dir.path}: {error.strerror or error}"
        ) from error


@dataclass
class Server:
    """Runs the rounds with its parts, one field for each; runtime/startup.py makes all of them.

    evaluator: Scores models on the server's own data. rounds: Complete rounds, also those of the
    run that this one resumes. journal: Journal of the present round.
    """

    config: ResolvedConfig
    model: GlobalModel
    registry: ClientRegistry
    aggregation: Aggregation
    messenger: Messenger
    reader: ReplyReader
    run_dir: RunDir
    display: Display
    evaluator: Evaluator | None = None
    privacy: ServerPrivacy | None = None
    rounds: list[RoundResult] = field(default_factory=list)
    loggers: Loggers | None = None

    def __post_init__(self) -> None:
        self.scorer = Scorer(self.model, self.messenger, self.reader, self.evaluator)
        self.enrolment = Enrolment(self.config, self.model, self.messenger, self.display)
        self.inbox = Inbox(self.run_dir.server / "updates")
        self.journal = RoundJournal(self.display)
        # Whether updates are combined at the end of a round; else they are added one by one.
        self.needs_all_updates = (
            self.aggregation.needs_all
            or self.config.update_norm.outliers != "keep"
            or self.config.privacy.mode == "central"
        )

    @property
    def best(self) -> RoundResult | None:
        """The round with the highest score; of equal scores the latest, as in Ultralytics."""
        scored = [result for result in self.rounds if result.score is not None]
        return max(scored, key=lambda result: (result.score, result.round), default=None)

    @property
    def result(self) -> RunResult:
        """The result of the run so far."""
        return RunResult(self.run_dir.path, self.rounds, self.best)

    @property
    def is_done(self) -> bool:
        """Whether no round is left to run."""
        return is_done(self.config, self.rounds)

    def stop(self) -> None:
        """Make `run` raise FederationError at its next step; callable from any thread."""
        self.messenger.stop()

    def run(self, grid: Grid) -> RunResult:
        """Run the remaining rounds; every finished one is on disk.

        Raises FederationError if too few clients send a usable update, or nothing can be written.
        """
        with disk_errors("before round 1", self.run_dir):
            if not self.rounds:
                self.model.save(0)
            self.enrolment.greet(grid)
        while not self.is_done:
            round_number = len(self.rounds) + 1
            with disk_errors(f"round {round_number}", self.run_dir), closing(self.inbox):
                self.run_round(grid, round_number)
        return self.result

    def run_round(self, grid: Grid, round_number: int) -> RoundResult:
        """Run one round: train, aggregate, evaluate, save. Its row in results.csv completes it."""
        self.enrolment.wait_for(self.min_updates, grid)
        self.journal = RoundJournal(self.display)
        averages = self.config.averages_per_round
        parts = [self.average(grid, round_number, part + 1) for part in range(averages)]
        updates = joined(parts)
        self.save_state(round_number)
        self.journal.clock.stop("")
        scores, on_server = self.evaluate(grid, round_number)
        self.journal.clock.stop("evaluate_seconds")
        return self.record(RoundOutcome(round_number, updates, self.journal, scores, on_server))

    # The steps of a round, in their order.

    def average(self, grid: Grid, round_number: int, part: int) -> list[Update]:
        """Let the clients train this part of a round (1-based), and average them."""
        updates = self.train_clients(grid, round_number, part)
        self.journal.clock.stop("train_seconds")
        updates = self.limit_norms(round_number, updates)
        arrays = self.messenger.sendable(self.aggregate(round_number, updates))
        self.model.advance(arrays, ends_round=part == self.config.averages_per_round)
        self.journal.clock.stop("")
        return updates

    @property
    def min_updates(self) -> int:
        """Number of usable updates that a round needs."""
        return max(self.config.min_clients, self.aggregation.min_clients)

    @property
    def absent(self) -> dict[str, list[int]]:
        """Indices of the classes that each client does not annotate, by client name."""
        is_one_class = self.config.train.get("single_cls")
        return {} if is_one_class else self.registry.absent(self.model.meta.names)

    def train_clients(self, grid: Grid, round_number: int, part: int) -> list[Update]:
        """Send the global arrays, receive and check the clients' updates.

        An update is added to the mean as soon as those of all clients before it, by name, have
        arrived (aggregation/inbox.py); updates after a client that failed wait for the round's end.

        While there are too few updates, the clients that sent none are asked again: starting from
        the same arrays, they do the same work.
        """
        seed = f"{self.config.seed}/{round_number}"
        nodes = self.registry.sample(self.config.fraction_train, seed)
        name_of, needed = self.registry.names_by_node, self.min_updates
        add = None if self.needs_all_updates else self._add
        self.inbox.start([name_of[node] for node in nodes], add)
        updates = self.inbox.updates
        found = ""
        for tries_left in reversed(range(ROUND_TRIES)):
            asked = [node for node in nodes if name_of[node] not in updates]
            self._train(grid, round_number, part, asked)
            if len(updates) >= needed:
                return [updates[name] for name in sorted(updates)]
            found = f"{len(updates)} of {len(nodes)} clients returned a usable update"
            if tries_left:
                self.display.notice(
                    f"round {round_number}: {found}, it needs {needed}: asking those that failed "
                    "again"
                )
                self.messenger.pause(RETRY_WAIT_S)
        outcome = RoundOutcome(round_number, [*updates.values()], self.journal)
        self.run_dir.append_rows(CLIENTS, client_rows(outcome))
        raise FederationError(
            f"round {round_number}: {found}, it needs {needed} (min_clients, strategy); tried "
            f"{ROUND_TRIES} times, the reasons are in {self.run_dir.path}/clients.csv"
        )

    def _train(self, grid: Grid, round_number: int, part: int, nodes: list[int]) -> None:
        self.display.step(round_number, "train", self.registry.names_of(nodes))
        record = self.messenger.config_record()
        record["part"] = part
        averages, evaluate = self.config.averages_per_round, self.config.evaluate
        is_scored = evaluate.cross_client and evaluate.is_due(round_number, self.config.num_rounds)
        if is_scored and part == averages:
            record["keep-local"] = True
        messages = self.aggregation.configure(round_number, self.model.arrays, record, nodes)
        for reply in self.exchange(grid, self.messenger.addressed(messages)):
            self._take_in(reply, slice_number(round_number, part, averages))
            del reply  # frees its arrays, which would stay until the next reply

    def _take_in(self, reply: Message, slice_number: int) -> None:
        if self.privacy and not reply.has_error():  # it has left its client, usable or not
            self.privacy.count(self.registry.names_by_node[reply.metadata.src_node_id])
        update = self.reader.update(reply, self.journal)
        if update is not None:
            self.registry.trained[update.name] = slice_number
            self.inbox.put(update)
            text = f"loss {update.loss:.3g}, {update.seconds:.1f} s"
            self.display.client_done(update.name, text)

    def _add(self, update: Update) -> None:
        self.aggregation.add(update, self.absent.get(update.name, ()))

    def limit_norms(self, round_number: int, updates: list[Update]) -> list[Update]:
        """Clip or refuse updates with a far larger norm than the others, as `update_norm` says."""
        if not any(update.norm for update in updates):
            self.display.notice(
                f"round {round_number}: no weight has moved at any client (one step at the start "
                "of a warm-up has a learning rate of 0; see train.batch and train.warmup_epochs)"
            )
        limited = limit_norms(updates, self.model.arrays, self.config.update_norm)
        for name, reason in limited.refused.items():
            self.journal.fail(name, reason)
        for name, text in limited.shortened.items():
            self.journal.note(name, text)
        if len(limited.updates) < self.min_updates:
            outcome = RoundOutcome(round_number, limited.updates, self.journal)
            self.run_dir.append_rows(CLIENTS, client_rows(outcome))
            raise FederationError(
                f"round {round_number}: update_norm left {len(limited.updates)} of {len(updates)} "
                f"updates, it needs {self.min_updates}; raise update_norm.times_median, or clip"
            )
        return limited.updates

    def aggregate(self, round_number: int, updates: list[Update]) -> Arrays:
        """Combine updates by the strategy, in float64, and cast back to the layout."""
        absent = self.absent
        if self.privacy and self.config.privacy.mode == "central":
            # All later steps see the noisy mean alone, and no class is absent from it: rows of a
            # class that some do not annotate would otherwise carry others' updates without noise.
            updates, absent = [noisy_mean(updates, self.privacy, self.model.arrays)], {}
        combined = self.aggregation.aggregate(round_number, updates, absent)
        if combined is None:
            raise FederationError(
                f"round {round_number}: {len(updates)} updates are too few for strategy "
                f"'{self.config.strategy.name}'"
            )
        try:
            return self.model.cast(combined)
        except ValueError as error:
            raise FederationError(f"round {round_number}: aggregation: {error}") from error

    def save_state(self, round_number: int) -> None:
        """Write the global arrays of the round, and the states of the strategy and the codec."""
        self.model.save(round_number)
        meta = self.model.meta_of(round_number)
        if self.aggregation.has_state:
            self.run_dir.save_state("strategy", self.aggregation.state(), meta)
        if self.messenger.broadcast:
            self.run_dir.save_state("downloads", self.messenger.broadcast.state(), meta)

    def evaluate(self, grid: Grid, round_number: int) -> tuple[list[Score], Evaluation | None]:
        """Score the global model on the clients' val splits and on the server's data."""
        if not self.config.evaluate.is_due(round_number, self.config.num_rounds):
            return [], None
        self.display.step(round_number, "evaluate", sorted(self.registry.present))
        scores = self.scorer.ask(grid, round_number, self.registry.nodes, self.journal)
        if self.evaluator is None:
            return scores, None
        deployed = self.model.deployed
        return scores, self.scorer.score_here(deployed, "val", self.journal, round_number)

    def record(self, outcome: RoundOutcome) -> RoundResult:
        """Write a round's checkpoints and rows; results.csv comes last, when all else is stored."""
        result = summarise(
            outcome,
            local_epochs=self.config.local_epochs,
            weights=self.aggregation.weights,
            privacy=self.privacy.row() if self.privacy else {},
            scores_on_server=self.evaluator is not None,
        )
        self.rounds.append(result)
        self.model.save_checkpoints(is_best=result is self.best)
        meta = self.model.meta
        if rows := class_rows(outcome, meta.names, meta.task):
            self.run_dir.append_rows(CLASSES, rows)
        self.run_dir.append_rows(CLIENTS, client_rows(outcome))
        self.run_dir.append_rows(RESULTS, [result.row])
        if self.loggers:
            self.loggers.log()
        self.display.round_done(result)
        return result

    def exchange(self, grid: Grid, messages: Iterable[Message]) -> Iterator[Message]:
        """Send messages and yield each reply when it arrives; the journal counts bytes."""
        return self.messenger.exchange(grid, messages, self.journal)


def noisy_mean(updates: Iterable[Update], privacy: ServerPrivacy, origin: Arrays) -> Update:
    """Return all updates of a round as one, under central differential privacy."""
    arrays = privacy.release((update.arrays for update in updates), origin)
    return Update(SERVER, arrays, num_examples=1, num_steps=1, losses={}, seconds=0.0, norm=0.0)


def finish_loggers(server: Server) -> None:
    """End the loggers, with the best round as the summary; callable from any thread."""
    if server.loggers:
        best = server.best
        numbers = {"best/round": best.round, "best/fitness": best.score or 0} if best else {}
        server.loggers.finish(numbers, is_done=server.is_done)
