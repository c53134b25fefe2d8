"""Scores models: by the clients on their splits, and here on the server's own data."""

from collections.abc import Iterable

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from federated_yolo.common.arrays import Arrays
from federated_yolo.common.errors import InputError
from federated_yolo.common.text import in_one_line
from federated_yolo.protocol.records import to_record
from federated_yolo.server.global_model import GlobalModel
from federated_yolo.server.journal import RoundJournal
from federated_yolo.server.messenger import Messenger
from federated_yolo.server.replies import ReplyReader, Score
from federated_yolo.storage.run_dir import SERVER
from federated_yolo.yolo.evaluator import Evaluation, Evaluator
from federated_yolo.yolo.model import load_into


class Scorer:
    """Asks clients for scores, and scores on the server's data if it has any (`evaluator`)."""

    def __init__(
        self,
        model: GlobalModel,
        messenger: Messenger,
        reader: ReplyReader,
        evaluator: Evaluator | None,
    ) -> None:
        self.model = model
        self.messenger = messenger
        self.reader = reader
        self.evaluator = evaluator

    def ask(
        self,
        grid: Grid,
        round_number: int,
        nodes: Iterable[int],
        journal: RoundJournal,
        split: str = "val",
        arrays: Arrays | None = None,
    ) -> list[Score]:
        """Ask clients to score a round's model on one of their splits; scores ordered by name.

        arrays: Arrays of an earlier round's whole model; None for the arrays deployed now, which
        are sent as deltas if these are used.
        """
        config = self.messenger.config_record()
        config.update({"server-round": round_number, "split": split})
        return self.read(grid, self.messages("evaluate", config, nodes, arrays), journal)

    def messages(
        self, kind: str, config: ConfigRecord, nodes: Iterable[int], arrays: Arrays | None
    ) -> list[Message]:
        """Return a message of this kind for each node, with a model. arrays: As for `ask`."""
        sent = self.model.deployed if arrays is None else arrays
        record = RecordDict({"arrays": to_record(sent), "config": config})
        if arrays is not None:
            return self.messenger.messages(record, nodes, kind)
        return self.messenger.addressed([Message(record, node, kind) for node in nodes])

    def read(self, grid: Grid, messages: list[Message], journal: RoundJournal) -> list[Score]:
        """Send evaluate messages; return the scores of clients that sent one, ordered by name."""
        scores = []
        for reply in self.messenger.exchange(grid, messages, journal):
            score = self.reader.score(reply, journal)
            if score is not None:
                text = f"fitness {score.metrics['fitness']:.3f}"
                journal.display.client_done(score.name, text)
                scores.append(score)
        return sorted(scores, key=lambda score: score.name)

    def score_here(
        self, arrays: Arrays, split: str, journal: RoundJournal, round_number: int | None = None
    ) -> Evaluation | None:
        """Score a whole model on the server's data; None, with a notice, if it cannot be used."""
        assert self.evaluator
        load_into(self.model.model, arrays)
        try:
            result = self.evaluator(self.model.model, split, round_number)
        except (InputError, FileNotFoundError) as error:  # the latter: an image was deleted
            journal.failed.add(SERVER)
            journal.display.notice(f"evaluate.data: not scored: {in_one_line(str(error))}")
            return None
        for note in result.notes:
            journal.display.notice(f"evaluate.data: {note}")
        return result
