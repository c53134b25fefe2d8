"""Recognises the tool that a data set comes from, by the content of the user's folder or file."""

from pathlib import Path

from federated_yolo.data.exports import (
    classification,
    coco,
    createml,
    cvat,
    datumaro,
    labelme,
    named,
    ndjson,
    supervisely,
    tables,
    voc,
    yolo,
    yolo_folders,
)
from federated_yolo.data.exports.content import Format
from federated_yolo.data.exports.files import walking_once
from federated_yolo.data.exports.yolo import find_yaml

MAX_ENTRIES = 6  # in a message

# Formats with a more special signature come first.
FORMATS: tuple[Format, ...] = tuple(
    known
    for module in (
        yolo,
        ndjson,
        coco,
        cvat,
        supervisely,
        datumaro,
        createml,
        labelme,
        tables,
        yolo_folders,
        voc,
        classification,
        named,
    )
    for known in module.FORMATS
)


def recognise(path: Path) -> Format | None:
    """Return the format of a folder or file; None for an Ultralytics data set or nothing known."""
    with walking_once():
        found = next((known for known in FORMATS if known.matches(path)), None)
        # Annotations that the labels of a data set were made of may lie beside them.
        is_own = found is not None and found not in yolo.FORMATS and yolo.is_own(path)
    return None if is_own else found


def unknown_folder(path: Path) -> str:
    """Describe what is in a folder that is of no known format, and what is expected."""
    entries = sorted(entry.name + "/" * entry.is_dir() for entry in path.iterdir())
    below = [p for p in sorted(path.iterdir()) if p.is_dir() and not p.name.startswith((".", "_"))]
    if len(below) == 1 and (find_yaml(below[0]) or recognise(below[0])):
        return f"nothing but a folder with a data set; give {below[0]}"
    shown = ", ".join(entries[:MAX_ENTRIES]) + (", ..." if entries[MAX_ENTRIES:] else "")
    names = ", ".join(dict.fromkeys(known.name for known in FORMATS if known.read))
    return (
        f"a folder that is not known as a data set; found {shown or 'nothing'}; expected a "
        f"data.yaml, train/CLASS/*.jpg, or an export of an annotation tool ({names}) as it was "
        "unpacked (docs/formats.md)"
    )
