"""The strict dataclass of all settings, and the ranges that many settings share. Imports no torch."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from bnn_exp.paths import at_home

schema = dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))

Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Place = Annotated[str, AfterValidator(at_home)]  # of a file or folder
Count = Annotated[int, Field(ge=1)]
Schedule = Literal["constant", "linear", "cosine"]


def check(settings: type, values: dict[str, Any]) -> None:
    """`values` must be those of the dataclass `settings`.

    Raises:
        ValueError: the first that is not, in a line: its name, its value, what is wrong with it.
    """
    try:
        settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{first['loc'][-1]}={first['input']!r}: {first['msg'].lower()}") from None
