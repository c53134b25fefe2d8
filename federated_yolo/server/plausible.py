"""Checks of clients' replies against what the server knows beforehand. Pure functions.

A number that no honest client can send is refused whatever the strategy: a single one can dominate
the mean, end the run or count as its best round. Each check returns what is wrong, as "found,
expected"; an empty list (or text) means that nothing is.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from federated_yolo.common.arrays import Layout
from federated_yolo.yolo.passes import part_sizes
from federated_yolo.yolo.slice_mixin import leaves_single_out

MAX_IMAGES = 2**29  # of a client; with more, a weighted mean is not exact (aggregation/mean.py)
# Ultralytics' losses, which are never negative: distances, cross-entropies, shares, and the
# likelihood loss of keypoints (`rle_loss`), which Ultralytics 8.4.180 to 8.4.190 clips at 0.
NON_NEGATIVE_LOSSES = frozenset(
    f"train/{name}loss"
    for name in ("", *"box_ cls_ dfl_ l1_ seg_ sem_ pose_ kobj_ rle_ angle_ giou_".split())
)
GAINS = ("box", "cls", "dfl", "pose", "kobj", "rle", "angle")  # train arguments, factors of losses
LARGEST_LOSS = 1e6  # with gains up to 1; with random weights, tens are usual
ROUNDING = 1e-2  # error of half precision: 1 - IoU may be below 0, and a share above 1
# With mixed precision PyTorch skips steps whose gradients overflow: at first while it halves the
# scale of the loss from 2^16 until nothing overflows, and then once in 2000 steps.
SKIPPED_STEPS, SKIPPED_SHARE = 32, 0.01
CLOCK_SLACK_S, CLOCK_SLACK = 5.0, 0.01  # a client's clock differs from the server's
BATCHNORM_EPSILON = 1e-3  # Ultralytics' BatchNorm adds it to a variance
MEAN, VARIANCE, COUNTER = "running_mean", "running_var", "num_batches_tracked"
# Besides array values, a reply contains their headers and names, numbers, notes or a picture.
ARRAY_OVERHEAD, DEFLATE_OVERHEAD, MAX_OTHER_BYTES = 1024, 0.01, 1 << 25
MAX_INTRODUCTION = 1 << 24  # characters; 10000 class names fit


@dataclass(frozen=True)
class Work:
    """The work of a client between two averages, as the settings determine it.

    drops_single: Whether a last batch of one image is left out of its epoch (`leaves_single_out`).
    is_plain: Whether the class is YoloClient; a user's own class may stop early, or start from
    other arrays than the global ones. may_skip_steps: Whether a GPU may use mixed precision.
    """

    batch: int
    nbs: int
    local_epochs: int
    averages_per_round: int = 1
    drops_single: bool = False
    is_plain: bool = True
    may_skip_steps: bool = False

    def num_batches(self, num_images: int) -> tuple[int, int]:
        """Return the least and the most batches of so many training images."""
        num = math.ceil(num_images / self.batch)
        if self.drops_single and leaves_single_out(num_images, self.batch):
            num -= 1
        least, most = part_sizes(num, self.averages_per_round)
        return least * self.local_epochs, most * self.local_epochs

    def step_problem(self, num_images: int, num_steps: int) -> str:
        """Check for at most one step per batch, and at least one per nominal batch (nbs).

        Too few steps are as bad as too many, because FedNova divides by them.
        """
        least, most = self.num_batches(num_images)
        least = math.ceil(least / max(1, round(self.nbs / self.batch))) if self.is_plain else 1
        if self.may_skip_steps:
            least = max(1, least - SKIPPED_STEPS - math.ceil(SKIPPED_SHARE * least))
        if least <= num_steps <= most:
            return ""
        expected = f"{least}" if least == most else f"{least} to {most}"
        return (
            f"num-steps: found {num_steps}, expected {expected} for {num_images} images in "
            f"batches of {self.batch}, {self.local_epochs} times"
            + (f" in {self.averages_per_round} parts" if self.averages_per_round > 1 else "")
        )


def counted(num_images: int, num_steps: int, known: int) -> tuple[int, int]:
    """Return the number of images and of steps that an update counts for.

    known: Images of the client at its start. If it reports more images, both numbers are reduced
    in proportion, so that they describe the same work.
    """
    if num_images <= known:
        return num_images, num_steps
    return known, max(1, round(num_steps * known / num_images))


def seconds_problem(seconds: float, elapsed_s: float) -> str:
    """Check that a client has not worked for longer than its reply took."""
    most = elapsed_s * (1 + CLOCK_SLACK) + CLOCK_SLACK_S
    if 0 <= seconds <= most:
        return ""
    return f"seconds: found {seconds:g}, expected 0 to {most:.1f}: its reply came after that"


@dataclass(frozen=True)
class Numbers:
    """Bounds of a client's losses and metrics, except those that a user's class adds.

    names: Class names of the federation. class_metrics: Metrics of single classes. largest_loss:
    Bound of a loss's magnitude. losses_have_sign: Whether no gain is negative.
    """

    task: str
    names: Collection[str]
    class_metrics: Collection[str]
    largest_loss: float
    losses_have_sign: bool

    @classmethod
    def of(
        cls,
        task: str,
        names: Collection[str],
        class_metrics: Collection[str],
        train: Mapping[str, object],
    ) -> "Numbers":
        """Return the bounds for these train arguments, whose gains multiply losses."""
        gains = [float(str(train[name])) for name in GAINS if train.get(name) is not None]
        largest = LARGEST_LOSS * max(1.0, *map(abs, gains), 1.0)
        return cls(task, names, class_metrics, largest, all(gain >= 0 for gain in gains))

    @property
    def largest_fitness(self) -> float:
        """Upper bound of fitness; for segment and pose it sums two scores, as in Ultralytics."""
        return 2.0 if self.task in ("segment", "pose") else 1.0

    def problems(self, numbers: Mapping[str, float]) -> list[str]:
        """Return a line for each impossible number; a user's own numbers may have any value."""
        known = {f"class/{name}/{metric}" for name in self.names for metric in self.class_metrics}
        problems = []
        for name, value in numbers.items():
            if name.startswith("class/") and name not in known:
                problems.append(f"{name[:100]}: not of a class and metric of this federation")
                continue
            low, high, slack = self._range(name)
            if not low - slack <= value <= high + slack:
                problems.append(f"{name}: found {value:g}, expected {low:g} to {high:g}")
        return problems

    def _range(self, name: str) -> tuple[float, float, float]:
        """Return the least and the largest value, and how far rounding may exceed them."""
        name = name.removeprefix("local/")
        if name.startswith(("metrics/", "class/")):
            return 0.0, 1.0, 1e-6
        if name == "fitness":
            return 0.0, self.largest_fitness, 1e-6
        if name.startswith("train/"):
            has_sign = self.losses_have_sign and name in NON_NEGATIVE_LOSSES
            return 0.0 if has_sign else -self.largest_loss, self.largest_loss, ROUNDING
        return -math.inf, math.inf, 0.0


