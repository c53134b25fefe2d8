"""A site's own settings: the node config of its SuperNode.

Only the name, not-annotated and show-images are sent to the server; the paths never are.

flower-supernode ... --node-config 'data="/srv/site/data.yaml" name="north"'
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federated_yolo.common.errors import InputError, nearest
from federated_yolo.config.schema import CLIENT_NAME
from federated_yolo.data.exports.convert import Options, prepare

DEFAULT_FOLDER = "~/.federated-yolo"
MAX_THREADS = 1024  # with very many threads PyTorch ends in a segmentation fault


@dataclass(frozen=True)
class Site:
    """A SuperNode's own settings.

    name: Name of the client. data: Path of its data.yaml, of a classifier's folder or of an export.
    folder: Folder for its files, with a subfolder for each run. not_annotated: Classes in its data
    that it does not annotate. show_images: Number of images of its val split that others may see.
    share_model: Whether its own model may be sent to others, if the federation's config asks for
    it. num_threads: Threads of PyTorch on the CPU; None for all. val_fraction: Share of the train
    images that becomes the val split of data without one.
    """

    name: str
    data: Path
    folder: Path
    not_annotated: tuple[str, ...] = ()
    show_images: int = 0
    share_model: bool = False
    num_threads: int | None = None
    val_fraction: float | None = None


# Keys of a node config -> type, and what is expected in words.
KEYS: dict[str, tuple[type, str]] = {
    "data": (str, "the path of a data.yaml, a classifier's folder or an export"),
    "name": (str, "a name"),
    "folder": (str, "a folder"),
    "not-annotated": (str, "class names, separated by commas"),
    "show-images": (int, "a whole number of images, from 0 to 16"),
    "share-model": (bool, "true or false"),
    "num-threads": (int, f"a whole number from 1 to {MAX_THREADS}"),
    "val-fraction": (float, "a number above 0 and below 1, such as 0.2"),
}


def is_site(node_config: Mapping[str, Any]) -> bool:
    """Whether this node config belongs to a site, and not to a node of a simulation."""
    return "data" in node_config or "partition-id" not in node_config


def read_site(node_config: Mapping[str, Any]) -> Site:
    """Return the site of a node config. Raises InputError, with a line for each problem."""
    problems = []
    for key, value in node_config.items():
        if key in ("partition-id", "num-partitions"):
            continue
        if key not in KEYS:
            problems.append(f"node-config: {key}: unknown{nearest(key, KEYS)}")
        elif type(value) is not KEYS[key][0]:
            problems.append(f"node-config: {key}: found {value!r}, expected {KEYS[key][1]}")
    if problems:
        raise InputError(problems)
    if "data" not in node_config:
        raise InputError(
            "node-config: no 'data'; start the SuperNode with --node-config "
            '\'data="/srv/site/data.yaml" name="north"\''
        )
    data = _read_path(node_config["data"], "data")
    name = str(node_config.get("name", data.name if data.is_dir() else data.parent.name))
    images, threads = node_config.get("show-images", 0), node_config.get("num-threads")
    if not CLIENT_NAME.fullmatch(name):
        problems.append(
            f"node-config: name: found {node_config['name']!r}, expected letters, digits, '.', '_' "
            "and '-'"
            if "name" in node_config
            else "node-config: no 'name', and that of the data's folder has more than letters, "
            "digits, '.', '_' and '-'; add one, such as name=\"north\""
        )
    problems += [
        f"node-config: {key}: found {node_config[key]}, expected {KEYS[key][1]}"
        for key, fits in (
            ("show-images", 0 <= images <= 16),
            ("num-threads", threads is None or 0 < threads <= MAX_THREADS),
            ("val-fraction", 0 < node_config.get("val-fraction", 0.5) < 1),
        )
        if not fits
    ]
    if problems:
        raise InputError(problems)
    classes = (part.strip() for part in str(node_config.get("not-annotated", "")).split(","))
    return Site(
        name=name,
        data=data,
        folder=_read_path(node_config.get("folder", f"{DEFAULT_FOLDER}/{name}"), "folder"),
        not_annotated=tuple(part for part in classes if part),
        show_images=images,
        share_model=node_config.get("share-model", False),
        num_threads=threads,
        val_fraction=node_config.get("val-fraction"),
    )


def prepared_data(site: Site, task: str) -> Path:
    """The site's data as Ultralytics reads it: its own, or what is made of an export in its folder.

    Raises InputError.
    """
    options = Options(task, site.val_fraction)
    where = f"site '{site.name}'"
    return prepare(site.data, site.folder / "converted", site.name, options, where=where).path


def _read_path(value: Any, key: str) -> Path:
    try:
        path = Path(str(value)).expanduser().absolute()
        path.resolve()  # raises if it is not a possible path
    except (OSError, ValueError, RuntimeError) as error:  # too long; a null; no such user's home
        raise InputError(
            f"node-config: {key}: is no path ({type(error).__name__}); expected {KEYS[key][1]}"
        ) from error
    return path
