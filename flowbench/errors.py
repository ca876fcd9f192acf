"""The one exception that means "the user can fix this"; imports nothing."""


class UsageError(ValueError):
    """A wrong key, file, shape or value, told on one line that names it and says what is valid.

    The command line prints the message without a traceback and exits with status 2.
    """
