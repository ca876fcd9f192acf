"""How numbers are printed: a missing one is a dash, never a guess."""

import math
from typing import Any

from flowbench.report.seeds import Interval

MISSING = "–"


def number(value: float, places: int = 3, sign: str = "-") -> str:
    """A number to so many decimal places, with a real minus sign.

    Example:
        >>> number(-1.5), number(float("nan")), number(1234567, 0), number(0.25, 2, sign="+")
        ('−1.500', '–', '1,234,567', '+0.25')
    """
    return MISSING if math.isnan(value) else f"{value:{sign},.{places}f}".replace("-", "−")


def measured(mean: float, sd: float, places: int = 3) -> str:
    """Mean ± standard deviation; the mean alone where there is no deviation.

    Example:
        >>> measured(2.0, 0.012), measured(2.0, float("nan"))
        ('2.000 ± 0.012', '2.000')
    """
    return number(mean, places) if math.isnan(sd) else f"{number(mean, places)} ± {sd:.{places}f}"


def confidence(value: Interval, unit: str, places: int = 3, sign: str = "+") -> str:
    """A mean with its interval and its number of seeds.

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
    limits = f"{low} to {high}{within}; n = {value.n}"
    if math.isnan(value.low):
        limits = f"n = {value.n}, no interval"
    return f"{mean} {unit}".strip() + f" ({limits})" if value.n else MISSING


def plain(value: Any) -> str:
    """A recorded value as it is, whole numbers without a fraction.

    Example:
        >>> plain(8.0), plain("cpu"), plain(float("nan")), plain(0.123456)
        ('8', 'cpu', '–', '0.1235')
    """
    if isinstance(value, str):
        return value or MISSING
    if value is None or math.isnan(value):
        return MISSING
    whole = math.isfinite(value) and float(value).is_integer()
    return (f"{value:.0f}" if whole else f"{value:.4g}").replace("-", "−")
