"""The plugins of this process: Python files and modules that register rules, models, datasets, losses and callbacks.

A run keeps the names of its plugins in config.yaml. Every command that reads the run loads these plugins first: a job of a
sweep in another process, a rank, `resume=RUN`, `task=evaluate from=RUN`, `bnn_exp.load_model`. Imports no torch.
"""

from collections.abc import Iterable
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import FrameType
from typing import Any

from bnn_exp.config import plugin_import
from bnn_exp.config.paths import at_home
from bnn_exp.config.plugin_import import Plugin, module_of, names_file
from bnn_exp.config.registry import module_name
from bnn_exp.errors import UserError

GROUP = "bnn_exp.plugins"  # the group of entry points by which installed packages name their plugins

_loaded: dict[str, Plugin] = {}  # name of the module: the loaded plugin
_programs: dict[str, None] = {}  # modules that registered something but were not loaded as plugins


def entries(value: str | Iterable[str] | None, beside: Path | None = None) -> list[str]:
    """Returns the setting `plugins` as config.yaml keeps it: a list of absolute paths of files, and of names of modules.

    Args:
        value: the setting as the user typed it: a file or module, several of them, or None.
        beside: the file that names the plugins. A relative path begins in the folder of this file if the plugin is there,
            else in the current folder.
    """
    given = [value] if isinstance(value, str) else value or ()
    return list(dict.fromkeys(_absolute(entry, beside) if names_file(entry) else entry for entry in given))


def _absolute(entry: str, beside: Path | None) -> str:
    path = Path(at_home(entry))
    near = beside and beside.parent / path
    return str((near if near and near.is_file() else path).absolute())


def load(value: str | Iterable[str] | None, named_by: str = "") -> list[str]:
    """Imports the installed plugins and the plugins of the setting `plugins`, each once in a process.

    Returns the `entries` of the setting.

    Args:
        value: the setting `plugins`.
        named_by: the override that names the plugins, for messages, such as `resume=RUN`; "" for the command itself.

    Raises:
        UserError: a plugin is missing, cannot be imported, or registers a name that exists.
    """
    load_installed()
    given = entries(value)
    for entry in given:
        name = module_of(entry)
        known = _loaded.get(name)
        if known is None or known.entry != entry:
            _loaded[name] = (
                plugin_import.from_file(Path(entry), named_by, known)
                if names_file(entry)
                else plugin_import.from_module(entry, named_by)
            )
    return given


@cache
def load_installed() -> None:
    """Imports the plugins that installed packages name as entry points of the group `bnn_exp.plugins`.

    Raises:
        UserError: a plugin cannot be imported.
    """
    for point in entry_points(group=GROUP):
        _loaded[point.module] = plugin_import.from_package(point)


def loaded() -> list[Plugin]:
    """Returns all plugins that this process has loaded, in the order of loading."""
    return list(_loaded.values())


def program() -> list[str]:
    """Returns the modules that registered something in this process without being loaded as plugins, as entries of `plugins`.

    Such a module is usually the user's own program, which calls `main()`.
    """
    return list(_programs)


def note(caller: FrameType) -> None:
    """Records that the module of the frame `caller` registers something, so that other processes can load the module too.

    Other processes can load only a module with a file. A registration in an interactive session stays in its process.
    """
    name, file = module_name(caller.f_globals.get("__name__", "")), caller.f_globals.get("__file__")
    if plugin_import.importing or name in _loaded or name.partition(".")[0] == "bnn_exp":
        return
    if "." in name or "__path__" in caller.f_globals:
        _programs[name] = None
    elif file:
        _programs[str(Path(file).absolute())] = None


def end_loading() -> None:
    """Ends the import of a plugin if the plugin calls `main()`. `main()` calls this function first.

    Raises:
        MainCalled: a plugin is being imported.
    """
    if plugin_import.importing:
        raise plugin_import.MainCalled


def check_loaded(value: str | Iterable[str] | None) -> None:
    """Checks that the plugins of a composed configuration were loaded before Hydra composed the configuration.

    Args:
        value: the setting `plugins` of the configuration.

    Raises:
        UserError: a plugin was not loaded. A file of the configuration names the plugin, and Hydra reads the file too late.
    """
    for entry in entries(value):
        if module_of(entry) not in _loaded:
            raise UserError(
                f"plugins={entry}: a file of the configuration names it, which is read too late\n"
                f"allowed: plugins=[{entry}] on the command line, or in an experiment of --config-dir"
            )


def not_loaded(value: str | Iterable[str] | None) -> str:
    """Returns the line `allowed: …` that names the missing plugins of a run; "" if all are loaded.

    Args:
        value: the setting `plugins` of the run.
    """
    missing = [entry for entry in entries(value) if module_of(entry) not in _loaded]
    return f"allowed: the plugins of the run in plugins=[…] too: {', '.join(missing)}" if missing else ""


def used(value: str | Iterable[str] | None) -> list[Plugin]:
    """Returns the loaded plugins of a run: those in `value`, its setting `plugins`, and those of installed packages."""
    named = set(entries(value))
    return [plugin for plugin in _loaded.values() if plugin.package or plugin.entry in named]


def facts(value: str | Iterable[str] | None) -> list[dict[str, Any]]:
    """Returns the facts that summary.json keeps about the plugins of a run. `value` is the setting `plugins` of the run.

    Each dictionary has `plugin` (the entry in config.yaml), `file` (a path or None) and `sha256` (of the source). An installed
    plugin also has `package`, the name and version of its package.
    """
    return [
        {"plugin": p.entry, "file": p.file and str(p.file), "sha256": p.sha256} | ({"package": p.package} if p.package else {})
        for p in used(value)
    ]


def changed(value: str | Iterable[str] | None, run: Path) -> list[str]:
    """Returns a warning for each plugin of a run whose source differs from the copy in the directory of the run.

    Args:
        value: the setting `plugins` of the run.
        run: the directory of the run.
    """
    return [
        f"the plugin {plugin.file} has changed since {run} was trained with it: {plugin.copy_in(run)} is the version of then"
        for plugin in used(value)
        if plugin.copy_in(run).is_file() and plugin.copy_in(run).read_bytes() != plugin.source
    ]
