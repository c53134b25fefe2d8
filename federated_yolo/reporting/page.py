"""The parts of a report's page as data classes, and the function that writes them to one file."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federated_yolo.common.files import write_atomically
from federated_yolo.reporting.charts import Chart
from federated_yolo.reporting.run_numbers import Line


@dataclass(frozen=True)
class Mark:
    """A name in a table with the colour and dash of its curves."""

    name: str
    color: str
    dash: str


@dataclass(frozen=True)
class Sheet:
    """A table. text_columns: Indices of the columns that hold text."""

    label: str
    head: list[str]
    rows: list[list[Any]]
    text_columns: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Picture:
    """An image as a data URI."""

    source: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of a page. has_legend: Whether the legend of the curves is shown above it."""

    title: str
    note: str = ""
    pictures: list[Picture] = field(default_factory=list)
    charts: list[Chart] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)
    has_legend: bool = False

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.pictures or self.charts or any(sheet.rows for sheet in self.sheets))


@dataclass(frozen=True)
class Number:
    """A number of the headline. note: Its exact meaning, and the data it was measured on."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class Page:
    """The content of report.html.md. settings: Tables that are folded away at the end."""

    title: str
    subtitle: str
    headline: list[Number]
    legend: list[Line]
    sections: list[Section]
    settings: dict[str, dict[str, str]]


def write_page(page: Page, path: Path) -> None:
    """Write the page as one file that opens anywhere."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from plotly.offline import get_plotlyjs

    here = Path(__file__).resolve()
    # Names of clients and classes, and clients' error messages, come from others: they are escaped.
    environment = Environment(
        loader=FileSystemLoader(here.parent), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    text = environment.get_template("report.html.md").render(
        page=page,
        charts=[c.figure.to_plotly_json() for s in page.sections for c in s.charts],
        plotly=get_plotlyjs(),
        dashes={"solid": "none", "dash": "7 4", "dot": "2 3", "dashdot": "7 3 2 3"},
    )
    write_atomically(path, lambda file: file.write(text.encode()))
