"""Removes a site's paths from the texts that it sends."""

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from ultralytics.data.utils import IMG_FORMATS

from federated_yolo.client.site import read_site
from federated_yolo.common.errors import InputError
from federated_yolo.common.files import read_yaml

A_PATH = "(a path)"  # replaces each path
# File names in our own messages, and URLs in libraries' messages: they reveal nothing of a site.
NO_PATH = re.compile(
    r"https?://\S+|(?<![^\s('\"])(?:data\.yaml|\.ndjson\.yaml|\.txt|(?:local_)?best\.pt|last\.pt"
    r"|(?:\w+/)?CLASS/\*\.jpg)(?![\w/.-])"
)
HIDDEN = str.maketrans({".": "\0", "/": "\1"})  # characters that no file name has
SHOWN = {ord(new): chr(old) for old, new in HIDDEN.items()}
# A file name may contain anything, also ": " and quotes. So only the last suffix in a text surely
# ends a file name.
SUFFIXES = sorted({*IMG_FORMATS, *"txt yaml yml json ndjson npy csv cache pt".split()})
FILE_NAME_END = re.compile(rf"\.(?:{'|'.join(SUFFIXES)})\b", re.IGNORECASE)
PATH_START = re.compile(
    r"(?:\(a path\)|(?<![\w.])\.{1,2}|~|\b[A-Za-z]:|(?<!\w)\\|(?<!\w))[/\\](?=\S)"
)
# Where a path surely begins; a slash after anything else can be in the middle of a path.
SURE_START = re.compile(r"\(a path\)[/\\]|(?<=[ '\"(])(?:\.{1,2}|~|[A-Za-z]:|\\)?[/\\]")
# How our messages begin: the kind of the exception, the client, the split.
BEGINNING = re.compile(
    r"(?:\w+(?:Error|Exception): )?(?:(?:site|client) '[\w.-]+'(?: \(\(a path\)\))?: )?"
    r"(?:(?:train|val|test): )?"
)


def paths_at(node_config: Mapping[str, Any]) -> list[str]:
    """Return paths that a site's errors may name: from its node config and a readable data.yaml."""
    values: list[Any] = list(node_config.values())
    known = set()
    with suppress(RuntimeError):  # a user without a home, as in some containers
        known.add(str(Path.home()))
    with suppress(InputError):  # an invalid node config may be the error to report
        site = read_site(node_config)
        paths = (site.data, site.data.parent, site.folder)
        known.update(
            str(form) for path in paths for form in (path, path.absolute(), path.resolve())
        )
        with suppress(Exception):  # reading it may be what failed, with any kind of exception
            raw = read_yaml(site.data)
            values += [raw.get(key) for key in ("path", "train", "val", "validation", "test")]
    for value in values:
        known.update(str(v) for v in (value if isinstance(value, list) else [value]))
    # A bare word such as "images" reveals nothing, and may be a normal word of a message.
    return sorted(path for path in known if len(path) > 1 and ("/" in path or "\\" in path))


def without_paths(text: str, known: Iterable[str] = ()) -> str:
    """Return a message without paths, as it may leave the site: file names can reveal contents.

    known: Paths to remove wherever they occur. Anything else that may be a path is removed together
    with the text around it, since a file name can look like a sentence; the site's log has it all.
    """
    for path in sorted(known, key=len, reverse=True):
        # Only if the name ends here: another folder's name may begin with the same letters.
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
    """Return the text before a path, or only up to `first` if the path may begin earlier."""
    return text[: path.start() if SURE_START.match(text, path.start()) else first]


def _without_folders(text: str) -> str:
    """Remove paths without a suffix: up to the quote, the words of a check, or the end."""
    found = PATH_START.search(text)
    if found is None:
        return text
    before, after = _surely_before(found, text, 0), text[found.end() :]
    quote = before[-1:] if before[-1:] in ("'", '"') else None
    end = re.search(rf"{quote}(?=[;,:)\]]|$)" if quote else " does not exist; ", after)
    return before + A_PATH + (_without_folders(after[end.start() :]) if end else "")
