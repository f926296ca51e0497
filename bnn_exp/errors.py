"""The exceptions whose message is all that a user needs to see."""

import errno

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)  # of a disk that takes no more


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
