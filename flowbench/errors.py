"""The exceptions of the package, and what the command line makes of them; imports nothing.

A ``UsageError`` is told on one line, with exit status 2; an interruption ends with status 130.
"""


class UsageError(ValueError):
    """A wrong key, file, shape or value; the message names it and says what is valid."""


class Diverged(UsageError):
    """A loss, a gradient, a density or a sample is not finite; the message says when and where."""


class Unavailable(UsageError):
    """A measure that these data or this machine do not allow; the message says why on one line."""


class Pruned(Exception):
    """A run was stopped early because it promised little; what it had measured is recorded."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the work after all that was done had been kept; the message says what.

    Attributes:
        run_id: The run that can be resumed.
    """

    def __init__(self, message: str, run_id: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id
