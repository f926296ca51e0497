"""Exit codes, and the exceptions whose message is all that a user needs to see."""

import errno
import traceback
from pathlib import Path

FAILED, BAD_INPUT, TOO_LOW, INTERRUPTED = 1, 2, 3, 130  # exit codes of bnn-train; of several, the greatest counts
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # their meaning: a disk takes no more data
OURS = Path(__file__).resolve().parent


def reason(error: Exception) -> str:
    """Returns the class and the text of an unexpected exception in one line of about 300 characters at most."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place(error: Exception) -> str:
    """Returns "FILE, line N" for the innermost line of the traceback that lies outside this package and installed packages.

    If the traceback has no such line, the result names its innermost line.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not {"site-packages", "dist-packages"} & {*Path(f.filename).parts} and not _is_ours(f.filename)]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"


def _is_ours(file: str) -> bool:
    return file.startswith("<") or Path(file).is_relative_to(OURS)


class Expected(Exception):
    """Base class of the exceptions whose message is shown without a traceback.

    `exit_code` is the exit code of the command; `prefix` stands before the message.
    """

    exit_code = FAILED
    prefix = "failed: "


class UserError(Expected):
    """Bad input. The message is one or two lines that name the key, its value and the allowed values."""

    exit_code, prefix = BAD_INPUT, ""


class NotWritten(Expected):
    """A file can't be written. The message is a line that names the folder and the reason of the operating system."""


class RankLost(Expected):
    """Another process of the run has ended too early. The message names the cause if the cause is known."""


class Diverged(Expected):
    """The loss of a training is no longer a finite number. The message names the epoch and the batch, and what may help."""


class TooLow(Expected):
    """A task is done, but the accuracy is below `min_accuracy`. The message is one to three lines."""

    exit_code, prefix = TOO_LOW, ""


class WrongResult(Expected):
    """A task is done, but its result is wrong. The message is one to three lines that say what differs."""

    prefix = ""
