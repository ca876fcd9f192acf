r"""Scaling laws of the loss: :math:`a + b\,x^{-c}`, fitted where the runs determine it.

.. math:: \min_{a,\; b \ge 0,\; 0.05 \le c \le 5} \; \sum_i (y_i - a - b\,x_i^{-c})^2

over all runs of a transform. For a given c the best a and b are those of a straight line, so only c
is searched: on a grid of starting points, then by scipy between the neighbours of the best one.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import fdtrc

from flowbench import schema
from flowbench.report.runs import Series
from flowbench.report.stats import ENDS, Interval, interval, resamples
from flowbench.report.text import ordered
from flowbench.schema import BLOCKS, BUDGET, LAYERS, SECONDS, SEED, TRANSFORM

BOUNDS = (0.05, 5.0)
"""Limits of the exponent c."""
STARTS = np.geomspace(*BOUNDS, 25)
LEAST = 4
"""Different x that a fit of three parameters needs."""
WIDEST = 10.0
"""Ratio of the ends of c's interval above which c is unknown."""
SPAN = 2.0
"""Ratio of the greatest to the least x below which nothing was scaled."""
CHANCE = 0.05
FRONTIER = "frontier"
QUANTITIES = {
    BLOCKS: "Blocks",
    LAYERS: "Layers per block",
    "parameters": "Parameters",
    "compute": "Training FLOPs",
    FRONTIER: "Training FLOPs, each at its best size",
}
"""What the loss is fitted against, and the name of the axis."""
MODEL = "model."


@dataclass(frozen=True)
class Law:
    """The three parameters of a fit."""

    a: float
    b: float
    c: float

    def at(self, x: np.ndarray) -> np.ndarray:
        """Return the loss at each x."""
        return self.a + self.b * x**-self.c


@dataclass(frozen=True)
class Forecast:
    """The loss at an x, which a law that was fitted to runs at smaller ones foresees.

    Attributes:
        x: The x.
        foreseen: The law's loss there, with its 95 % interval over resampled seeds.
        trained: The mean loss of the runs there, with its t interval over seeds.
    """

    x: float
    foreseen: Interval
    trained: Interval


