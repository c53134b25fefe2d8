"""Turns Ultralytics' messages about data sets into plain words, one line each."""

import re
from collections.abc import Iterable

import yaml
from ultralytics.data.utils import IMG_FORMATS
from ultralytics.utils import colorstr
from yaml.parser import ParserError
from yaml.scanner import ScannerError

MAX_LINES_PER_SPLIT = 5

PREFIX = colorstr("val: ")  # before the messages of a scan
TRAIN_PREFIX = colorstr("train: ")  # the same, where a trainer scans
ENDINGS = ", ".join(sorted(IMG_FORMATS))  # of image file names
# unstable: ultralytics.data.utils.verify_image says '{prefix}{im_file}: ignoring corrupt image'
# unstable: ultralytics.data.utils.verify_image_label says 'ignoring corrupt image/label: '
DAMAGED = "ignoring corrupt image/label: "  # in Ultralytics' messages about files it leaves out
# unstable: ultralytics.utils.patches says 'pi_heif'
# unstable: ultralytics.data.utils.verify_image_label says 'non-normalized or out of bounds coo'
# unstable: ultralytics.data.utils.verify_image_label says 'negative label values'
# unstable: ultralytics.data.utils.verify_image_label says 'non-integer class labels'
# Ultralytics' messages that would mislead a user -> what they mean.
PLAIN_WORDS = {
    # Ultralytics tries to read as HEIF what Pillow cannot read, and reports the failure of that.
    "No module named 'pi_heif'": "not readable as an image (HEIC needs the package pi-heif)",
}


def damaged_files(messages: Iterable[str]) -> list[str]:
    """Return a line for each file that Ultralytics would silently leave out, up to 5 files."""
    lines = []
    for message in sorted(m for m in messages if DAMAGED in m):
        path, reason = _without_prefix(" ".join(message.split())).split(DAMAGED)
        reason = next((plain for found, plain in PLAIN_WORDS.items() if found in reason), reason)
        lines.append(f"{path}{reason}; repair or remove the image or its label")
    more = len(lines) - MAX_LINES_PER_SPLIT
    return lines[:MAX_LINES_PER_SPLIT] + (
        [f"... and {more} more damaged files"] if more > 0 else []
    )


def yaml_error(error: Exception) -> str:
    """Describe the error and its place without the file's content, which must not leave a site."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        mark, problem = error.problem_mark, error.problem or ""
        # Scanner and parser errors quote signs, except the one about a tag handle; that one and all
        # other errors quote names and values.
        if not isinstance(error, ScannerError | ParserError) or "tag handle" in problem:
            problem = re.sub(r"(['\"]).*\1", "'...'", problem, flags=re.DOTALL)
        return f"{problem}, line {mark.line + 1}, column {mark.column + 1}"
    if isinstance(error, yaml.YAMLError | UnicodeError | OSError):
        return " ".join(str(error).split())
    return f"a value that cannot be read ({type(error).__name__})"


def one_line(error: BaseException) -> str:
    """Return the first line of an Ultralytics error, without its colours and signs."""
    text = str(error.args[0] if isinstance(error, KeyError) else error).strip()
    text = (text.splitlines() or [type(error).__name__])[0]
    return _without_prefix(text).replace(" ❌", "").rstrip(".")


def _without_prefix(message: str) -> str:
    return message.removeprefix(PREFIX).removeprefix(TRAIN_PREFIX)
