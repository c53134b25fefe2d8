"""The global model: its shared arrays, their moving average, and the checkpoints made from them."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from federated_yolo.common.arrays import Arrays, Layout, cast, layout_problems, select
from federated_yolo.protocol.codec import halved
from federated_yolo.server.plausible import is_statistic
from federated_yolo.storage.archive import RoundMeta
from federated_yolo.storage.run_dir import RunDir
from federated_yolo.yolo.checkpoint import save_checkpoint
from federated_yolo.yolo.model import load_into, moved_names, to_arrays


class GlobalModel:
    """Holds the shared arrays of the federation, and their moving average if there is one.

    Only the shared arrays are global. If some arrays are private, there is no whole model to
    evaluate or save here: each client has its own.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        meta: RoundMeta,
        shared: list[str],
        run_dir: RunDir,
        train: Mapping[str, Any],
        *,
        server_ema: float = 0.0,
        halved_names: frozenset[str] = frozenset(),
    ) -> None:
        """Start from the arrays of a model.

        shared: Names of the shared arrays. train: Train arguments that are saved in checkpoints.
        server_ema: Decay per round of the moving average; 0 for no average. halved_names: Names of
        arrays that are rounded to half precision at the start, which halves the bytes of the first
        download.
        """
        self.model = model
        self.meta = meta
        self.run_dir = run_dir
        self.train = train
        self.server_ema = server_ema
        whole = to_arrays(model)
        self.arrays = select(whole, shared)
        if halved_names:
            self.arrays = halved(self.arrays, halved_names)
        self.average: Arrays | None = None
        self.layout = Layout.of(self.arrays)
        self.whole_layout = Layout.of(whole)
        moved = moved_names(model, train.get("freeze"))
        self.trained_names = [name for name in self.arrays if name in moved]
        self.fixed_names = [n for n in self.arrays if n not in moved and not is_statistic(n)]

    @property
    def is_whole(self) -> bool:
        """Whether all arrays of the model are shared."""
        return len(self.arrays) == len(self.model.state_dict())

    @property
    def private(self) -> Arrays:
        """The arrays of the base model that are not shared, in its order."""
        return {n: array for n, array in to_arrays(self.model).items() if n not in self.arrays}

    @property
    def deployed(self) -> Arrays:
        """The arrays that are evaluated and saved in checkpoints: the average if there is one."""
        return self.arrays if self.average is None else self.average

    def advance(self, arrays: Arrays, *, ends_round: bool = True) -> None:
        """Set new arrays, and update the moving average if they end a round.

        The average is decay * average + (1 - decay) * arrays, starting with the first round's.
        """
        self.arrays = arrays
        if not self.server_ema or not ends_round:
            return
        if self.average is None:
            self.average = arrays
            return
        decay, before = self.server_ema, self.average
        self.average = {}
        for name, new in arrays.items():
            old = before[name].astype(np.float64)
            mean = decay * old + (1 - decay) * new.astype(np.float64)
            self.average[name] = cast(mean, new.dtype.name)

    def cast(self, arrays: Arrays) -> Arrays:
        """Return aggregated arrays in the dtypes of the model; removes them from `arrays`.

        Raises ValueError for arrays that are not finite, or not this model's.
        """
        # One by one, so that memory never holds all of them in both precisions.
        entries = self.layout.entries
        result = {name: cast(arrays.pop(name), dtype) for name, _, dtype in entries}
        problems = layout_problems(result, self.layout)
        if problems:
            raise ValueError("; ".join(problems[:3]))
        return result

    def load(self, round_number: int) -> None:
        """Load the arrays of an earlier round. Raises ValueError if its files are damaged."""
        self.arrays = self.run_dir.load_round(round_number, self.layout)
        if self.server_ema:
            self.average = self.run_dir.load_average(round_number, self.layout)

    def deployed_in(self, round_number: int) -> Arrays | None:
        """Load the arrays that were `deployed` in an earlier round; None if the file is gone."""
        if self.server_ema:
            path = self.run_dir.average_path(round_number)
            load = self.run_dir.load_average
        else:
            path = self.run_dir.round_path(round_number)
            load = self.run_dir.load_round
        return load(round_number, self.layout) if path.exists() else None

    def meta_of(self, round_number: int) -> RoundMeta:
        """Return the metadata for the files of a round."""
        meta = self.meta
        return RoundMeta(round_number, meta.names, meta.task, meta.base_model)

    def save(self, round_number: int) -> None:
        """Write the arrays of a round, and the average."""
        meta = self.meta_of(round_number)
        self.run_dir.save_round(self.arrays, meta)
        if self.average is not None:
            self.run_dir.save_average(self.average, meta)

    def save_checkpoints(self, *, is_best: bool) -> None:
        """Write last.pt, and best.pt if `is_best`; neither if some arrays are private."""
        if not self.is_whole:
            return
        load_into(self.model, self.deployed)
        for name in ("last.pt", "best.pt") if is_best else ("last.pt",):
            save_checkpoint(self.run_dir.weights / name, self.model, dict(self.train))