@dataclass(frozen=True)
class Fit:
    """The law of one transform in one quantity.

    Attributes:
        transform: The transform.
        quantity: What x is: a key of ``QUANTITIES``.
        points: The runs: x, seed and loss.
        law: Best fit to all runs; None where the runs do not determine it.
        resampled: Best fits to the resamples of the seeds.
        why: Why the law is not determined; empty where it is.
    """

    transform: str
    quantity: str
    points: pd.DataFrame
    law: Law | None
    resampled: tuple[Law, ...]
    why: str

    def interval(self, name: str) -> Interval:
        """Return a parameter with its 95 % interval over resampled seeds."""
        values = [getattr(law, name) for law in self.resampled]
        low, high = np.quantile(values, ENDS)
        return Interval(getattr(self.law, name), low, high, self.seeds)

    @property
    def seeds(self) -> int:
        """Number of seeds."""
        return int(self.points[SEED].nunique())

    def band(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the 95 % interval of the law at each x."""
        low, high = np.quantile([law.at(x) for law in self.resampled], ENDS, axis=0)
        return low, high


def forecast(one: Fit) -> Forecast | None:
    """Foresee the loss at the largest x from the other runs; None where they determine no law."""
    x = float(one.points["x"].max())
    there = one.points["x"] == x
    law = fit(one.transform, one.quantity, one.points[~there])
    if law.law is None:
        return None
    return beyond(law, one.points[there])[0]


def beyond(one: Fit, trained: pd.DataFrame) -> list[Forecast]:
    """Foresee the loss at every larger x than those that a determined law was fitted to.

    Args:
        one: The law.
        trained: Other runs: x, seed and loss.
    """
    assert one.law is not None
    found = []
    for x, own in trained[trained["x"] > one.points["x"].max()].groupby("x"):
        at = np.array([x], dtype=float)
        mean, low, high = (float(values[0]) for values in (one.law.at(at), *one.band(at)))
        losses = interval(own.groupby(SEED)["loss"].mean())
        found.append(Forecast(at.item(), Interval(mean, low, high, one.seeds), losses))
    return found


def fits(
    runs: pd.DataFrame, along: Mapping[str, Series | None], compute: pd.Series, metric: str
) -> list[Fit]:
    """Fit a law for every quantity that varies, at least twofold, between a transform's runs.

    Against blocks the layers per block are equal throughout, or the layers in all; against layers
    the blocks are. Against parameters and compute all models of a transform count that were trained
    with equal settings; none where budgets of FLOPs end the training, see ``compute.frontier``.

    Args:
        runs: The finished runs.
        along: The runs along blocks and along layers.
        compute: Training FLOPs of each run.
        metric: A loss.
    """
    runs = runs.assign(compute=compute).dropna(subset=[metric])
    equal = [name for name in schema.settings(runs.columns) if not name.startswith(MODEL)]
    found = []
    quantities = [BLOCKS, LAYERS]
    if budgets(runs).isna().all():
        quantities += ["parameters", "compute"]
    for quantity in quantities:
        if quantity in along:
            one = along[quantity]
            table = one.runs if one else runs[:0].assign(x=math.nan)
        else:
            groups = runs.assign(x=runs[quantity]).groupby(equal, dropna=False)
            table = max((group for _, group in groups), key=len, default=runs.assign(x=math.nan))
        table = table.dropna(subset=["x"])
        for transform in ordered(table[TRANSFORM]):
            own = table[table[TRANSFORM] == transform]
            if own["x"].max() >= SPAN * own["x"].min():
                points = own[["x", SEED, metric]].rename(columns={metric: "loss"})
                found.append(fit(transform, quantity, points))
    return found


def budgets(runs: pd.DataFrame) -> pd.Series:
    """Return the training FLOPs that end each run; NaN where none do."""
    recorded = runs.get(BUDGET, pd.Series(math.nan, runs.index))
    return pd.to_numeric(recorded, errors="coerce").astype(float)  # a null is recorded as None


def training_flops(runs: pd.DataFrame, history: pd.DataFrame, patches: pd.DataFrame) -> pd.Series:
    """Estimate the training FLOPs of each run: 6 · parameters · tokens · images seen.

    This is the rule for transformers, without attention and without the transform itself; tokens
    are the patches of an image, as the evaluation counts them.
    """
    by_run = runs.set_index("run_id")
    tokens = patches.groupby("run_id")["patch"].nunique()
    epochs = history.reindex(columns=["run_id", SECONDS, "images_per_second"])
    seen = epochs[SECONDS] * epochs["images_per_second"]
    images = seen.groupby(epochs["run_id"]).sum(min_count=1).round()
    flops = schema.FLOPS * by_run["parameters"] * tokens.reindex(by_run.index)
    flops *= images.reindex(by_run.index)
    # Training ended at its budget, maybe within an epoch, which has no time.
    flops = budgets(by_run).fillna(flops)
    return pd.Series(flops.to_numpy(), runs.index, dtype=float)


def fit(transform: str, quantity: str, points: pd.DataFrame) -> Fit:
    """Fit the law and decide whether the runs determine it.

    Args:
        transform: The transform of the runs.
        quantity: What x is.
        points: Columns x, seed and loss.
    """
    distinct = points["x"].nunique()
    seeds = sorted(points[SEED].unique())

    def undetermined(why: str) -> Fit:
        return Fit(transform, quantity, points, None, (), why)

    if distinct < LEAST:
        return undetermined(f"{distinct} different values, where {LEAST} are needed")
    law, rest = best(points["x"].to_numpy(float), points["loss"].to_numpy(float))
    total = float(((points["loss"] - points["loss"].mean()) ** 2).sum())
    if by_chance(total, rest, len(points)):
        return undetermined("a constant explains the runs as well")
    if at_bound(law.c):
        return undetermined(f"the best c is at its bound, {law.c:.3g}")
    if len(seeds) < 2:
        return undetermined("one seed")
    groups = [points.loc[points[SEED] == seed, ["x", "loss"]].to_numpy(float) for seed in seeds]

    @cache
    def drawn(*places: int) -> Law:
        return best(*np.concatenate([groups[place] for place in places]).T)[0]

    again = [drawn(*draw) for draw in np.sort(resamples(len(seeds))).tolist()]
    low, high = np.quantile([other.c for other in again], ENDS)
    if at_bound(low) or at_bound(high) or high / low > WIDEST:
        return undetermined(f"c is anywhere from {low:.2g} to {high:.2g}")
    return Fit(transform, quantity, points, law, tuple(again), "")


def at_bound(c: float) -> bool:
    """Return whether an exponent stopped at one of its bounds."""
    return c < 1.02 * BOUNDS[0] or c > 0.98 * BOUNDS[1]


def by_chance(total: float, rest: float, runs: int) -> bool:
    """Test whether a constant explains the runs as well: an F test of two parameters at 5 %.

    Args:
        total: Sum of squares about the mean.
        rest: Sum of squares about the law.
        runs: Number of runs.
    """
    free = runs - 3
    if free < 1 or total <= rest:
        return True
    return bool(fdtrc(2, free, (total - rest) / 2 / max(rest / free, 1e-300)) > CHANCE)


def best(x: np.ndarray, loss: np.ndarray) -> tuple[Law, float]:
    """Find the law of least squares, and its sum of squares.

    Example:
        >>> x = np.array([1.0, 2.0, 4.0, 8.0])
        >>> law, rest = best(x, 2 + 3 * x**-0.5)
        >>> round(law.a, 3), round(law.b, 3), round(law.c, 3), rest < 1e-9
        (2.0, 3.0, 0.5, True)
    """
    scale = float(np.exp(np.log(x).mean()))  # so that b stays of the size of the loss
    unit = x / scale

    def lines(c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The best a and b for each of some c, and the sum of squares."""
        power = unit ** -c[:, None]
        middle = power.mean(1, keepdims=True)
        slope = ((power - middle) * loss).sum(1) / ((power - middle) ** 2).sum(1)
        b = np.maximum(0.0, slope)[:, None]
        a = loss.mean() - b * middle
        return a[:, 0], b[:, 0], ((loss - a - b * power) ** 2).sum(1)

    place = int(np.argmin(lines(STARTS)[2]))
    ends = STARTS[max(place - 1, 0)], STARTS[min(place + 1, len(STARTS) - 1)]
    found = minimize_scalar(
        lambda log: lines(np.exp([log]))[2].item(),
        bounds=np.log(ends),
        method="bounded",
        options={"xatol": 1e-6},
    )
    c = float(np.exp(found.x))
    a, b, rest = (float(values[0]) for values in lines(np.array([c])))
    return Law(a, b * scale**c, c), rest
