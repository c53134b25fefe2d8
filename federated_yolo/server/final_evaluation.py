"""The steps after the last round: test splits, cross-client matrix, pictures, personal models.

On the test splits, the models of the best and of the last round are scored, which a run leaves.
Personal models start from that of the best. All other steps use the last round. The matrix is that
of cross-site validation: every model on every client's val split.
"""

from collections.abc import Iterator
from typing import Any

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from federated_yolo.common.arrays import Arrays
from federated_yolo.common.command_line import inside
from federated_yolo.common.files import write_atomically
from federated_yolo.common.text import reason_of
from federated_yolo.protocol.records import to_record, views
from federated_yolo.server.personalising import lacking, personalise
from federated_yolo.server.replies import Score, checked_arrays
from federated_yolo.server.results import early_end
from federated_yolo.server.server import Server, disk_errors
from federated_yolo.storage.run_dir import JPEG, PERSONAL, SERVER, RunDir
from federated_yolo.yolo.evaluator import class_metrics

TEST, CROSS_CLIENT = "test.csv", "cross_client.csv"
FINISHED = "server/finished"


def is_finished(server: Server) -> bool:
    """Whether `finish` has completed its work in this run directory, or has nothing to do."""
    return _is_evaluated(server) and not lacking(server)


def _is_evaluated(server: Server) -> bool:
    never = not server.config.evaluate.every
    return never or (server.run_dir.path / FINISHED).exists()


def withdraw(run_dir: RunDir) -> None:
    """Delete what `finish` has left in the directory of a run that goes on after all."""
    for name in (FINISHED, TEST, CROSS_CLIENT, PERSONAL):
        (run_dir.path / name).unlink(missing_ok=True)
    for picture in run_dir.path.glob("predictions*.jpg"):
        picture.unlink()


def finish(server: Server, grid: Grid) -> None:
    """Say why `patience` has ended the run, if it has; run all final steps, then `finish` hooks.

    Each file is written when its contents are complete. If a client has failed, a resumed run
    repeats the steps.
    """
    _tell_early_end(server)
    if not _is_evaluated(server):
        _evaluate(server, grid)
    if lacking(server):
        start = next(iter(_kept_models(server, PERSONAL).items()))
        with disk_errors("after the last round", server.run_dir):
            personalise(server, grid, *start)
    if server.config.client:
        _end_clients(server, grid)
    server.display.step(len(server.rounds), "stopping the clients", [])


def _tell_early_end(server: Server) -> None:
    """Show why the run ends before its last round, and write it into the description."""
    reason, best = early_end(server.config, server.rounds), server.best
    if not reason or best is None:
        return
    with disk_errors("after the last round", server.run_dir):
        server.run_dir.note_end(reason)
    server.display.notice(
        f"{reason}: the run ends after round {len(server.rounds)} of {server.config.num_rounds} "
        f"(patience {server.config.patience}); best.pt is of round {best.round}. "
        f"resume={inside(server.run_dir.path)} patience=N goes on with a larger N, or with null"
    )


def _end_clients(server: Server, grid: Grid) -> None:
    """Let the clients run their `finish` hooks."""
    record = RecordDict({"config": server.messenger.config_record()})
    messages = server.messenger.messages(record, server.registry.nodes, "query.finish")
    for reply in server.exchange(grid, messages):
        server.reader.read(reply, lambda _, reply: reply, server.journal)


def _evaluate(server: Server, grid: Grid) -> None:
    server.journal.failed.clear()
    with disk_errors("after the last round", server.run_dir):
        evaluate_on_test(server, grid)
        if server.config.evaluate.cross_client:
            evaluate_across_clients(server, grid)
        if server.model.is_whole:
            draw_predictions(server, grid)
        if not server.journal.failed:
            server.run_dir.write_text(FINISHED, "")
            return
    names = ", ".join(sorted(server.journal.failed))
    server.display.notice(f"the final evaluation lacks {names}; a resumed run tries again")


