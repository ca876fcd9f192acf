"""Messages on the terminal, argument types, and a parser with errors on one line."""

import argparse
import sys
from collections.abc import Iterable, Sequence
from typing import NoReturn, TypeVar

from flowbench.errors import UsageError

T = TypeVar("T")


def say(text: str) -> None:
    """Print a message to standard error at once."""
    print(f"flowbench: {text}", file=sys.stderr, flush=True)


def tracked(
    steps: Iterable[T], what: str, total: int | None = None, keep: bool = False
) -> Iterable[T]:
    """Iterate over steps with a progress bar, if standard error is a terminal.

    Args:
        steps: The steps.
        what: Their name, left of the bar.
        total: Their number; None for the length of a sequence. A single step has no bar.
        keep: Leave the bar on the screen at the end.
    """
    from rich.console import Console  # takes 40 ms, which ``--help`` does not need
    from rich.progress import track

    console = Console(stderr=True)
    count = len(steps) if total is None and isinstance(steps, Sequence) else total
    hidden = count == 1 or not console.is_terminal
    return track(steps, what, total, console=console, transient=not keep, disable=hidden)


def duration(seconds: float) -> str:
    """Write a number of seconds in words.

    Example:
        >>> duration(42), duration(754)
        ('42 s', '12 min 34 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def positive(text: str) -> int:
    """Read an integer of at least 1, as an argument's ``type``."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: an integer of at least 1")
    return int(text)


def natural(text: str) -> int:
    """Read an integer of at least 0, as an argument's ``type``."""
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: an integer of at least 0")
    return int(text)


class Parser(argparse.ArgumentParser):
    """Raises an error where argparse would print several lines and exit."""

    def error(self, message: str) -> NoReturn:
        """Raise ``UsageError``."""
        raise UsageError(f"{message}; see {self.prog} --help")
