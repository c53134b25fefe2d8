"""Arrays that a client keeps in its folder between rounds."""

from pathlib import Path

import numpy as np

from federated_yolo.common.arrays import Arrays, Layout, checksum
from federated_yolo.protocol.delta import Encoding, LackingArraysError, logger
from federated_yolo.protocol.instructions import Instructions
from federated_yolo.storage.archive import RoundMeta, load_arrays, save_arrays
from federated_yolo.yolo.passes import kept_slices
from federated_yolo.yolo.slice_state import KEPT_STATES, saved_states, state_path


class HeldArrays:
    """The global arrays that a client received last, in a file in its private folder."""

    def __init__(self, private_dir: Path) -> None:
        self.path = private_dir / "global.npz"

    def receive(self, delta: Arrays, expected: str, encoding: Encoding) -> Arrays:
        """Return the arrays with the `expected` checksum: the held ones, or rebuilt by the delta.

        delta: Changes to the held arrays, or a whole model; empty if nothing has changed. Raises
        LackingArraysError if the held arrays do not lead to that checksum, and ValueError if a
        whole model does not have it.
        """
        held = self._load(encoding.layout)
        if held is not None and checksum(held) == expected:
            return held
        is_whole = bool(delta) and bool(np.all(delta["changed"]))
        if not is_whole and (held is None or not delta):
            raise LackingArraysError
        arrays = encoding.rebuilt(delta, None if is_whole else held)
        if checksum(arrays) != expected:
            if not is_whole:
                raise LackingArraysError
            raise ValueError("the arrays received do not match their checksum")
        save_arrays(self.path, arrays, RoundMeta(0, (), "", ""))
        return arrays

    def _load(self, layout: Layout) -> Arrays | None:
        if not self.path.exists():
            return None
        try:
            arrays, _ = load_arrays(self.path)
        except ValueError as error:  # the server sends them again
            logger.warning("%s", error)
            return None
        return arrays if Layout.of(arrays).digest == layout.digest else None


class Residuals:
    """What the codec left out of a client's updates in its last slices; files beside its states."""

    def __init__(self, private_dir: Path, averages_per_round: int) -> None:
        self.folder = private_dir / "state"
        self.averages_per_round = averages_per_round

    def before(self, number: int) -> Arrays:
        """Return the residual after the client's last slice before this one; empty if none."""
        last = max((n for n in self.slices() if n < number), default=None)
        return {} if last is None else load_arrays(self.path(last))[0]

    def save(self, number: int, residual: Arrays) -> None:
        """Write the residual of a slice; keep those that may be needed again, delete the others."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_arrays(self.path(number), residual, RoundMeta(number, (), "", ""))
        saved = self.slices()
        for other in set(saved) - kept_slices(saved, number, self.averages_per_round, KEPT_STATES):
            self.path(other).unlink(missing_ok=True)

    def slices(self) -> list[int]:
        """Slices whose residual is on disk."""
        paths = self.folder.glob("residual*.npz")
        return [int(p.stem.removeprefix("residual")) for p in paths]

    def path(self, number: int) -> Path:
        """Return the path of a slice's residual."""
        return self.folder / f"residual{number}.npz"


def missing_state(folder: Path, instructions: Instructions, trained: int, last: int) -> Path | None:
    """Return a missing file without which a client cannot continue exactly, or None.

    folder: The client's private folder. trained: The last slice that it has trained, at least 1.
    last: The slice that it continues from; later states belong to work that will be repeated.
    """
    kept = {state_path(folder, trained): saved_states(folder)}
    if instructions.codec.name != "none":
        residuals = Residuals(folder, instructions.averages_per_round)
        kept[residuals.path(trained)] = residuals.slices()
    lost = (path for path, saved in kept.items() if not any(trained <= n <= last for n in saved))
    return next(lost, None)
