"""What a data set holds: classes, images, labels and form."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ultralytics.utils.metrics import OKS_SIGMA

from federated_yolo.data.data_yaml import class_names


@dataclass(frozen=True)
class DataSummary:
    """What one data set holds.

    names: class names by index. num_train, num_val, num_test: images that Ultralytics will use; no
    test images where there are none with labels.
    class_counts: boxes of each class in the train split, in the order of `names`; for classify,
    images.
    test_is_unlabelled: there are test images, but none with a label.
    channels, kpt_shape: of the images and the keypoints (None without any); they shape the model.
    flip_idx, kpt_oks_sigmas, kpt_names: what else a data.yaml can say of keypoints, empty where it
    does not: which each one is in a mirrored image, how exactly it can be placed, and, by index of
    the class, their names.
    val_classes, test_classes: names of the classes that have a label there.
    """

    names: tuple[str, ...]
    num_train: int
    num_val: int
    num_test: int
    class_counts: tuple[int, ...]
    test_is_unlabelled: bool = False
    channels: int = 3
    kpt_shape: tuple[int, ...] | None = None
    flip_idx: tuple[int, ...] = ()
    kpt_oks_sigmas: tuple[float, ...] = ()
    kpt_names: tuple[tuple[str, ...], ...] = ()
    val_classes: tuple[str, ...] = ()
    test_classes: tuple[str, ...] = ()

    @property
    def keypoint_lists(self) -> dict[str, tuple[Any, ...]]:
        """What each keypoint is: a list by its name in messages, independent of indices."""
        lists: dict[str, tuple[Any, ...]] = {"flip_idx": self.flip_idx}
        lists |= {f"kpt_names of '{name}'": p for name, p in self.kpt_names_by_class.items()}
        return {name: values for name, values in lists.items() if values}

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Of each keypoint, by which Ultralytics trains and scores: said, or its default."""
        if self.kpt_oks_sigmas or self.kpt_shape is None:
            return self.kpt_oks_sigmas
        num_points = self.kpt_shape[0]
        is_of_coco = self.kpt_shape == (17, 3)
        return tuple(OKS_SIGMA.tolist()) if is_of_coco else (1 / num_points,) * num_points

    @property
    def kpt_names_by_class(self) -> dict[str, tuple[str, ...]]:
        """Names of keypoints by name of the class, of those that have any."""
        pairs = zip(self.names, self.kpt_names, strict=False)  # empty if nothing is said
        return {name: points for name, points in pairs if points}


def without_unlabelled_test(summary: DataSummary, classes: Sequence[str] | None) -> DataSummary:
    """The same, with the test split left out if it has no label of any of these classes.

    classes: as of `selected_classes`.
    """
    is_scored = classes is None or not set(classes).isdisjoint(summary.test_classes)
    if is_scored or not summary.num_test:
        return summary
    return replace(summary, num_test=0, test_is_unlabelled=True)


def form_problems(found: DataSummary, others: Mapping[str, DataSummary]) -> list[str]:
    """Say in what a data set differs from others of a federation, each thing once.

    Channels and kpt_shape shape the model. What a keypoint is has to agree where two say it: else
    the model would learn two meanings of one. Sigmas have to agree everywhere: where none are said,
    Ultralytics has its own.

    others: by how messages name them.
    """
    problems: dict[str, str] = {}
    for other, expected in others.items():
        for key in ("channels", "kpt_shape"):
            ours, theirs = getattr(found, key), getattr(expected, key)
            if ours != theirs:
                text = f"{key} {ours}, {other} has {theirs}; all data sets need the same, since it"
                problems.setdefault(key, f"{text} shapes the model")
        if found.kpt_shape != expected.kpt_shape:
            continue
        theirs = expected.keypoint_lists
        for key, ours in found.keypoint_lists.items():
            said = theirs.get(key, ours)
            if said != ours:
                i = [a == b for a, b in zip(ours, said, strict=True)].index(False)
                text = f"{key}: {ours[i]} for keypoint {i}, {other} has {said[i]}; all data sets"
                problems.setdefault(key, f"{text} that say it need the same")
        pairs = zip(found.sigmas, expected.sigmas, strict=True)
        different = [i for i, (a, b) in enumerate(pairs) if not math.isclose(a, b, rel_tol=1e-2)]
        if different:  # also to one who writes 0.333 for a third
            i = different[0]
            text = f"kpt_oks_sigmas: {_sigma(found, i)} for keypoint {i}, {other} has"
            text += f" {_sigma(expected, i)}; all data sets need the same"
            problems.setdefault("kpt_oks_sigmas", text)
    return list(problems.values())


def _sigma(summary: DataSummary, keypoint: int) -> str:
    default = "" if summary.kpt_oks_sigmas else " (Ultralytics' default, since it says none)"
    return f"{summary.sigmas[keypoint]:.3g}{default}"


def model_data(summaries: Iterable[DataSummary], names: Sequence[str]) -> dict[str, Any]:
    """What `build_model` needs of a data.yaml, for all clients together.

    summaries: at least one, without `form_problems`. names: the federation's classes.
    """
    summaries = list(summaries)
    data: dict[str, Any] = {"names": dict(enumerate(names)), "nc": len(names)}
    data["channels"] = summaries[0].channels
    if summaries[0].kpt_shape is None:
        return data
    data["kpt_shape"] = list(summaries[0].kpt_shape)
    sigmas = next((s.kpt_oks_sigmas for s in summaries if s.kpt_oks_sigmas), ())
    points = {name: list(p) for s in summaries for name, p in s.kpt_names_by_class.items()}
    points = {i: points[name] for i, name in enumerate(names) if name in points}
    # Where no client says it, neither does what `yolo train` would read.
    if sigmas:
        data["kpt_oks_sigmas"] = list(sigmas)
    if points:
        data["kpt_names"] = points
    return data


def form_of(data: dict[str, Any]) -> DataSummary:
    """What a data.yaml alone says of its data set; nothing is counted."""
    names = class_names(data)
    points = data.get("kpt_names")
    return DataSummary(
        names,
        num_train=0,
        num_val=0,
        num_test=0,
        class_counts=(0,) * len(names),
        channels=data.get("channels", 3),
        kpt_shape=tuple(data["kpt_shape"]) if data.get("kpt_shape") else None,
        flip_idx=tuple(data.get("flip_idx", ())),
        kpt_oks_sigmas=tuple(float(sigma) for sigma in data.get("kpt_oks_sigmas", ())),
        kpt_names=tuple(tuple(points.get(i, ())) for i in range(len(names))) if points else (),
    )
