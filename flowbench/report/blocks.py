"""How many blocks, or layers, of affine a spline is worth: the evidence on needing fewer."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from flowbench.report.labels import AFFINE, ordered
from flowbench.report.numbers import number, plain
from flowbench.report.resamples import INTERVAL, resamples
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
            return f"{low} (in all resamples)"
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
    the logarithm of the number; the interval is by resampling the seeds, the same for both sides.

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
    counts = affine.index.to_numpy(float)
    draws = resamples(losses.shape[1])
    others = [name for name in ordered(losses.index.unique("transform")) if name != AFFINE]
    table = []
    for name in others:
        for x, own in losses.loc[name].iterrows():
            values, rivals = own.to_numpy(), affine.to_numpy()
            middle = reached_by(counts, rivals.mean(axis=1), values.mean())
            low = high = math.nan
            if len(values) > 1:
                again = [
                    reached_by(counts, rivals[:, draw].mean(axis=1), values[draw].mean())
                    for draw in draws
                ]
                low, high = np.quantile(again, INTERVAL, method="closest_observation")
            ends = (float(counts.min()), float(counts.max()))
            table.append(
                Worth(name, float(x), values.mean(), middle, float(low), float(high), *ends)
            )
    return table


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
