"""The decorator of all dataclasses of settings, and the types and ranges that many settings share. Imports no torch."""

from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform

from pydantic import AfterValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass
from pydantic_core import CoreSchema, core_schema

from bnn_exp.config.paths import at_home

T = TypeVar("T")


@dataclass_transform(kw_only_default=True, frozen_default=True)
def schema(kind: type[T]) -> type[T]:
    """Makes a class a frozen, strict dataclass of settings: pydantic checks types and ranges, and refuses unknown names."""
    made: Any = dataclass(frozen=True, kw_only=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
    return made(kind)


Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Place = Annotated[str, AfterValidator(at_home)]  # the path of a file or folder, with ~ expanded
Count = Annotated[int, Field(ge=1)]
Schedule = Literal["constant", "linear", "cosine", "geometric"]


class Named:
    """An annotation for a text that must be one of `names`. A plugin can add names later, which `Literal` does not allow."""

    def __init__(self, names: Collection[str]):
        self.names = names

    def _check(self, name: str) -> str:
        if name not in self.names:
            raise ValueError("no such name")
        return name

    def __get_pydantic_core_schema__(self, _source: Any, handler: Any) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(str))

    def __get_pydantic_json_schema__(self, _schema: CoreSchema, _handler: Any) -> dict[str, Any]:
        return {"enum": list(self.names)}


def check(settings: type, values: dict[str, Any]) -> None:
    """Checks that `values` are valid values of the dataclass `settings`.

    Raises:
        ValueError: a value is not valid. The message is one line: the name of the first such value, the value, what is wrong.
    """
    try:
        settings(**values)
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{first['loc'][-1]}={first['input']!r}: {first['msg'].lower()}") from None
