"""The datasets of one's own that a configuration can name. Imports neither torch nor NumPy."""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from bnn_exp.config import plugins
from bnn_exp.config.registry import Registry, found, name_of, offer
from bnn_exp.config.schema import Count, Place, schema


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] < limits[1]:
        raise ValueError("LOW is not below HIGH")
    return limits


@schema
class Rows:
    """Settings of every dataset: which of its rows are trained on, and how they are varied."""

    limit: Annotated[int, Field(ge=2)] | None
    validation: Annotated[float, Field(ge=0, le=0.5)]
    augment: Literal["none", "standard"]
    shift: Annotated[int, Field(ge=0)] | None
    flip: bool
    cutout: Annotated[int, Field(ge=0)]


@schema
class Digits(Rows):
    name: Literal["digits"]


@schema
class Pictures(Rows):
    """Settings of a dataset of pictures: how rows are read, and how a picture becomes pixels."""

    label: str | None
    size: Count | None
    channels: Literal[1, 3] | None = None
    fit: Literal["squash", "crop", "pad"] = "squash"
    background: Annotated[
        str, Field(pattern=r"^(white|grey|black|#[0-9a-fA-F]{6})$", description='white, grey, black or "#rrggbb"')
    ] = "white"
    range: (
        Annotated[tuple[float, float], AfterValidator(_rising), Field(description="[LOW,HIGH], two numbers with LOW < HIGH")]
        | None
    ) = None
    test_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.2


@schema
class HubDataset(Pictures):
    name: Literal["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "food101"]
    hub: str  # OWNER/NAME, or OWNER/NAME:CONFIGURATION where it has several
    path: Place | None


@schema
class Local(Pictures):
    name: Literal["local"]
    path: Annotated[
        Place, Field(description="a folder or file of your own pictures: train/CLASS/… and test/CLASS/…, or a table")
    ]


@dataclass(frozen=True)
class Entry:
    """A dataset: the dataclass of its settings, and the functions that `register_dataset` takes."""

    settings: type
    home: str | Callable[..., Mapping[str, Any]]
    files: Callable[..., Iterable[str | Path]] | None

    def load(self) -> Callable[..., Mapping[str, Any]]:
        """The function that makes the rows."""
        return found(self.home)

    def own(self, settings: Any) -> dict[str, Any]:
        """The settings that decide the rows: all but those that every dataset has."""
        return {name: getattr(settings, name) for name in self.settings.__dataclass_fields__ if name not in _SHARED}


DATASETS: Registry[Entry] = Registry("dataset")  # by the name that dataset=NAME chooses
SHARED = {"limit": None, "validation": 0, "augment": "none", "shift": None, "flip": False, "cutout": 0}  # and their defaults
_SHARED = {"name", *SHARED}


def register_dataset(
    settings: type,
    home: str | Callable[..., Mapping[str, Any]],
    values: Mapping[str, Any] | None = None,
    files: Callable[..., Iterable[str | Path]] | None = None,
) -> None:
    """Make a dataset known under the name that its `settings` have.

    Args:
        settings: a `bnn_exp.schema` dataclass derived from `bnn_exp.Rows`, with the field `name: Literal["NAME"]`, then
            what can be set.
        home: the function that makes the rows, or "module:function". It takes the settings that `Rows` does not have, by name,
            and returns `{"train": (images, labels), "test": (images, labels)}`, perhaps with `"validation"` and `"classes"`.
            Images are uint8 [rows, channels, height, width] or [rows, height, width]; labels are one a row, whole numbers that
            index `classes`, or names of classes.
        values: of the settings, in the place of a `conf/dataset/NAME.yaml`. Those of `Rows` have defaults.
        files: takes the same settings, and returns the files that decide the rows. With it the rows are made once and kept in
            the cache, until the settings, a file or the plugin changes; `files=lambda **_: ()` where there are no files.
            Without it the function is called by every run.

    Raises:
        UserError: the name is taken, or `settings` has none.
    """
    name = name_of(settings)
    if not issubclass(settings, Rows):
        raise TypeError(f"{settings.__qualname__}: settings of a dataset derive from bnn_exp.Rows")
    plugins.note(sys._getframe(1))
    DATASETS.add(name, Entry(settings, home, files), settings, home)
    offer("dataset", name, {"name": name, **SHARED, **(values or {})})
