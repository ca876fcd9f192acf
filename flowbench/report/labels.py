"""How transforms are called and ordered wherever people read about them."""

import re
from collections.abc import Iterable

AFFINE = "affine"
"""The baseline of every comparison."""

_SPLINE = re.compile(r"rqs-(\d+)(?:-(.+))?")  # rqs-K, or rqs-K-B where B is not the default


def label(transform: str) -> str:
    """Name of a transform as figures and tables print it.

    Example:
        >>> label("affine+rqs-8"), label("rqs-8-6")
        ('affine + RQS K=8', 'RQS K=8 B=6')
    """
    return " + ".join(_label(part) for part in transform.split("+"))


def _label(part: str) -> str:
    match = _SPLINE.fullmatch(part)
    return f"RQS K={match[1]}{f' B={match[2]}' if match[2] else ''}" if match else part


def is_spline(transform: str) -> bool:
    """Whether this is a rational-quadratic spline with nothing before or after it.

    Example:
        >>> is_spline("rqs-8"), is_spline("affine+rqs-8")
        (True, False)
    """
    return _SPLINE.fullmatch(transform) is not None


def ordered(transforms: Iterable[str]) -> list[str]:
    """The distinct transforms: simple before composed, splines by their number of bins.

    Example:
        >>> ordered(["affine+rqs-4", "rqs-16", "rqs-4", "affine"])
        ['affine', 'rqs-4', 'rqs-16', 'affine+rqs-4']
    """

    def rank(transform: str) -> tuple[int, list[tuple[bool, str | int]]]:
        pieces = re.findall(r"\d+|\D+", transform)
        return transform.count("+"), [(p.isdigit(), int(p) if p.isdigit() else p) for p in pieces]

    return sorted(set(transforms), key=rank)