def evaluate_on_test(server: Server, grid: Grid) -> None:
    """Score the models of best.pt and last.pt on all test splits, and write test.csv.

    For each model and split there is a row for all classes, then one for each class. If clients
    have models of their own, those of the last round are scored, because earlier private arrays
    are not kept.
    """
    is_on_server = server.evaluator is not None and "test" in server.evaluator.data
    if not (server.registry.nodes_with_test or is_on_server):
        return
    rows = []
    for round_number, arrays in _kept_models(server, TEST).items():
        scores = _scores_on_test(server, grid, round_number, arrays)
        if server.evaluator and is_on_server:
            whole = server.model.deployed if arrays is None else arrays
            scores += _scores_here(server, whole, "test")
        rows += [row for score in scores for row in _test_rows(server, round_number, score)]
    if rows:
        server.run_dir.append_rows(TEST, rows)


def _kept_models(server: Server, table: str) -> dict[int, Arrays | None]:
    """Return the arrays of best.pt and last.pt by round; None for the arrays deployed now.

    table: The table that they are for, to name it if the best are no longer there.
    """
    best, last = server.best, len(server.rounds)
    if best is None or best.round == last or not server.model.is_whole:
        return {last: None}
    arrays = _arrays_of(server, best.round)
    if arrays is None:
        server.display.notice(
            f"{table}: without best.pt: the arrays of its round {best.round} are no longer there"
        )
        return {last: None}
    return {best.round: arrays, last: None}


def _arrays_of(server: Server, round_number: int) -> Arrays | None:
    """Return the arrays deployed in a round; None if their file was deleted or is damaged."""
    try:
        return server.model.deployed_in(round_number)
    except ValueError as error:
        server.display.notice(str(error))
        return None


def _scores_on_test(
    server: Server, grid: Grid, round_number: int, arrays: Arrays | None
) -> list[Score]:
    """Return scores on the clients' test splits. arrays: None for the arrays deployed now."""
    nodes = server.registry.nodes_with_test
    if not nodes:
        return []
    server.display.step(round_number, "test", server.registry.names_of(nodes))
    return server.scorer.ask(grid, round_number, nodes, server.journal, "test", arrays)


def _test_rows(server: Server, round_number: int, score: Score) -> Iterator[dict[str, object]]:
    """Yield the rows of test.csv for one model on one split."""
    start = {"round": round_number, "client": score.name}
    metrics = {name: value for name, value in score.metrics.items() if name != "fitness"}
    yield {**start, "class": "", "num_examples": score.num_examples, **metrics}
    output = "" if server.model.meta.task == "classify" else "(B)"
    for name in server.model.meta.names:
        values = {
            f"metrics/{metric}{output}": score.per_class.get(f"class/{name}/{metric}")
            for metric in class_metrics(server.model.meta.task)
        }
        yield {**start, "class": name, **values}


def evaluate_across_clients(server: Server, grid: Grid) -> None:
    """Score every model, one at a time, on every client's val split and on the server's."""
    rows: list[dict[str, object]] = []
    empty: list[dict[str, object]] = []
    for model, owner, arrays in _models(server, grid):
        if arrays is None:
            names = server.registry.names_of(server.registry.nodes)
            empty.extend({"model": model, "owner": owner, "data": name} for name in names)
            continue
        server.display.step(
            len(server.rounds),
            f"evaluate the {model} model{f' of {owner}' if owner else ''}",
            server.registry.names_of(server.registry.nodes),
        )
        config = server.messenger.config_record()
        record = RecordDict({"arrays": to_record(arrays), "config": config})
        messages = server.messenger.messages(record, server.registry.nodes, "evaluate.whole")
        scores = server.scorer.read(grid, messages, server.journal)
        if server.evaluator:
            scores += _scores_here(server, arrays, "val")
        rows += [
            {
                "model": model,
                "owner": owner,
                "data": score.name,
                "num_examples": score.num_examples,
                **score.metrics,
            }
            for score in scores
        ]
    server.run_dir.append_rows(CROSS_CLIENT, [*rows, *empty])


