r"""Scaling laws of the loss: :math:`a + b\,x^{-c}`, fitted where the runs determine it.

.. math:: \min_{a,\; b \ge 0,\; 0.05 \le c \le 5} \; \sum_i (y_i - a - b\,x_i^{-c})^2

over all runs of a transform. For a given c the best a and b are those of a straight line, so only c
is searched: on a grid of starting points, then by scipy between the neighbours of the best of them.
"""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import minimize_scalar
from scipy.special import fdtrc

from flowbench.report.files import Recorded
from flowbench.report.labels import ordered
from flowbench.report.resamples import INTERVAL, resamples
from flowbench.report.seeds import MODEL, SETTINGS, Interval, finished
from flowbench.report.series import series

BOUNDS = (0.05, 5.0)
"""Limits of the exponent c."""
STARTS = np.geomspace(*BOUNDS, 25)
LEAST = 4
"""Different x that three parameters need to leave anything to chance."""
WIDEST = 10.0
"""Ratio of the ends of c's interval above which c is unknown."""
SPAN = 2.0
"""Ratio of the greatest to the least x below which nothing was scaled."""
CHANCE = 0.05
FLOPS = 6
"""Floating-point operations of a training step for each parameter and token: 2 forward, 4 back."""
QUANTITIES = {
    "blocks": "Blocks",
    "layers": "Layers a block",
    "parameters": "Parameters",
    "compute": "Training FLOPs",
}
"""What the loss is fitted against, and its name."""


@dataclass(frozen=True)
class Law:
    """The three parameters of a fit."""

    a: float
    b: float
    c: float

    def at(self, x: np.ndarray) -> np.ndarray:
        """The loss that it gives."""
        return self.a + self.b * x**-self.c


@dataclass(frozen=True)
class Fit:
    """What one transform's runs say of the law in one quantity."""

    transform: str
    quantity: str
    points: pd.DataFrame
    """The runs: x, seed and loss."""
    law: Law | None
    """Best fit to all runs; none where it is not determined."""
    resampled: tuple[Law, ...]
    """Best fits to the resamples of the seeds."""
    why: str
    """What keeps it from being determined; empty where it is."""

    def interval(self, name: str) -> Interval:
        """A parameter with its 95 % interval over resampled seeds."""
        values = [getattr(law, name) for law in self.resampled]
        low, high = np.quantile(values, INTERVAL)
        return Interval(getattr(self.law, name), low, high, self.points["seed"].nunique())

    def band(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The 95 % interval of the law at each x."""
        low, high = np.quantile([law.at(x) for law in self.resampled], INTERVAL, axis=0)
        return low, high


def fits(recorded: Recorded, metric: str) -> list[Fit]:
    """A fit for every quantity that varies, at least twofold, between a transform's runs.

    Against blocks the layers of a block are the same throughout, or the layers in all, against
    layers the blocks; against parameters and compute all models of a transform count that were
    trained alike.

    Args:
        recorded: The tables.
        metric: A loss.
    """
    runs = finished(recorded.runs).dropna(subset=[metric])
    equal = [name for name in SETTINGS if name not in MODEL]
    found = []
    for quantity in QUANTITIES:
        if quantity in ("blocks", "layers"):
            along = series(runs, quantity)
            table = along.runs if along else runs[:0].assign(x=math.nan)
        else:
            amount = compute(recorded) if quantity == "compute" else runs["parameters"]
            groups = runs.assign(x=amount).groupby(equal, dropna=False)
            table = max((group for _, group in groups), key=len, default=runs.assign(x=math.nan))
        table = table.dropna(subset=["x"])
        for transform in ordered(table["transform"]):
            own = table[table["transform"] == transform]
            if own["x"].max() >= SPAN * own["x"].min():
                points = own[["x", "seed", metric]].rename(columns={metric: "loss"})
                found.append(fit(transform, quantity, points))
    return found


def compute(recorded: Recorded) -> pd.Series:
    """Floating-point operations of each run's training: 6 · parameters · tokens · images seen.

    An estimate by the rule for transformers, without attention and without the transform itself;
    tokens are the patches of an image, as the evaluation counts them.
    """
    runs = recorded.runs.set_index("run_id")
    patches = recorded.evaluation["patches"]
    tokens = patches.groupby("run_id")["patch"].nunique()
    epochs = recorded.history.reindex(columns=["run_id", "seconds_per_epoch", "images_per_second"])
    seen = epochs["seconds_per_epoch"] * epochs["images_per_second"]
    images = seen.groupby(epochs["run_id"]).sum(min_count=1).round()
    flops = FLOPS * runs["parameters"] * tokens.reindex(runs.index) * images.reindex(runs.index)
    return pd.Series(flops.to_numpy(), recorded.runs.index, dtype=float)


def fit(transform: str, quantity: str, points: pd.DataFrame) -> Fit:
    """Fit the law and say whether it is determined.

    Args:
        transform: Whose runs they are.
        quantity: What x is.
        points: Columns x, seed and loss.
    """
    distinct = points["x"].nunique()
    seeds = sorted(points["seed"].unique())

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
    groups = [points.loc[points["seed"] == seed, ["x", "loss"]].to_numpy(float) for seed in seeds]
    again = []
    for draw in resamples(len(seeds)):
        x, loss = np.concatenate([groups[place] for place in draw]).T
        again.append(best(x, loss)[0])
    low, high = np.quantile([other.c for other in again], INTERVAL)
    if at_bound(low) or at_bound(high) or high / low > WIDEST:
        return undetermined(f"c is anywhere from {low:.2g} to {high:.2g}")
    return Fit(transform, quantity, points, law, tuple(again), "")


def at_bound(c: float) -> bool:
    """Whether an exponent has been kept from going on."""
    return c < 1.02 * BOUNDS[0] or c > 0.98 * BOUNDS[1]


def by_chance(total: float, rest: float, runs: int) -> bool:
    """Whether a constant does as well: an F test of the law's two further parameters at 5 %.

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
    """The law of least squares, and its sum of squares.

    Example:
        >>> x = np.array([1.0, 2.0, 4.0, 8.0])
        >>> law, rest = best(x, 2 + 3 * x**-0.5)
        >>> round(law.a, 3), round(law.b, 3), round(law.c, 3), rest < 1e-9
        (2.0, 3.0, 0.5, True)
    """
    scale = float(np.exp(np.log(x).mean()))  # so that b stays of the size of the loss
    unit = x / scale

    def line(c: float) -> tuple[float, float, float]:
        power = unit**-c
        middle, mean = power.mean(), loss.mean()
        b = max(0.0, float(((power - middle) * loss).sum() / ((power - middle) ** 2).sum()))
        a = float(mean - b * middle)
        return a, b, float(((loss - a - b * power) ** 2).sum())

    rests = [line(c)[2] for c in STARTS]
    place = int(np.argmin(rests))
    ends = STARTS[max(place - 1, 0)], STARTS[min(place + 1, len(STARTS) - 1)]
    found = minimize_scalar(
        lambda log: line(math.exp(log))[2],
        bounds=np.log(ends),
        method="bounded",
        options={"xatol": 1e-6},
    )
    c = float(np.exp(found.x))
    a, b, rest = line(c)
    return Law(a, b * scale**c, c), rest
