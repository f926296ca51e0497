"""Line charts and heat maps as SVG in the text, each with its values for the pointer."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

from markupsafe import Markup

from bnn_exp.records.html.axes import Axis, spread
from bnn_exp.records.html.render import short

WIDTH, HEIGHT = 380, 230  # as wide as a phone's, so that the letters are as large there as elsewhere
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 10, 34
COLOURS = 8  # c0 … c7 of style.css


@dataclass(frozen=True)
class Series:
    """A line of a chart: as many values as there are epochs (None: none there), and the classes of style.css that it has."""

    name: str
    values: Sequence[float | None]
    style: str = "c0"


@dataclass(frozen=True)
class Chart:
    """A picture, what it says in words, and the values that the pointer shows."""

    title: str
    svg: Markup
    values: dict[str, Any]
    note: str = ""
    legend: Sequence[tuple[str, str]] = ()  # (style, name)
    ramp: tuple[str, str, str] | None = None  # of a heat map: the colours as CSS, and the numbers at their ends


def lines(
    title: str,
    x: Sequence[int],
    series: Sequence[Series],
    within: tuple[float, float] | None = None,
    note: str = "",
    legend: Sequence[tuple[str, str]] | None = None,
) -> Chart:
    """Values over epochs. `within`: limits that the axis does not pass, (0, 100) for percent. `legend`: else all series."""
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
    last = "; ".join(f"{one.name} {_said(one.values)}" for one in series[:COLOURS])
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


def _said(values: Sequence[float | None]) -> str:
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
    """A table of numbers as colours: `picture` is the data URI of an image with a pixel for each.

    Columns that are numbers are epochs; others are the same things as the rows. `values` is what the pointer shows: `cells`,
    and the words about them. `labels` stand beside the rows where their names are long.
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
    """The end of a name that is longer than `length` letters."""
    return name if len(name) <= length else f"…{name[1 - length :]}"


def grid(up: Axis) -> Markup:
    """Lines at the ticks of the axis that goes up, and their numbers."""
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text class="end" x="{}" y="{}">{}</text>')
    marks = ((up(v), v) for v in up.ticks(5))
    return Markup("").join(line.format(LEFT, WIDTH - RIGHT, LEFT - 6, y + 4, short(v), y=y) for y, v in marks)


def _epochs(across: Axis, floor: float) -> list[Markup]:
    text = Markup('<text class="middle" x="{}" y="{:g}">{:g}</text>')
    marks = [text.format(across(v), floor + 15, v) for v in across.ticks(6, whole=True)]
    return [*marks, Markup('<text class="end axis" x="{}" y="{:g}">epoch</text>').format(WIDTH - RIGHT, floor + 29)]


def svg(height: float, words: str, parts: Sequence[Markup]) -> Markup:
    """A drawing of `parts` that `words` describe."""
    start = Markup('<svg viewBox="0 0 {} {:g}" role="img" aria-label="{}">').format(WIDTH, height, words)
    return start + Markup("").join(parts) + Markup("</svg>")


def number(value: float | None) -> float | None:
    """A value as JSON has it: whole, or to six digits, or none."""
    if isinstance(value, int):
        return value
    return float(f"{value:.6g}") if value is not None and isfinite(value) else None
