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

KEPT = (int, float, str, bool, type(None))  # of a state, beside tensors, lists, tuples and dicts


class CallbackFailed(Exception):
    """Raised where a callback raises an error. The message names its class, the method, the line and the epoch."""


class Callback:
    """Base class of callbacks. Every method does nothing.

    A callback may also define `state_dict()` and `load_state_dict(state)`: then checkpoints keep its state.
    """

    def on_start(self, trainer: "Trainer", directory: Path) -> None:
        """Called before the first step, of a run that is resumed too; `directory` is that of the run, and may be written to."""

    def on_step(self, trainer: "Trainer", loss: "Tensor") -> None:
        """Called after each step of the optimizers; `loss` is that of the batch before the step, a scalar on the device."""

    def on_epoch(self, trainer: "Trainer", metrics: dict[str, Any]) -> Mapping[str, Any] | None:
        """Called after each epoch and its evaluation.

        Args:
            metrics: a copy of the line of the epoch in metrics.jsonl.

        Returns:
            Numbers by new names, which the line gets too, or numbers by tensor: {"name": {"layers.0.weight": 1.5}}.
        """

    def on_end(self, trainer: "Trainer", summary: dict[str, Any]) -> None:
        """Called when a run is completed or interrupted, after its files; `summary` is that of summary.json."""


CALLBACKS: list[Callback | type[Callback]] = []  # each run makes its own of them
Made = TypeVar("Made", bound=Callback | type[Callback])


def register_callback(callback: Made) -> Made:
    """Registers `callback` for every run from now on: a class, which each run instantiates, or an object, which it copies.

    A class that is defined anew, as in a notebook, replaces the earlier one.

    Raises:
        TypeError: it is neither a class derived from Callback nor an object of one.
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
        CallbackFailed: from each method, where a callback raises an error.
    """

    def __init__(self) -> None:
        self.made: dict[str, Any] = {}  # by the names under which checkpoints hold their states
        for registered in CALLBACKS:
            kind = registered if isinstance(registered, type) else type(registered)
            name, others = home(kind), len(self.made)
            made = _called(registered, "__init__", "", lambda r=registered: r() if isinstance(r, type) else copy.deepcopy(r))
            self.made[f"{name} {others}" if name in self.made else name] = made

    def _each(self, method: str, trainer: "Trainer", *arguments: Any) -> list[Any]:
        where = f" in epoch {trainer.progress.epoch + 1}" if method == "on_step" else f" after epoch {trainer.progress.epoch}"
        return [_called(c, method, where, getattr(c, method), trainer, *arguments) for c in self.made.values()]

    def start(self, trainer: "Trainer", directory: Path) -> None:
        """Calls `on_start` of all, and makes `trainer` call `on_step` where a callback has one."""
        if any(type(callback).on_step is not Callback.on_step for callback in self.made.values()):
            trainer.after_step = self.step
        self._each("on_start", trainer, directory)

    def step(self, trainer: "Trainer", loss: "Tensor") -> None:
        self._each("on_step", trainer, loss)

    def epoch(self, trainer: "Trainer", metrics: dict[str, Any]) -> dict[str, Any]:
        """Calls `on_epoch` of all. Returns what they add to the metrics, as plain numbers."""
        added: dict[str, Any] = {}
        for name, callback in self.made.items():
            given = copy.deepcopy(metrics | added)
            found = _called(callback, "on_epoch", f" after epoch {trainer.progress.epoch}", callback.on_epoch, trainer, given)
            added |= _numbers(name, found or {}, metrics | added)
        return added

    def end(self, trainer: "Trainer", summary: dict[str, Any]) -> None:
        self._each("on_end", trainer, copy.deepcopy(summary))

    def state(self) -> dict[str, Any]:
        """Returns the states of the callbacks that have one; a checkpoint can hold them."""
        states = {}
        for name, callback in self.made.items():
            if hasattr(callback, "state_dict"):
                states[name] = _called(callback, "state_dict", "", callback.state_dict)
                _check_kept(name, states[name])
        return states

    def load(self, states: dict[str, Any]) -> list[str]:
        """Restores the `states`. Returns the names of those whose callback is not registered any more."""
        for name, callback in self.made.items():
            if name in states and hasattr(callback, "load_state_dict"):
                _called(callback, "load_state_dict", "", callback.load_state_dict, states[name])
        return [name for name in states if name not in self.made]


def _called(callback: Any, method: str, where: str, function: Callable, *arguments: Any) -> Any:
    """Returns what `function` returns; an error of it is raised as CallbackFailed, which names its place."""
    try:
        return function(*arguments)
    except Exception as error:
        kind = callback if isinstance(callback, type) else type(callback)
        raise CallbackFailed(f"{home(kind)}.{method}{where}: {reason(error)} ({place(error)})") from error


def _numbers(callback: str, found: Any, known: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the result of `on_epoch` as plain numbers.

    Raises:
        CallbackFailed: it is something else, or a name that the metrics have.
    """
    if not isinstance(found, Mapping):
        raise CallbackFailed(f"{callback}.on_epoch returned {found!r:.200}: must be a dict of numbers, or None")
    numbers = {}
    for name, value in found.items():
        if not isinstance(name, str) or name in known:
            problem = "the run's own name" if name in known else "no text"
            raise CallbackFailed(f"{callback}.on_epoch returned the name {name!r}: {problem}\nallowed: a name of its own")
        nested = isinstance(value, Mapping)
        plain = {key: _number(callback, f"{name}/{key}", x) for key, x in value.items()} if nested else None
        numbers[name] = plain if nested else _number(callback, name, value)
    return numbers


def _number(callback: str, name: str, value: Any) -> float | int | None:
    """A plain number, also of a tensor or an array of one; None for what JSON does not have: NaN and the infinities."""
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
    """Raises CallbackFailed unless a checkpoint can hold `state`, and give it back."""
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
            "allowed: tensors, numbers, texts, true and false, None, and lists, tuples and dicts of them"
        )
    for part in parts:
        _check_kept(callback, part)
