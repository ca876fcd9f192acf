"""The exceptions of the package; imports nothing.

The command line prints a ``UsageError`` on one line and exits with status 2; an interruption exits
with status 130.
"""


class UsageError(ValueError):
    """A wrong key, file, shape or value; the message names it and says what would be valid."""


class StoreError(UsageError):
    """The store cannot be read or written; the data to record are not the cause."""


class Diverged(UsageError):
    """A loss, a gradient, a density or a sample is not finite; the message says when and where."""


class Unavailable(UsageError):
    """A measurement that these data or this machine do not allow; the message says why."""


class Pruned(Exception):
    """A run was stopped early because of its poor results so far, which are recorded."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the work after everything done so far was saved; the message says where.

    Attributes:
        run_id: The run that can be resumed.
    """

    def __init__(self, message: str, run_id: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id


def last_line(error: Exception) -> str:
    r"""Return the last line of an error's text, or the name of its type where it has none.

    Example:
        >>> last_line(OSError("while reading\nno network")), last_line(ValueError())
        ('no network', 'ValueError')
    """
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
