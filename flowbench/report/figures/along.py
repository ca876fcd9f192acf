"""Figures along a number: quality and seconds per epoch against bins, blocks or layers."""

from collections.abc import Callable
from functools import partial

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from flowbench.report.analysis import Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import Plot
from flowbench.report.runs import AXES, Series
from flowbench.report.text import AFFINE, number, plain, small
from flowbench.schema import BLOCKS, LAYERS, SECONDS

FAINT, ASIDE = 0.4, 2**0.08
"""Single runs and rounds are drawn faint, and right of their mean, which would hide them."""
NOUNS = {"bins": "number of bins", BLOCKS: "number of blocks", LAYERS: "layers per block"}

Spread = Callable[[pd.Series], tuple[float, float, float]]
"""The middle of some values, and the distances to the ends of its bar below and above."""


@style.context()
def along(across: str, analysis: Analysis) -> Figure:
    """Draw the loss, and seconds per epoch, against bins, blocks or layers.

    Args:
        across: The number.
        analysis: The study.
    """
    quality, (seconds, _) = analysis.along[across], analysis.seconds_along[across]
    width = style.COLUMN if quality is None else style.PAGE
    figure = Figure(figsize=(width, 2.9), layout="constrained")
    *left, right = figure.subplots(1, 1 if quality is None else 2, squeeze=False)[0]
    for axes in left:
        assert quality is not None
        _lines(axes, quality, analysis.quality.metric, _deviation)
        axes.set_ylabel(analysis.quality.title)
    if seconds is not None:
        _lines(right, seconds, SECONDS, _quartiles)
        right.set(ylabel="Time per epoch (s)", ylim=(0, None))
    else:
        _note(right, _lacking(quality))
    style.legend_below(figure)
    return figure


def _lacking(quality: Series | None) -> str:
    """Say what would measure the seconds of these flows."""
    timed = quality is not None and quality.across != LAYERS and "in all" not in quality.fixed
    need = "make sweep-timing" if timed else "trials that run one by one"
    return f"needs {need}:\nno trial here had the machine to itself"


def _note(axes: Axes, text: str) -> None:
    """Write in the place of a panel what it lacks."""
    axes.text(0.5, 0.5, text, color=style.GREY, ha="center", va="center", transform=axes.transAxes)
    axes.set(xticks=[], yticks=[], ylabel="Time per epoch (s)")
    axes.spines[:].set_visible(False)


def _deviation(values: pd.Series) -> tuple[float, float, float]:
    """Return the mean, and one standard deviation below and above."""
    sd = 0.0 if len(values) < 2 else float(values.std())
    return float(values.mean()), sd, sd


def _quartiles(values: pd.Series) -> tuple[float, float, float]:
    """Return the median, and the distances to the quartiles."""
    low, middle, high = values.quantile([0.25, 0.5, 0.75])
    return float(middle), float(middle - low), float(high - middle)


def _lines(axes: Axes, series: Series, metric: str, spread: Spread) -> None:
    """Draw each line with its single runs or rounds, and the baseline as a level."""
    lines = series.lines()
    looks = style.looks([*(transform for transform, _ in lines.values()), AFFINE])
    for name, (transform, runs) in lines.items():
        look, own = looks[transform], runs.dropna(subset=[metric])
        bars = {x: spread(values) for x, values in own.groupby("x")[metric]}
        middle, below, above = zip(*bars.values(), strict=True)
        axes.plot(own["x"] * ASIDE, own[metric], look.marker, color=look.colour, alpha=FAINT, mew=0)
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
    axes.set_xlabel(AXES[series.across])
    doublings(axes, series.runs["x"])


def doublings(axes: Axes, values: pd.Series) -> None:
    """Mark the numbers that occur, on a scale of doublings."""
    axes.set_xscale("log", base=2)
    places = sorted(values.unique())
    axes.set_xticks(places, [plain(value) for value in places])
    axes.xaxis.set_minor_locator(NullLocator())


def _caption(across: str, analysis: Analysis) -> str:
    quality, (seconds, table) = analysis.along[across], analysis.seconds_along[across]
    parts = []
    if quality is not None:
        parts.append(
            f"{analysis.quality.title} against the {NOUNS[across]} ({quality.fixed}), mean ± 1 "
            "standard deviation over seeds"
        )
    if seconds is not None:
        load = table["load"].median()
        busy = "" if pd.isna(load) else f" (load {number(load, 1)})"
        fixed = "" if quality and quality.fixed == seconds.fixed else f" ({seconds.fixed})"
        parts.append(f"seconds per epoch{fixed}, median and quartiles over rounds{busy}")
    text = "; ".join(parts)
    level = " Level: affine, which has no bins." if across == "bins" else ""
    return f"{text[:1].upper()}{small(text)[1:]}. Faint: single runs and rounds.{level}"


def _missing(across: str, analysis: Analysis) -> str:
    found = analysis.along[across] or analysis.seconds_along[across][0]
    return "" if found else f"runs that differ in their {NOUNS[across]} alone"


BY_BLOCKS, BY_BINS, BY_LAYERS = (
    Plot(
        across.rpartition(".")[2],
        "original" if across != LAYERS else "results",
        partial(along, across),
        partial(_caption, across),
        partial(_missing, across),
    )
    for across in (BLOCKS, "bins", LAYERS)
)
