"""Figures along a number: quality and seconds against bins, blocks or layers, and scaling laws."""

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from flowbench.report import style
from flowbench.report.labels import AFFINE
from flowbench.report.numbers import plain
from flowbench.report.scaling import QUANTITIES, Fit
from flowbench.report.seeds import SECONDS
from flowbench.report.series import NAMES, Series

FAINT, ASIDE = 0.4, 2**0.08
"""How single runs and rounds are drawn: faint, and beside their mean, which would hide them."""

Spread = Callable[[pd.Series], tuple[float, float, float]]
"""The middle of some values, and how far it is to the ends of its bar below and above."""


@style.context()
def against(
    quality: Series | None, metric: str, title: str, seconds: Series | None, lacking: str
) -> Figure:
    """A loss, and seconds per epoch, against bins, blocks or layers.

    Args:
        quality: The runs with a loss; none for times alone.
        metric: The column of the loss.
        title: What the loss is.
        seconds: Rounds of epochs; none where there are none.
        lacking: What the panel of seconds would need, where it has none.
    """
    wide = quality is not None
    figure = Figure(figsize=(style.PAGE if wide else style.COLUMN, 2.9), layout="constrained")
    *left, right = figure.subplots(1, 2 if wide else 1, squeeze=False)[0]
    for axes in left:
        assert quality is not None
        _lines(axes, quality, metric, _deviation)
        axes.set_ylabel(title)
    if seconds is not None:
        _lines(right, seconds, SECONDS, _quartiles)
        right.set(ylabel="Time per epoch (s)", ylim=(0, None))
    else:
        _note(right, lacking)
    known: dict[str, Artist] = {}
    for axes in figure.axes:
        handles, labels = axes.get_legend_handles_labels()
        known |= dict(zip(labels, handles, strict=True))
    figure.legend(
        list(known.values()), list(known), loc="outside lower center", ncols=min(4, len(known))
    )
    return figure


def _note(axes: Axes, text: str) -> None:
    """Say in the place of a panel what it lacks."""
    axes.text(0.5, 0.5, text, color=style.GREY, ha="center", va="center", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[], ylabel="Time per epoch (s)")
    axes.spines[:].set_visible(False)


def _deviation(values: pd.Series) -> tuple[float, float, float]:
    """Mean, and one standard deviation below and above."""
    sd = 0.0 if len(values) < 2 else float(values.std())
    return float(values.mean()), sd, sd


def _quartiles(values: pd.Series) -> tuple[float, float, float]:
    """Median, and how far the quartiles are."""
    low, middle, high = values.quantile([0.25, 0.5, 0.75])
    return float(middle), float(middle - low), float(high - middle)


def _lines(axes: Axes, series: Series, metric: str, spread: Spread) -> None:
    """Draw each line, and the baseline as a level, with every run or round behind it."""
    lines = series.lines()
    looks = style.looks([*(transform for transform, _ in lines.values()), AFFINE])
    for name, (transform, runs) in lines.items():
        look, own = looks[transform], runs.dropna(subset=[metric])
        bars = {x: spread(values) for x, values in own.groupby("x")[metric]}
        middle, below, above = zip(*bars.values(), strict=True)
        beside = own["x"] * ASIDE
        axes.plot(beside, own[metric], look.marker, color=look.colour, alpha=FAINT, mew=0)
        axes.errorbar(
            list(bars),
            middle,
            yerr=[below, above],
            color=look.colour,
            linestyle=look.line,
            marker=look.marker,
            markerfacecolor="white",
            capsize=2,
            elinewidth=0.8,
            label=name,
        )
    level = series.baseline[metric].dropna()
    if len(level):
        look, (at, low, high) = looks[AFFINE], spread(level)
        axes.axhline(at, color=look.colour, linestyle=look.line, label=look.label)
        axes.axhspan(at - low, at + high, color=look.colour, alpha=0.18, linewidth=0)
    axes.set_xlabel(NAMES[series.across])
    _ticks(axes, series.runs["x"])


def _ticks(axes: Axes, values: pd.Series) -> None:
    """Mark the numbers that there are, on a scale of doublings."""
    axes.set_xscale("log", base=2)
    places = sorted(values.unique())
    axes.set_xticks(places, [plain(value) for value in places])
    axes.xaxis.set_minor_locator(NullLocator())


@style.context()
def scaling(fits: Sequence[Fit], title: str) -> Figure:
    """Every run's loss against what was scaled, a panel each, with the laws that are determined.

    Args:
        fits: Of every transform and quantity.
        title: What the loss is.
    """
    quantities = [name for name in QUANTITIES if any(fit.quantity == name for fit in fits)]
    columns = 2 if len(quantities) in (2, 4) else len(quantities)
    deep = -(-len(quantities) // columns)
    figure = Figure(
        figsize=(style.PAGE if columns > 1 else style.COLUMN, 0.5 + 2.3 * deep),
        layout="constrained",
    )
    grid = figure.subplots(deep, columns, squeeze=False, sharey=True)
    looks = style.looks(fit.transform for fit in fits)
    for axes, quantity in zip(grid.flat, quantities, strict=False):
        for fit in fits:
            if fit.quantity == quantity:
                _fit(axes, fit, looks[fit.transform])
        own = [fit.points["x"] for fit in fits if fit.quantity == quantity]
        axes.set(xscale="log", xlabel=QUANTITIES[quantity])
        if quantity in NAMES:
            _ticks(axes, pd.concat(own))
        else:
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter(FuncFormatter(_power_of_ten))
            axes.xaxis.set_minor_locator(NullLocator())
    for axes in list(grid.flat)[len(quantities) :]:
        axes.remove()
    for row in grid:
        row[0].set_ylabel(title)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    known = dict(zip(labels, handles, strict=True))
    figure.legend(
        list(known.values()), list(known), loc="outside lower center", ncols=min(4, len(known))
    )
    return figure


def _power_of_ten(value: float, _: int | None = None) -> str:
    r"""A number of one digit with its power of ten.

    Example:
        >>> _power_of_ten(2e5)
        '$2\\times10^{5}$'
    """
    digit, exponent = f"{value:.0e}".split("e")
    return rf"${digit}\times10^{{{int(exponent)}}}$"


def _fit(axes: Axes, fit: Fit, look: style.Look) -> None:
    axes.plot(
        fit.points["x"],
        fit.points["loss"],
        look.marker,
        color=look.colour,
        markerfacecolor="none",
        label=look.label,
    )
    if fit.law is not None:
        x = np.geomspace(fit.points["x"].min(), fit.points["x"].max(), 100)
        low, high = fit.band(x)
        axes.plot(x, fit.law.at(x), color=look.colour, linestyle=look.line)
        axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)
