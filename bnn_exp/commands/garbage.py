"""Sets how often Python looks for garbage in cycles of references, while a command runs."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = 200_000, 20, 100  # see `gc.set_threshold`


@contextmanager
def rare_collections() -> Iterator[None]:
    """Context manager: while the body runs, Python collects garbage after 200,000 new objects, not after its default number.

    The imports of torch and numba make half a million objects that stay. Collections that looked through these objects took a
    tenth of a second of the start of a training. A training step makes no cycles, so the garbage stays small.
    """
    before = gc.get_threshold()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
