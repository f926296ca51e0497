"""Makes matplotlib figures for files. The backend that the environment or the user's process has chosen has no effect."""

import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def new_figure(width: float, height: float, **options: Any) -> "Figure":
    """Returns a figure of `width` by `height` inches, drawn by the backend Agg. pyplot does not know the figure."""
    if "matplotlib" not in sys.modules:
        _import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), **options)
    FigureCanvasAgg(figure)
    return figure


def _import_matplotlib() -> None:
    """Imports matplotlib without $MPLBACKEND, which may name a missing backend. Afterwards restores the variable and the
    choice of the backend."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with suppress(ValueError):
            matplotlib.rcParams["backend"] = backend
