"""What a site says about itself: the node config of its SuperNode. It never leaves the site.

flower-supernode ... --node-config 'data="/srv/site/data.yaml" name="north"'
"""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ultralytics.data.utils import IMG_FORMATS

from utils.config import CLIENT_NAME, InputError, nearest
from utils.files import read_yaml

DEFAULT_FOLDER = "~/.federated-yolo"
MAX_THREADS = 1024  # with very many PyTorch ends in a segmentation fault
A_PATH = "(a path)"  # stands for all of them
# Names of files in our own sentences, and pages of libraries: they say nothing of the site.
NO_PATH = re.compile(
    r"https?://\S+|(?<![^\s('\"])(?:data\.yaml|\.ndjson\.yaml|\.txt|(?:local_)?best\.pt|last\.pt"
    r"|(?:\w+/)?CLASS/\*\.jpg)(?![\w/.-])"
)
HIDDEN = str.maketrans({".": "\0", "/": "\1"})  # which no file name has
SHOWN = {ord(new): chr(old) for old, new in HIDDEN.items()}
# File names may hold anything, ": " and quotes too, so the last of these ends the last of them.
SUFFIXES = sorted({*IMG_FORMATS, *"txt yaml yml json ndjson npy csv cache pt".split()})
FILE_NAME_END = re.compile(rf"\.(?:{'|'.join(SUFFIXES)})\b", re.IGNORECASE)
PATH_START = re.compile(
    r"(?:\(a path\)|(?<![\w.])\.{1,2}|~|\b[A-Za-z]:|(?<!\w)\\|(?<!\w))[/\\](?=\S)"
)
# Where a path surely begins; a slash after anything else can be in the middle of one.
SURE_START = re.compile(r"\(a path\)[/\\]|(?<=[ '\"(])(?:\.{1,2}|~|[A-Za-z]:|\\)?[/\\]")
# How our sentences begin: whose they are, or the kind of the exception.
BEGINNING = re.compile(
    r"(?:\w+(?:Error|Exception): )?(?:(?:site|client) '[\w.-]+'(?: \(\(a path\)\))?: )?"
    r"(?:(?:train|val|test): )?"
)


@dataclass(frozen=True)
class Site:
    """A SuperNode's own settings.

    name: of the client. data: its data.yaml, or a classifier's folder. not_annotated: of its
    classes. show_images: how many images of its val split may be seen by others. share_model:
    whether its own model may be sent to others, if the federation's config asks for that. folder:
    where it keeps its files, one folder for each run. num_threads: of PyTorch on the CPU, None for
    all.
    """

    name: str
    data: Path
    folder: Path
    not_annotated: tuple[str, ...] = ()
    show_images: int = 0
    share_model: bool = False
    num_threads: int | None = None


# Keys of a node config -> type and what is expected.
KEYS: dict[str, tuple[type, str]] = {
    "data": (str, "the path of a data.yaml, or of a classifier's folder"),
    "name": (str, "a name"),
    "folder": (str, "a folder"),
    "not-annotated": (str, "class names, separated by commas"),
    "show-images": (int, "a whole number of images, from 0 to 16"),
    "share-model": (bool, "true or false"),
    "num-threads": (int, f"a whole number from 1 to {MAX_THREADS}"),
}


def is_site(node_config: Mapping[str, Any]) -> bool:
    """Whether this is a SuperNode with data of its own, and not a node of a simulation."""
    return "data" in node_config or "partition-id" not in node_config


def read_site(node_config: Mapping[str, Any]) -> Site:
    """The site of a node config. Raises InputError with every problem."""
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
    )


def _read_path(value: Any, key: str) -> Path:
    try:
        path = Path(str(value)).expanduser().absolute()
        path.resolve()  # raises for what no path can be
    except (OSError, ValueError, RuntimeError) as error:  # too long; a null; no such user's home
        raise InputError(
            f"node-config: {key}: is no path ({type(error).__name__}); expected {KEYS[key][1]}"
        ) from error
    return path


def paths_at(node_config: Mapping[str, Any]) -> list[str]:
    """Paths that a site's errors may name, from its node config and, if readable, its data.yaml."""
    values: list[Any] = list(node_config.values())
    known = set()
    with suppress(RuntimeError):  # a user without a home, as in some containers
        known.add(str(Path.home()))
    with suppress(InputError):  # what is wrong with it may be what is told
        site = read_site(node_config)
        paths = (site.data, site.data.parent, site.folder)
        known.update(
            str(form) for path in paths for form in (path, path.absolute(), path.resolve())
        )
        with suppress(Exception):  # its reading may be what failed, in any way of a constructor
            raw = read_yaml(site.data)
            values += [raw.get(key) for key in ("path", "train", "val", "validation", "test")]
    for value in values:
        known.update(str(v) for v in (value if isinstance(value, list) else [value]))
    # A bare word, such as "images", says nothing, and may be one of a sentence.
    return sorted(path for path in known if len(path) > 1 and ("/" in path or "\\" in path))


def without_paths(text: str, known: Iterable[str] = ()) -> str:
    """One problem as it may leave the site: file names can say as much as what is in the files.

    known: paths to take out wherever they stand. What else may be a path is taken out with what
    stands around it, since a file's name can look like a sentence; the site's log has it all.
    """
    for path in sorted(known, key=len, reverse=True):
        # Not where it goes on: another folder may begin with the same letters.
        text = re.sub(rf"{re.escape(path)}(?=[/\\'\"):;]|$)", A_PATH, text)
    text = NO_PATH.sub(lambda found: found.group().translate(HIDDEN), text)
    beginning = BEGINNING.match(text)
    first = beginning.end() if beginning else 0
    ends = [found.end() for found in FILE_NAME_END.finditer(text, first)]
    if ends:
        found = PATH_START.search(text, first, ends[0])
        before = _surely_before(found, text, first) if found else text[:first]
        text = before + A_PATH + _without_folders(text[ends[-1] :])
    else:
        text = text[:first] + _without_folders(text[first:])
    return text.translate(SHOWN)


def _surely_before(path: re.Match[str], text: str, first: int) -> str:
    """What stands before a path; only up to `first` where it may have begun anywhere after that."""
    return text[: path.start() if SURE_START.match(text, path.start()) else first]


def _without_folders(text: str) -> str:
    """Without paths that no suffix ends: up to the quote, the words of a check, or the end."""
    found = PATH_START.search(text)
    if found is None:
        return text
    before, after = _surely_before(found, text, 0), text[found.end() :]
    quote = before[-1:] if before[-1:] in ("'", '"') else None
    end = re.search(rf"{quote}(?=[;,:)\]]|$)" if quote else " does not exist; ", after)
    return before + A_PATH + (_without_folders(after[end.start() :]) if end else "")
