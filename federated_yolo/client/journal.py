"""What a site can read about its own work: status.json, the state now, and site.log, the history.

Both are in the site's folder and stay there. They name the run, the round, images, seconds, losses
and the site's own score; nothing in them comes from another site.
"""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

from filelock import FileLock

from federated_yolo.client.site import read_site
from federated_yolo.common.errors import InputError
from federated_yolo.common.files import write_atomically
from federated_yolo.common.text import in_one_line

STATUS, LOG = "status.json", "site.log"
MAX_LOG_BYTES, MAX_LOGS = 2 << 20, 5
DOING = {"train": "training", "evaluate": "evaluating", "query": "preparing"}
IDLE = "waiting for work"
log = logging.getLogger(__name__)


class Journal:
    """Writes both files. A disk that is full costs the journal, not the training."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self) -> dict[str, Any]:
        """Return the state now; empty before the first message."""
        try:
            return json.loads((self.folder / STATUS).read_text())
        except (OSError, ValueError):
            return {}

    def note(
        self, text: str, changes: Mapping[str, Any] | None = None, *, is_error: bool = False
    ) -> None:
        """Append a line to the log, and make these changes to the state; None removes a value."""
        state = dict(changes or {})
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        if is_error:
            state["last_error"] = {"time": now, "text": in_one_line(text)}
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self.folder / ".journal.lock", timeout=10):
                self._append(text, logging.ERROR if is_error else logging.INFO)
                found = {**self.read(), **state, "time": now}
                kept = {key: value for key, value in found.items() if value is not None}
                content = json.dumps(kept, indent=1).encode()
                write_atomically(self.folder / STATUS, lambda file: file.write(content))
        except OSError as error:
            log.error("the site's journal in %s: %s", self.folder, error.strerror or error)

    def _append(self, text: str, level: int) -> None:
        # Several processes write in turn, so the file is opened for each line.
        handler = RotatingFileHandler(
            self.folder / LOG, maxBytes=MAX_LOG_BYTES, backupCount=MAX_LOGS, encoding="utf-8"
        )
        try:
            handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-5s %(message)s"))
            handler.emit(log.makeRecord(LOG, level, "", 0, in_one_line(text), (), None))
        finally:
            handler.close()

    @contextmanager
    def work(
        self, kind: str, run: str, round_number: int | None, num_rounds: int
    ) -> Iterator[dict[str, float]]:
        """Note the beginning and the end of the work on a message; yield a dict for its numbers.

        kind: Type of the message. round_number: None for work before the first round.
        """
        doing = DOING.get(kind.partition(".")[0], kind)
        place = f"run {run}" + (f", round {round_number} of {num_rounds}" if round_number else "")
        self.note(
            f"{place}: {doing}",
            {"doing": doing, "run": run, "round": round_number, "num_rounds": num_rounds},
        )
        numbers: dict[str, float] = {}
        try:
            yield numbers
        except BaseException:  # the reason is noted where it is answered
            self.note(f"{place}: {doing} failed", {"doing": IDLE})
            raise
        # Of whole models, which may be another site's, no score is kept.
        own = {"train": "training", "evaluate": "score"}.get(kind)
        changes = {own: {"round": round_number, **_plain(numbers)}} if own else {}
        self.note(f"{place}: {(own and _shown(numbers)) or 'done'}", {"doing": IDLE, **changes})


def _plain(numbers: Mapping[str, float]) -> dict[str, float | None]:
    """Return numbers without those of single classes, as JSON has them."""
    kept = {name: value for name, value in numbers.items() if not name.startswith("class/")}
    return {name: value if math.isfinite(value) else None for name, value in kept.items()}


def _shown(numbers: Mapping[str, float]) -> str:
    """Return the numbers of a reply in one line."""
    names = {"num-examples": "images", "seconds": "s"}
    parts = [
        f"{numbers[key]:g} {name}" if key != "seconds" else f"{numbers[key]:.1f} {name}"
        for key, name in names.items()
        if key in numbers
    ]
    parts += [
        f"{name.rpartition('/')[2]} {value:.4f}"
        for name, value in numbers.items()
        if name.endswith("_loss") or (name.startswith("metrics/") and "mAP" in name)
    ]
    if "fitness" in numbers:
        parts.append(f"fitness {numbers['fitness']:.4f}")
    return ", ".join(parts)


def journal_at(node_config: Mapping[str, Any]) -> Journal | None:
    """Return the journal of a site; None in a simulation, or if its node config is not valid."""
    with suppress(InputError):  # a node of a simulation has no data
        return Journal(read_site(node_config).folder)
    return None
