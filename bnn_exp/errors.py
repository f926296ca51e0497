"""The one exception that means: what was asked for can't be done, and its message says what can."""


class UserError(Exception):
    """Bad input. The message is one or two lines that name the key, the value and what is allowed."""
