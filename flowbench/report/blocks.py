"""How many blocks, or layers, of affine a spline is worth: the evidence on needing fewer."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from flowbench.report.labels import AFFINE, ordered
from flowbench.report.numbers import number, plain
from flowbench.report.seeds import SETTINGS, Interval, difference
from flowbench.report.series import series


@dataclass(frozen=True)
class Worth:
    """How much of affine has the same loss as so much of another transform."""

    transform: str
    x: float
    """Blocks, or layers, of the transform."""
    loss: float
    """Its mean over seeds."""
    affine: float
    """How many of affine's reach it; infinite where none do, minus infinite where the least do."""
    low: float
    high: float
    """Ends of the 95 % interval, likewise; NaN for one seed."""
    least: float
    most: float
    """The fewest and the most that affine has."""

    @property
    def told(self) -> str:
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


def worth(runs: pd.DataFrame, metric: str, across: str) -> list[Worth]:
    """How many blocks, or layers, of affine reach the loss of every other transform's.

    Affine's mean loss, made to fall by taking the least so far, is interpolated linearly against
    the logarithm of the number. The interval has all numbers at which the difference to affine's
    loss, interpolated for each seed, has a 95 % t interval that includes 0.

    Args:
        runs: Finished runs.
        metric: A loss.
        across: blocks or layers.

    Returns:
        By transform and number; nothing where affine or all others lack two numbers.
    """
    found = series(runs.dropna(subset=[metric]), across)
    if found is None or AFFINE not in set(found.runs["transform"]):
        return []
    losses = found.runs.groupby(["transform", "x", "seed"])[metric].mean().unstack("seed")
    losses = losses.dropna(axis="columns")  # seeds that all have
    if losses.empty:
        return []
    affine = losses.loc[AFFINE]
    counts, rivals = affine.index.to_numpy(float), affine.to_numpy()
    ends = float(counts.min()), float(counts.max())
    table = []
    for name in ordered(losses.index.unique("transform")):
        if name == AFFINE:
            continue
        for x, own in losses.loc[name].iterrows():
            middle = reached_by(counts, rivals.mean(axis=1), own.mean())
            limits = not_excluded(counts, rivals, own.to_numpy())
            table.append(Worth(name, float(x), own.mean(), middle, *limits, *ends))
    return table


def not_excluded(counts: np.ndarray, rivals: np.ndarray, losses: np.ndarray) -> tuple[float, float]:
    """The least and the greatest number of affine's whose loss may be the same, at 95 %.

    Args:
        counts: Numbers that affine has, rising: ``[counts]``.
        rivals: Affine's losses, ``[counts, seeds]``.
        losses: What is compared with them, ``[seeds]``.

    Returns:
        Infinite, or minus infinite, where the greatest, or the least, is not excluded or all are.
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
    """The number at which a falling loss comes down to a value.

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


def fewer(runs: pd.DataFrame, metric: str) -> dict[str, tuple[float, dict[float, Interval]]]:
    """How far splines with fewer blocks are above affine with the most.

    Args:
        runs: Finished runs.
        metric: A loss.

    Returns:
        By transform, but affine, affine's most blocks and, by each smaller number of blocks, the
        difference of the loss, paired by seed; nothing where affine or all others lack two numbers.
    """
    found = series(runs.dropna(subset=[metric]), "blocks")
    if found is None or AFFINE not in set(found.runs["transform"]):
        return {}
    table = found.runs
    most = float(table.loc[table["transform"] == AFFINE, "x"].max())
    rival = table[(table["transform"] == AFFINE) & (table["x"] == most)]
    equal = [name for name in SETTINGS if name not in ("blocks", "layers")]
    gaps = {}
    for name in ordered(table["transform"]):
        own = table[(table["transform"] == name) & (table["x"] < most)]
        if name != AFFINE and len(own):
            gaps[name] = (
                most,
                {
                    float(x): difference(pd.concat([few, rival]), metric, name, AFFINE, equal)
                    for x, few in own.groupby("x")
                },
            )
    return gaps
