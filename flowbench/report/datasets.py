"""What the images change: the spline's advantage by data set, and how well other images show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import pandas as pd

from flowbench.report.analysis import Analysis
from flowbench.report.stats import Interval, interval
from flowbench.report.text import is_spline, ordered
from flowbench.schema import DATA, SEED, SPREAD, TRANSFORM

AUROC = {"auroc": "likelihood", "auroc_png": "and PNG", "auroc_typical": "typicality"}
"""The scores that separate other images from a flow's own, and their headings in a table."""


@dataclass(frozen=True)
class Advantage:
    """How much lower a spline's loss is than an affine flow's on one data set.

    Attributes:
        data: The data set.
        spread: Standard deviation of its training pixels, on [−1, 1].
        base: The affine transform.
        spline: The spline.
        losses: Mean losses of the two.
        by_seed: Loss of the affine flow minus the spline's, by seed.
    """

    data: str
    spread: float
    base: str
    spline: str
    losses: tuple[float, float]
    by_seed: pd.Series

    @property
    def gap(self) -> Interval:
        """The difference with its interval over seeds."""
        return interval(self.by_seed)


def advantages(found: Sequence[Analysis]) -> list[Advantage]:
    """Compare a spline with the affine flow on every data set, the least spread one first.

    Args:
        found: The analyses of a study's protocols.

    Returns:
        Nothing unless the protocols are data sets, each with both flows at one setting.
    """
    made = [one for one in map(_advantage, found) if one]
    several = len({one.data for one in made}) == len(found) > 1
    return sorted(made, key=lambda one: one.spread) if several else []


def _advantage(one: Analysis) -> Advantage | None:
    runs, metric = one.runs, one.quality.metric
    base = one.base
    splines = [name for name in one.transforms if is_spline(name)]
    if SPREAD not in runs or base is None or not splines or one.varied:
        return None
    means = runs.pivot_table(metric, SEED, TRANSFORM)
    splines = [name for name in splines if name in means]
    if base not in means or not splines:  # nothing was measured of them
        return None
    spline = str(means[splines].mean().idxmin())
    losses = float(means[base].mean()), float(means[spline].mean())
    row = runs.iloc[0]
    spread = float(runs[SPREAD].astype(float).mean())
    return Advantage(str(row[DATA]), spread, base, spline, losses, means[base] - means[spline])


def growths(found: Sequence[Advantage]) -> dict[str, Interval]:
    """How much the advantage grows from each data set to that with the next larger spread."""
    return {
        f"{less.data} to {more.data}": interval(more.by_seed - less.by_seed)
        for less, more in pairwise(found)
    }


@dataclass(frozen=True)
class Telling:
    """How well flows of one transform tell another data set's images by one score.

    Attributes:
        transform: The transform.
        other: The other data set.
        score: Name of the score in ``AUROC``.
        values: The areas under the ROC curve by seed.
        change: They minus those of the affine flow, over seeds; empty for that flow itself.
    """

    transform: str
    other: str
    score: str
    values: pd.Series
    change: Interval


def tellings(one: Analysis) -> Iterator[Telling]:
    """Measure how each transform tells each other data set, and what it changes."""
    others = [
        name.removeprefix("auroc_typical_")
        for name in one.runs
        if name.startswith("auroc_typical_") and one.runs[name].notna().any()
    ]
    base = one.base
    for other in others:
        for score in AUROC:
            means = one.runs.pivot_table(f"{score}_{other}", SEED, TRANSFORM)
            for transform in ordered(means):
                change = means[transform][:0]
                if base in means and base != transform:
                    change = means[transform] - means[base]
                yield Telling(transform, other, score, means[transform], interval(change))
