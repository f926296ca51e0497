"""Draws `sweep.png`, a plot of the compared number over a varied setting."""

from pathlib import Path
from typing import Any

from bnn_exp.errors import UserError
from bnn_exp.records.files import replacing
from bnn_exp.records.formatting import drawn
from bnn_exp.records.matplotlib_figure import new_figure
from bnn_exp.records.runs import as_text
from bnn_exp.records.sweeps.comparison import Comparison, Row


def axes_of(comparison: Comparison, x: str | None, group: str | None) -> tuple[str | None, str | None]:
    """Returns the keys of the horizontal axis and of the lines: `x` and `group` if given, else the first numeric varied key and
    the first other varied key.

    Raises:
        UserError: `group` does not vary, or `x` neither varies nor is a number of all runs.
    """
    allowed = ", ".join(comparison.varied) or "nothing varies"
    for name, key in (("x", x), ("group", group)):
        if key is not None and not comparison.varies(key) and (name == "group" or not is_measured(comparison, key)):
            raise UserError(f"report.{name}={key}: it does not vary\nallowed: {allowed}")
    numeric = [key for key in comparison.varied if key != group and all(_is_number(row.value(key)) for row in comparison.rows)]
    x = x or next(iter(numeric), next((key for key in comparison.varied if key != group), None))
    return x, group or next((key for key in comparison.varied if key != x), None)


def draw(file: Path, comparison: Comparison, x: str | None = None, group: str | None = None) -> None:
    """Draws means with standard deviations over `x` into the PNG `file`: one line per value of `group`, and a ring around the
    best row. If `x` is a measured number and no setting, draws points, and labels the points with the settings.

    Raises:
        UserError: see `axes_of`.
    """
    x, group = axes_of(comparison, x, group)
    figure = new_figure(8, 4.8, layout="constrained")
    axes = figure.subplots()
    lines: dict[str, list[Row]] = {}
    for row in comparison.rows:
        lines.setdefault(as_text(row.value(group)) if group else "", []).append(row)
    measured = x is not None and not comparison.varies(x)
    numeric = measured or (x is not None and all(_is_number(row.value(x)) for row in comparison.rows))

    def at(row: Row) -> float:
        return row.number(x) if measured else row.value(x)

    names = [] if numeric else list(dict.fromkeys(as_text(row.value(x)) if x else "all" for row in comparison.rows))
    for i, (name, rows) in enumerate(lines.items()):
        if numeric:
            rows = sorted(rows, key=at)
            places = [at(row) for row in rows]
        else:
            offset = (i - (len(lines) - 1) / 2) * 0.8 / len(lines)
            places = [names.index(as_text(row.value(x)) if x else "all") + offset for row in rows]
        means, stds = [row.mean for row in rows], [row.std or 0.0 for row in rows]
        axes.errorbar(
            places,
            means,
            stds,
            fmt="o-" if numeric and not measured else "o",
            capsize=3,
            label=drawn(name),
            markersize=5,
            color="C0" if measured else None,
        )
        for place, row in zip(places, rows, strict=True):
            if row.best:
                axes.plot(place, row.mean, "o", markersize=13, fillstyle="none", color="black")
    values = [at(row) for row in comparison.rows] if numeric else []
    if numeric and min(values) > 0 and max(values) >= 8 * min(values):
        axes.set_xscale("log", base=2 if all(isinstance(value, int) for value in values) else 10)
    if numeric and not measured and len(set(values)) <= 12:
        axes.set_xticks(sorted(set(values)), [as_text(value) for value in sorted(set(values))], minor=False)
        axes.minorticks_off()
    if not numeric:
        axes.set_xticks(range(len(names)), map(drawn, names), rotation=0 if sum(map(len, names)) < 60 else 30)
    if measured:
        axes.margins(x=0.25)  # leaves space for the names of the points
    elif group and len(lines) > 1:
        axes.legend(title=group, fontsize="small")
    axes.set(xlabel=x or "", ylabel=comparison.y)
    axes.grid(alpha=0.25)
    if measured:
        _name(axes, {(at(row), row.mean): _settings_of(row, comparison) for row in comparison.rows})
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _settings_of(row: Row, comparison: Comparison) -> str:
    return " ".join(drawn(as_text(row.settings[key])) for key in comparison.varied if row.settings[key] is not None)


def _name(axes: Any, points: dict[tuple[float, float], str]) -> None:
    """Writes the names of `points`, {(x, y): name}, beside the points. Tries four places for each name. Takes the first place
    that lies inside the axes and covers no other name, else the last place."""
    figure = axes.figure
    taken: list[Any] = []
    figure.draw_without_rendering()  # computes `axes.bbox`
    for point, name in points.items():
        text = axes.annotate(name, point, (0, 0), textcoords="offset points", fontsize="small")
        for right, up in ((6, 4), (-6, 4), (6, -11), (-6, -11)):
            text.set(position=(right, up), ha="left" if right > 0 else "right")
            box = text.get_window_extent()
            if axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1 and not any(map(box.overlaps, taken)):
                break
        taken.append(box)


def is_measured(comparison: Comparison, key: str) -> bool:
    """Returns True if all runs of the comparison have a number `key` in their summaries or last epochs."""
    try:
        return all(row.number(key) is not None for row in comparison.rows)
    except UserError:
        return False


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
