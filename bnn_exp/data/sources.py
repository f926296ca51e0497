"""Reads a dataset by its name: from a folder, from the Hugging Face hub, from a plugin, or the digits of the package.

The result is uint8 arrays (`bnn_exp.data.arrays.Arrays`), which `bnn_exp.data.cache` keeps. No torch is imported here, so
errors in the data appear before torch loads.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from bnn_exp.config.datasets import DATASETS
from bnn_exp.data import plugin_dataset
from bnn_exp.data.arrays import Arrays, complete
from bnn_exp.data.cache import cached
from bnn_exp.errors import UserError

DIGITS = Path(__file__).with_name("digits.npz")
"""scikit-learn's `load_digits` (UCI, CC BY 4.0), levels 0…16 scaled to 0…255 and rounded; 1,437 + 360 rows from
`train_test_split(test_size=360, stratify=labels, random_state=0)`."""


def read(name: str, *place: Any, **settings: Any) -> Arrays:
    """Returns the dataset `name`, read with `settings`.

    Args:
        place, settings: the arguments of `_read`. For a dataset of a plugin: all its settings, by name.

    Raises:
        UserError: the dataset can't be read.
    """
    return _own(name, settings) if name in DATASETS else _read(name, *place, **settings)


def _own(name: str, settings: Mapping[str, Any]) -> Arrays:
    """Returns a dataset of a plugin. The cache keeps the dataset only if the plugin names the files that decide the rows."""

    def make() -> Arrays:
        return complete(plugin_dataset.decoded(name, settings))

    content = plugin_dataset.found_by(name, settings)
    return make() if content is None else cached(name, content, make)


def _read(
    name: str,
    hub: str | None = None,
    path: str | None = None,
    label: str | None = None,
    size: int | None = None,
    channels: int | None = None,
    fit: str = "squash",
    background: str = "white",
    range: tuple[float, float] | None = None,
    test_fraction: float = 0.2,
) -> Arrays:
    """Returns the dataset `name` from the folder or file `path`, else from the hub. `digits` comes from the package.

    `hub` is the name on the hub. `decode.Reading` and `images.Pixels` explain the other arguments.

    Raises:
        UserError: the folder is missing, holds no dataset of labelled images, or the hub can't be reached.
    """
    if name == "digits":
        return _digits()
    from bnn_exp.data import decode, folder
    from bnn_exp.data.formats import hub as of_hub
    from bnn_exp.data.images import Pixels

    pixels = Pixels(fit, background, (range[0], range[1]) if range else None, reduced=size is not None)
    reading = decode.Reading(label, size, channels, pixels, test_fraction)
    source = folder.find(Path(path), label, (hub or "").partition(":")[2]) if path else of_hub.source(name, hub, label)
    found, content = (source.notes, source.warnings), source.digest() if path else f"hub {hub}"
    source.notes, source.warnings = [], []  # the cache keeps only the notes and warnings that decoding adds from here on

    def make() -> Arrays:
        made = complete(decode.decode(source, reading))
        if path and source.digest() != content:
            raise UserError(f"{source.where}: its files changed while they were read\nallowed: files that nobody writes to")
        return made

    arrays = cached(name, f"{content}\0{reading}", make)
    return replace(arrays, notes=(*found[0], *arrays.notes), warnings=(*found[1], *arrays.warnings))


def _digits() -> Arrays:
    with np.load(DIGITS) as file:
        arrays = {key: file[key] for key in file.files}
    arrays |= {split: arrays[split].astype(np.int64) for split in ("train_labels", "test_labels")}
    return complete({**arrays, "classes": tuple("0123456789")})
