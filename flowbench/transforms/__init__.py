"""The experimental variable: one file per elementwise transform, one line for each in the table."""

from collections.abc import Callable
from typing import Any

from flowbench.errors import UsageError
from flowbench.transforms.additive import Additive
from flowbench.transforms.affine import Affine
from flowbench.transforms.base import Elementwise
from flowbench.transforms.compose import Compose
from flowbench.transforms.cubic import CubicSpline
from flowbench.transforms.cubicrational import CubicRational
from flowbench.transforms.linear import LinearSpline
from flowbench.transforms.linearrational import LinearRationalSpline
from flowbench.transforms.loft import SoftLogAffine
from flowbench.transforms.mixture import MixtureOfLogistics
from flowbench.transforms.quadratic import QuadraticSpline
from flowbench.transforms.rqs import RationalQuadraticSpline
from flowbench.transforms.sinh import SinhConjugation
from flowbench.transforms.softaffine import SoftAffine
from flowbench.transforms.srqs import StableSpline
from flowbench.transforms.zuko import PREFIX, Zuko

__all__ = ["FAMILIES", "Elementwise", "parse"]

FAMILIES: dict[str, tuple[str, Callable[..., Elementwise]]] = {
    "additive": ("additive", Additive),
    "affine": ("affine", Affine),
    "softaffine": ("softaffine", SoftAffine),
    "rqs": ("rqs-K[-B]", RationalQuadraticSpline),
    "srqs": ("srqs-K[-B]", StableSpline),
    "linear": ("linear-K[-B]", LinearSpline),
    "quadratic": ("quadratic-K[-B]", QuadraticSpline),
    "cubic": ("cubic-K[-B]", CubicSpline),
    "lrs": ("lrs-K[-B]", LinearRationalSpline),
    "sinh": ("sinh", SinhConjugation),
    "crat": ("crat", CubicRational),
    "mol": ("mol-K", MixtureOfLogistics),
    "loft": ("loft", SoftLogAffine),
}
"""Family → (how its name is written, constructor taking the numbers in the name)."""


def parse(name: str) -> Elementwise:
    """Build the transform that a string names; ``parse(t.name) == t``.

    A name is a family, with its numbers after hyphens (``rqs-8``: 8 bins; ``rqs-8-3``: on [−3, 3]),
    or several joined by ``+``, the left one first.

    Raises:
        UsageError: The name is not that of a transform.

    Example:
        >>> parse("affine+rqs-8").name
        'affine+rqs-8'
    """
    parts = tuple(_parse_one(part, name) for part in name.split("+"))
    return parts[0] if len(parts) == 1 else Compose(parts)


def _parse_one(part: str, whole: str) -> Elementwise:
    if part.startswith(PREFIX):
        return Zuko(part)
    family, *numbers = part.split("-")
    try:
        _, construct = FAMILIES[family]
        arguments: list[Any] = [_number(number) for number in numbers]
        if isinstance(next(iter(arguments), 1), float):
            raise ValueError("a number of bins is whole")
        transform = construct(*arguments)
        if transform.name == part:
            return transform
    except UsageError:
        raise
    except (KeyError, TypeError, ValueError):
        pass  # one message for all below
    valid = ", ".join([*(usage for usage, _ in FAMILIES.values()), f"{PREFIX}..."])
    raise UsageError(
        f"unknown transform {part!r} in {whole!r}: valid are {valid}, or several joined by +"
    )


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)
