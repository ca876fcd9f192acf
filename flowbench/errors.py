"""The exceptions that the command line tells on one line, with exit status 2; imports nothing."""


class UsageError(ValueError):
    """A wrong key, file, shape or value; the message names it and says what is valid."""


class Diverged(UsageError):
    """Training met a loss or a gradient that is not finite; the message says when and where."""


class Interrupted(KeyboardInterrupt):
    """A signal stopped the work after all that was done had been kept; the message says what.

    Attributes:
        run_id: The run that can be resumed.
    """

    def __init__(self, message: str, run_id: str = "") -> None:
        super().__init__(message)
        self.run_id = run_id
