"""Make the Plotly figures of a page: curves, shaded tables, bars."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from federated_yolo.common.figures import SHADES
from federated_yolo.common.text import NO_VALUE, short
from federated_yolo.reporting.run_numbers import Grid, Line
from federated_yolo.reporting.run_record import Row


@dataclass(frozen=True)
class Chart:
    """A Plotly figure.

    label: Text that a screen reader reads aloud. height: Height in pixels. is_wide: Whether it
    takes the whole width of the page, within min_width and max_width in pixels.
    """

    title: str
    figure: Any
    label: str
    height: int
    is_wide: bool = False
    min_width: int = 0
    max_width: int = 10_000


def _figure(data: list[Any], height: int, **layout: Any) -> Any:
    """Make a plain figure; the page's style sheet colours its text and lines, light or dark."""
    import plotly.graph_objects as go

    clear = "rgba(0,0,0,0)"
    axis = {"fixedrange": True, "automargin": True, "showline": False, "zeroline": False}
    for name in ("xaxis", "yaxis"):
        layout[name] = {**axis, **layout.get(name, {})}
    return go.Figure(
        data,
        {
            "template": "none",
            "height": height,
            "margin": {"l": 8, "r": 8, "t": 8, "b": 8},
            "paper_bgcolor": clear,
            "plot_bgcolor": clear,
            "font": {"family": "system-ui, sans-serif", "size": 12},
            "showlegend": False,
            "dragmode": False,
            "hoverlabel": {"font": {"size": 13}, "namelength": -1},
            **layout,
        },
    )


def _legend(**options: Any) -> Row:
    """Return the layout of a legend above the traces."""
    place = {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"}
    return {"showlegend": True, "legend": {**place, "itemdoubleclick": False, **options}}


def _plain(text: str) -> str:
    """Escape text that comes from others, because Plotly interprets some tags."""
    return html.escape(text, quote=False)


def _round_axis(x: Sequence[float], title: str, margin: float = 0.2) -> Row:
    first, last = min(x), max(x)
    margin = max(margin, 0.015 * (last - first))
    return {
        "title": {"text": title, "standoff": 6},
        "showgrid": False,
        "tickformat": "d",
        "range": [first - margin, last + margin],
        **({"dtick": 1, "tick0": first} if last - first < 8 else {"nticks": 8}),
    }


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_title: str = "round",
    *,
    height: int = 240,
    is_wide: bool = False,
    has_legend: bool = False,
) -> Chart:
    """Draw curves over rounds, with a y axis from zero.

    has_legend: Whether the chart shows its own legend, for curves that the page's legend lacks.
    """
    import plotly.graph_objects as go

    few = max(len(line.x) for line in lines) <= 30
    data = [
        go.Scatter(
            x=line.x, y=line.y, name=_plain(line.name), uid=line.key, legendgroup=line.key,
            mode="lines+markers" if few or len(line.x) == 1 else "lines",
            line={"color": line.color, "dash": line.dash, "width": 3 if line.is_thick else 1.3},
            marker={"color": line.color, "size": 6 if line.is_thick else 4},
            opacity=1 if line.is_thick else 0.9 if len(lines) <= 10 else 0.65,
            hovertemplate=f"%{{fullData.name}}<br>{x_title} %{{x}}: %{{y:.4~g}}<extra></extra>",
        )
        for line in lines
    ]  # fmt: skip
    figure = _figure(
        data, height, hovermode="closest",
        xaxis=_round_axis([x for line in lines for x in line.x], x_title),
        yaxis={"rangemode": "tozero", "nticks": 6},
        **(_legend(itemclick="toggle") if has_legend else {}),
    )  # fmt: skip
    told = [line for line in lines if line.is_thick] or lines
    ends = "; ".join(f"{line.name} from {line.y[0]:.3g} to {line.y[-1]:.3g}" for line in told)
    what = f"{title.removesuffix(f' by {x_title}')} by {x_title}"
    return Chart(title, figure, f"{what}: {ends}", height, is_wide)


def heat_chart(title: str, grid: Grid) -> Chart:
    """Draw a shaded table; a cell without a number stays clear."""
    import plotly.graph_objects as go

    ticks = {
        name: {
            "tickvals": list(range(len(names))),
            "ticktext": [_plain(short(n)) for n in names],
            "showgrid": False,
            "ticks": "",
        }
        for name, names in (("xaxis", grid.columns), ("yaxis", grid.rows))
    }
    known = [v for row in grid.values for v in row if v is not None]
    low, high = min(known), max(known)
    heat = go.Heatmap(
        z=grid.values,
        zmin=low,
        zmax=high if high > low else low + 1,  # equal values are all light
        text=[[text if text != NO_VALUE else "" for text in row] for row in grid.texts],
        texttemplate="%{text}",
        hovertext=[[_plain(text) for text in row] for row in grid.hovers],
        hoverinfo="text",
        colorscale=[[i / (len(SHADES) - 1), shade] for i, shade in enumerate(SHADES)],
        showscale=False,
        hoverongaps=False,
        xgap=2,
        ygap=2,
    )
    height = 30 * len(grid.rows) + 90
    names = 9 * max(len(short(name)) for name in grid.rows)
    widths = [names + pixels * len(grid.columns) for pixels in (60, 180)]
    figure = _figure(
        [heat], height, xaxis={**ticks["xaxis"], "side": "top"},
        yaxis={**ticks["yaxis"], "autorange": "reversed"},
    )  # fmt: skip
    label = f"{title}: {len(grid.rows)} rows, {len(grid.columns)} columns"
    label += f", from {low:.3f} to {high:.3f}"
    return Chart(title, figure, label, height, True, *widths)


def bar_chart(title: str, x: list[float], parts: Mapping[str, list[float]], unit: str) -> Chart:
    """Draw stacked bars, one for each round. parts: Values by name, from the bottom up."""
    import plotly.graph_objects as go

    shades = [SHADES[3], SHADES[2], SHADES[1]]
    data = [
        go.Bar(
            x=x, y=values, name=name, marker={"color": shade, "line": {"width": 0}},
            hovertemplate=f"{name}<br>round %{{x}}: %{{y:.4~g}} {unit}<extra></extra>",
        )
        for shade, (name, values) in zip(shades, parts.items(), strict=False)
    ]  # fmt: skip
    xaxis = _round_axis(x, "round", margin=0.6)
    legend = _legend(itemclick=False, traceorder="normal") if len(parts) > 1 else {}
    figure = _figure(
        data, 280, barmode="stack", bargap=0.2, xaxis=xaxis, yaxis={"nticks": 6}, **legend
    )
    totals = ", ".join(f"{name} {sum(values):.4g} {unit}" for name, values in parts.items())
    return Chart(title, figure, f"{title}; in all: {totals}", 280)
