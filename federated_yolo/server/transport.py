"""Sends messages and receives replies over Flower's grid."""

import logging
import time
from collections.abc import Callable, Iterable, Iterator

import httpx
from flwr.app import ArrayRecord, Error, Message
from flwr.serverapp import Grid

from federated_yolo.protocol.records import CLIENT_ERROR

Again = Callable[[Message, Message], Message | None]

POLL_S = 0.1

SITE_POLL_S = 1.0  # over a network

TTL_S = 10 * 365 * 86400.0  # Flower's own lets a message expire after 12 hours
GRACE_S = 60.0  # after round_timeout_s, so that a client's worker can report by itself


def exchange(
    grid: Grid,
    messages: Iterable[Message],
    timeout_s: float | None,
    pause: Callable[[float], object],
    poll_s: float = POLL_S,
    again: Again = lambda message, reply: None,
) -> Iterator[Message]:
    """Send messages and yield each reply when it arrives, or an error for a missing reply.

    timeout_s: Time limit for all of them, after which workers end themselves; GRACE_S later, the
    server gives up on workers that could not. pause: Function that waits for so many seconds, or
    raises to stop. poll_s: Seconds between two looks for replies. again: Function that returns a
    message to send in place of another, if its reply asks for that.
    """
    waiting = _push(grid, messages)
    latest = float("inf") if timeout_s is None else timeout_s + GRACE_S
    started = time.monotonic()
    while waiting:
        before = set(waiting)
        _drop_uncalled(grid)
        for message_id in before:
            pause(0)
            # One by one: asked for all, the grid would return all that have come, however many.
            yield from _pull(grid, message_id, waiting, again)
        if waiting and time.monotonic() - started > latest:
            error = Error(CLIENT_ERROR, f"no answer within {latest:g} s")
            yield from [Message(error, reply_to=message) for message in waiting.values()]
            return
        pause(poll_s if waiting.keys() == before else 0)


def _drop_uncalled(grid: Grid) -> None:
    """Remove messages that nodes have sent to the ServerApp unasked.

    Such a message would come with the next reply, which would be lost too if it is not readable.
    """
    _, unreadable = _unpacked(grid, [])
    if unreadable:
        logging.getLogger(__name__).warning(
            "a message that nobody asked for is not readable: %s", unreadable
        )


def _unpacked(grid: Grid, message_ids: list[str]) -> tuple[list[Message], str]:
    """Return replies that have arrived; if unpacking fails, none and the kind of the error.

    Flower 1.41 unpacks what a node has sent without checking that it can be unpacked.
    """
    try:
        return list(grid.pull_messages(message_ids)), ""
    except (httpx.HTTPError, OSError):  # of the SuperLink, not of a message
        raise
    except Exception as error:  # of any kind: the bytes are no valid protobuf, JSON, record, ...
        return [], type(error).__name__


def _pull(
    grid: Grid, message_id: str, waiting: dict[str, Message], again: Again
) -> Iterator[Message]:
    """Yield the reply to a message, if it has arrived; or send the message that replaces it.

    Flower 1.41 returns whatever is addressed to the ServerApp, so a node can slip in a message
    that answers nothing.
    """
    message = waiting[message_id]
    replies, unreadable = _unpacked(grid, [message_id])
    if unreadable:
        reason = f"its reply is not readable ({unreadable})"
        replies = [Message(Error(CLIENT_ERROR, reason), reply_to=message)]
    for reply in replies:
        if reply.metadata.reply_to_message_id != message_id or message_id not in waiting:
            continue
        if reply.has_error():  # Flower's own, for a node that has left, names no node
            reply = Message(reply.error, reply_to=message)
        elif reply.metadata.src_node_id != message.metadata.dst_node_id:
            continue
        del waiting[message_id]
        other = again(message, reply)
        if other is None:
            yield reply
        else:
            waiting.update(_push(grid, [other]))


def _push(grid: Grid, messages: Iterable[Message]) -> dict[str, Message]:
    """Send messages; return them by the ids that replies will refer to."""
    messages = list(messages)
    for message in messages:
        message.metadata.ttl = TTL_S
    return dict(zip(grid.push_messages(messages), messages, strict=True)) if messages else {}


def num_bytes(message: Message) -> int:
    """Return the bytes of all arrays of a message."""
    if not message.has_content():
        return 0
    records = [record for record in message.content.values() if isinstance(record, ArrayRecord)]
    return sum(len(array.data) for record in records for array in record.values())
