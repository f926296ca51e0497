"""Plugins: Python files and modules of one's own, which register rules, models, datasets, losses and callbacks. No torch.

A run keeps the names of its plugins in config.yaml, so that whoever reads the run loads them first: a job of a sweep in another
process, a rank, `resume=RUN`, `task=evaluate from=RUN`, `bnn_exp.load_model`. A file `rules/patient.py` becomes the module
`patient`, wherever it lies. So classes of a plugin have the same names in every process, and may be pickled.
"""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import FrameType, ModuleType, TracebackType

from bnn_exp.config.paths import at_home
from bnn_exp.config.registry import module_name
from bnn_exp.errors import UserError

MOVED = {"bnn_exp.schema": "bnn_exp.config.schema", "bnn_exp.networks": "bnn_exp.config.models"}  # since 0.1.0
GROUP = "bnn_exp.plugins"  # of entry points
FOLDER = "plugins"  # of a run, with copies of its files
ALLOWED = "allowed: a Python file, my_rule.py, or a module that Python finds, package.module"


class Ended(BaseException):
    """`main()` was called by a file that is loaded as a plugin: all that it registers stands before this call."""


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin. `entry` is what config.yaml keeps of it: the absolute path of a file, or the name of a module."""

    entry: str
    module: str
    file: Path | None
    source: bytes  # of the file; empty where there is none
    package: str | None = None  # name and version of an installed package that brings it

    @property
    def sha256(self) -> str:
        """The fingerprint of the source."""
        return hashlib.sha256(self.source).hexdigest()

    def copy_in(self, run: Path) -> Path:
        """Where `run` keeps the source."""
        return run / FOLDER / f"{self.module}.py"


_loaded: dict[str, Plugin] = {}  # by the name of the module
_programs: dict[str, None] = {}  # entries of modules that registered something without being loaded as plugins
_loading: list[str] = []


def entries(value: str | Iterable[str] | None, beside: Path | None = None) -> list[str]:
    """The setting `plugins` as a list of entries, which config.yaml keeps: files with absolute paths, and modules.

    Args:
        beside: a file that names them. A relative path begins in its folder if a file is there, else in the current folder.
    """
    given = [value] if isinstance(value, str) else value or ()
    return list(dict.fromkeys(_absolute(entry, beside) if is_file(entry) else entry for entry in given))


def _absolute(entry: str, beside: Path | None) -> str:
    path = Path(at_home(entry))
    near = beside and beside.parent / path
    return str((near if near and near.is_file() else path).absolute())


def is_file(entry: str) -> bool:
    """Whether an entry of `plugins` names a file, and no module."""
    return entry.endswith(".py") or "/" in entry or "\\" in entry


def _module(entry: str) -> str:
    return Path(entry).stem.replace(".", "_") if is_file(entry) else entry


def load(value: str | Iterable[str] | None, of: str = "") -> list[str]:
    """Import the installed plugins and those of the setting `plugins`, each once in a process. Returns their `entries`.

    Args:
        of: what names them, for messages: "resume=RUN".

    Raises:
        UserError: a plugin is missing, can't be imported, or registers a name that exists.
    """
    load_installed()
    given = entries(value)
    for entry in given:
        name = _module(entry)
        if name not in _loaded or _loaded[name].entry != entry:
            _loaded[name] = _load_file(name, Path(entry), of) if is_file(entry) else _load_module(entry, of)
    return given


@cache
def load_installed() -> None:
    """Import the plugins that installed packages name as entry points of the group `bnn_exp.plugins`."""
    for point in entry_points(group=GROUP):
        _loaded[point.module] = _installed(point)


def _installed(point: EntryPoint) -> Plugin:
    package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    what = f"plugin {point.name} of the package {package}"
    return _described(point.module, _import(point.module, what, "a version of the package that works, or none"), package)


def loaded() -> list[Plugin]:
    """All plugins of this process, in the order in which they were loaded."""
    return list(_loaded.values())


def program() -> list[str]:
    """The entries of what registered something in this process without being a plugin: the program that calls `main()`."""
    return list(_programs)


def note(caller: FrameType) -> None:
    """Remember that the module of this frame registers something, so that other processes can load it.

    Only a module with a file can be loaded there. What an interactive session registers stays in its process.
    """
    name, file = module_name(caller.f_globals.get("__name__", "")), caller.f_globals.get("__file__")
    if _loading or name in _loaded or name.partition(".")[0] == "bnn_exp":
        return
    if "." in name or "__path__" in caller.f_globals:
        _programs[name] = None
    elif file:
        _programs[str(Path(file).absolute())] = None


def end_loading() -> None:
    """For `main()`: end the loading of a plugin that calls it.

    Raises:
        Ended: one does.
    """
    if _loading:
        raise Ended


def _load_file(name: str, file: Path, of: str) -> Plugin:
    try:
        plugin = Plugin(str(file), name, file, file.read_bytes())
    except OSError as error:
        raise UserError(_missing(file, of, error.strerror)) from error
    if name in _loaded and _loaded[name].source == plugin.source:  # a copy of it
        return plugin
    if (other := _other_module(name, file)) is not None:
        raise UserError(f"plugins={file}: {name} is the name of another module, {other}\nallowed: another name of the file")
    if name not in sys.modules:
        _execute(plugin)
    return plugin


def _missing(file: Path, of: str, reason: str | None) -> str:
    """Says that a file is not there, who names it, and where it may be."""
    if not of:
        return f"plugins={file}: {reason}\n{ALLOWED}"
    kept = Path(of.partition("=")[2]) / FOLDER / f"{_module(str(file))}.py"
    copy = f", or the copy that the run keeps: plugins=[{kept}]" if kept.is_file() else ""
    return f"plugins={file}: {reason}; {of} names it\nallowed: plugins=[FILE] beside it, where the file lies now{copy}"


def _other_module(name: str, file: Path) -> str | None:
    """Where the module `name` comes from, if it is not from `file`; None where no other module has the name."""
    if name in sys.modules:
        origin = getattr(sys.modules[name], "__file__", None) or "built in"
    else:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            spec = None
        if spec is None or spec.origin is None:
            return None
        origin = spec.origin
    return None if Path(origin).exists() and Path(origin).samefile(file) else origin


def _execute(plugin: Plugin) -> None:
    """Make the module of a file. Files beside it can be imported from then on."""
    spec = importlib.util.spec_from_loader(plugin.module, None, origin=str(plugin.file))
    module = sys.modules[plugin.module] = importlib.util.module_from_spec(spec)
    module.__file__ = str(plugin.file)
    if str(plugin.file.parent) not in sys.path:
        sys.path.append(str(plugin.file.parent))
    try:
        with _importing(plugin.module, f"plugins={plugin.file}", "a file that Python can import", plugin.file):
            exec(compile(plugin.source, module.__file__, "exec"), module.__dict__)
    except UserError:
        del sys.modules[plugin.module]
        raise


def _load_module(name: str, of: str) -> Plugin:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"plugins={name or repr(name)}: no file and no module\n{ALLOWED}")
    top, here = name.partition(".")[0], str(Path.cwd())
    if here not in sys.path and top not in sys.modules and importlib.util.find_spec(top) is None:
        sys.path.append(here)
        importlib.invalidate_caches()
    named = f", which {of} names" if of else ""
    allowed = "a module that Python finds (pip install, PYTHONPATH=FOLDER), or plugins=[FILE.py]" + f" beside {of}" * bool(of)
    return _described(name, _import(name, f"plugins={name}{named}", allowed))


def _import(name: str, what: str, allowed: str) -> ModuleType:
    with _importing(name, what, allowed):
        importlib.import_module(name)
    return sys.modules[name]


def _described(name: str, module: ModuleType, package: str | None = None) -> Plugin:
    file = Path(module.__file__) if getattr(module, "__file__", None) else None
    return Plugin(name, name, file, file.read_bytes() if file and file.is_file() else b"", package)


@contextmanager
def _importing(name: str, what: str, allowed: str, file: Path | None = None) -> Iterator[None]:
    """Within the block a plugin is imported. What it raises becomes a UserError of two lines."""
    for old, new in MOVED.items():  # a run keeps the plugin that trained it, as it was written then
        sys.modules.setdefault(old, importlib.import_module(new))
    _loading.append(name)
    try:
        yield
    except Ended:
        pass
    except UserError as error:  # of `register`
        raise UserError(f"{what}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{what}: {_reason(error, file)}\nallowed: {allowed}") from error
    finally:
        _loading.remove(name)


def _reason(error: BaseException, file: Path | None) -> str:
    """The type of an error, its message, and the line of `file` that was under way."""
    if isinstance(error, SyntaxError):
        text, line = error.msg, error.lineno
    else:
        text, line = str(error), _line(error.__traceback__, str(file))
    return f"{type(error).__name__}: {' '.join(text.split())[:300]}" + (f" (line {line})" if line else "")


def _line(trace: TracebackType | None, file: str) -> int | None:
    lines = [line for frame, line in traceback.walk_tb(trace) if frame.f_code.co_filename == file]
    return lines[-1] if lines else None


def check_loaded(value: str | Iterable[str] | None) -> None:
    """See that what a configuration names was loaded before it was composed.

    Raises:
        UserError: one was not, since a file of the configuration names it that is read too late.
    """
    for entry in entries(value):
        if _module(entry) not in _loaded:
            raise UserError(
                f"plugins={entry}: a file of the configuration names it, which is read too late\n"
                f"allowed: plugins=[{entry}] on the command line, or in an experiment of --config-dir"
            )


def used(value: str | Iterable[str] | None) -> list[Plugin]:
    """The plugins of a run whose setting `plugins` is `value`: those and the installed ones."""
    own = set(entries(value))
    return [plugin for plugin in _loaded.values() if plugin.package or plugin.entry in own]


def not_loaded(value: str | Iterable[str] | None) -> str:
    """Says, for a refusal, which plugins of a run are not loaded since `plugins=` names others; "" if all are."""
    missing = [entry for entry in entries(value) if _module(entry) not in _loaded]
    return f"allowed: those that it names among plugins=[…] too: {', '.join(missing)}" if missing else ""


def facts(value: str | Iterable[str] | None) -> list[dict[str, str | None]]:
    """Returns the facts on the plugins of a run for summary.json: `plugin`, as config.yaml names it; `file`; `sha256` of its
    source; and `package`, name and version, of an installed one."""
    return [
        {"plugin": p.entry, "file": p.file and str(p.file), "sha256": p.sha256} | ({"package": p.package} if p.package else {})
        for p in used(value)
    ]


def changed(value: str | Iterable[str] | None, run: Path) -> list[str]:
    """Says, a sentence each, which plugins of a run have another source than the one that its directory `run` keeps."""
    return [
        f"the plugin {plugin.file} has changed since {run} was trained by it: {plugin.copy_in(run)} is what it was"
        for plugin in used(value)
        if plugin.copy_in(run).is_file() and plugin.copy_in(run).read_bytes() != plugin.source
    ]
