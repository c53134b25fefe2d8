"""A pass over the images in parts: a round may average the clients several times in a pass."""

import itertools
import math
from collections.abc import Collection, Iterator
from typing import Any

from torch.utils.data import BatchSampler, Sampler


class PassInParts(Sampler[list[int]]):
    """Yields the batches of a pass in parts, one part each time it is iterated.

    A pass has the batches that `batches` would give in one epoch; their order is drawn at its first
    part. The last part is followed by the first of the next pass.

    position: The part that is drawn next. current: The part whose length `len` gives, which is not
    the same while loader workers read ahead.
    """

    def __init__(self, batches: BatchSampler, num_parts: int) -> None:
        self.batches = batches
        self.num_parts = num_parts
        self.position = self.current = 0
        self._pass: list[list[int]] = []
        self._drawn: Iterator[list[int]] = iter(())

    def __iter__(self) -> Iterator[list[int]]:
        part = self.position
        if part == 0 or not self._pass:
            self._drawn = iter(self.batches)
            self._pass = list(itertools.islice(self._drawn, len(self.batches)))
        self.position = (part + 1) % self.num_parts
        yield from self._pass[slice(*bounds(len(self._pass), part, self.num_parts))]
        if self.position == 0:
            # RandomSampler draws once more at its end; in an epoch that is when more is asked for.
            assert next(self._drawn, None) is None

    def __len__(self) -> int:
        first, end = bounds(len(self.batches), self.current, self.num_parts)
        return end - first

    def rewind(self, part: int = 0) -> None:
        """Begin a new pass, at this part (0-based)."""
        self.position, self._pass = part, []


def bounds(num_batches: int, part: int, num_parts: int) -> tuple[int, int]:
    """Return the first batch of a part (0-based) and the one after its last.

    Parts differ by one batch at most. With fewer batches than parts, each part has one batch, so
    that some batches come again.
    """
    first = part * num_batches // num_parts
    return first, max(first + 1, (part + 1) * num_batches // num_parts)


def part_sizes(num_batches: int, num_parts: int) -> tuple[int, int]:
    """Return the smallest and the largest number of batches of a part."""
    return max(1, num_batches // num_parts), max(1, math.ceil(num_batches / num_parts))


def in_parts(loader: Any, num_parts: int) -> Any:
    """Let a loader of Ultralytics give a part of a pass each time it is iterated."""
    # unstable: ultralytics.data.build._RepeatSampler says 'self.sampler'
    loader.batch_sampler.sampler = PassInParts(loader.batch_sampler.sampler, num_parts)
    return loader


def place_part(loader: Any, epoch: int, num_parts: int) -> None:
    """Let the length of a loader be that of the part which is trained in this epoch (0-based)."""
    if num_parts > 1:
        loader.batch_sampler.sampler.current = epoch % num_parts


def slice_number(round_number: int, part: int, num_parts: int) -> int:
    """Return the number of a round's part (both 1-based) among the slices of all rounds."""
    return (round_number - 1) * num_parts + part


def kept_slices(saved: Collection[int], now: int, num_parts: int, num_kept: int) -> set[int]:
    """Return which of the saved slices a client keeps, once it has saved the slice `now`.

    It keeps the last ones, for a slice that is tried again, and the last one of the round before,
    for a round that is done again from its start.
    """
    before = (now - 1) // num_parts * num_parts
    kept = set(sorted(n for n in saved if n <= now)[-num_kept:])
    return kept | set(sorted(n for n in saved if n <= before)[-1:])
