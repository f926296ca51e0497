"""The exceptions whose message is all that a user needs to see."""


class UserError(Exception):
    """Bad input. The message is one or two lines that name the key, the value and what is allowed."""


class RankLost(Exception):
    """Another of a run's processes has ended before its time; the message says of what, where that is known."""
