"""Imports a plugin, a Python file or a module, and turns each failure into a message of two lines. Imports no torch.

The file `rules/patient.py` becomes the module `patient` in every process, wherever the file lies. So the classes of a plugin
have the same names everywhere, and can be pickled.
"""

import hashlib
import importlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from types import ModuleType, TracebackType

from bnn_exp.errors import UserError

# Modules that have moved since version 0.1.0: old name, new name.
MOVED = {"bnn_exp.schema": "bnn_exp.config.schema", "bnn_exp.networks": "bnn_exp.config.models"}
FOLDER = "plugins"  # the folder of a run that holds copies of its plugins
ALLOWED = "allowed: a Python file, my_rule.py, or a module that Python finds, package.module"


class MainCalled(BaseException):
    """The exception that ends the import of a plugin at its call of `main()`. What follows the call registers nothing."""


@dataclass(frozen=True)
class Plugin:
    """A loaded plugin."""

    entry: str  # the plugin's name in config.yaml: the absolute path of a file, or the name of a module
    module: str
    file: Path | None
    source: bytes  # the content of `file`; empty without a file
    package: str | None = None  # name and version of the installed package that brings the plugin

    @property
    def sha256(self) -> str:
        """The fingerprint of the source, in hexadecimal digits."""
        return hashlib.sha256(self.source).hexdigest()

    def copy_in(self, run: Path) -> Path:
        """Returns the path of the copy of the source that the run directory `run` keeps."""
        return run / FOLDER / f"{self.module}.py"


importing: list[str] = []  # the modules of the plugins whose import has begun and not ended


def names_file(entry: str) -> bool:
    """Returns True if an entry of the setting `plugins` names a file, False if it names a module."""
    return entry.endswith(".py") or "/" in entry or "\\" in entry


def module_of(entry: str) -> str:
    """Returns the name of the module that an entry of the setting `plugins` becomes."""
    return Path(entry).stem.replace(".", "_") if names_file(entry) else entry


def from_file(file: Path, named_by: str, known: Plugin | None) -> Plugin:
    """Imports the plugin in a file.

    Args:
        named_by: the override that names the plugin, for messages, such as `resume=RUN`; "" for the command itself.
        known: the loaded plugin of the same module name, or None. A file with the same source is a copy, and is not imported.

    Raises:
        UserError: the file is missing or cannot be imported, or another module has the name of the plugin's module.
    """
    name = module_of(str(file))
    try:
        plugin = Plugin(str(file), name, file, file.read_bytes())
    except OSError as error:
        raise UserError(_missing(file, named_by, error.strerror)) from error
    if known and known.source == plugin.source:
        return plugin
    if (other := _other_module(name, file)) is not None:
        raise UserError(f"plugins={file}: {name} is the name of another module, {other}\nallowed: another name of the file")
    if name not in sys.modules:
        _execute(plugin)
    return plugin


def from_module(name: str, named_by: str) -> Plugin:
    """Imports the plugin in a module that Python finds, also in the current folder.

    Args:
        named_by: the override that names the plugin, for messages, such as `resume=RUN`; "" for the command itself.

    Raises:
        UserError: Python does not find the module, or cannot import it.
    """
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"plugins={name or repr(name)}: no file and no module\n{ALLOWED}")
    top, here = name.partition(".")[0], str(Path.cwd())
    if here not in sys.path and top not in sys.modules and importlib.util.find_spec(top) is None:
        sys.path.append(here)
        importlib.invalidate_caches()
    named = f", which {named_by} names" if named_by else ""
    beside = f" beside {named_by}" if named_by else ""
    allowed = f"a module that Python finds (pip install, PYTHONPATH=FOLDER), or plugins=[FILE.py]{beside}"
    return _described(name, _import(name, f"plugins={name}{named}", allowed))


def from_package(point: EntryPoint) -> Plugin:
    """Imports the plugin that an installed package names by the entry point `point`.

    Raises:
        UserError: the plugin cannot be imported.
    """
    package = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
    subject = f"plugin {point.name} of the package {package}"
    return _described(point.module, _import(point.module, subject, "a version of the package that works, or none"), package)


def _missing(file: Path, named_by: str, reason: str | None) -> str:
    if not named_by:
        return f"plugins={file}: {reason}\n{ALLOWED}"
    kept = Path(named_by.partition("=")[2]) / FOLDER / f"{module_of(str(file))}.py"
    copy = f", or the copy that the run keeps: plugins=[{kept}]" if kept.is_file() else ""
    return f"plugins={file}: {reason}; {named_by} names it\nallowed: plugins=[FILE] beside it, where the file lies now{copy}"


def _other_module(name: str, file: Path) -> str | None:
    """Returns the origin of a module `name` that is not in `file`: a path or "built in". None if there is no such module."""
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
    """Runs the file of a plugin as a module. Afterwards Python also finds the modules in the folder of the file."""
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


def _import(name: str, subject: str, allowed: str) -> ModuleType:
    with _importing(name, subject, allowed):
        importlib.import_module(name)
    return sys.modules[name]


def _described(name: str, module: ModuleType, package: str | None = None) -> Plugin:
    file = Path(module.__file__) if getattr(module, "__file__", None) else None
    return Plugin(name, name, file, file.read_bytes() if file and file.is_file() else b"", package)


@contextmanager
def _importing(name: str, subject: str, allowed: str, file: Path | None = None) -> Iterator[None]:
    """Context manager: its body imports a plugin. An exception in the body becomes a UserError; MainCalled ends the body.

    Args:
        name: the name of the plugin's module.
        subject: the first words of the message, which name the plugin.
        allowed: the second line of the message, without `allowed: `.
        file: the file of the plugin. The message names the line of this file that raised the exception.
    """
    for old, new in MOVED.items():  # the plugin that a run keeps may import modules by earlier names
        sys.modules.setdefault(old, importlib.import_module(new))
    importing.append(name)
    try:
        yield
    except MainCalled:
        pass
    except UserError as error:  # the plugin registers something under a name that is refused
        raise UserError(f"{subject}: {error}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{subject}: {_reason(error, file)}\nallowed: {allowed}") from error
    finally:
        importing.remove(name)


def _reason(error: BaseException, file: Path | None) -> str:
    """Returns the type of an exception, its message, and the number of the line of `file` that raised it."""
    if isinstance(error, SyntaxError):
        text, line = error.msg, error.lineno
    else:
        text, line = str(error), _line(error.__traceback__, str(file))
    return f"{type(error).__name__}: {' '.join(text.split())[:300]}" + (f" (line {line})" if line else "")


def _line(trace: TracebackType | None, file: str) -> int | None:
    lines = [line for frame, line in traceback.walk_tb(trace) if frame.f_code.co_filename == file]
    return lines[-1] if lines else None
