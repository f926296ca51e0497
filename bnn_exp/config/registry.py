"""Registries: what a configuration can choose by name, ours and a plugin's alike. Imports no torch."""

import pkgutil
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar, get_args

from bnn_exp.errors import UserError

PACKAGE = Path(__file__).resolve().parent.parent
CONF = next(folder for folder in (PACKAGE / "conf", PACKAGE.parent / "conf") if folder.is_dir())
PROGRAMS = ("__main__", "__mp_main__")  # the names of a module that is run as a program, the second in its subprocesses
RESERVED = ("saved",)  # names of `bnn_exp.records.inherit`

Entry = TypeVar("Entry")


class Registry(dict[str, Entry], Generic[Entry]):
    """Entries by name. `key` is the key of the configuration that chooses one, such as `optimizer`."""

    def __init__(self, key: str):
        super().__init__()
        self.key, self._definitions = key, {}

    def add(self, name: str, entry: Entry, *definition: Any) -> None:
        """Add `entry`. The same `definition` (classes, functions or texts "module:name") may come again, and replaces itself.

        Raises:
            UserError: the name can't be one, or something else has it.
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
    """Whether "module:name" is part of this package."""
    return definition.partition(":")[0].partition(".")[0] == "bnn_exp"


def module_name(module: str) -> str:
    """The name under which a module can be imported, also where it runs as a program."""
    if module not in PROGRAMS:
        return module
    program = sys.modules[module]
    if spec := getattr(program, "__spec__", None):  # python -m package.module
        return spec.name
    file = getattr(program, "__file__", None)
    return Path(file).stem if file else module


def home(defined: Any) -> str:
    """Where a class, a function, or the class of another object is defined: "module:qualified name"; a text of this form is
    returned as it is."""
    if isinstance(defined, str):
        return defined
    named = defined if hasattr(defined, "__qualname__") else type(defined)
    return f"{module_name(named.__module__)}:{named.__qualname__}"


def found(defined: Any) -> Any:
    """The class or the function that a registry knows, itself or as "module:name"."""
    return pkgutil.resolve_name(defined) if isinstance(defined, str) else defined


def name_of(settings: type) -> str:
    """The name by which a dataclass of settings is chosen.

    Raises:
        UserError: it has none.
    """
    field = getattr(settings, "__dataclass_fields__", {}).get("name")
    names = get_args(field.type) if field else ()
    if not names or not isinstance(names[0], str):
        raise UserError(f'{home(settings)}: no settings\nallowed: a @schema class whose first field is name: Literal["NAME"]')
    return names[0]


def offer(group: str, name: str, values: Mapping[str, Any]) -> None:
    """Make `values` what `GROUP=NAME` composes, in the place of a file conf/GROUP/NAME.yaml."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(group=group, name=name, node=dict(values))
