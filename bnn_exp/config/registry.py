"""A registry holds what a configuration can choose by name: rules, models, datasets, losses, built in or from a plugin.

Imports no torch.
"""

import pkgutil
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from bnn_exp.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
PROGRAMS = ("__main__", "__mp_main__")  # names of a module that runs as a program, the second in a subprocess
RESERVED = (
    "saved",
)  # names that nobody may register: `bnn_exp.records.inherit` offers inherited settings as the choice `saved`

Entry = TypeVar("Entry")


class Registry(dict[str, Entry], Generic[Entry]):
    """A dictionary of entries by name. `key` is the key of the configuration that chooses an entry, such as `optimizer`."""

    def __init__(self, key: str):
        super().__init__()
        self.key = key
        self._definitions: dict[str, tuple[str, ...]] = {}

    def add(self, name: str, entry: Entry, *definition: Any) -> None:
        """Adds an entry. A second entry with an equal `definition` replaces the first: a plugin may be loaded again.

        Args:
            definition: the classes or functions that define the entry, or their names as "module:name".

        Raises:
            UserError: the name is not a valid name, or something else has the name.
        """
        definition = tuple(map(home, definition))
        if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in RESERVED:
            raise UserError(f"{self.key}={name}: can't be registered\nallowed: another name, of letters, digits and _")
        if self._definitions.get(name, definition) != definition:
            raise UserError(
                f"{self.key}={name}: {self._definitions[name][-1]} has this name already, {definition[-1]} wants it too\n"
                "allowed: another name"
            )
        if name not in self and definition and not is_ours(definition[-1]) and (CONF / self.key / f"{name}.yaml").is_file():
            raise UserError(f"{self.key}={name}: a choice of that name exists already\nallowed: another name")
        self[name], self._definitions[name] = entry, definition


def is_ours(definition: str) -> bool:
    """Returns True if "module:name" is part of this package."""
    return definition.partition(":")[0].partition(".")[0] == "bnn_exp"


def module_name(module: str) -> str:
    """Returns the name by which Python imports a module, also if the module runs as a program."""
    if module not in PROGRAMS:
        return module
    program = sys.modules[module]
    if spec := getattr(program, "__spec__", None):  # the program was started as python -m package.module
        return spec.name
    file = getattr(program, "__file__", None)
    return Path(file).stem if file else module


def home(defined: Any) -> str:
    """Returns the place where something is defined, as "module:qualified name".

    Args:
        defined: a class, a function, or an object of a class. A text "module:qualified name" is returned unchanged.
    """
    if isinstance(defined, str):
        return defined
    named = defined if hasattr(defined, "__qualname__") else type(defined)
    return f"{module_name(named.__module__)}:{named.__qualname__}"


def found(defined: Any) -> Any:
    """Returns the class or function that `defined` names as "module:name". Returns any other `defined` unchanged."""
    return pkgutil.resolve_name(defined) if isinstance(defined, str) else defined


def fields_of(settings: type) -> Mapping[str, Any]:
    """Returns the fields of a dataclass of settings by their names; an empty mapping for a class that is no dataclass."""
    return getattr(settings, "__dataclass_fields__", {})


def name_of(settings: type) -> str:
    """Returns the name by which the configuration chooses a dataclass of settings.

    Raises:
        UserError: the class has no field `name: Literal["NAME"]`.
    """
    field = fields_of(settings).get("name")
    names = get_args(field.type) if field else ()
    if not names or not isinstance(names[0], str):
        allowed = 'a @schema class whose first field is name: Literal["NAME"]'
        raise UserError(f"{home(settings)}: not a class of settings\nallowed: {allowed}")
    return names[0]


def offer(group: str, name: str, values: Mapping[str, Any]) -> None:
    """Makes `values` the content of the choice `GROUP=NAME`, as a file conf/GROUP/NAME.yaml would."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group=group, name=name, node=dict(values))
