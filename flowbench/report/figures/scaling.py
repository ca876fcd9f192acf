"""Figure of the scaling laws: every run's loss against what was scaled."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from flowbench.report.analysis import Analysis
from flowbench.report.figures import style
from flowbench.report.figures.along import doublings
from flowbench.report.figures.style import Plot
from flowbench.report.laws import QUANTITIES, Fit
from flowbench.report.runs import AXES


@style.context()
def scaling(analysis: Analysis) -> Figure:
    """Draw a panel for each quantity, with the laws that the runs determine."""
    fits = analysis.fits
    quantities = [name for name in QUANTITIES if any(fit.quantity == name for fit in fits)]
    columns = 2 if len(quantities) in (2, 4) else len(quantities)
    rows = -(-len(quantities) // columns)
    figure = Figure(
        figsize=(style.PAGE if columns > 1 else style.COLUMN, 0.5 + 2.3 * rows),
        layout="constrained",
    )
    grid = figure.subplots(rows, columns, squeeze=False, sharey=True)
    looks = style.looks(fit.transform for fit in fits)
    for axes, quantity in zip(grid.flat, quantities, strict=False):
        for fit in fits:
            if fit.quantity == quantity:
                _fit(axes, fit, looks[fit.transform])
        own = [fit.points["x"] for fit in fits if fit.quantity == quantity]
        axes.set(xscale="log", xlabel=QUANTITIES[quantity])
        if quantity in AXES:
            doublings(axes, pd.concat(own))
        else:
            powers(axes)
    for axes in list(grid.flat)[len(quantities) :]:
        axes.remove()
    for row in grid:
        row[0].set_ylabel(analysis.quality.title)
    style.legend_below(figure)
    return figure


def powers(axes: Axes) -> None:
    """Mark 1, 2 and 5 times the powers of ten along x."""
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(_power_of_ten))
    axes.xaxis.set_minor_locator(NullLocator())


def _power_of_ten(value: float, _: int | None = None) -> str:
    r"""Write a number of one digit with its power of ten.

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


def _caption(analysis: Analysis) -> str:
    return (
        f"{analysis.quality.title} of every run against what was scaled. Lines: a + b·x^(−c), "
        "fitted to all runs of a transform; bands: 95 % over resampled seeds. No line: the runs do "
        "not determine one."
    )


def _missing(analysis: Analysis) -> str:
    return "" if analysis.fits else "runs of one transform of which one is twice another's size"


SCALING = Plot("scaling", "results", scaling, _caption, _missing)
