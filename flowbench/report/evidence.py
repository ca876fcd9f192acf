"""What a study shows of bins, blocks and layers: gains, smaller flows as good, equal counts."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from flowbench import schema
from flowbench.report.runs import Series
from flowbench.report.stats import Interval, difference
from flowbench.report.text import AFFINE, bins, is_spline, number, ordered, plain
from flowbench.schema import BLOCKS, LAYERS, SEED, TRANSFORM

FEW = (4, 8)
"""The numbers of bins that the original says are enough."""


@dataclass(frozen=True)
class Gain:
    """How far a larger number of bins lowers the loss.

    Attributes:
        few: The smaller number of bins.
        more: The larger one; of several that with the least mean loss.
        by: Loss with few bins minus loss with more, paired by seed.
    """

    few: int
    more: int
    by: Interval


def gains(found: Series | None, metric: str) -> list[Gain]:
    """Measure what more bins than 4 or 8 gain, and what the better of these gains over 2.

    Args:
        found: The runs along bins.
        metric: A loss.

    Returns:
        Nothing unless splines have more than 8 bins in addition to 4 or 8, at equal settings.
    """
    if found is None:
        return []
    own = found.runs[found.runs[TRANSFORM].map(is_spline)]
    means = own.groupby([TRANSFORM, SEED])[metric].mean().groupby(TRANSFORM).mean().dropna()
    splines = {int(bins(str(name))): str(name) for name in means.index}
    few = [count for count in FEW if count in splines]
    if not few or max(splines) <= max(FEW):
        return []

    def best(counts: Sequence[int]) -> int:
        return min(counts, key=lambda count: means[splines[count]])

    pairs = [(count, best([other for other in splines if other > count])) for count in few]
    pairs += [(2, best(few))] if 2 in splines else []
    return [
        Gain(one, more, difference(own, metric, splines[one], splines[more])) for one, more in pairs
    ]


@dataclass(frozen=True)
class Fewer:
    """How flows with fewer blocks compare with affine's largest.

    Attributes:
        most: The largest number of affine's blocks.
        gaps: By each smaller number of blocks the loss minus that of affine's largest, paired by
            seed.
    """

    most: float
    gaps: dict[float, Interval]


def fewer(found: Series | None, metric: str) -> dict[str, Fewer]:
    """Compare flows of each transform but affine with affine's largest number of blocks.

    Args:
        found: The runs along blocks.
        metric: A loss.

    Returns:
        By transform; nothing where affine or all others lack two numbers of blocks.
    """
    if found is None or AFFINE not in set(found.runs[TRANSFORM]):
        return {}
    table = found.runs
    most = float(table.loc[table[TRANSFORM] == AFFINE, "x"].max())
    rival = table[(table[TRANSFORM] == AFFINE) & (table["x"] == most)]
    equal = [name for name in schema.settings(table.columns) if name not in (BLOCKS, LAYERS)]
    result = {}
    for name in ordered(table[TRANSFORM]):
        own = table[(table[TRANSFORM] == name) & (table["x"] < most)]
        if name != AFFINE and len(own):
            gaps = {
                float(x): difference(pd.concat([few, rival]), metric, name, AFFINE, equal)
                for x, few in own.groupby("x")
            }
            result[name] = Fewer(most, gaps)
    return result


@dataclass(frozen=True)
class Equivalent:
    """How many of affine's blocks, or layers, reach the loss of so many of another transform's.

    Attributes:
        transform: The other transform.
        x: Its number of blocks, or layers.
        loss: Its mean loss over seeds.
        affine: How many of affine's reach it; infinite where none do, minus infinite where the
            fewest do.
        low: Lower end of the 95 % interval, likewise; NaN for one seed.
        high: Upper end, likewise.
        least: The fewest that affine has.
        most: The most that affine has.
    """

    transform: str
    x: float
    loss: float
    affine: float
    low: float
    high: float
    least: float
    most: float

    @property
    def words(self) -> str:
        """The number in words, with its interval."""
        if math.isnan(self.low):
            return f"{self._one(self.affine)} (one seed, no interval)"
        low, high = self._one(self.low), self._one(self.high)
        if low == high == self._one(self.affine):
            return f"{low} at 95 %"
        return f"{self._one(self.affine)} ({low} to {high})"

    @property
    def factor(self) -> str:
        """The number divided by the transform's own."""
        if self.affine == -math.inf:
            return f"≤ {number(self.least / self.x, 1)}"
        if self.affine == math.inf:
            return f"≥ {number(self.most / self.x, 1)}"
        return number(self.affine / self.x, 1)

    def _one(self, count: float) -> str:
        if count == -math.inf:
            return f"≤ {plain(self.least)}"
        return f"≥ {plain(self.most)}" if count == math.inf else number(count, 1)


