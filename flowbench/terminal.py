"""Messages on the terminal, argument types, and a parser with errors on one line."""

import argparse
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, TypeVar

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


def seconds(text: str) -> float:
    """Read a time such as ``2h``, ``90min`` or ``1h30min``, as an argument's ``type``.

    Example:
        >>> seconds("1h30min"), seconds("45s")
        (5400.0, 45.0)
    """
    units = {"h": 3600.0, "min": 60.0, "s": 1.0}
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(h|min|s)", text)
    total = sum(float(number) * units[unit] for number, unit in parts)
    if total <= 0 or "".join(n + u for n, u in parts) != text.replace(" ", ""):
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: a time such as 2h or 1h30min")
    return total


def amount(text: str) -> float:
    """Read a number above 0, as an argument's ``type``."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not valid: a number above 0")
    return value


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


COMPLETING = "_ARGCOMPLETE"
"""Set by a shell that completes a line: the number of words before the options, counted from 1."""


class Parser(argparse.ArgumentParser):
    """Raises an error where argparse would print several lines and exit."""

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        """Parse; or, where a shell asks for the words that may come next, name them and exit."""
        if COMPLETING in os.environ:
            from argcomplete import autocomplete

            autocomplete(self)
        return super().parse_args(*arguments, **options)

    def error(self, message: str) -> NoReturn:
        """Raise ``UsageError``."""
        raise UsageError(f"{message}; see {self.prog} --help")
