"""How numbers, durations and errors are written for people."""

import re
from collections.abc import Mapping

COLOUR = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")  # and the like: ECMA-48, 5.4
MAX_LINE = 2000


def in_one_line(text: str) -> str:
    """Anyone's text for a terminal or a table, without colours and what would move a cursor."""
    text = COLOUR.sub("", text[: 10 * MAX_LINE])  # of a text without end no more is looked at
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MAX_LINE]


def reason_of(error: BaseException) -> str:
    """What went wrong, in a line."""
    return in_one_line(f"{type(error).__name__}: {error}")


NO_VALUE = "–"


def format_score(value: float | None) -> str:
    """0.451"""
    return NO_VALUE if value is None else f"{value:.3f}"


def format_count(value: float | None) -> str:
    """3 011 433, with narrow spaces that no line is broken at."""
    return NO_VALUE if value is None else f"{value:,.0f}".replace(",", "\u202f")


def counted(number: int, noun: str) -> str:
    """1 round, 2 rounds"""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def listed(counts: Mapping[str, int]) -> str:
    """train 12, val 4"""
    return ", ".join(f"{name} {format_count(count)}" for name, count in counts.items())


def format_bytes(value: float | None) -> str:
    """48.3 MB"""
    if value is None:
        return NO_VALUE
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"


def format_duration(seconds: float | None) -> str:
    """56.8 s, 2 min 5 s, 1 h 12 min"""
    if seconds is None:
        return NO_VALUE
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def short(name: str, length: int = 24) -> str:
    """A name cut to a length."""
    return name if len(name) <= length else f"{name[: length - 1]}…"
