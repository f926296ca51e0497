"""Line charts and heat maps as SVG drawings. Each chart also has the values that the page shows under the pointer."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from markupsafe import Markup

from bnn_exp.records.html.axes import Axis, spread
from bnn_exp.records.html.render import short

WIDTH, HEIGHT = 380, 230  # units of the drawing; every screen shows a chart about 380 pixels wide, so letters keep one size
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34
COLOURS = 8  # the number of CSS classes for colours in style.css, c0 … c7


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Args:
        name: the name in the legend.
        values: one number per epoch; None for a missing number.
        style: CSS classes of style.css.
    """

    name: str
    values: Sequence[float | None]
    style: str = "c0"


@dataclass(frozen=True)
class Chart:
    """A chart: its SVG drawing, its texts, and the values that the page shows under the pointer."""

    title: str
    svg: Markup
    values: dict[str, Any]
    note: str = ""
    legend: Sequence[tuple[str, str]] = ()  # (CSS class, name) of each entry
    ramp: tuple[str, str, str] | None = None  # colours of a heat map as CSS, and the numbers at both ends


def lines(
    title: str,
    x: Sequence[int],
    series: Sequence[Series],
    within: tuple[float, float] | None = None,
    note: str = "",
    legend: Sequence[tuple[str, str]] | None = None,
) -> Chart:
    """Returns a line chart of values over epochs.

    Args:
        x: the numbers of the epochs.
        within: the limits of the vertical axis, such as (0, 100) for percent.
        note: a sentence below the title.
        legend: pairs of (style, name); None for all series.
    """
    across = Axis(*((x[0], x[-1]) if len(x) > 1 else (x[0] - 1, x[0] + 1)), LEFT, WIDTH - RIGHT)
    up = Axis(*spread((v for one in series for v in one.values), within), HEIGHT - BOTTOM, TOP)
    parts = [grid(up), *_epochs(across, HEIGHT - BOTTOM)]
    for one in series:
        points = [(across(i), up(v)) for i, v in zip(x, one.values, strict=True) if v is not None and isfinite(v)]
        path = " ".join(f"{i:g},{v:g}" for i, v in points)
        parts.append(Markup('<polyline class="line {}" points="{}"/>').format(one.style, path))
        if len(points) <= 12:
            dots = (Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>').format(one.style, i, v) for i, v in points)
            parts.extend(dots)
    last = "; ".join(f"{one.name} {_first_and_last(one.values)}" for one in series[:COLOURS])
    values = {
        "kind": "lines",
        "x": list(x),
        "at": [across(i) for i in x],
        "y": [up.low, up.high, up.start, up.end],
        "series": [[one.name, one.style, [number(v) for v in one.values]] for one in series],
    }
    words = f"{title} over {len(x)} epochs. {last}"
    if legend is None:
        legend = [(one.style, one.name) for one in series] if 1 < len(series) <= COLOURS else []
    return Chart(title, svg(HEIGHT, words, parts), values, note, legend)


def _first_and_last(values: Sequence[float | None]) -> str:
    there = [v for v in values if v is not None]
    return f"from {there[0]:.4g} to {there[-1]:.4g}" if there else "without values"


def heat(
    title: str,
    rows: Sequence[str],
    columns: Sequence[Any],
    picture: str,
    values: dict[str, Any],
    note: str = "",
    ramp: tuple[str, str, str] | None = None,
    labels: Sequence[str] = (),
) -> Chart:
    """Returns a heat map: a table of numbers as colours.

    Args:
        rows: the names of the rows.
        columns: the numbers of epochs, or the names of the rows again.
        picture: the data URI of an image with one pixel per number.
        values: the values that the page shows under the pointer: the numbers (`cells`) and words about them.
        ramp: see `Chart`.
        labels: short names beside the rows; empty to show the names in `rows`.
    """
    labels = [clipped(name) for name in labels or rows]
    left = 14 + 7 * max(map(len, labels))
    over_epochs = isinstance(columns[0], int)
    each = min(max(150 / len(rows), 1.5), 40) if over_epochs else (WIDTH - RIGHT - left) / len(columns)
    floor = each * len(rows) + TOP
    height = floor + (BOTTOM if over_epochs else TOP)
    place = Markup('<image href="{}" x="{}" y="{}" width="{}" height="{:g}" preserveAspectRatio="none"/>')
    parts = [
        Markup('<rect class="plate" x="{}" y="{}" width="{}" height="{:g}"/>').format(
            left, TOP, WIDTH - RIGHT - left, each * len(rows)
        ),
        place.format(picture, left, TOP, WIDTH - RIGHT - left, each * len(rows)),
    ]
    stride = -(-12 // each)
    for i in range(0, len(rows), int(stride)):
        y = TOP + each * (i + 0.5)
        parts.append(Markup('<text class="end" x="{}" y="{:g}">{}</text>').format(left - 6, y + 4, labels[i]))
    if over_epochs:
        edges = Axis(columns[0] - 0.5, columns[-1] + 0.5, left, WIDTH - RIGHT)
        parts.extend(_epochs(edges, floor))
    box = {"rows": list(rows), "columns": list(columns), "box": [left, TOP, WIDTH - RIGHT, floor]}
    return Chart(title, svg(height, f"{title}. {note}", parts), values | box, note, ramp=ramp)


def clipped(name: str, length: int = 14) -> str:
    """Returns `name`. If it is longer than `length` letters, returns only its end, after an ellipsis."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def grid(up: Axis) -> Markup:
    """Returns the SVG of horizontal lines at the ticks of the vertical axis `up`, with the numbers of the ticks."""
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text class="end" x="{}" y="{}">{}</text>')
    marks = ((up(v), v) for v in up.ticks(5))
    return Markup("").join(line.format(LEFT, WIDTH - RIGHT, LEFT - 6, y + 4, short(v), y=y) for y, v in marks)


def _epochs(across: Axis, floor: float) -> list[Markup]:
    text = Markup('<text class="middle" x="{}" y="{:g}">{:g}</text>')
    marks = [text.format(across(v), floor + 15, v) for v in across.ticks(6, whole=True)]
    return [*marks, Markup('<text class="end axis" x="{}" y="{:g}">epoch</text>').format(WIDTH - RIGHT, floor + 29)]


def svg(height: float, words: str, parts: Sequence[Markup]) -> Markup:
    """Returns an SVG drawing of `parts`. `words` describe the drawing for screen readers."""
    start = Markup('<svg viewBox="0 0 {} {:g}" role="img" aria-label="{}">').format(WIDTH, height, words)
    return start + Markup("").join(parts) + Markup("</svg>")


def number(value: float | None) -> float | None:
    """Returns a value for JSON: an integer unchanged, a float rounded to six digits, None for a missing or infinite value."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if value is not None and isfinite(value) else None
