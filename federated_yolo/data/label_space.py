"""The label space: the federation's classes, and the mapping of each data set's own to them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from federated_yolo.common.errors import InputError
from federated_yolo.data.data_yaml import CLASS_MAP, NOT_ANNOTATED, class_names
from federated_yolo.data.summary import DataSummary


def selected_classes(train: Mapping[str, Any], names: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of the classes that `train.classes` selects; None without it, for all.

    train: Ultralytics train arguments. names: The federation's class names.
    """
    classes = train.get("classes")
    if classes is None:
        return None
    indices = classes if isinstance(classes, list) else [classes]
    return tuple(name for index, name in enumerate(names) if index in indices)


def class_problems(
    summary: DataSummary, classes: Sequence[str] | None, splits: Sequence[str] = ("train", "val")
) -> list[str]:
    """Describe splits that have no label of any of these classes, and so nothing to train or score.

    classes: Result of `selected_classes`.
    """
    if classes is None:
        return []
    counts = zip(summary.names, summary.class_counts, strict=True)
    found = {"train": {name for name, count in counts if count}, "val": {*summary.val_classes}}
    return [
        f"{split}: no label is of [{', '.join(classes)}], the classes that train.classes leaves; "
        "do without this data set, or label some"
        for split in splits
        if found[split].isdisjoint(classes)
    ]


def label_space(clients: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return the union of the clients' class names, in order of appearance.

    clients: Class names by client. Raises InputError for names that differ only in case or spaces,
    which are more often one class written in two ways than two classes.
    """
    first: dict[str, tuple[str, str]] = {}
    problems = []
    for client, names in clients.items():
        for name in names:
            other, where = first.setdefault("".join(name.casefold().split()), (name, client))
            if other != name:
                problems.append(
                    f"'{client}': class '{name}' and '{other}' of '{where}' differ only in case or "
                    "spaces; write them alike, or list both under names if they are two classes"
                )
    if problems:
        raise InputError(problems)
    return tuple(name for name, _ in first.values())


def in_label_space(
    data: Mapping[str, Any], names: Sequence[str], not_annotated: Iterable[str] = ()
) -> dict[str, Any]:
    """Return the data set with the federation's classes; the label files do not change.

    data: Result of `read_data_yaml`. names: The federation's class names, which include all of the
    data set's. not_annotated: Those of the data set's own classes that nobody annotated. Two keys
    are added if needed: CLASS_MAP, the federation's index of each own class, and NOT_ANNOTATED, the
    federation's indices of classes whose absence from the labels means nothing.
    """
    own = class_names(dict(data))
    result = {**data, "names": dict(enumerate(names)), "nc": len(names)}
    result.pop(CLASS_MAP, None)
    result.pop(NOT_ANNOTATED, None)
    if own != tuple(names):
        result[CLASS_MAP] = class_map = [list(names).index(name) for name in own]
        if "kpt_names" in data:
            result["kpt_names"] = {class_map[i]: p for i, p in data["kpt_names"].items()}
    annotated = set(own) - set(not_annotated)
    missing = [index for index, name in enumerate(names) if name not in annotated]
    if missing:
        result[NOT_ANNOTATED] = missing
    return result