def counter_problems(
    new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray], num_batches: int
) -> list[str]:
    """Return a line for each BatchNorm counter that fell, or rose by more than `num_batches`."""
    problems = []
    for name in (name for name in new if name.endswith(COUNTER)):
        found, least = int(new[name]), int(old[name])
        if not least <= found <= least + num_batches:
            problems.append(
                f"{name}: found {found}, expected {least} to {least + num_batches}: it has trained "
                f"{num_batches} batches at most"
            )
    return problems


def statistics_factors(
    new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray]
) -> dict[str, float]:
    """Return the largest factor by which each of BatchNorm's statistics changed, at least 1.

    A variance includes BatchNorm's epsilon. The factor of a mean is the square of its shift divided
    by the variance, the larger one of before and after.
    """
    factors = {}
    for name in (name for name in new if name.endswith(VARIANCE)):
        variance = new[name].astype(np.float64) + BATCHNORM_EPSILON
        before = old[name].astype(np.float64) + BATCHNORM_EPSILON
        factors[name] = _largest(np.maximum(variance / before, before / variance))
        mean = f"{name.removesuffix(VARIANCE)}{MEAN}"
        if mean in new:
            shift = np.square(new[mean].astype(np.float64) - old[mean])
            factors[mean] = _largest(shift / np.maximum(variance, before))
    return factors


def _largest(factors: np.ndarray) -> float:
    return float(np.max(factors, initial=1.0))


def statistics_problems(factors: Mapping[str, float], most: float) -> list[str]:
    """Return a line for each statistic whose factor is more than `most`."""
    return [
        f"{name}: moved {found:.3g} times, expected at most {most:g} (max_statistics_factor)"
        for name, found in factors.items()
        if not found <= most
    ]


def fixed_problems(
    new: Mapping[str, np.ndarray], old: Mapping[str, np.ndarray], fixed: Iterable[str]
) -> list[str]:
    """Return a line if arrays changed that training does not change: frozen layers, constants."""
    changed = [name for name in fixed if not np.array_equal(new[name], old[name])]
    if not changed:
        return []
    return [f"{len(changed)} arrays changed that training does not move: {', '.join(changed[:3])}"]


def is_statistic(name: str) -> bool:
    """Whether this is one of BatchNorm's arrays that no gradient changes."""
    return name.endswith((MEAN, VARIANCE, COUNTER))


@dataclass(frozen=True)
class Size:
    """The size of a reply: its records, their entries, bytes of arrays and of everything else."""

    num_records: int
    num_entries: int
    array_bytes: int
    other_bytes: int


def size_problem(found: Size, layout: Layout, num_numbers: int) -> str:
    """Check that a reply is not larger than all arrays once, whole or encoded.

    layout: Layout of all arrays. num_numbers: Most numbers that a reply may contain.
    """
    num_arrays = len(layout.entries)
    overhead = layout.num_bytes * DEFLATE_OVERHEAD + ARRAY_OVERHEAD * (num_arrays + 3)
    most = Size(
        num_records=8,
        num_entries=2 * num_arrays + num_numbers + 100,
        array_bytes=layout.num_bytes + int(overhead),
        other_bytes=MAX_OTHER_BYTES,
    )
    for what, number, limit in (
        ("records", found.num_records, most.num_records),
        ("entries", found.num_entries, most.num_entries),
        ("bytes of arrays", found.array_bytes, most.array_bytes),
        ("bytes beside its arrays", found.other_bytes, most.other_bytes),
    ):
        if number > limit:
            return f"its reply has {number} {what}, expected at most {limit}; it was not unpacked"
    return ""
