"""The state of the command that this process executes: its prepared task, its messages and its exit codes. Imports no torch.

Hydra calls our functions with the configuration alone. The functions find everything else here.
"""

import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hydra.errors import HydraException

from bnn_exp.config import hydra_errors
from bnn_exp.errors import BAD_INPUT, Expected

if TYPE_CHECKING:
    from bnn_exp.commands.sweep import Sweep
    from bnn_exp.commands.task import Task
    from bnn_exp.training.plan import Plan


@dataclass
class Command:
    """The state of one `bnn-train` command, or of one job of a sweep in another process."""

    prepared: "Plan | Task | None" = None  # the checked input of the only job; None in a sweep
    sweep: "Sweep | None" = None
    goes_on: bool = False  # True for resume=auto: the same command, given again, continues where it was stopped
    messages: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)  # one exit code for each failure or interruption

    def say(self, message: str) -> None:
        """Prints a message on standard error and keeps the message."""
        self.messages.append(message)
        print(f"bnn-train: {message}", file=sys.stderr)

    def fail(self, message: str, code: int) -> None:
        """Prints a message on standard error and records the exit code `code`."""
        self.say(message)
        self.codes.append(code)

    def fail_with(self, error: Expected | HydraException, advice: str = "") -> None:
        """Prints the message of an exception, then the line `advice` if there is one, and records the exception's exit code."""
        if isinstance(error, Expected):
            self.fail(f"{error.prefix}{error}" + (f"\n{advice}" if advice else ""), error.exit_code)
        else:
            self.fail(hydra_errors.in_words(error, sys.argv[1:]), BAD_INPUT)

    def include(self, job: "Command") -> None:
        """Prints the messages of a job that ran in another process, and records its exit codes."""
        for message in job.messages:
            self.say(message)
        self.codes.extend(job.codes)


_current = Command()


def begin() -> Command:
    """Replaces the state of the last command of this process by a new, empty state, and returns it."""
    global _current
    _current = Command()
    return _current


def current() -> Command:
    """Returns the state of the command that this process executes."""
    return _current
