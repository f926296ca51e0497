"""Makes HTML pages from templates. All inserted text is escaped, and a page may load nothing from elsewhere."""

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **content: Any) -> str:
    """Returns the HTML page that the template file `template` makes of the variables `content`.

    Characters that UTF-8 can't encode become escapes.
    """
    return _environment().get_template(template).render(**content).encode("utf-8", "backslashreplace").decode()


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("bnn_exp.records.html"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"short": short}
    return environment


def short(value: float) -> str:
    """Returns a number as short text for an axis: 0.05, 60, 20k, 1.5M."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= limit:
            return f"{value / (1000 if unit == 'k' else limit):.4g}{unit}"
    return f"{value:.4g}"
