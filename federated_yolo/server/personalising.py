"""The clients' training for themselves after the last round: personal.csv.

Each client trains on from the global model on its own data, and keeps the result if its val split
says that it is better. Models stay with the clients; their scores come back. The table is the
record of what is done: a resumed run asks only the clients that have no result with these settings.
"""

import time
from collections.abc import Iterator

from flwr.app import ConfigRecord, Message
from flwr.serverapp import Grid

from federated_yolo.common.arrays import Arrays
from federated_yolo.protocol.records import EXAMPLES_KEY
from federated_yolo.server.journal import RoundJournal
from federated_yolo.server.plausible import MAX_IMAGES, seconds_problem
from federated_yolo.server.replies import (
    MAX_NUMBERS,
    numbers_of,
    positive_integer,
    record_of,
    refuse_own_names,
    refuse_problems,
)
from federated_yolo.server.server import Server
from federated_yolo.storage.run_dir import PERSONAL

# Beginnings of the names of a client's scores: those of the model that it started from, and of its
# own, on the val split and on the test split.
MODELS = ("global/", "personal/", "test/global/", "test/personal/")

Row = dict[str, object]


def lacking(server: Server) -> list[str]:
    """Return the names of the clients that have yet to train for themselves."""
    if not server.config.personalise.epochs:
        return []
    done = _done(server)
    return [data.name for data in server.registry.clients if data.name not in done]


def personalise(server: Server, grid: Grid, round_number: int, arrays: Arrays | None) -> None:
    """Let the clients that lack it train for themselves, and write personal.csv.

    A client that fails, or is not there, gets a row that says so.
    round_number: The round of the global model to start from. arrays: Its arrays; None for the
    arrays deployed now.
    """
    registry = server.registry
    server.enrolment.meet(grid)  # a site may have left in the last round, or come
    names, rows = set(lacking(server)), _done(server)
    nodes = [node for node in registry.nodes if registry.names_by_node[node] in names]
    server.journal = RoundJournal(server.display)
    server.display.step(len(server.rounds), "personalise", registry.names_of(nodes))
    for reply in server.exchange(grid, _messages(server, round_number, nodes, arrays)):
        found = server.reader.read(reply, lambda _, r: _scores_in(r, server), server.journal)
        if found is not None:
            name = registry.names_by_node[reply.metadata.src_node_id]
            rows[name] = {**_start(server, name, round_number), **found}
            server.display.client_done(name, _told(found))
            server.run_dir.write_rows(PERSONAL, [rows[name] for name in sorted(rows)])
    for name in names - set(rows):
        rows[name] = _start(server, name, round_number)
        server.journal.notes.setdefault(name, ["it was not there"])
    for name, notes in server.journal.notes.items():
        rows[name]["note"] = "; ".join(notes)
    server.run_dir.write_rows(PERSONAL, [rows[name] for name in sorted(rows)])
    if left := lacking(server):
        server.display.notice(
            f"{PERSONAL} lacks {', '.join(sorted(left))}; a resumed run tries again"
        )


def _done(server: Server) -> dict[str, Row]:
    """Return the rows of personal.csv with a result of the present settings, by client."""
    now = server.config.personalise
    settings = (str(now.epochs), str(now.lr0))
    return {
        str(row["client"]): {name: cell for name, cell in row.items() if name != "note" or cell}
        for row in server.run_dir.rows(PERSONAL)
        if row.get("kept") and (str(row["epochs"]), str(row["lr0"])) == settings
    }


def _start(server: Server, name: str, round_number: int) -> Row:
    """Return the row of a client that has no result yet."""
    now = server.config.personalise
    about = {"round": round_number, "client": name, "epochs": now.epochs, "lr0": now.lr0}
    return {**about, "kept": ""}


def _messages(
    server: Server, round_number: int, nodes: list[int], arrays: Arrays | None
) -> Iterator[Message]:
    with_test = set(server.registry.nodes_with_test)
    config = server.messenger.config_record()
    now = server.config.personalise
    config.update({"server-round": round_number, "epochs": now.epochs, "lr0": now.lr0})
    for on_test in (False, True):
        own = ConfigRecord({**config, "on-test": on_test})
        asked = [node for node in nodes if (node in with_test) == on_test]
        yield from server.scorer.messages("train.personalise", own, asked, arrays)


def _scores_in(reply: Message, server: Server) -> Row:
    """Return the cells of a client's reply. Raises ValueError if they are not possible."""
    numbers = numbers_of(reply)
    num_images = positive_integer(numbers.pop(EXAMPLES_KEY), EXAMPLES_KEY, MAX_IMAGES)
    seconds = numbers.pop("seconds")
    refuse_problems([seconds_problem(seconds, time.monotonic() - server.journal.asked_at)])
    if len(numbers) > MAX_NUMBERS:
        raise ValueError(f"found {len(numbers)} scores, expected at most {MAX_NUMBERS}")
    scores = {start: _named(numbers, start) for start in MODELS}
    for of_model in scores.values():
        refuse_own_names(of_model)
        refuse_problems(server.reader.bounds.problems(of_model))
    known = {f"{start}{name}": v for start, found in scores.items() for name, v in found.items()}
    if unknown := sorted(set(numbers) - set(known)):
        raise ValueError(f"found a number '{unknown[0][:50]}', expected {', '.join(MODELS)}...")
    is_kept = record_of(reply, "client", ConfigRecord)["is-kept"]
    if is_kept is not (scores["personal/"]["fitness"] > scores["global/"]["fitness"]):
        raise ValueError(f"is-kept: found {is_kept!r}, which its scores do not say")
    kept = "true" if is_kept else "false"
    return {"kept": kept, "num_examples": num_images, **known, "seconds": seconds}


def _named(numbers: dict[str, float], start: str) -> dict[str, float]:
    """Return the numbers whose names begin so, without this beginning."""
    return {n.removeprefix(start): v for n, v in numbers.items() if n.startswith(start)}


def _told(row: Row) -> str:
    return f"fitness {row['global/fitness']:.3f} to {row['personal/fitness']:.3f}"