def equivalents(found: Series | None, metric: str) -> list[Equivalent]:
    """Find how many blocks, or layers, of affine reach the loss of every other transform.

    Affine's mean loss, made to fall by taking the least so far, is interpolated linearly against
    the logarithm of the number. The interval has all numbers at which the difference to affine's
    loss, interpolated for each seed, has a 95 % t interval that includes 0.

    Args:
        found: The runs along blocks, or along layers.
        metric: A loss.

    Returns:
        By transform and number; nothing where affine or all others lack two numbers.
    """
    if found is None or AFFINE not in set(found.runs[TRANSFORM]):
        return []
    losses = found.runs.groupby([TRANSFORM, "x", SEED])[metric].mean().unstack(SEED)
    losses = losses.dropna(axis="columns")  # seeds that all have
    if losses.empty:
        return []
    affine = losses.loc[AFFINE]
    counts, rivals = affine.index.to_numpy(float), affine.to_numpy()
    ends = float(counts.min()), float(counts.max())
    table = []
    for name in ordered(losses.index.unique(TRANSFORM)):
        if name == AFFINE:
            continue
        for x, own in losses.loc[name].iterrows():
            middle = reached_by(counts, rivals.mean(axis=1), own.mean())
            limits = not_excluded(counts, rivals, own.to_numpy())
            table.append(Equivalent(name, float(x), own.mean(), middle, *limits, *ends))
    return table


def not_excluded(counts: np.ndarray, rivals: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """Bound the numbers of affine's whose loss may equal that of another flow, at 95 %.

    Args:
        counts: Numbers that affine has, rising: ``[counts]``.
        rivals: Affine's losses, ``[counts, seeds]``.
        losses: The other flow's losses, ``[seeds]``.

    Returns:
        The least and the greatest number. Minus infinite, or infinite, where affine's fewest, or
        most, is not excluded or all are; NaN below two seeds.
    """
    seeds = len(losses)
    if seeds < 2:
        return math.nan, math.nan
    fine = np.linspace(math.log2(counts[0]), math.log2(counts[-1]), 1000)
    curves = [np.interp(fine, np.log2(counts), curve) for curve in rivals.T]
    gaps = losses - np.stack(curves, axis=1)
    middle = gaps.mean(axis=1)
    half = stdtrit(seeds - 1, 0.975) * gaps.std(axis=1, ddof=1) / math.sqrt(seeds)
    low, high = middle - half, middle + half
    too_few = int(np.argmax(high >= 0)) if (high >= 0).any() else len(fine)
    too_many = int(np.argmax(low[::-1] <= 0)) if (low <= 0).any() else len(fine)
    least = math.inf if too_few == len(fine) else float(2 ** fine[too_few])
    most = -math.inf if too_many == len(fine) else float(2 ** fine[-1 - too_many])
    return (
        -math.inf if too_few == 0 else least,
        math.inf if too_many == 0 else most,
    )


def reached_by(counts: np.ndarray, losses: np.ndarray, loss: float) -> float:
    """Interpolate the number at which a falling loss reaches a value.

    Example:
        >>> counts, losses = np.array([1.0, 2.0, 8.0]), np.array([4.0, 3.0, 1.0])
        >>> [reached_by(counts, losses, loss) for loss in (3.5, 2.0, 0.9, 4.0)]
        [1.4142135623730951, 4.0, inf, -inf]
    """
    falling = np.minimum.accumulate(losses)
    if loss < falling[-1]:
        return math.inf
    if loss >= falling[0]:
        return -math.inf
    return float(2 ** np.interp(loss, falling[::-1], np.log2(counts)[::-1]))
