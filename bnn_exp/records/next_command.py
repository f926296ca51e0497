"""Suggests the next command to the user, as the last line that `bnn-train` prints. Imports no torch."""

import shlex
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bnn_exp.config.models import weights_of
from bnn_exp.config.settings import Request, Settings
from bnn_exp.records.runs import own_overrides

if TYPE_CHECKING:
    from bnn_exp.records.sweeps.comparison import Comparison

LEARNED = 80.0  # percent: train accuracy above which a network has learned its rows
GAP = 10.0  # percent: difference of train and test accuracy above which more train images help
SMOKE = ("trainer", "trainer.epochs", "trainer.limit_batches", "trainer.limit_eval")  # keys that shorten a run


def line(arguments: Sequence[str], why: str = "") -> str:
    """Returns one output line: the command `bnn-train` with `arguments`, quoted for a shell, and its purpose `why`."""
    return f"next{f' ({why})' if why else ''}: {shlex.join(['bnn-train', *arguments])}"


@dataclass(frozen=True)
class Ended:
    """A completed training and its results, from which the next command follows.

    Args:
        train_accuracy, test_accuracy: in percent.
        channels: the number of channels of the images.
        flags: the options of the command line, see `command_line.flags`.
    """

    settings: Settings
    overrides: Sequence[str]
    directory: Path
    train_accuracy: float
    test_accuracy: float
    channels: int
    resumed: bool = False
    in_sweep: bool = False
    plugins: Sequence[str] = ()
    flags: Sequence[str] = ()

    def next(self) -> str:
        """Returns the output line that suggests the next command; "" for a run of a sweep, because the sweep
        suggests a command."""
        if self.in_sweep:
            return ""
        if self.settings.trainer.limit_batches or self.settings.trainer.limit_eval:
            return line([*self._without(SMOKE)], "the whole run")
        if self.resumed or self.settings.init_from:
            return line(["task=evaluate", f"from={self.directory}"])
        return self._better() or self._sweep()

    def _better(self) -> str:
        """Returns a suggestion with the most helpful change, if the network has not learned its train rows or overfits; else
        ""."""
        model, trainer = self.settings.model, self.settings.trainer
        if self.train_accuracy < LEARNED:
            if self.channels > 1 and model.name == "mlp":
                kept = self._without(("experiment", "delta"), ("model", "optimizer", "trainer"))
                return line([*kept, "model=bncvl"], "a convolutional network, for photos")
            if weights_of(model) == "bits" and self.settings.optimizer.name == "hypermask":
                kept = self._without(("delta",), ("optimizer",))
                return line([*kept, "optimizer=counter"], "a rule with one byte of memory per weight")
            return line([*self._without(("trainer.epochs",)), f"trainer.epochs={2 * trainer.epochs}"], "more epochs")
        if self.train_accuracy - self.test_accuracy > GAP and self.settings.dataset.augment == "none":
            kept = self._without(("dataset.augment",))
            return line([*kept, "dataset.augment=standard"], "random changes of the train images")
        return ""

    def _sweep(self) -> str:
        size = getattr(self.settings.model, "hidden_size", None)
        sizes = [f"model.hidden_size={size // 2},{size},{2 * size}"] if size and size > 1 else []
        varied = [*sizes, "seed=0,1,2"]
        return line(["-m", *self._without([item.partition("=")[0] for item in varied]), *varied], "a sweep")

    def _without(self, keys: Collection[str], groups: Collection[str] = ()) -> Iterator[str]:
        """Yields the flags and the overrides of the run, without overrides of `keys` and of any key of `groups`."""
        yield from self.flags
        for item in own_overrides(self.overrides, self.plugins):
            key = item.lstrip("+~").partition("=")[0]
            if key not in keys and key.partition(".")[0] not in groups:
                yield item


def of_network(task: str, request: Request, why: str, more: Sequence[str] = ()) -> str:
    """Returns the output line that suggests another task for the network that a request names; "" if it names none.

    Args:
        task: the suggested task.
        why: the purpose of the command.
        more: further overrides of the command.
    """
    if not request.from_:
        return ""
    place = request.from_ if isinstance(request.from_, str) else request.from_[0]
    which = [] if request.which == "last" else [f"which={request.which}"]
    return line([f"task={task}", f"from={place}", *which, *more], why)


def after_sweep(comparison: "Comparison", directory: Path, arguments: Sequence[str], cut: bool = False) -> str:
    """Returns the output line that suggests to continue a sweep or to evaluate its best run; "" if neither is possible.

    Args:
        directory: the directory of the sweep.
        arguments: the arguments of the command that swept.
        cut: True if a signal ended the sweep.
    """
    if cut or any(run.status in ("interrupted", "unfinished") for run in comparison.unfinished):
        known = any(item.partition("=")[0] == "sweep.resume" for item in arguments)
        return line([*arguments, *([] if known else [f"sweep.resume={directory}"])], "continues the sweep")
    if not comparison.best:
        return ""
    return line(["task=evaluate", f"from={comparison.best.runs[0].directory}"], "the best run, on bits too")
