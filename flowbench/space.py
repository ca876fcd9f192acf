"""What a study varies: values to choose from, or ranges of numbers, by an experiment's keys."""

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowbench.config import check
from flowbench.errors import UsageError

LIST = "a list of different values"


@dataclass(frozen=True)
class Choice:
    """Values to choose from; where several keys are coupled, each is a list of a value a key."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """What has to be valid for all to be: here each of the values."""
        return self.values


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; integers where both of these are."""

    low: float
    high: float
    step: float | None = None
    """Distance between the numbers; null: 1 between integers, none between others."""
    log: bool = False
    """Search the logarithm evenly."""

    @property
    def ends(self) -> tuple[Any, ...]:
        """What has to be valid for all to be: here the two ends."""
        return self.low, self.high


def read_space(entries: Mapping[str, Any]) -> dict[str, Choice | Range]:
    """Read what varies.

    Args:
        entries: By dotted key, a list of values or ``{low, high}`` with optional ``step`` and
            ``log``. Several keys joined by commas vary together.

    Raises:
        UsageError: A key occurs twice, or its value is neither of the two.

    Example:
        >>> read_space({"model.blocks,model.layers": [[1, 8], [8, 1]]})
        {'model.blocks, model.layers': Choice(values=([1, 8], [8, 1]))}
        >>> read_space({"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}})
        {'optim.lr': Range(low=0.0001, high=0.01, step=None, log=True)}
    """
    space: dict[str, Choice | Range] = {}
    taken: set[str] = set()
    for key, entry in entries.items():
        for part in parts(key):
            if part in taken:
                raise UsageError(f"{part} stands twice in space: valid is once, alone or coupled")
            taken.add(part)
        name = ", ".join(parts(key))
        if isinstance(entry, Mapping) and len(parts(key)) == 1:
            space[name] = _range(f"space.{name}", entry)
        else:
            space[name] = _choice(f"space.{name}", entry, len(parts(key)))
    return space


def parts(key: str) -> list[str]:
    """List the keys that stand, joined by commas, in one."""
    return [part.strip() for part in str(key).split(",")]


def put(base: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Set values, by the keys of a space, in nested ones.

    Example:
        >>> put({"model": {"width": 64}}, {"model.blocks, seed": [2, 7]})
        {'model': {'width': 64, 'blocks': 2}, 'seed': 7}
    """
    nested = merge(base, {})
    for key, value in values.items():
        keys = parts(key)
        for part, own in zip(keys, value if len(keys) > 1 else [value], strict=True):
            for name in reversed(part.split(".")):
                own = {name: own}
            nested = merge(nested, own)
    return nested


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay nested values over others, in a copy."""
    merged = copy.deepcopy(dict(base))
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = merge(merged[key], value) if both else copy.deepcopy(value)
    return merged


def _choice(name: str, entry: Any, keys: int) -> Choice:
    valid = LIST if keys > 1 else f"{LIST}, or low and high"
    values = entry if isinstance(entry, list) else []
    check(bool(values) and all(values.count(v) == 1 for v in values), name, entry, valid)
    for value in values if keys > 1 else ():
        fits = isinstance(value, list) and len(value) == keys
        check(fits, name, value, f"a list of {keys} values, one for each key")
    return Choice(tuple(values))


def _range(name: str, entry: Mapping[str, Any]) -> Range:
    for key in entry:
        if key not in ("low", "high", "step", "log"):
            raise UsageError(f"unknown key {name}.{key}: valid are low, high, step, log")
    low = _number(f"{name}.low", entry.get("low"))
    high = _number(f"{name}.high", entry.get("high"))
    check(low < high, f"{name}.low", low, f"a number below high = {high}")
    log = entry.get("log", False)
    check(isinstance(log, bool), f"{name}.log", log, "true or false")
    check(low > 0 or not log, f"{name}.low", low, "a number above 0 where log is true")
    whole = isinstance(low, int) and isinstance(high, int)
    if not whole:
        low, high = float(low), float(high)
    step = entry.get("step")
    if step is not None:
        step = _number(f"{name}.step", step)
        check(not log, f"{name}.step", step, "none where log is true")
        check(isinstance(step, int) or not whole, f"{name}.step", step, "an integer")
        steps = (high - low) / step if step > 0 else 0
        even = steps >= 1 and math.isclose(steps, round(steps))
        check(even, f"{name}.step", step, f"a number above 0 that divides {high} - {low}")
    return Range(low, high, step, log)


def _number(name: str, value: Any) -> int | float:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        number = float(value)  # YAML reads 1e-4, without a point, as text
    except (TypeError, ValueError):
        number = math.nan
    check(math.isfinite(number) and not isinstance(value, bool), name, value, "a number")
    return number
