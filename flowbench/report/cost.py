"""Figure of the seconds that an epoch takes with each transform."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowbench.report import style
from flowbench.report.configurations import configurations, with_baseline
from flowbench.report.labels import AFFINE
from flowbench.report.numbers import number
from flowbench.report.seeds import alone, cost


@style.context()
def seconds_per_epoch(runs: pd.DataFrame) -> Figure:
    """Every run's seconds per epoch, each configuration's median, and its ratio to affine.

    Args:
        runs: The finished runs; a run's figure is its median over epochs but the first.
    """
    timed = alone(runs).dropna(subset=["seconds_per_epoch"])
    looks = style.looks(timed["transform"])
    named = configurations(timed)
    figure = Figure(figsize=(style.COLUMN, 0.9 + 0.32 * len(named)), layout="constrained")
    axes = figure.subplots()
    for row, own in enumerate(named.values()):
        transform, seconds = own["transform"].iloc[0], own["seconds_per_epoch"]
        look = looks[transform]
        middle = seconds.median()
        axes.plot([middle, middle], [row - 0.3, row + 0.3], color=look.colour, linewidth=2)
        axes.plot(
            seconds,
            [row] * len(seconds),
            look.marker,
            color=look.colour,
            markerfacecolor="none",
            markersize=5,
        )
        if AFFINE in looks:
            both = with_baseline(own, timed, AFFINE)
            _beside(axes, row, number(cost(both, transform, AFFINE).mean, 2))
    if AFFINE in looks:
        _beside(axes, -0.8, "÷ affine")
    axes.set_yticks(range(len(named)), list(named))
    axes.set(xlabel="Time per epoch (s)", xlim=(0, timed["seconds_per_epoch"].max() * 1.08))
    axes.set_ylim(len(named) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    figure.legend(
        handles=[
            Line2D([], [], color=style.GREY, marker="o", markerfacecolor="none", linestyle="none"),
            Line2D([], [], color=style.GREY, marker="|", markersize=9, linestyle="none", mew=2),
        ],
        labels=["one run", "median"],
        loc="outside lower center",
        ncols=2,
    )
    return figure


def _beside(axes: Axes, row: float, text: str) -> None:
    axes.annotate(
        text,
        (1.02, row),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize="small",
        annotation_clip=False,
    )
