"""Summary of a data set: classes, images, labels and form (channels and keypoints)."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ultralytics.utils.metrics import OKS_SIGMA

from federated_yolo.data.data_yaml import class_names


@dataclass(frozen=True)
class DataSummary:
    """Contents of one data set.

    names: Class names by index. num_train, num_val, num_test: Numbers of images that Ultralytics
    will use; num_test is 0 if no test image has a label.
    class_counts: Boxes of each class in the train split, in the order of `names`; for classify,
    images.
    test_is_unlabelled: Whether there are test images, but none with a label.
    channels, kpt_shape: Image channels and shape of the keypoints (None without any), which shape
    the model.
    flip_idx, kpt_oks_sigmas, kpt_names: Other keys of a data.yaml about keypoints, empty if it does
    not have them: the index of each in a mirrored image, how exactly it can be placed, and, by
    class index, the names.
    val_classes, test_classes: Names of the classes that have a label in this split.
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
        """Lists of what each keypoint is, by their names in messages, without class indices."""
        lists: dict[str, tuple[Any, ...]] = {"flip_idx": self.flip_idx}
        lists |= {f"kpt_names of '{name}'": p for name, p in self.kpt_names_by_class.items()}
        return {name: values for name, values in lists.items() if values}

    @property
    def sigmas(self) -> tuple[float, ...]:
        """Sigma of each keypoint in training and scoring: given, or Ultralytics' default."""
        if self.kpt_oks_sigmas or self.kpt_shape is None:
            return self.kpt_oks_sigmas
        num_points = self.kpt_shape[0]
        is_of_coco = self.kpt_shape == (17, 3)
        return tuple(OKS_SIGMA.tolist()) if is_of_coco else (1 / num_points,) * num_points

    @property
    def kpt_names_by_class(self) -> dict[str, tuple[str, ...]]:
        """Names of keypoints by class name, for classes that have any."""
        pairs = zip(self.names, self.kpt_names, strict=False)  # kpt_names may be empty
        return {name: points for name, points in pairs if points}


def without_unlabelled_test(summary: DataSummary, classes: Sequence[str] | None) -> DataSummary:
    """Return the summary, without the test split if that has no label of any of these classes.

    classes: Result of `selected_classes`.
    """
    is_scored = classes is None or not set(classes).isdisjoint(summary.test_classes)
    if is_scored or not summary.num_test:
        return summary
    return replace(summary, num_test=0, test_is_unlabelled=True)


def form_problems(found: DataSummary, others: Mapping[str, DataSummary]) -> list[str]:
    """Describe how the form of a data set differs from others in a federation, each point once.

    Channels and kpt_shape shape the model. The meaning of a keypoint must agree if two data sets
    state it: otherwise the model would learn two meanings of one keypoint. Sigmas must always
    agree: if none are given, Ultralytics uses its own.

    others: Summaries of the other data sets by their names in messages.
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
        if different:  # by more than 1 %: 0.333 may stand for a third
            i = different[0]
            text = f"kpt_oks_sigmas: {_sigma(found, i)} for keypoint {i}, {other} has"
            text += f" {_sigma(expected, i)}; all data sets need the same"
            problems.setdefault("kpt_oks_sigmas", text)
    return list(problems.values())


def _sigma(summary: DataSummary, keypoint: int) -> str:
    default = "" if summary.kpt_oks_sigmas else " (Ultralytics' default, since it says none)"
    return f"{summary.sigmas[keypoint]:.3g}{default}"


def model_data(summaries: Iterable[DataSummary], names: Sequence[str]) -> dict[str, Any]:
    """Return the keys of a data.yaml that `build_model` needs, for all clients together.

    summaries: At least one, without `form_problems`. names: The federation's class names.
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
    # Keys that no client has are left out, as in the data.yaml that `yolo train` would read.
    if sigmas:
        data["kpt_oks_sigmas"] = list(sigmas)
    if points:
        data["kpt_names"] = points
    return data


def form_of(data: dict[str, Any]) -> DataSummary:
    """Return the summary of a data set from its data.yaml alone; nothing is counted."""
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
