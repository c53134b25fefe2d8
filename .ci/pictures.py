"""Draw docs/rooms.svg and docs/round.svg: the rooms of the package, and one round as a sequence.

Names and texts of the rooms are those of the package: the first line of each room's __init__.
"""

import ast
from html import escape
from pathlib import Path
from textwrap import wrap

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "federated_yolo"
# From the bottom up, as tests/unit/package/test_rooms.py has them.
FLOORS = (
    ("common",),
    ("storage", "config", "data"),
    ("yolo", "reporting", "partitioning"),
    ("protocol",),
    ("client", "aggregation"),
    ("server",),
    ("checks",),
    ("runtime",),
    ("consortium",),
    ("sites",),
)
TOP = ("cli.py  ·  api.py  ·  app.py", "The command, the Python interface and the two Flower apps.")
WIDTH, BOX, GAP, CHARACTER = 920, 74, 14, 6.3  # pixels; a character of 12 px text is CHARACTER wide
STYLE = """<style>
text { font: 12px system-ui, sans-serif; fill: #3b3f46 }
.name { font-weight: 600; font-size: 14px; fill: #1a1d21 }
.box { fill: #f3f5fb; stroke: #b9c3e0 }
.top { fill: #e4e9f8; stroke: #8d9bd0 }
.line { stroke: #8a8f98; fill: none }
.dash { stroke: #c9ccd2; stroke-dasharray: 4 4 }
.arrow { stroke: #3f51b5; stroke-width: 1.5; fill: none; marker-end: url(#head) }
.frame { fill: none; stroke: #c9ccd2 }
</style>
<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7"
orient="auto"><path d="M0 0 L8 4 L0 8 z" fill="#3f51b5"/></marker></defs>"""


def svg(width: int, height: int, title: str, parts: list[str]) -> str:
    """A picture on a white ground, which dark pages leave as it is."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" role="img">\n<title>{escape(title)}</title>'
    )
    ground = f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>'
    return "\n".join([head, STYLE, ground, *parts, "</svg>\n"])


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "middle") -> str:
    """A line of text."""
    name = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}"{name}>{escape(words)}</text>'


def box(x: float, y: float, width: float, name: str, words: str, kind: str = "box") -> str:
    """A box with a name and up to three lines of words."""
    lines = wrap(words, int((width - 20) / CHARACTER))[:3]
    parts = [f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{BOX}" rx="6" class="{kind}"/>']
    top = y + (BOX - 16 * (1 + len(lines))) / 2 + 13
    parts.append(text(x + width / 2, top, name, "name"))
    parts += [text(x + width / 2, top + 17 + 16 * n, line) for n, line in enumerate(lines)]
    return "\n".join(parts)


def subject(room: str) -> str:
    """What a room is for: the first line of its docstring."""
    tree = ast.parse((PACKAGE / room / "__init__.py").read_text())
    return (ast.get_docstring(tree) or "").splitlines()[0].replace("`", "")


def rooms() -> str:
    """The rooms by floor; each may import from the floors below its own."""
    y, parts = 16, [box(20, 16, WIDTH - 40, *TOP, kind="top")]
    for floor in reversed(FLOORS):
        y += BOX + GAP
        width = (WIDTH - 40 - GAP * (len(floor) - 1)) / len(floor)
        parts += [
            box(20 + n * (width + GAP), y, width, f"{room}/", subject(room))
            for n, room in enumerate(floor)
        ]
    y += BOX + 26
    note = "A room imports from the floors below its own, never from beside or above."
    return svg(WIDTH, y + 14, "The rooms of federated_yolo", [*parts, text(WIDTH / 2, y, note)])


LANES = ("Server", "Aggregation", "Flower", "ClientApp", "YoloClient")
STEPS = (  # from lane, to lane, words
    (0, 0, "sample the clients of the round"),
    (0, 2, "instructions, and the global arrays or their change (broadcast, delta, codec)"),
    (2, 3, "one message for each client"),
    (3, 3, "sites refuse unsound instructions"),
    (3, 4, "fit: load the arrays"),
    (4, 4, "train the next local_epochs"),
    (4, 4, "save its state"),
    (4, 3, "arrays, losses, images"),
    (3, 2, "noise if privacy is local; what has changed, encoded"),
    (2, 0, "replies, as they come"),
    (0, 0, "check each: size, layout, finite values, numbers that can be; else fail the client"),
    (0, 1, "updates, in the order of the clients' names"),
    (1, 0, "new global arrays: mean, server optimiser, noise if privacy is central"),
    (0, 0, "save roundN.npz and the strategy's state"),
    (0, 2, "evaluate: the new arrays, to all clients"),
    (2, 0, "scores on the clients' val splits"),
    (0, 0, "score the server's own data"),
    (0, 0, "last.pt, best.pt, rows of the tables; the row in results.csv completes the round"),
)


def one_round() -> str:
    """A round from top to bottom: who does what, and what travels between whom."""
    width, step = 1000, 40
    centres = [90 + n * (width - 290) / (len(LANES) - 1) for n in range(len(LANES))]
    bottom = 70 + step * len(STEPS)
    parts = []
    for centre, lane in zip(centres, LANES, strict=True):
        parts.append(f'<path d="M{centre:g} 52 V{bottom}" class="dash"/>')
        parts.append(
            f'<rect x="{centre - 78:g}" y="16" width="156" height="36" rx="6" class="top"/>'
        )
        parts.append(text(centre, 39, lane, "name"))
    for number, (start, end, words) in enumerate(STEPS):
        y = 92 + step * number
        x, to = centres[start], centres[end]
        if start == end:
            parts.append(f'<circle cx="{x:g}" cy="{y - 4}" r="4" fill="#3f51b5"/>')
            parts.append(_label(x + 12, y, words, width))
        else:
            parts.append(f'<path d="M{x:g} {y} H{to + (7 if to < x else -7):g}" class="arrow"/>')
            parts.append(_label(min(x, to) + 12, y - 7, words, width))
    return svg(width, bottom + 16, "One round", parts)


def _label(x: float, y: float, words: str, width: int) -> str:
    """Text on a white ground, so that no lane crosses it; moved left where it would be cut off."""
    length = len(words) * CHARACTER
    x = min(x, width - length - 10)
    ground = f'<rect x="{x - 3:g}" y="{y - 12:g}" width="{length + 3:g}" height="15" fill="#fff"/>'
    return ground + text(x, y, words, anchor="start")


if __name__ == "__main__":
    (ROOT / "docs" / "rooms.svg").write_text(rooms())
    (ROOT / "docs" / "round.svg").write_text(one_round())
