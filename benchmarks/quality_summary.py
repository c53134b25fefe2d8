"""What the sets of the benchmark of quality say together: ratios, goals, and which settings serve.

Scores are of the metric by which the task is judged, on the test split. A ratio is one of means
over seeds. Its error is the standard error by the spread of both over their seeds (first order:
relative errors add in squares), which two seeds of each are needed for.
"""

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEFAULTS = "defaults"
GOALS = {True: 0.97, False: 0.95}  # of the best pooled training, for clients alike and unlike


@dataclass(frozen=True)
class Measured:
    """A training by its name, and its score with each seed."""

    name: str
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        return statistics.mean(self.scores)

    @property
    def sd(self) -> float | None:
        """Sample standard deviation over seeds, which one seed does not have."""
        return statistics.stdev(self.scores) if len(self.scores) > 1 else None

    def __str__(self) -> str:
        return with_spread(self.mean, self.sd)


@dataclass(frozen=True)
class Ratio:
    """A ratio of means, and its standard error, None with a single seed of either."""

    value: float
    error: float | None

    def __str__(self) -> str:
        return with_spread(self.value, self.error)


@dataclass(frozen=True)
class Row:
    """What was measured on one set.

    pooled: by batch. alone: by client, of the largest clients if not of all `num_clients`.
    federated: by settings, the defaults among them. is_chosen_on: whether defaults were chosen on
    it. num_objects: in the test images.
    """

    name: str
    is_alike: bool
    is_chosen_on: bool
    pooled: tuple[Measured, ...]
    alone: tuple[Measured, ...]
    federated: tuple[Measured, ...]
    num_clients: int
    num_alone: int
    num_images: int
    num_objects: int

    @property
    def defaults(self) -> Measured | None:
        return next((one for one in self.federated if one.name == DEFAULTS), None)

    @property
    def best_pooled(self) -> Measured | None:
        return best_of(self.pooled)

    @property
    def best_alone(self) -> Measured | None:
        return best_of(self.alone)

    @property
    def ratio(self) -> Ratio | None:
        """Of the defaults to the best pooled training."""
        return ratio_of(self.defaults, self.best_pooled)

    @property
    def ratio_alone(self) -> Ratio | None:
        """Of the defaults to the best client alone."""
        return ratio_of(self.defaults, self.best_alone)

    @property
    def goal(self) -> float:
        return GOALS[self.is_alike]

    @property
    def seeds(self) -> str:
        """`3`; `3 / 2 / 1`: of the federation, best pooled and best alone, where they differ."""
        counts = [
            str(len(one.scores) if one else 0)
            for one in (self.defaults, self.best_pooled, self.best_alone)
        ]
        return counts[0] if len(set(counts)) == 1 else " / ".join(counts)


def best_of(trainings: Iterable[Measured]) -> Measured | None:
    """The one with the highest mean over its seeds."""
    return max(trainings, key=lambda one: one.mean, default=None)


def ratio_of(one: Measured | None, other: Measured | None) -> Ratio | None:
    """Ratio of the means; None without both, or if the other has learned nothing."""
    if one is None or other is None or other.mean == 0:
        return None
    error = None
    if one.sd is not None and other.sd is not None:
        # d(a/b)² = (da/b)² + (a db/b²)², with da and db the standard errors of the means
        squares = one.sd**2 / len(one.scores), other.sd**2 / len(other.scores)
        value = one.mean / other.mean
        error = math.sqrt(squares[0] + value**2 * squares[1]) / other.mean
    return Ratio(one.mean / other.mean, error)


def measured(records: Iterable[Mapping[str, Any]], kind: str) -> tuple[Measured, ...]:
    """The trainings of a kind, by name, in the order in which they come."""
    scores: dict[str, list[float]] = {}
    for record in records:
        if record["kind"] == kind:
            judged = next(iter(record["metrics"].values()))
            scores.setdefault(record["name"], []).append(judged)
    return tuple(Measured(name, tuple(values)) for name, values in scores.items())


def worst_first(rows: Iterable[Row]) -> list[Row]:
    """By rising ratio to the best pooled training; at the end those that have none yet."""
    return sorted(rows, key=lambda row: row.ratio.value if row.ratio else math.inf)


def with_spread(value: float, spread: float | None) -> str:
    """`0.801 ± 0.004`, or without a spread `0.801`."""
    return f"{value:.3f}" if spread is None else f"{value:.3f} ± {spread:.3f}"


def against(ratio: Ratio | None, goal: float) -> str:
    """`met`, or by how much a ratio is below a goal; empty without a ratio."""
    if ratio is None:
        return ""
    missing = goal - ratio.value
    return "met" if missing <= 0 else f"{missing:.3f} short"


