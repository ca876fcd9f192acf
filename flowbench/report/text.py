"""How transforms, settings and numbers are written wherever people read them."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from flowbench import schema
from flowbench.report.stats import Interval
from flowbench.schema import BLOCKS, BUDGET, LAYERS, LAYERS_LISTED, TRAIN_IMAGES

AFFINE = "affine"
"""The baseline of every comparison."""
MISSING = "–"

_SPLINE = re.compile(r"(s?)rqs-(\d+)(?:-(.+))?")  # rqs-K, or rqs-K-B where B is not the default


_NAMES = {
    "linear": "linear spline",
    "quadratic": "quadratic spline",
    "cubic": "cubic spline",
    "lrs": "linear-rational spline",
    "crat": "cubic rational",
    "mol": "logistics",
    "zuko:rqs": "zuko's RQS",
}
"""Families whose names say too little, in words."""


def label(transform: str) -> str:
    """Name a transform as figures and tables print it.

    Example:
        >>> label("affine+rqs-8"), label("rqs-8-6"), label("srqs-8"), label("affine|gaussian")
        ('affine + RQS K=8', 'RQS K=8 B=6', 'stable RQS K=8', 'affine, gaussian')
    """
    name, *protocol = transform.split("|")
    return ", ".join([" + ".join(_label(part) for part in name.split("+")), *protocol])


def _label(part: str) -> str:
    match = _SPLINE.fullmatch(part)
    if not match:
        family, _, number = part.partition("-")
        count = "K=" + number.replace("-", " B=") if number else ""
        return f"{_NAMES.get(family, family)} {count}".strip()
    stable, bins, bound = match.groups()
    return f"{'stable ' if stable else ''}RQS K={bins}{f' B={bound}' if bound else ''}"


def is_spline(transform: str) -> bool:
    """Return whether this is the published rational-quadratic spline and nothing else.

    Example:
        >>> is_spline("rqs-8"), is_spline("srqs-8"), is_spline("affine+rqs-8")
        (True, False, False)
    """
    match = _SPLINE.fullmatch(transform)
    return match is not None and not match[1]


def bins(transform: str) -> float:
    """Return the number of bins of the one spline in a transform; NaN for none or several.

    Example:
        >>> bins("affine+rqs-8"), bins("affine")
        (8.0, nan)
    """
    found = [int(match[2]) for match in map(_SPLINE.fullmatch, transform.split("+")) if match]
    return float(found[0]) if len(found) == 1 else math.nan


def family(transform: str) -> str:
    """Name a transform without its number of bins.

    Example:
        >>> family("affine+rqs-8"), family("rqs-8-6"), family("affine")
        ('affine + RQS', 'RQS B=6', 'affine')
    """
    return label(transform).replace(f" K={bins(transform):.0f}", "")


def ordered(transforms: Iterable[str]) -> list[str]:
    """Sort the distinct transforms: simple before composed, splines by their number of bins.

    Example:
        >>> ordered(["affine+rqs-4", "rqs-16", "rqs-4", "affine"])
        ['affine', 'rqs-4', 'rqs-16', 'affine+rqs-4']
    """

    def rank(transform: str) -> tuple[int, list[tuple[bool, str | int]]]:
        pieces = re.findall(r"\d+|\D+", transform)
        return transform.count("+"), [(p.isdigit(), int(p) if p.isdigit() else p) for p in pieces]

    return sorted(set(transforms), key=rank)


def configuration(transform: str, settings: Mapping[str, Any]) -> str:
    """Name a configuration: its transform, and the other settings that vary between runs.

    Example:
        >>> configuration("rqs-8", {"model.blocks": 4.0, "model.layers": 1.0})
        'RQS K=8, 4 blocks of 1 layer'
        >>> configuration("affine", {"model.layers": 2, "optim.ema": 0.99})
        'affine, 2 layers per block, ema 0.99'
        >>> configuration("affine", {"model.blocks": 2, "layers_by_block": "1-3"})
        'affine, 2 blocks of 1-3 layers'
    """
    words = [label(transform)]
    settings = dict(settings)
    listed = settings.pop(LAYERS_LISTED, math.nan)
    if BLOCKS in settings:
        words.append(counted(settings[BLOCKS], "block"))
    if LAYERS in settings or listed == listed:
        given = listed == listed
        layers = f"{listed} layers" if given else counted(settings[LAYERS], "layer")
        if BLOCKS in settings:
            words[-1] += f" of {layers}"
        else:
            words.append(f"{layers} per block")
    words += [
        f"{schema.find(name).label} {_setting(name, value)}"
        for name, value in settings.items()
        if name not in (BLOCKS, LAYERS)
    ]
    return ", ".join(words)


def _setting(name: str, value: Any) -> str:
    if value != value:
        return "default"
    if name == BUDGET and not isinstance(value, str):
        return flops(value)
    return "all" if name == TRAIN_IMAGES and value == "None" else plain(value)


def flops(value: float) -> str:
    """Write a number of floating-point operations.

    Example:
        >>> flops(1.25e12)
        '1.25e12'
    """
    return f"{value:.3g}".replace("e+", "e")


def counted(count: float, noun: str) -> str:
    """Write a number of things.

    Example:
        >>> counted(1.0, "block"), counted(8, "block")
        ('1 block', '8 blocks')
    """
    return f"{plain(count)} {noun}" + ("" if count == 1 else "s")


def small(title: str) -> str:
    """Write the title of an axis inside a sentence.

    Example:
        >>> small("Validation bits per dimension"), small("FID (digits)")
        ('validation bits per dimension', 'FID (digits)')
    """
    return title if title[1:2].isupper() else title[:1].lower() + title[1:]


def short(parameter: str) -> str:
    """Name a parameter, or several that vary together, without their groups.

    Example:
        >>> short("optim.lr"), short("model.blocks, model.layers")
        ('lr', 'blocks, layers')
    """
    return ", ".join(part.rpartition(".")[2] for part in parameter.split(", "))


def number(value: float, places: int = 3, sign: str = "-") -> str:
    """Write a number with a real minus sign; a missing one is a dash.

    Example:
        >>> number(-1.5), number(float("nan")), number(1234567, 0), number(0.25, 2, sign="+")
        ('−1.500', '–', '1,234,567', '+0.25')
    """
    return MISSING if math.isnan(value) else f"{value:{sign},.{places}f}".replace("-", "−")


def measured(mean: float, sd: float, places: int = 3) -> str:
    """Write mean ± standard deviation; the mean alone where there is no deviation.

    Example:
        >>> measured(2.0, 0.012), measured(2.0, float("nan"))
        ('2.000 ± 0.012', '2.000')
    """
    return number(mean, places) if math.isnan(sd) else f"{number(mean, places)} ± {sd:.{places}f}"


def limits(value: Interval, places: int = 3, sign: str = "-", negate: bool = False) -> str:
    """Write the ends of an interval; say where there is none.

    Example:
        >>> limits(Interval(0.5, 0.4, 0.6, 3)), limits(Interval(0.5, 0.4, 0.6, 3), negate=True)
        ('0.400 to 0.600', '−0.600 to −0.400')
        >>> limits(Interval(0.5, float("nan"), float("nan"), 1))
        'one seed, no interval'
    """
    if math.isnan(value.low):
        return "one seed, no interval" if value.n == 1 else "no interval"
    low, high = (-value.high, -value.low) if negate else (value.low, value.high)
    return f"{number(low, places, sign)} to {number(high, places, sign)}"


def confidence(value: Interval, unit: str, places: int = 3, sign: str = "+") -> str:
    """Write a mean with its interval and its number of seeds.

    Example:
        >>> confidence(Interval(0.5, 0.4, 0.6, 3), "nats/dim")
        '+0.500 nats/dim (+0.400 to +0.600; n = 3)'
        >>> confidence(Interval(0.5, float("nan"), float("nan"), 1), "nats/dim")
        '+0.500 nats/dim (n = 1, no interval)'
        >>> confidence(Interval(1.5, 1.4, 1.6, 1), "", places=1, sign="-")
        '1.5 (1.4 to 1.6 within the run; n = 1)'
    """
    low, mean, high = (number(x, places, sign) for x in (value.low, value.mean, value.high))
    within = " within the run" if value.n == 1 else ""
    ends = f"{low} to {high}{within}; n = {value.n}"
    if math.isnan(value.low):
        ends = f"n = {value.n}, no interval"
    return f"{mean} {unit}".strip() + f" ({ends})" if value.n else MISSING


def plain(value: Any) -> str:
    """Write a recorded value as it is, whole numbers without a fraction.

    Example:
        >>> plain(8.0), plain("cpu"), plain(float("nan")), plain(0.123456), plain(True)
        ('8', 'cpu', '–', '0.1235', 'True')
    """
    if isinstance(value, str | bool):
        return str(value) or MISSING
    if isinstance(value, list | tuple | dict):
        return str(value)
    if value is None or math.isnan(value):
        return MISSING
    whole = math.isfinite(value) and float(value).is_integer()
    return (f"{value:.0f}" if whole else f"{value:.4g}").replace("-", "−")
