"""Checks the keypoints of a data.yaml: their shape, names and order in mirrored images."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def keypoint_problems(raw: Mapping[str, Any], num_classes: int) -> Iterator[str]:
    """Describe what is wrong with a data.yaml's keypoints, which Ultralytics hardly checks."""
    shape = raw.get("kpt_shape")
    if shape is None:
        return
    if not (
        isinstance(shape, list)
        and len(shape) == 2
        and all(type(n) is int for n in shape)
        and shape[0] >= 1
        and shape[1] in (2, 3)
    ):
        yield f"kpt_shape: found {shape!r}, expected [number of keypoints, 2 or 3], e.g. [17, 3]"
        return
    num_points = shape[0]
    flip, sigmas = raw.get("flip_idx") or [], raw.get("kpt_oks_sigmas") or []
    if flip and not (
        isinstance(flip, list)
        and all(type(n) is int for n in flip)
        and sorted(flip) == list(range(num_points))
    ):
        yield f"flip_idx: found {flip!r}, expected each number from 0 to {num_points - 1} once"
    if sigmas and not (
        isinstance(sigmas, list)
        and len(sigmas) == num_points
        and all(type(s) in (int, float) and 0 < s < math.inf for s in sigmas)
    ):
        yield f"kpt_oks_sigmas: found {sigmas!r}, expected {num_points} positive numbers"
    points = raw.get("kpt_names") or {}
    if not isinstance(points, dict):
        yield (
            f"kpt_names: found {points!r}, expected a list of {num_points} names for the index of "
            f"each class, e.g. {{0: [{', '.join(f'name{i}' for i in range(min(num_points, 3)))}]}}"
        )
        return
    for index, names in points.items():
        if str(index) not in map(str, range(num_classes)):
            yield f"kpt_names: found class {index!r}, expected 0 to {num_classes - 1}"
        elif not (
            isinstance(names, list)
            and len(names) == num_points
            and all(isinstance(n, str | int | float) and str(n).strip() for n in names)
        ):
            yield f"kpt_names: {index}: found {names!r}, expected {num_points} names"


def keypoint_names(listed: Mapping[Any, Sequence[Any]]) -> dict[int, list[str]]:
    """Return `kpt_names` by ascending class index, which may be written 0 or "0", as in names."""
    points = {int(index): [*map(str, names)] for index, names in listed.items()}
    return dict(sorted(points.items()))