def _models(server: Server, grid: Grid) -> Iterator[tuple[str, str, Arrays | None]]:
    """Yield kind, owner and arrays of each model: global, local and personal ones.

    There is a global model if all arrays are shared, else each client has a personal one. Arrays
    are None if a client has no local model, since it trained in no round that was evaluated.
    """
    layout = server.model.whole_layout
    kinds = ["local"]
    if server.model.is_whole:
        yield "global", "", server.model.deployed
    else:
        kinds.append("personal")

    def read(_: str, reply: Message) -> Arrays:
        arrays = views(reply.content.array_records["arrays"])
        return checked_arrays(arrays, layout, "model was")

    rows = server.run_dir.rows("clients.csv")
    config = server.config
    have_local = {
        row["client"]
        for row in rows
        if row.get("num_examples") and config.evaluate.is_due(int(row["round"]), config.num_rounds)
    }
    for kind in kinds:
        for node in server.registry.nodes:
            name = server.registry.names_by_node[node]
            if kind == "local" and name not in have_local:
                yield kind, name, None
                continue
            server.display.step(len(server.rounds), f"fetch the {kind} model", [name])
            config = server.messenger.config_record()
            config["server-round"] = len(server.rounds)
            record = RecordDict({"config": config})
            if kind == "personal":
                record["arrays"] = to_record(server.model.deployed)
            messages = server.messenger.messages(record, [node], f"query.{kind}")
            for reply in server.exchange(grid, messages):
                arrays = server.reader.read(reply, read, server.journal)
                if arrays is not None:
                    yield kind, name, arrays


def draw_predictions(server: Server, grid: Grid) -> None:
    """Draw predictions of the first and the last round beside the labels, on permitted images."""
    num_images = server.config.evaluate.show_images
    on_server = server.evaluator if num_images else None
    nodes = server.registry.nodes_with_pictures
    if not nodes and on_server is None:
        return
    first = _arrays_of(server, 1)
    arrays = {"round 1": first} if first else {}
    arrays[f"round {len(server.rounds)}"] = server.model.deployed
    if on_server is not None:
        try:
            picture = on_server.draw(server.model.model, arrays, num_images)
        except Exception as error:  # an error in drawing does not fail the run
            server.display.notice(f"predictions.jpg: not drawn: {reason_of(error)}")
        else:
            _write_picture(server, "predictions.jpg", picture)
    if nodes:
        server.display.step(len(server.rounds), "draw predictions", server.registry.names_of(nodes))
        record = RecordDict({title: to_record(values) for title, values in arrays.items()})
        record["config"] = server.messenger.config_record()

        def read(_: str, reply: Message) -> bytes:
            return _jpeg(reply.content.config_records["picture"]["jpeg"])

        messages = server.messenger.messages(record, nodes, "query.pictures")
        for reply in server.exchange(grid, messages):
            picture = server.reader.read(reply, read, server.journal)
            if picture is not None:
                name = server.registry.names_by_node[reply.metadata.src_node_id]
                server.display.client_done(name, "drawn")
                _write_picture(server, f"predictions_{name}.jpg", picture)


def _jpeg(data: Any) -> bytes:
    """Return the bytes of a picture for the report. Raises ValueError if they are no JPEG."""
    if not isinstance(data, bytes) or not data.startswith(JPEG):
        raise ValueError("its picture was refused: not a JPEG")
    return data


def _write_picture(server: Server, name: str, picture: bytes) -> None:
    write_atomically(server.run_dir.path / name, lambda file: file.write(picture))


def _scores_here(server: Server, arrays: Arrays, split: str) -> list[Score]:
    """Return the score of a whole model on the server's data; empty if the data is unusable."""
    result = server.scorer.score_here(arrays, split, server.journal)
    if result is None:
        return []
    metrics = {**result.metrics, "fitness": result.fitness}
    return [Score(SERVER, result.num_examples, metrics, result.per_class)]
