"""Figure of quality against time: every configuration, and those that no other beats in both."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from flowbench.report import style
from flowbench.report.labels import metric_label
from flowbench.report.seeds import SECONDS

AREAS = (16.0, 110.0)
"""Areas of a mark, in square points, for the fewest blocks and for the most."""
WIDE = 8.0
"""Ratio of the longest time to the shortest above which times have a logarithmic axis."""


@style.context()
def pareto(table: pd.DataFrame, runs: pd.DataFrame, metric: str) -> Figure:
    """Means over seeds by transform (colour, shape) and blocks (size); single runs as dots.

    Args:
        table: The configurations.
        runs: Their runs, with the ``settings`` of their configurations.
        metric: What is drawn against seconds per epoch.
    """
    looks = style.looks(table["transform"])
    figure = Figure(figsize=(style.COLUMN * 1.4, 3.5), layout="constrained")
    axes = figure.subplots()
    if (table["runs"] > 1).any():
        _single(axes, runs, metric, looks)
    front = table[table["front"]]
    line: dict[str, Any] = {
        "color": style.GREY,
        "linewidth": 0.9,
        "label": "beaten by none in both",
    }
    axes.step(front[SECONDS], front[metric], where="post", zorder=2, **line)
    for name, look in looks.items():
        own = table[table["transform"] == name]
        axes.scatter(
            own[SECONDS],
            own[metric],
            s=areas(own["blocks"], table["blocks"]),
            marker=look.marker,
            color=look.colour,
            edgecolor="white",
            linewidth=0.6,
            zorder=3,
        )
    if table[SECONDS].max() > WIDE * table[SECONDS].min():
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="Time per epoch (s)", ylabel=metric_label(metric))
    handles = [_mark(look.label, look.colour, look.marker, 5) for look in looks.values()]
    handles.append(Line2D([], [], **line))
    figure.legend(handles=handles, loc="outside lower center", ncols=3)
    if sizes := _sizes(table["blocks"]):
        handles = [_mark(label, style.GREY, "o", size) for label, size in sizes]
        figure.legend(
            handles=handles,
            loc="outside right upper",
            title="Blocks",
            labelspacing=0.9,
            handlelength=1.5,
        )
    return figure


def _single(axes: Axes, runs: pd.DataFrame, metric: str, looks: Mapping[str, style.Look]) -> None:
    """Draw every run as a dot, tied to the mean of its configuration."""
    for _, own in runs.groupby("settings"):
        colour = looks[own["transform"].iloc[0]].colour
        x, y = own[SECONDS], own[metric]
        for end in zip(x, y, strict=True):
            ties = zip((x.mean(), y.mean()), end, strict=True)
            axes.plot(*ties, color=colour, linewidth=0.4, zorder=1)
        axes.plot(x, y, ".", color=colour, markersize=3, zorder=2)


def _mark(label: str, colour: str, marker: str, size: float) -> Line2D:
    return Line2D(
        [], [], label=label, color=colour, marker=marker, markersize=size, linestyle="none"
    )


def areas(blocks: pd.Series, all_blocks: pd.Series) -> np.ndarray:
    """Areas of marks that grow evenly with the number of blocks; all alike where they do."""
    low, high = all_blocks.min(), all_blocks.max()
    if not low < high:
        return np.full(len(blocks), 36.0)
    return np.interp(blocks, [low, high], AREAS)


def _sizes(blocks: pd.Series) -> list[tuple[str, float]]:
    """The fewest and the most blocks and one number between, with their marks' diameters."""
    known = sorted(blocks.dropna().unique())
    if len(known) < 2:
        return []
    shown = pd.Series(sorted({known[0], known[len(known) // 2], known[-1]}))
    names = [f"{count:.0f}" for count in shown]
    return list(zip(names, np.sqrt(areas(shown, blocks)), strict=True))
