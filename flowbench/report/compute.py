r"""Fixed compute: which size, which split into blocks and which data every budget is spent best on.

A budget is a number of training FLOPs, :math:`C = 6\,N\,D`, where N are the parameters and D the
patches seen. Of the runs of one budget, the best size is the vertex of

.. math:: L(N) = q_0 + q_1 \ln N + q_2 (\ln N)^2

through the mean losses of the best size that was trained and of its two neighbours, beyond which no
parabola fits. The exponent e of :math:`N \propto C^e` is the slope of the straight line through the
logarithms of the vertices of several budgets (Hoffmann et al. 2022, "Training Compute-Optimal Large
Language Models", approach 2). Intervals are over resampled seeds.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from flowbench import schema
from flowbench.report import laws
from flowbench.report.laws import Fit
from flowbench.report.stats import ENDS, Interval, interval, resamples
from flowbench.report.text import ordered
from flowbench.schema import BLOCKS, BUDGET, LAYERS, SEED, TRAIN_IMAGES, TRANSFORM, WIDTH

SIZES = 3
"""Different sizes that a vertex needs, and budgets that an exponent needs."""
WIDEST = 0.5
"""Width of an exponent's interval above which it is unknown."""
_FREE = {
    "size": [WIDTH],
    "split": [BLOCKS, LAYERS, schema.LAYERS_LISTED],
    "data": [TRAIN_IMAGES],
}
"""The settings that differ between runs of one budget, by what these runs show."""


@dataclass(frozen=True)
class Curve:
    """The runs of one transform and budget, which differ in their size.

    Attributes:
        transform: The transform.
        flops: The budget.
        patches: Patches of an image.
        points: Parameters ``x``, seed and loss of every run.
        best: Parameters of the best size, with the interval; None where it is not determined.
        resampled: The same of every resample of the seeds.
        why: Why it is not determined; empty where it is.
    """

    transform: str
    flops: float
    patches: float
    points: pd.DataFrame
    best: Interval | None
    resampled: np.ndarray
    why: str

    @property
    def means(self) -> pd.Series:
        """Mean loss of every size that was trained."""
        return self.points.groupby("x")["loss"].mean()

    @property
    def leading(self) -> pd.DataFrame:
        """The runs of the best size that was trained."""
        return self.points[self.points["x"] == self.means.idxmin()]

    @property
    def near(self) -> pd.DataFrame:
        """The runs of the best size that was trained and of its two neighbours."""
        return _near(self.points)

    def parabola(self, x: np.ndarray) -> np.ndarray:
        """The fitted loss at each x."""
        means = self.near.groupby("x")["loss"].mean()
        return np.polyval(np.polyfit(np.log(means.index), means, 2), np.log(x))


@dataclass(frozen=True)
class Alternatives:
    """Runs of one transform and budget that differ in one other way: their losses, by seed.

    Attributes:
        transform: The transform.
        flops: The budget.
        losses: Indexed by seed, a column for each alternative, the best one first.
    """

    transform: str
    flops: float
    losses: pd.DataFrame

    @property
    def lead(self) -> Interval:
        """The best one's loss minus that of the second best, with its interval."""
        return interval(self.losses.iloc[:, 0] - self.losses.iloc[:, 1])


def curves(runs: pd.DataFrame, patches: pd.DataFrame, metric: str) -> list[Curve]:
    """Find the runs that differ in their width alone, and the best size of every budget.

    Args:
        runs: The finished runs.
        patches: Their evaluation by patch, which counts the patches of an image.
        metric: A loss.
    """
    found = []
    counts = patches.groupby("run_id")["patch"].nunique()
    for transform, flops, group in _groups(runs, metric, "size"):
        points = group.rename(columns={"parameters": "x", metric: "loss"})[["x", SEED, "loss"]]
        of_image = float(counts.reindex(group["run_id"]).mean())
        found.append(_curve(transform, flops, of_image, points.reset_index(drop=True)))
    return found


def alternatives(runs: pd.DataFrame, metric: str, what: str) -> list[Alternatives]:
    """Find the runs of every budget that differ in their split of layers, or in their images.

    Args:
        runs: The finished runs.
        metric: A loss.
        what: ``split`` or ``data``.
    """
    found = []
    for transform, flops, group in _groups(runs, metric, what):
        if what == "split":
            names = group[BLOCKS].map("{:.0f} × ".format) + group[LAYERS].map("{:.0f}".format)
        else:
            names = group[TRAIN_IMAGES].replace("None", math.inf).astype(float)
        losses = group.assign(name=names).pivot_table(metric, SEED, "name")
        losses = losses[losses.mean().sort_values().index]
        found.append(Alternatives(transform, flops, losses))
    return found


def _groups(
    runs: pd.DataFrame, metric: str, what: str
) -> Iterator[tuple[str, float, pd.DataFrame]]:
    """Yield the runs of every transform and budget that differ in nothing else.

    Where several sets of runs do, the one with most runs is taken.
    """
    runs = runs.assign(**{BUDGET: laws.budgets(runs), "total": runs[BLOCKS] * runs[LAYERS]})
    runs = runs.dropna(subset=[metric, BUDGET])
    free = [TRANSFORM, BUDGET, *_FREE[what]]
    equal = [name for name in schema.settings(runs.columns) if name not in free]
    equal += ["total"] if what == "split" else []
    varied = [name for name in _FREE[what] if name in runs]
    families = []
    for _, family in runs.groupby(equal, dropna=False):
        parts = [
            (str(transform), float(flops), part)
            for (transform, flops), part in family.groupby([TRANSFORM, BUDGET])
            if len(part[varied].drop_duplicates()) > 1
        ]
        families.append(parts)
    largest = max(families, key=lambda parts: sum(len(part) for *_, part in parts), default=[])
    order = ordered(pd.Series([transform for transform, *_ in largest], dtype=object))
    yield from sorted(largest, key=lambda part: (order.index(part[0]), part[1]))


