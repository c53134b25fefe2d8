"""Makes a round's rows in the CSV tables; pure functions of its outcome."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from federated_yolo.aggregation.aggregator import Update
from federated_yolo.server.journal import RoundJournal, Traffic
from federated_yolo.server.replies import Score
from federated_yolo.server.results import RoundResult
from federated_yolo.storage.run_dir import SERVER
from federated_yolo.yolo.evaluator import Evaluation, class_metrics

Weights = Callable[[Sequence[int]], Sequence[float]]


@dataclass(frozen=True)
class RoundOutcome:
    """The outcome of a round, except its model.

    journal: Its seconds, traffic and notes. scores: Scores of the clients, ordered by name.
    on_server: Scores on the server's own data; None if the server has none or could not use it, or
    this round was not evaluated.
    """

    round: int
    updates: Sequence[Update]
    journal: RoundJournal
    scores: Sequence[Score] = ()
    on_server: Evaluation | None = None


def joined(parts: Sequence[Sequence[Update]]) -> list[Update]:
    """Return the updates of a round's parts as one for each client, without arrays.

    Losses are means, weighted by steps; the norm and the factor are the largest.
    """
    if len(parts) == 1:
        return list(parts[0])
    of_client: dict[str, list[Update]] = defaultdict(list)
    for part in parts:
        for update in part:
            of_client[update.name].append(update)
    return [
        replace(
            updates[-1],
            arrays={},
            num_steps=sum(update.num_steps for update in updates),
            losses=weighted_means(
                [update.losses for update in updates], [update.num_steps for update in updates]
            ),
            seconds=sum(update.seconds for update in updates),
            norm=max(update.norm for update in updates),
            statistics_factor=max(update.statistics_factor for update in updates),
        )
        for _, updates in sorted(of_client.items())
    ]


def summarise(
    outcome: RoundOutcome,
    *,
    local_epochs: int,
    weights: Weights,
    privacy: Mapping[str, object],
    scores_on_server: bool,
) -> RoundResult:
    """Return the row of results.csv: losses and metrics are means, weighted as the models are.

    The score is the fitness on the server's data if it has any, else on the clients'. If the
    server's data could not be used, the round has no score: the two are not comparable.

    weights: Function from clients' numbers of images to their weights in a mean. privacy: Columns
    of differential privacy. scores_on_server: Whether the server has data of its own.
    """
    examples = [update.num_examples for update in outcome.updates]
    clock, traffic = outcome.journal.clock, outcome.journal.traffic.values()
    row: dict[str, object] = {
        "round": outcome.round,
        "epoch": outcome.round * local_epochs,
        "seconds": clock.total(),
        **clock.parts,
        "num_clients": len(outcome.updates),
        "num_examples": sum(examples),
        **privacy,
        "download_bytes": sum(client.download_bytes for client in traffic),
        "upload_bytes": sum(client.upload_bytes for client in traffic),
        **weighted_means([update.losses for update in outcome.updates], weights(examples)),
    }
    means = weighted_means(
        [score.metrics for score in outcome.scores],
        weights([score.num_examples for score in outcome.scores]),
    )
    score = means.pop("fitness", None)
    row.update(means)
    on_server = outcome.on_server
    if on_server is not None:
        row.update({f"server/{name}": value for name, value in on_server.metrics.items()})
    if scores_on_server:
        score = on_server.fitness if on_server else None
    row["fitness"] = score
    return RoundResult(outcome.round, score, row)


def client_rows(outcome: RoundOutcome) -> list[dict[str, object]]:
    """Return the rows of clients.csv: one for each client that did something, or failed to."""
    rows: dict[str, dict[str, object]] = defaultdict(dict)
    for update in outcome.updates:
        rows[update.name] = {
            "num_examples": update.num_examples,
            "num_steps": update.num_steps,
            "seconds": round(update.seconds, 3),
            "update_norm": update.norm,
            "statistics_factor": update.statistics_factor,
            **asdict(Traffic()),  # reserves their place among the columns
            **update.losses,
            **update.local,
        }
    columns = dict.fromkeys(column for row in rows.values() for column in row)
    for score in outcome.scores:  # also of clients that did not train in this round
        rows[score.name].update({"num_val": score.num_examples, **score.metrics})
    journal = outcome.journal
    for name in {**rows, **journal.notes}:
        rows[name].update(asdict(journal.traffic[name]))
    for name, notes in journal.notes.items():
        rows[name]["note"] = "; ".join(dict.fromkeys(notes))
    # The columns of training come first, even if the first client did not train.
    return [
        {"round": outcome.round, "client": name, **columns, **rows[name]} for name in sorted(rows)
    ]


def class_rows(outcome: RoundOutcome, names: Sequence[str], task: str) -> list[dict[str, object]]:
    """Return the rows of classes.csv; metrics of a class without labels in a data set are empty."""
    per_class = {score.name: score.per_class for score in outcome.scores}
    if outcome.on_server is not None:
        per_class[SERVER] = outcome.on_server.per_class
    return [
        {
            "round": outcome.round,
            "client": client,
            "class": name,
            **{m: values.get(f"class/{name}/{m}") for m in class_metrics(task)},
        }
        for client, values in per_class.items()
        for name in names
    ]


def weighted_means(
    rows: Sequence[Mapping[str, float]], weights: Sequence[float]
) -> dict[str, float]:
    """Return the mean of each number over the rows that have it."""
    means = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        found = [(row[name], w) for row, w in zip(rows, weights, strict=True) if name in row]
        means[name] = sum(value * w for value, w in found) / sum(w for _, w in found)
    return means
