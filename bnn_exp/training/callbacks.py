"""Callbacks: user code that a run calls at its start, after each step, after each epoch and at its end. Imports no torch.

    @register_callback
    class Watch(Callback):
        def on_epoch(self, trainer, metrics):
            return {"bits_of_ones": sum(metrics["ones"].values())}

See docs/callbacks.md.
"""

import copy
import math
import sys
from collections.abc import Callable, Mapping
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bnn_exp.config import plugins
from bnn_exp.config.registry import home
from bnn_exp.errors import place, reason

if TYPE_CHECKING:
    from torch import Tensor

    from bnn_exp.training.trainer import Trainer

# The types that the state of a callback may hold, besides tensors, lists, tuples and dicts.
KEPT = (int, float, str, bool, type(None))


class CallbackFailed(Exception):
    """The exception of a run whose callback has failed. The message names class, method, epoch and line of the callback."""


class Callback:
    """The base class of callbacks. All its methods do nothing.

    If a callback also defines `state_dict()` and `load_state_dict(state)`, checkpoints keep its state.
    """

    def on_start(self, trainer: "Trainer", directory: Path) -> None:
        """Runs before the first step, also when a run resumes. It may write files to `directory`, the directory of the run."""

    def on_step(self, trainer: "Trainer", loss: "Tensor") -> None:
        """Runs after each training step. `loss` is the mean loss of the batch before the step, a scalar on the device."""

    def on_epoch(self, trainer: "Trainer", metrics: dict[str, Any]) -> Mapping[str, Any] | None:
        """Runs after each epoch and its evaluation.

        Args:
            metrics: a copy of the epoch's line in metrics.jsonl.

        Returns:
            Numbers to add to the line, by new names; or a dict of numbers by tensor: {"name": {"layers.0.weight": 1.5}}.
        """

    def on_end(self, trainer: "Trainer", summary: dict[str, Any]) -> None:
        """Runs when a run is completed or interrupted, after its files are written. `summary` is that of summary.json."""


CALLBACKS: list[Callback | type[Callback]] = []  # the registered callbacks; each run makes its own objects from them
Made = TypeVar("Made", bound=Callback | type[Callback])


def register_callback(callback: Made) -> Made:
    """Registers a callback for every later run. Each run instantiates a registered class, or copies a registered object.

    A class that is defined again, for example in a notebook, replaces the earlier class.

    Raises:
        TypeError: `callback` is neither a class derived from Callback nor an object of such a class.
    """
    kind = callback if isinstance(callback, type) else type(callback)
    if not issubclass(kind, Callback):
        raise TypeError(f"{callback!r}: must be derived from bnn_exp.training.callbacks.Callback")
    plugins.note(sys._getframe(1))
    CALLBACKS[:] = [known for known in CALLBACKS if known is not callback and not _same_class(known, callback)]
    CALLBACKS.append(callback)
    return callback


def _same_class(one: Any, other: Any) -> bool:
    return isinstance(one, type) and isinstance(other, type) and home(one) == home(other)


