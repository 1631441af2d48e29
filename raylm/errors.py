"""Errors that a user can mend.

Anything that is wrong with what the user gave us (a file, a line, a config key, a model directory)
is a `UserError`: the command line prints its one line and exits with code 2, without a traceback.
Anything else is a bug or a fault of the machine and keeps its traceback.
"""


class UserError(ValueError):
    """Bad input. The message names the file, line or field, and what to do about it."""


class EngineDied(RuntimeError):
    """A generation engine stopped working. The message names the root cause."""


class PromptTooLong(UserError):
    """A prompt leaves no room for a completion in the engine's context."""
