"""Records of a round: seconds, bytes, and notes about clients."""

import time
from collections import defaultdict
from dataclasses import dataclass

from federated_yolo.common.text import in_one_line
from federated_yolo.server.results import Display


@dataclass
class Traffic:
    """Bytes of the arrays that were sent to a client and that it has sent back."""

    download_bytes: int = 0
    upload_bytes: int = 0


class Clock:
    """Seconds of a round and of its parts. Holds when the round started and the last part ended."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._started = self._lap = time.perf_counter()

    def stop(self, part: str) -> None:
        """End a part, which may come several times; one with an empty name is not recorded."""
        now = time.perf_counter()
        if part:
            self.parts[part] = round(self.parts.get(part, 0.0) + now - self._lap, 3)
        self._lap = now

    def total(self) -> float:
        """Seconds since the start."""
        return round(time.perf_counter() - self._started, 3)


class RoundJournal:
    """Records one round, and shows what a user should know at once; each round has a new one.

    notes: Texts by client. traffic: Bytes by client. failed: Clients that were left out of a step.
    asked_at: Time of `time.monotonic` at which the latest messages were sent.
    """

    def __init__(self, display: Display) -> None:
        self.display = display
        self.clock = Clock()
        self.notes: dict[str, list[str]] = defaultdict(list)
        self.failed: set[str] = set()
        self.traffic: dict[str, Traffic] = defaultdict(Traffic)
        self.asked_at = 0.0

    def fail(self, name: str, reason: str) -> None:
        """Record and show that a client is left out of this step, and why."""
        reason = in_one_line(reason)
        self.notes[name].append(reason)
        self.failed.add(name)
        self.display.client_failed(name, reason)

    def note(self, name: str, text: str) -> None:
        """Record and show a text about a client that is not left out."""
        text = in_one_line(text)
        self.notes[name].append(text)
        self.display.notice(f"client '{name}': {text}")
