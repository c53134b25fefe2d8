"""What happened in a round: seconds, bytes, notes on clients."""

import time
from dataclasses import dataclass


@dataclass
class Traffic:
    """Bytes of the arrays that a client was sent and has sent back."""

    download_bytes: int = 0
    upload_bytes: int = 0


class Clock:
    """Seconds of a round and of its parts. Holds when it started and the last part ended."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._started = self._lap = time.perf_counter()

    def stop(self, part: str) -> None:
        """A part ends here; one without a name is not kept."""
        now = time.perf_counter()
        if part:
            self.parts[part] = round(now - self._lap, 3)
        self._lap = now

    def total(self) -> float:
        """Seconds since the start."""
        return round(time.perf_counter() - self._started, 3)
