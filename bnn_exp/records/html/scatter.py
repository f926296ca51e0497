"""Charts of the number that a sweep compares over one setting: means with standard deviations, and each run as a small dot."""

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from bnn_exp.records.html.axes import Axis, spread
from bnn_exp.records.html.charts import BOTTOM, COLOURS, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Chart, clipped, grid, svg
from bnn_exp.records.html.render import short
from bnn_exp.records.runs import as_text
from bnn_exp.records.sweeps.comparison import Comparison, Row
from bnn_exp.records.sweeps.numbers import number
from bnn_exp.records.sweeps.text import short_names

APART = 7  # distance, in units of the drawing, between the points that different lines have at one value
MARK = Markup('<circle class="{} {}" cx="{}" cy="{}" r="{}"/>')


def over(key: str, comparison: Comparison) -> Chart:
    """Returns a chart of the rows of a comparison over the setting `key`. If `key` is numeric, a line joins the rows that agree
    in all other settings."""
    others = [other for other in comparison.varied if other != key]
    names = short_names(comparison.varied)
    groups: dict[str, list[Row]] = {}
    for row in comparison.rows:
        groups.setdefault(settings(row, others, names), []).append(row)
    values = [row.settings[key] for row in comparison.rows]
    numeric = all(type(value) in (int, float) for value in values)
    across, marks = _numbers(values) if numeric else _names(values)
    up = Axis(*spread(_heights(comparison)), HEIGHT - BOTTOM, TOP)
    few = len(groups) <= COLOURS
    parts, points = [grid(up), *marks], []
    for i, (name, rows) in enumerate(groups.items()):
        style = f"c{i}" if few else "c0"
        aside = (i - (len(groups) - 1) / 2) * APART if few else 0
        rows = sorted(rows, key=lambda row: row.settings[key]) if numeric else rows
        places = [round(across(row.settings[key]) + aside, 1) for row in rows]
        if numeric and few and len(rows) > 1:
            path = " ".join(f"{x:g},{up(row.mean):g}" for x, row in zip(places, rows, strict=True))
            parts.append(Markup('<polyline class="line thin {}" points="{}"/>').format(style, path))
        for x, row in zip(places, rows, strict=True):
            parts.extend(_marks(x, row, up, style, comparison.y))
            words = f"{settings(row, [key], names)} {name}".strip() + f"\n{row.in_words} of {len(row.runs)} run"
            points.append([x, up(row.mean), words + "s" * (len(row.runs) != 1) + ", best" * row.best, style])
    legend = [(f"c{i}", name) for i, name in enumerate(groups)] if 1 < len(groups) <= COLOURS else []
    title = f"{in_title(comparison.y)} over {names[key]}"
    rows_in_words = (f"{settings(row, comparison.varied, names)}: {row.in_words}" for row in comparison.rows[:12])
    words = f"{title}. {'; '.join(rows_in_words)}"
    return Chart(title, svg(HEIGHT, words, parts), {"kind": "points", "points": points}, legend=legend)


def settings(row: Row, keys: Sequence[str], names: dict[str, str]) -> str:
    """Returns the settings `keys` of a row as text, such as hidden_size=128 mask=top. `names` are the short names of keys."""
    return " ".join(f"{names[key]}={as_text(row.settings[key])}" for key in keys)


def in_title(y: str) -> str:
    """Returns the name of a metric for a title, such as "Test accuracy" for test_accuracy."""
    return y.replace("_", " ").capitalize()


def _heights(comparison: Comparison) -> list[float]:
    ends = [row.mean + sign * (row.std or 0.0) for row in comparison.rows for sign in (-1, 1)]
    return ends + [number(run, comparison.y) for row in comparison.rows for run in row.runs]


def _marks(x: float, row: Row, up: Axis, style: str, y: str) -> list[Markup]:
    parts = [MARK.format("dot faint", style, x, up(number(run, y)), 2.2) for run in row.runs if len(row.runs) > 1]
    if row.std:
        low, high = up(row.mean - row.std), up(row.mean + row.std)
        bar = Markup('<path class="line thin {}" d="M{} {}H{}M{} {}V{}M{} {}H{}"/>')
        parts.append(bar.format(style, x - 4, high, x + 4, x, high, low, x - 4, low, x + 4))
    parts.append(MARK.format("dot", style, x, up(row.mean), 4))
    if row.best:
        parts.append(MARK.format("line thin", style, x, up(row.mean), 8))
    return parts


def _numbers(values: list[float]) -> tuple[Axis, list[Markup]]:
    """Returns a horizontal axis for `values` and its marks. The axis is logarithmic for a wide range. More than ten numbers get
    round marks."""
    there = sorted(set(values))
    log = there[0] > 0 and there[-1] >= 8 * there[0]
    if log:
        air = (there[-1] / there[0]) ** 0.08
        ends = there[0] / air, there[-1] * air
    else:
        ends = spread(there)
    across = Axis(*ends, LEFT, WIDTH - RIGHT, log)
    return across, _under([(across(value), short(value)) for value in (there if len(there) <= 10 else across.ticks(6))])


def _names(values: list[Any]) -> tuple[Any, list[Markup]]:
    """Returns a horizontal axis for values that are names: a function from value to position, and the marks of the axis."""
    names = list(dict.fromkeys(map(as_text, values)))
    axis = Axis(-0.5, len(names) - 0.5, LEFT, WIDTH - RIGHT)
    length = max(int((WIDTH - LEFT) / 7 / len(names)) - 1, 5)
    return lambda value: axis(names.index(as_text(value))), _under([(axis(i), clipped(n, length)) for i, n in enumerate(names)])


def _under(marks: list[tuple[float, str]]) -> list[Markup]:
    """Returns the SVG of `marks`, (position, text), below the drawing, without marks that would touch their left neighbour."""
    text, parts, end = Markup('<text class="middle" x="{}" y="{}">{}</text>'), [], 0.0
    for x, name in marks:
        if x - 3.6 * len(name) >= end:
            parts.append(text.format(x, HEIGHT - BOTTOM + 16, name))
            end = x + 3.6 * len(name) + 4
    return parts
