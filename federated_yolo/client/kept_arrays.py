"""Arrays that a client keeps in its folder between rounds."""

from pathlib import Path

import numpy as np

from federated_yolo.common.arrays import Arrays, Layout, checksum
from federated_yolo.protocol.delta import Encoding, LackingArraysError, logger
from federated_yolo.protocol.instructions import Instructions
from federated_yolo.storage.archive import RoundMeta, load_arrays, save_arrays
from federated_yolo.yolo.slice_state import KEPT_STATES, saved_states, state_path


class HeldArrays:
    """The global arrays that a client received last; a file in its private folder."""

    def __init__(self, private_dir: Path) -> None:
        self.path = private_dir / "global.npz"

    def receive(self, delta: Arrays, expected: str, encoding: Encoding) -> Arrays:
        """The arrays with this checksum: those held, or what the delta makes of them.

        delta: empty when nothing has changed. Raises LackingArraysError when they cannot be
        made of what is held, and ValueError when a whole model is not what it should be.
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
    """What a client's updates have left out, after its last rounds; files beside its states."""

    def __init__(self, private_dir: Path, num_kept: int) -> None:
        self.folder = private_dir / "state"
        self.num_kept = num_kept

    def before(self, round_number: int) -> Arrays:
        """As the client's last round before this one left it; empty before the first."""
        last = max((r for r in self.rounds() if r < round_number), default=None)
        return {} if last is None else load_arrays(self.path(last))[0]

    def save(self, round_number: int, residual: Arrays) -> None:
        """Keep it for the rounds that follow."""
        self.folder.mkdir(parents=True, exist_ok=True)
        save_arrays(self.path(round_number), residual, RoundMeta(round_number, (), "", ""))
        rounds = self.rounds()
        kept = sorted(r for r in rounds if r <= round_number)[-self.num_kept :]
        for other in set(rounds) - set(kept):
            self.path(other).unlink(missing_ok=True)

    def rounds(self) -> list[int]:
        """Rounds of which there is one."""
        paths = self.folder.glob("residual*.npz")
        return [int(p.stem.removeprefix("residual")) for p in paths]

    def path(self, round_number: int) -> Path:
        """Where that of a round is."""
        return self.folder / f"residual{round_number}.npz"


def missing_state(folder: Path, instructions: Instructions, trained: int, last: int) -> Path | None:
    """A file without which a client cannot go on as if nothing had happened.

    folder: its private one. trained: the last round in which it has trained, at least 1. last: the
    round that it goes on from; states of later ones are of work that is done again.
    """
    kept = {state_path(folder, trained): saved_states(folder)}
    if instructions.codec.name != "none":
        residuals = Residuals(folder, KEPT_STATES)
        kept[residuals.path(trained)] = residuals.rounds()
    lost = (path for path, rounds in kept.items() if not any(trained <= n <= last for n in rounds))
    return next(lost, None)