class Callbacks:
    """The callbacks of one run.

    Raises:
        CallbackFailed: in any method, if a callback raises an exception.
    """

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}  # name of the state in checkpoints: the callback
        for registered in CALLBACKS:
            kind = registered if isinstance(registered, type) else type(registered)
            name, others = home(kind), len(self.made)
            made = _called(registered, "__init__", "", lambda r=registered: r() if isinstance(r, type) else copy.deepcopy(r))
            self.made[f"{name} {others}" if name in self.made else name] = made

    def _each(self, method: str, trainer: "Trainer", *arguments: Any) -> list[Any]:
        where = f" in epoch {trainer.progress.epoch + 1}" if method == "on_step" else f" after epoch {trainer.progress.epoch}"
        return [_called(c, method, where, getattr(c, method), trainer, *arguments) for c in self.made.values()]

    def start(self, trainer: "Trainer", directory: Path) -> None:
        """Calls every `on_start`, and makes `trainer` call `on_step` if a callback defines it."""
        if any(type(callback).on_step is not Callback.on_step for callback in self.made.values()):
            trainer.after_step = self.step
        self._each("on_start", trainer, directory)

    def step(self, trainer: "Trainer", loss: "Tensor") -> None:
        self._each("on_step", trainer, loss)

    def epoch(self, trainer: "Trainer", metrics: dict[str, Any]) -> dict[str, Any]:
        """Calls every `on_epoch`. Returns the numbers that they add to the metrics, as plain Python numbers."""
        added: dict[str, Any] = {}
        for name, callback in self.made.items():
            given = copy.deepcopy(metrics | added)
            found = _called(callback, "on_epoch", f" after epoch {trainer.progress.epoch}", callback.on_epoch, trainer, given)
            added |= _numbers(name, found or {}, metrics | added)
        return added

    def end(self, trainer: "Trainer", summary: dict[str, Any]) -> None:
        self._each("on_end", trainer, copy.deepcopy(summary))

    def state(self) -> dict[str, Any]:
        """Returns the states of all callbacks that define `state_dict`, in a form that a checkpoint can hold."""
        states = {}
        for name, callback in self.made.items():
            if hasattr(callback, "state_dict"):
                states[name] = _called(callback, "state_dict", "", callback.state_dict)
                _check_kept(name, states[name])
        return states

    def load(self, states: dict[str, Any]) -> list[str]:
        """Restores the states. Returns the names of the states whose callback is no longer registered."""
        for name, callback in self.made.items():
            if name in states and hasattr(callback, "load_state_dict"):
                _called(callback, "load_state_dict", "", callback.load_state_dict, states[name])
        return [name for name in states if name not in self.made]


def _called(callback: Any, method: str, where: str, function: Callable, *arguments: Any) -> Any:
    """Calls `function` and returns its result. If it raises an exception, raises CallbackFailed with the line that failed."""
    try:
        return function(*arguments)
    except Exception as error:
        kind = callback if isinstance(callback, type) else type(callback)
        raise CallbackFailed(f"{home(kind)}.{method}{where}: {reason(error)} ({place(error)})") from error


def _numbers(callback: str, found: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the result of `on_epoch` as plain numbers.

    Raises:
        CallbackFailed: the result holds something else, or a name that the metrics already have.
    """
    if not isinstance(found, Mapping):
        raise CallbackFailed(f"{callback}.on_epoch returned {found!r:.200}: must be a dict of numbers or None")
    numbers = {}
    for name, value in found.items():
        if not isinstance(name, str) or name in known:
            problem = "the metrics have this name already" if name in known else "no text"
            raise CallbackFailed(f"{callback}.on_epoch returned the name {name!r}: {problem}\nallowed: a new name")
        nested = isinstance(value, Mapping)
        plain = {key: _number(callback, f"{name}/{key}", x) for key, x in value.items()} if nested else None
        numbers[name] = plain if nested else _number(callback, name, value)
    return numbers


def _number(callback: str, name: str, value: Any) -> float | int | None:
    """Returns a plain number, also from a tensor or array of one element; None for NaN and ±∞, which JSON does not have."""
    if hasattr(value, "item"):
        try:
            value = value.item()
        except (RuntimeError, ValueError) as error:
            raise CallbackFailed(f"{callback}.on_epoch returned {name}: {error}") from error
    if not isinstance(value, Real):
        raise CallbackFailed(f"{callback}.on_epoch returned {name}={value!r:.200}: must be a number")
    value = int(value) if isinstance(value, int) else float(value)
    return value if math.isfinite(value) else None


def _check_kept(callback: str, state: Any) -> None:
    """Raises CallbackFailed if a checkpoint cannot store and restore `state`."""
    from torch import Tensor

    if type(state) is dict:
        parts = [*state, *state.values()]
    elif type(state) in (list, tuple):
        parts = list(state)
    elif type(state) in KEPT or isinstance(state, Tensor):
        return
    else:
        raise CallbackFailed(
            f"{callback}.state_dict holds {state!r:.200}: no checkpoint can keep it\n"
            "allowed: tensors, numbers, strings, True, False, None, and lists, tuples and dicts of these"
        )
    for part in parts:
        _check_kept(callback, part)
