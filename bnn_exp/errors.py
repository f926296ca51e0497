"""The exceptions whose message is all that a user needs to see."""

import errno
import traceback
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # of a disk that takes no more


OURS = Path(__file__).resolve().parent


def reason(error: Exception) -> str:
    """Returns the kind and the text of an unexpected error in one short line."""
    text = " ".join(str(error).split())[:300]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place(error: Exception) -> str:
    """Returns "FILE, line N" of the last line that an error passed outside of this package and of installed ones; of the last
    line at all, where there is none."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not {"site-packages", "dist-packages"} & {*Path(f.filename).parts} and not _is_ours(f.filename)]
    frame = (own or frames)[-1]
    return f"{frame.filename}, line {frame.lineno}"


def _is_ours(file: str) -> bool:
    return file.startswith("<") or Path(file).is_relative_to(OURS)


class UserError(Exception):
    """Bad input. The message is one or two lines that name the key, the value and what is allowed."""


class NotWritten(Exception):
    """A file can't be written. The message is a line that names the folder and the reason of the operating system."""


class RankLost(Exception):
    """Another of a run's processes has ended before its time; the message says of what, where that is known."""


class TooLow(Exception):
    """A task is done, and its accuracy is below `min_accuracy`. The message is one to three lines; the exit code is 3."""


class WrongResult(Exception):
    """A task is done, and its result is wrong. The message is one to three lines that say how; the exit code is 1."""
