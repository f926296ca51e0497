"""The settings of the datasets, and the registry of datasets that plugins add by `register_dataset`.

Imports neither torch nor NumPy.
"""

import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from bnn_exp.config import plugins
from bnn_exp.config.registry import Registry, fields_of, found, name_of, offer
from bnn_exp.config.schema import Count, Place, schema


def _rising(limits: tuple[float, float]) -> tuple[float, float]:
    if not limits[0] < limits[1]:
        raise ValueError("LOW is not below HIGH")
    return limits


@schema
class Rows:
    """The settings that every dataset has: the samples to train on, and their augmentation."""

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
class ImageDataset(Rows):
    """The settings of a dataset of image files: the samples to read, and how an image becomes an array of pixels."""

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
class HubDataset(ImageDataset):
    name: Literal["mnist", "fashion_mnist", "cifar10", "cifar100", "svhn", "food101"]
    hub: str  # OWNER/NAME, or OWNER/NAME:CONFIGURATION for a dataset with several configurations
    path: Place | None


@schema
class Local(ImageDataset):
    name: Literal["local"]
    path: Annotated[Place, Field(description="a folder or file of your own images: train/CLASS/… and test/CLASS/…, or a table")]


@dataclass(frozen=True)
class Entry:
    """A registered dataset. `register_dataset` explains `home` and `files`."""

    settings: Any  # the dataclass of the dataset's settings
    home: str | Callable[..., Mapping[str, Any]]
    files: Callable[..., Iterable[str | Path]] | None

    def load(self) -> Callable[..., Mapping[str, Any]]:
        """Imports and returns the function that makes the samples."""
        return found(self.home)

    def own(self, settings: Any) -> dict[str, Any]:
        """Returns the values of those `settings` that `Rows` lacks, by name. They decide which samples the dataset holds."""
        return {name: getattr(settings, name) for name in fields_of(self.settings) if name not in _SHARED}


DATASETS: Registry[Entry] = Registry("dataset")  # dataset=NAME chooses an entry
# The settings that all datasets have (`Rows`), with the defaults for a registered dataset.
SHARED = {"limit": None, "validation": 0, "augment": "none", "shift": None, "flip": False, "cutout": 0}
_SHARED = {"name", *SHARED}


def register_dataset(
    settings: Any,
    home: str | Callable[..., Mapping[str, Any]],
    values: Mapping[str, Any] | None = None,
    files: Callable[..., Iterable[str | Path]] | None = None,
) -> None:
    """Registers a dataset, which `dataset=NAME` then chooses.

    Args:
        settings: a `bnn_exp.schema` dataclass derived from `bnn_exp.Rows`. Its first field is `name: Literal["NAME"]`, the
            other fields are the settings.
        home: the function that makes the samples, or its name as "module:function". The function takes the settings that
            `Rows` does not have, as keyword arguments. It returns `{"train": (images, labels), "test": (images, labels)}`,
            optionally with `"validation"` and `"classes"`. Images are uint8 [samples, channels, height, width] or
            [samples, height, width]. Labels are [samples]: whole numbers that index `classes`, or names of classes.
        values: the values of the settings. They replace a file `conf/dataset/NAME.yaml`. Settings of `Rows` have defaults.
        files: a function that takes the same arguments as `home` and returns the files that decide the samples;
            `lambda **_: ()` if there are no files. With `files` the samples are made once and kept in the cache, until the
            settings, a file or the plugin changes. Without `files` every run makes the samples again.

    Raises:
        UserError: another dataset has the name, or `settings` has no name.
        TypeError: `settings` does not derive from `bnn_exp.Rows`.
    """
    name = name_of(settings)
    if not issubclass(settings, Rows):
        raise TypeError(f"{settings.__qualname__}: settings of a dataset derive from bnn_exp.Rows")
    plugins.note(sys._getframe(1))
    DATASETS.add(name, Entry(settings, home, files), settings, home)
    offer("dataset", name, {"name": name, **SHARED, **(values or {})})
