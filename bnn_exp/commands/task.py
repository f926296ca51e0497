"""The tasks other than training: the input that all these tasks share, and the table of their functions. Imports no torch."""

import pkgutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from bnn_exp.commands.min_accuracy import Gate
from bnn_exp.config import unread, zoo
from bnn_exp.config.settings import Request, load_settings
from bnn_exp.errors import UserError
from bnn_exp.records import directories, next_command, run_choice, runs

FUNCTIONS = {  # each function takes a Task and returns the message for the user
    "report": "bnn_exp.commands.report:report",
    "evaluate": "bnn_exp.commands.evaluate:evaluate",
    "predict": "bnn_exp.commands.predict:predict",
    "export": "bnn_exp.commands.export:export",
    "benchmark": "bnn_exp.commands.benchmark.task:benchmark",
}


@dataclass(frozen=True)
class Task:
    """A task with its checked request, its composed configuration and the overrides of the command line.

    `directory` is for results that do not go to the directory of a run or sweep. The task creates it. `chosen` is True if the
    user named `directory`. `flags` are the words of the command line that say where choices lie (`command_line.flags`).
    """

    request: Request
    composed: DictConfig
    overrides: list[str]
    directory: Path
    chosen: bool = False
    flags: Sequence[str] = ()

    @property
    def gate(self) -> Gate:
        return Gate(self.request.min_accuracy, self.request.which)

    @property
    def places(self) -> list[Path]:
        """The paths in the setting `from`.

        Raises:
            UserError: `from` is empty.
        """
        given = self.request.from_
        if not given:
            raise UserError(f"task={self.request.task} needs from=\nallowed: directories of runs or sweeps")
        return [Path(given)] if isinstance(given, str) else [Path(place) for place in given]

    @property
    def model(self) -> Path:
        """The file of the network that the settings `from` and `which` name.

        Raises:
            UserError: `from` names no network, or several networks.
        """
        first, *others = self.places
        if others:
            several = ",".join(map(str, self.places))
            raise UserError(f"from={several}: task={self.request.task} takes one\nallowed: a run or its model.safetensors")
        return run_choice.model_file(first, self.request.which)

    @property
    def dataset(self) -> Any:
        """The settings of the dataset of the network's run, with the changes that the command line makes.

        Raises:
            UserError: the command line sets a key that the task does not read.
        """
        settings = load_settings(self.composed)
        unread.check_rows(settings, self.overrides)
        return settings.dataset

    def into(self, usual: Path) -> Path:
        """Returns the directory for results: the directory that the user named, else `usual`."""
        return self.directory if self.chosen else usual

    def into_run_or(self, usual: Path, model: Path) -> Path:
        """Returns the directory for results of the network `model`: the directory that the user named, else `usual`.

        Results of a network of the zoo go to a new directory, because nothing is written into the package.

        Raises:
            UserError: the directory belongs to another run. The results would look like results of that run.
        """
        into, run = self.into(self.directory if zoo.holds(model) else usual), runs.run_of(model)
        if into.resolve() == run.resolve():
            return run
        directories.check_no_other_run(into)
        return into

    def next(self, task: str, why: str, more: Sequence[str] = ()) -> str:
        """Returns a line with the command that applies another task to the same network; "" without `from`.

        Args:
            task: the other task.
            why: the purpose of the command, in words.
            more: further overrides of the command.
        """
        return next_command.of_network(task, self.request, why, more)


def named(what: str, model: Path) -> str:
    """Returns the name for result files of the network in `model`: `what` for the last network of a run, else `what-NETWORK`.

    Results of the best network, or of another file, thus never replace the results of the last network.
    """
    which = runs.which_of(model)
    return what if which == "last" else f"{what}-{which}"


def joined(*lines: str) -> str:
    """Joins the non-empty lines of a message."""
    return "\n".join(filter(None, lines))


def perform(task: Task) -> str:
    """Executes a task and returns the message that the user sees at its end.

    Raises:
        UserError: the input is wrong.
        NotWritten: a file can't be written.
        TooLow, WrongResult: the task is done, but its result is below `min_accuracy`, or wrong.
    """
    return pkgutil.resolve_name(FUNCTIONS[task.request.task])(task)
