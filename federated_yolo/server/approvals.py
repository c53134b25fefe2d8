"""Which key may come under which name, as the operator's kit says, and who has come.

A kit's start.sh names its sites.json in a variable; a node's ID there stands for its key. Without
the variable, in a deployment that was set up by hand, every registered key chooses its name.
"""

import json
import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from federated_yolo.common.errors import FederationError
from federated_yolo.common.files import write_atomically

VARIABLE = "FEDERATED_YOLO_SITES"
ATTENDANCE = "attendance.json"  # beside sites.json; the operator's `consortium status` shows it


class Approvals:
    """Reads sites.json anew each time, since sites are approved and revoked during a run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._run_dir = ""
        self._written = ""

    def names(self) -> dict[int, str]:
        """Return the name of each node that is approved. Raises FederationError."""
        try:
            return {
                int(node): str(name) for node, name in json.loads(self.path.read_text()).items()
            }
        except (OSError, ValueError, AttributeError) as error:
            raise FederationError(
                f"{VARIABLE}={self.path}: not readable, so no site can be accepted ({error}); "
                "'federated-yolo consortium approve' writes it"
            ) from error

    def began(self, run_dir: Path) -> None:
        """Note which run is at work."""
        self._run_dir = str(run_dir.absolute())

    def note(self, present: Iterable[str], refused: Mapping[int, str]) -> None:
        """Write who takes part and who was refused why, if that has changed."""
        content = {
            "run_dir": self._run_dir,
            "present": sorted(present),
            "refused": {str(node): reason for node, reason in refused.items()},
        }
        text = json.dumps(content, indent=1)
        if text == self._written:
            return
        self._written = text
        now = datetime.now(UTC).isoformat(timespec="seconds")
        stamped = json.dumps({"time": now, **content}, indent=1).encode()
        write_atomically(self.path.with_name(ATTENDANCE), lambda file: file.write(stamped))


def approvals_of_kit() -> Approvals | None:
    """Return the approvals of the kit that has started this server; None if there is no kit."""
    path = os.environ.get(VARIABLE)
    return Approvals(Path(path)) if path else None