def _curve(transform: str, flops: float, patches: float, points: pd.DataFrame) -> Curve:
    sizes = sorted(points["x"].unique())
    seeds = sorted(points[SEED].unique())

    def undetermined(why: str) -> Curve:
        return Curve(transform, flops, patches, points, None, np.array([]), why)

    if len(sizes) < SIZES:
        return undetermined(f"{len(sizes)} sizes, where {SIZES} are needed")
    leader = points.groupby("x")["loss"].mean().idxmin()
    if leader in (sizes[0], sizes[-1]):
        return undetermined(f"the {'smallest' if leader == sizes[0] else 'largest'} is the best")
    if len(seeds) < 2:
        return undetermined("one seed")
    losses = _near(points).pivot_table("loss", SEED, "x")
    drawn = losses.to_numpy()[resamples(len(losses))].mean(1)  # NaN where a size lacks a seed
    best, *again = _vertices(losses.columns, np.vstack([losses.mean(), drawn]))
    low, high = np.quantile(again, ENDS, method="nearest")  # of which some may be infinite
    if low < losses.columns[0] or high > losses.columns[-1]:
        return undetermined(
            "its interval reaches beyond the neighbours of the best that was trained"
        )
    found = Interval(best, low, high, len(seeds))
    return Curve(transform, flops, patches, points, found, np.array(again), "")


def _near(points: pd.DataFrame) -> pd.DataFrame:
    """Select the runs of the best size and of its neighbours."""
    means = points.groupby("x")["loss"].mean()
    place = int(means.argmin())
    return points[points["x"].isin(means.index[max(place - 1, 0) : place + 2])]


def _vertices(sizes: pd.Index, losses: np.ndarray) -> np.ndarray:
    """Return the sizes with the least loss by parabolas through three sizes' losses.

    Shape:
        losses ``[N, 3]`` -> ``[N]``; infinite where a parabola has no least loss
    """
    q2, q1, _ = np.polyfit(np.log(sizes.to_numpy(float)), losses.T, 2)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = np.exp(-q1 / (2 * q2))
    return np.where((q2 > 0) & np.isfinite(found), found, np.inf)


@dataclass(frozen=True)
class Exponent:
    """How the best size grows with the budget: e of N ∝ C^e.

    Attributes:
        transform: The transform.
        value: The exponent with its interval; None where it is not determined.
        line: Slope and height of the line; None where it is not determined.
        why: Why it is not determined; empty where it is.
    """

    transform: str
    value: Interval | None
    line: tuple[float, float] | None
    why: str

    def at(self, flops: float) -> float:
        """Return the best size at a budget."""
        assert self.line is not None
        slope, height = self.line
        return math.exp(slope * math.log(flops) + height)


def exponents(found: Sequence[Curve]) -> list[Exponent]:
    """Fit the exponent of every transform to its curves whose best size is determined."""
    transforms = dict.fromkeys(one.transform for one in found)
    return [_exponent(name, [one for one in found if one.transform == name]) for name in transforms]


def _exponent(transform: str, found: Sequence[Curve]) -> Exponent:
    known = [one for one in found if one.best]
    if len(known) < SIZES:
        why = f"the best size is determined for {len(known)} budgets, where {SIZES} are needed"
        return Exponent(transform, None, None, why)
    logs = np.log([one.flops for one in known])
    best = np.log([one.best.mean for one in known if one.best])
    slope, height = np.polyfit(logs, best, 1)
    again = np.polyfit(logs, np.log([one.resampled for one in known]), 1)[0]
    low, high = np.quantile(again, ENDS)
    if high - low > WIDEST:
        return Exponent(transform, None, None, f"it is anywhere from {low:.2g} to {high:.2g}")
    n = min(one.best.n for one in known if one.best)
    return Exponent(transform, Interval(slope, low, high, n), (slope, height), "")


def frontier(found: Sequence[Curve]) -> list[Fit]:
    """Fit the law of the loss at the best trained size of every budget."""
    fits = []
    for transform in dict.fromkeys(one.transform for one in found):
        own = [one for one in found if one.transform == transform]
        best = [one.leading.assign(x=one.flops) for one in own]
        fits.append(laws.fit(transform, laws.FRONTIER, pd.concat(best)))
    return fits


def advantages(found: Sequence[Curve], base: str) -> dict[str, dict[float, Interval]]:
    """Compare the transforms with one of them at every budget, paired by seed.

    Args:
        found: The curves.
        base: The transform to compare with.

    Returns:
        By transform and budget, its loss minus the base's, each at its best trained size.
    """
    best = {(one.transform, one.flops): one.leading.set_index(SEED)["loss"] for one in found}
    gaps: dict[str, dict[float, Interval]] = {}
    for (transform, flops), losses in best.items():
        if transform != base and (base, flops) in best:
            gap = interval(losses - best[base, flops])
            gaps.setdefault(transform, {})[flops] = gap
    return gaps
