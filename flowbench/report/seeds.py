"""Statistics in which the seed is the unit, for runs that share a seed are not independent.

Runs with the same seed see the same order of the data, so transforms are compared seed by seed, at
equal settings, and intervals are taken over the seeds' differences.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.special import stdtrit

MODEL = ["blocks", "layers", "width", "patch"]
"""What a flow is made of, besides its transform."""
SETTINGS = ["scale", *MODEL, "data", "noise", "epochs", "lr", "batch"]
"""What two runs must share, besides the seed, to differ by their transform alone."""
MACHINE = ["device", "threads", "torch"]
"""What two runs must share, besides that, for their times to be comparable."""
SECONDS = "seconds_per_epoch"
TIMES = [SECONDS, "images_per_second", "seconds", "load"]
"""What counts only of a run that had the machine to itself."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and its 95 % t interval, whose ends are NaN below two seeds."""

    mean: float
    low: float
    high: float
    n: int


def finished(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs that any number may rest on."""
    return runs[runs["status"] == "finished"]


def untrained(runs: pd.DataFrame) -> bool:
    """Whether the finished runs have times and no losses, as a study of times leaves them."""
    return bool(finished(runs)[["train/loss", "val/loss"]].isna().all(axis=None))


def alone(runs: pd.DataFrame) -> pd.DataFrame:
    """The same runs, without the times of those that shared the machine with other trials.

    What runs beside others is slowed by them, each by another measure: such seconds say nothing.
    """
    times = [name for name in TIMES if name in runs]
    return runs.assign(**{name: runs[name].mask(runs["workers"] > 1) for name in times})


def beside(runs: pd.DataFrame) -> bool:
    """Whether seconds were recorded, but none by a run that had the machine to itself."""
    recorded = runs["seconds_per_epoch"].notna().any()
    return bool(recorded and alone(runs)["seconds_per_epoch"].isna().all())


def spread(runs: pd.DataFrame, metric: str, by: str = "transform") -> pd.DataFrame:
    """Mean, standard deviation (NaN for one) and number of seeds of a metric, by a column."""
    seeds = runs.groupby([by, "seed"], dropna=False)[metric].mean()
    columns = {"mean": "mean", "sd": "std", "n": "count"}
    return seeds.groupby(by).agg(**columns)


def interval(values: pd.Series) -> Interval:
    """95 % t interval of the mean of one value a seed."""
    n = int(values.count())
    mean = float(values.mean()) if n else math.nan
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, 0.975)) * float(values.std()) / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, n)


def difference(
    runs: pd.DataFrame, metric: str, left: str, right: str, equal: Sequence[str] = SETTINGS
) -> Interval:
    """Difference of a metric between two transforms, left minus right, paired by seed.

    Args:
        runs: A row a run.
        metric: Column to compare.
        left: First transform.
        right: Second transform.
        equal: Columns in which the two runs of a pair agree; several pairs of one seed count once,
            by their mean.
    """
    keys = ["seed", *equal]
    means = runs.dropna(subset=[metric]).groupby(["transform", *keys], dropna=False)[metric].mean()
    table = means.reset_index()
    sides = (table[table["transform"] == side] for side in (left, right))
    pairs = pd.merge(*sides, on=keys, suffixes=("_left", "_right"))
    differences = pairs[f"{metric}_left"] - pairs[f"{metric}_right"]
    return interval(differences.groupby(pairs["seed"], dropna=False).mean())


def cost(runs: pd.DataFrame, transform: str, baseline: str) -> Interval:
    """Ratio of seconds per epoch, paired by seed on one machine: geometric mean and interval.

    Runs that shared the machine with others have no part in it.
    """
    logs = runs.assign(log=np.log(alone(runs)["seconds_per_epoch"]))
    return _ratio(difference(logs, "log", transform, baseline, equal=[*SETTINGS, *MACHINE]))


def pace(rounds: pd.DataFrame, transform: str, baseline: str) -> Interval:
    """Ratio of seconds per epoch, paired by round: geometric mean and 95 % t interval over rounds.

    Args:
        rounds: A row a flow and round, in which all flows take turns.
        transform: Whose seconds are divided.
        baseline: By whose.
    """
    logs = rounds.assign(seed=rounds["epoch"], log=np.log(rounds["seconds_per_epoch"]))
    equal = [*MODEL, "data", "batch", *MACHINE]
    return _ratio(difference(logs, "log", transform, baseline, equal))


def patch_ratio(runs: pd.DataFrame, transform: str) -> Interval:
    """Patch quality at the edge divided by that inside: geometric mean over seeds and interval.

    The interval of a single run is its own, over groups of images: it says nothing of other seeds.
    """
    own = runs[runs["transform"] == transform].dropna(subset=["patches/ratio"])
    if len(own) == 1:
        mean, low, high = (
            float(own[f"patches/ratio{end}"].iloc[0]) for end in ("", "_low", "_high")
        )
        return Interval(mean, low, high, 1)
    logs = np.log(own["patches/ratio"])
    return _ratio(interval(logs.groupby(own["seed"], dropna=False).mean()))


def _ratio(log: Interval) -> Interval:
    return Interval(math.exp(log.mean), math.exp(log.low), math.exp(log.high), log.n)


def alike(runs: pd.DataFrame) -> pd.DataFrame:
    """The finished runs with the settings of their transform's best (lowest ``val/loss``).

    Maps over patches or blocks have a mean only over runs that have the same patches and blocks.
    """
    runs = finished(runs)
    best = runs.sort_values("val/loss").drop_duplicates("transform")
    keys = ["transform", *SETTINGS]
    return runs.merge(best[keys], on=keys)