# Which settings serve.


@dataclass(frozen=True)
class Comparison:
    """Ratios of one choice of settings to the best pooled training, by set.

    common: sets on which every choice was measured. mean (geometric) and minimum are over those.
    """

    settings: str
    ratios: Mapping[str, Ratio]
    common: tuple[str, ...]

    @property
    def mean(self) -> float | None:
        values = [self.ratios[name].value for name in self.common]
        return math.prod(values) ** (1 / len(values)) if values else None

    @property
    def minimum(self) -> float | None:
        return min((self.ratios[name].value for name in self.common), default=None)


def compare(rows: Iterable[Row]) -> list[Comparison]:
    """Compare settings over the sets that choose defaults; the highest geometric mean first."""
    rows = [row for row in rows if row.is_chosen_on]
    ratios: dict[str, dict[str, Ratio]] = {}
    for row in rows:
        for one in row.federated:
            if ratio := ratio_of(one, row.best_pooled):
                ratios.setdefault(one.name, {})[row.name] = ratio
    common = tuple(row.name for row in rows if all(row.name in own for own in ratios.values()))
    found = [Comparison(name, own, common if ratios else ()) for name, own in ratios.items()]
    return sorted(found, key=lambda one: -(one.mean or 0))


# What is written.

HEAD = (
    "data|clients|federated|best pooled|÷ pooled|goal|best client alone|÷ alone|"
    "test images|test objects|seeds|defaults chosen on it"
).split("|")


def summary_text(rows: Sequence[Row]) -> str:
    """summary.md: a row for each set, worst first, and how settings compare."""
    lines = [f"| {' | '.join(HEAD)} |", f"|{'---|' * len(HEAD)}"]
    for row in worst_first(rows):
        cells = [row.name, "alike" if row.is_alike else "unlike", str(row.defaults or "")]
        cells += [named(row.best_pooled), str(row.ratio or "")]
        cells += [f"≥ {row.goal}: {against(row.ratio, row.goal)}".rstrip(": ")]
        among = f"best of the {row.num_alone} largest: "
        alone = named(row.best_alone)
        cells += [among + alone if alone and row.num_alone < row.num_clients else alone]
        cells += [f"{row.ratio_alone or ''} {alone_note(row)}".strip()]
        cells += [str(row.num_images), str(row.num_objects), row.seeds]
        cells += ["yes" if row.is_chosen_on else "no"]
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    lines += ["", *(f"- {line}" for line in notes(rows))]
    if comparisons := compare(rows):
        lines += ["", *settings_lines(comparisons)]
    return "\n".join(lines) + "\n"


def named(one: Measured | None) -> str:
    """`batch 8: 0.503 ± 0.006`."""
    if one is None:
        return ""
    return f"{one.name.removeprefix('centralised, ').removesuffix(' alone')}: {one}"


def alone_note(row: Row) -> str:
    """Says where the goal of the best client alone is not met."""
    found = against(row.ratio_alone, 1)
    return "" if found in ("", "met") else f"({found})"


def notes(rows: Sequence[Row]) -> list[str]:
    """How to read the table, and how many goals are met."""
    there = [row for row in rows if row.ratio]
    num_met = sum(against(row.ratio, row.goal) == "met" for row in there)
    alone = [row for row in rows if row.ratio_alone]
    num_above = sum(against(row.ratio_alone, 1) == "met" for row in alone)
    return [
        f"Of {len(there)} data sets, {num_met} meet the goal against the best pooled training "
        f"(≥ {GOALS[True]} with clients alike, ≥ {GOALS[False]} with unlike ones); of {len(alone)},"
        f" {num_above} are not below the best client alone.",
        "Scores are mean ± sd over seeds, ratios those of means ± standard error from the seeds. "
        "How far the score of so few test images is from that of others is not in it.",
        "The best batch and the best client are those of the best test score, which favours them.",
    ]


def settings_lines(comparisons: Sequence[Comparison]) -> list[str]:
    """A table of ratios to the best pooled training, by settings and set."""
    names = list(dict.fromkeys(name for one in comparisons for name in one.ratios))
    common = comparisons[0].common
    head = ["settings", f"geometric mean of {len(common)}", "minimum", *names]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for one in comparisons:
        numbers = [one.mean, one.minimum]
        numbers += [one.ratios[name].value if name in one.ratios else None for name in names]
        cells = ["" if number is None else f"{number:.3f}" for number in numbers]
        lines.append(f"| {one.settings.replace('|', '/')} | {' | '.join(cells)} |")
    lines += ["", "- Ratios to the best pooled training, on the sets that choose the defaults."]
    if lacking := [name for name in names if name not in common]:
        lines += [f"- Not in mean and minimum, for lack of some settings: {', '.join(lacking)}."]
    return lines


