"""Statistics in which the seed is the unit, because runs that share a seed are not independent.

Runs with the same seed see the same order of the data, so transforms are compared seed by seed, at
equal settings, and intervals are taken over the seeds' differences.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from flowbench import schema
from flowbench.schema import KERNELS, SECONDS, SEED, TRANSFORM

RESAMPLES = 400
ENDS = (0.025, 0.975)
"""Quantiles that bound 95 %."""
FENCE = 10.0
"""Interquartile ranges from the nearer quartile beyond which a value is an outlier."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % t interval, whose ends are NaN below two seeds."""

    mean: float
    low: float
    high: float
    n: int

    def exp(self) -> "Interval":
        """Return the interval of a ratio whose logarithm this is."""
        return Interval(math.exp(self.mean), math.exp(self.low), math.exp(self.high), self.n)


def interval(values: pd.Series) -> Interval:
    """Compute the 95 % t interval of the mean of one value per seed."""
    n = int(values.count())
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, 0.975)) * float(values.std()) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def over_seeds(runs: pd.DataFrame, metric: str) -> tuple[float, float, int]:
    """Return mean, standard deviation (NaN for one) and number of seeds of a metric."""
    seeds = runs.groupby(SEED, dropna=False)[metric].mean()
    return float(seeds.mean()), float(seeds.std()), int(seeds.count())


def difference(
    runs: pd.DataFrame,
    metric: str,
    left: str,
    right: str,
    equal: Sequence[str] | None = None,
    unit: str = SEED,
) -> Interval:
    """Compare a metric between two transforms, left minus right, paired by seed.

    Args:
        runs: A row per run.
        metric: Column to compare.
        left: First transform.
        right: Second transform.
        equal: Columns in which the two runs of a pair agree; None for all settings. Several pairs
            of one seed count once, by their mean.
        unit: Column of what is paired: the seed, or the round of a timing.
    """
    if equal is None:
        equal = schema.settings(runs)
    if not {left, right} <= set(runs[TRANSFORM]):
        return interval(pd.Series(dtype=float))
    own = runs.dropna(subset=[metric])
    # What all runs agree in pairs nothing, and grouping by all settings takes ten times as long.
    counts = own[[name for name in equal if name != TRANSFORM]].nunique(dropna=False)
    keys = [unit, *counts[counts > 1].index]
    means = own.groupby([TRANSFORM, *keys], dropna=False)[metric].mean()
    table = means.reset_index()
    sides = (table[table[TRANSFORM] == side] for side in (left, right))
    pairs = pd.merge(*sides, on=keys, suffixes=("_left", "_right"))
    differences = pairs[f"{metric}_left"] - pairs[f"{metric}_right"]
    return interval(differences.groupby(pairs[unit], dropna=False).mean())


def time_ratio(runs: pd.DataFrame, transform: str, baseline: str, unit: str = SEED) -> Interval:
    """Divide seconds per epoch, paired on one machine: geometric mean and 95 % t interval.

    Args:
        runs: A row per run, or per flow and round, without the times of runs that shared a machine.
        transform: The transform whose seconds are divided.
        baseline: The transform by whose seconds they are divided.
        unit: Column of what is paired: the seed, or the round of a timing.
    """
    logs = runs.assign(log=np.log(runs[SECONDS].astype(float)))
    if KERNELS in runs:  # a spline's own kernel is part of it: affine has none to run
        logs[KERNELS] = runs[KERNELS].map(shared_kernels)
    equal = [*schema.settings(runs), *(name for name in schema.MACHINE if name in runs)]
    return difference(logs, "log", transform, baseline, equal, unit).exp()


def shared_kernels(kernels: object) -> object:
    """Leave out of the names of kernels those that only one transform can run.

    Example:
        >>> shared_kernels("layer rqs"), shared_kernels("rqs"), shared_kernels("none")
        ('layer', 'none', 'none')
    """
    if not isinstance(kernels, str):
        return kernels
    return " ".join(name for name in kernels.split() if name != "rqs") or "none"


def patch_ratio(runs: pd.DataFrame) -> Interval:
    """Average a configuration's ratio of patch quality at the edge to that inside.

    Returns:
        Geometric mean over seeds and interval. The interval of a single run is its own, over groups
        of images: it covers no variation between seeds.
    """
    own = runs.dropna(subset=["patches/ratio"])
    if len(own) == 1:
        mean, low, high = (
            float(own[f"patches/ratio{end}"].iloc[0]) for end in ("", "_low", "_high")
        )
        return Interval(mean, low, high, 1)
    logs = np.log(own["patches/ratio"].astype(float))
    return interval(logs.groupby(own[SEED], dropna=False).mean()).exp()


def resamples(seeds: int) -> np.ndarray:
    """Draw seeds with replacement, ``[400, seeds]``; every call returns the same draws.

    Runs of one seed stay together in the bootstrap, because the seed decides part of their result.

    Example:
        >>> resamples(3).shape, bool((resamples(3) == resamples(3)).all())
        ((400, 3), True)
    """
    return np.random.default_rng(0).integers(0, seeds, (RESAMPLES, seeds))


def undominated(costs: np.ndarray) -> np.ndarray:
    """Find the rows that no other beats: at most as much in every column, and less in one.

    Shape:
        costs ``[N, M]`` -> ``[N]``

    Example:
        >>> undominated(np.array([[1.0, 5.0], [2.0, 4.0], [2.0, 6.0], [3.0, 4.0]])).tolist()
        [True, True, False, False]
    """
    less = (costs[:, None] < costs[None]).any(axis=2)
    no_more = (costs[:, None] <= costs[None]).all(axis=2)
    return np.logical_not((less & no_more).any(axis=0))


def fences(values: pd.Series) -> tuple[float, float]:
    """Return the limits beyond which a value is an outlier."""
    low, high = values.quantile(0.25), values.quantile(0.75)
    reach = FENCE * (high - low)
    return low - reach, high + reach


def without_outliers(history: pd.DataFrame, metrics: Sequence[str]) -> tuple[pd.DataFrame, str]:
    """Blank the epochs' outliers, and say so.

    A single image can drive the loss of one epoch to 10⁸; a scale with that value shows no other.

    Args:
        history: A row per run and epoch.
        metrics: The columns to look at.

    Returns:
        The history without them, and a sentence that counts them and gives the largest; empty
        where there are none.
    """
    kept = history.copy()
    found: list[tuple[float, str]] = []
    for metric in metrics:
        values = history[metric]
        low, high = fences(values)
        far = (values < low) | (values > high)
        kept.loc[far, metric] = math.nan
        found += [
            (
                abs(row[metric]),
                f"{row[metric]:.3g} ({metric}, {row[TRANSFORM]} seed {row[SEED]:.0f}, "
                f"epoch {row['epoch']:.0f})",
            )
            for _, row in history[far].iterrows()
        ]
    if not found:
        return kept, ""
    count = f"{len(found)} outlier" + "s, the largest" * (len(found) > 1)
    return kept, f"Not drawn: {count} {max(found)[1]}."