def write_summary(rows: Sequence[Row], folder: Path) -> str:
    """Write summary.md, summary.csv, settings.csv and summary.png; return the text of the first."""
    text = summary_text(rows)
    (folder / "summary.md").write_text(text)
    write_rows([values_of(row) for row in worst_first(rows)], folder / "summary.csv")
    comparisons = compare(rows)
    write_rows([r for one in comparisons for r in setting_values(one)], folder / "settings.csv")
    draw([row for row in worst_first(rows) if row.ratio], folder / "summary.png")
    return text


def values_of(row: Row) -> dict[str, Any]:
    """The numbers of a row, as summary.csv has them; missing ones are None."""
    values: dict[str, Any] = {"data": row.name, "is_alike": row.is_alike}
    values["is_chosen_on"] = row.is_chosen_on
    trainings = {"federated": row.defaults, "pooled": row.best_pooled, "alone": row.best_alone}
    for title, one in trainings.items():
        values[title] = one.name if one else None
        values[f"{title}_mean"] = one.mean if one else None
        values[f"{title}_sd"] = one.sd if one else None
        values[f"{title}_num_seeds"] = len(one.scores) if one else 0
    for title, ratio in (("ratio", row.ratio), ("ratio_alone", row.ratio_alone)):
        values[title] = ratio.value if ratio else None
        values[f"{title}_error"] = ratio.error if ratio else None
    counts = ("goal", "num_clients", "num_alone", "num_images", "num_objects")
    return {**values, **{name: getattr(row, name) for name in counts}}


def setting_values(one: Comparison) -> list[dict[str, Any]]:
    """The ratios of settings, as settings.csv has them."""
    return [
        {"settings": one.settings, "data": name, "ratio": ratio.value, "error": ratio.error}
        for name, ratio in one.ratios.items()
    ]


def write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """A CSV, if there are rows."""
    if rows:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


def draw(rows: Sequence[Row], path: Path) -> None:
    """A dot for each set at its ratio to the best pooled training, the worst set at the top."""
    from federated_yolo.common.figures import ACCENT, COLORS, INK, new_figure, save_figure

    if not rows:
        return
    figure = new_figure(8, 1.5 + 0.36 * len(rows))
    axes = figure.subplots()
    colors = {True: ACCENT, False: COLORS[0]}
    axes.axvline(1, color=INK, lw=1)
    for y, row in enumerate(rows):
        ratio, color = row.ratio, colors[row.is_alike]
        assert ratio is not None
        axes.plot([row.goal] * 2, [y - 0.3, y + 0.3], color=color, lw=1.2, alpha=0.6)
        if alone := ratio_of(row.best_alone, row.best_pooled):
            axes.plot(alone.value, y, "D", color="#9aa1a9", ms=4.5, zorder=2)
        axes.errorbar(
            ratio.value, y, xerr=ratio.error, fmt="o", ms=7, color=color, capsize=3, zorder=3,
            mfc=color if row.is_chosen_on else "white", mew=1.6,
        )  # fmt: skip
        axes.annotate(
            str(ratio), (1.01, y), xycoords=axes.get_yaxis_transform(), va="center", fontsize=8
        )
    axes.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=9)
    axes.set_ylim(len(rows) - 0.4, -0.6)  # the first, which is the worst, at the top
    axes.set_xlabel("test score ÷ that of the best pooled training", fontsize=9)
    axes.grid(axis="x", alpha=0.25)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9)
    axes.spines[["top", "right", "left"]].set_visible(False)
    figure.legend(
        handles=legend_handles(colors), loc="outside upper center", ncols=3, fontsize=8,
        frameon=False,
    )  # fmt: skip
    save_figure(path, figure)


def legend_handles(colors: Mapping[bool, str]) -> list[Any]:
    """What dots, their fillings, ticks and diamonds mean."""
    from matplotlib.lines import Line2D

    def mark(label: str, marker: str, color: str, **look: Any) -> Any:
        return Line2D([], [], ls="", marker=marker, color=color, label=label, **look)

    grey = "#5c636b"
    return [
        mark("federated, clients alike", "o", colors[True], ms=7),
        mark("federated, clients unlike", "o", colors[False], ms=7),
        mark("kept away from choosing defaults", "o", grey, ms=7, mfc="white", mew=1.6),
        mark("best client alone", "D", "#9aa1a9", ms=4.5),
        mark("goal", "|", grey, ms=10),
        mark("± standard error over seeds", "_", grey, ms=10),
    ]
