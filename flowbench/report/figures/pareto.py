"""Figure of quality against time: every configuration, and the Pareto front."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from flowbench.report.analysis import Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import Plot
from flowbench.report.text import plain, small
from flowbench.schema import SECONDS, TRANSFORM

AREAS = (16.0, 110.0)
"""Areas of a mark, in square points, for the fewest blocks and for the most."""
WIDE = 8.0
"""Ratio of the longest time to the shortest above which times have a logarithmic axis."""


@style.context()
def pareto(analysis: Analysis) -> Figure:
    """Draw means over seeds by transform (colour, shape) and blocks (size); single runs as dots."""
    table, metric = analysis.front, analysis.aim.metric
    looks = style.looks(table["transform"])
    figure = Figure(figsize=(style.COLUMN * 1.4, 3.5), layout="constrained")
    axes = figure.subplots()
    if (table["runs"] > 1).any():
        _single(axes, analysis.weighed, metric, looks)
    front = table[table["front"]]
    line: dict[str, Any] = {
        "color": style.GREY,
        "linewidth": 0.9,
        "label": "Pareto front",
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
    axes.set(xlabel="Time per epoch (s)", ylabel=analysis.aim.title)
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
    """Draw every run as a dot, with a line to the mean of its configuration."""
    for _, own in runs.groupby("settings"):
        colour = looks[own[TRANSFORM].iloc[0]].colour
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
    """Return areas of marks that grow linearly with the number of blocks; equal if that is."""
    low, high = all_blocks.min(), all_blocks.max()
    if not low < high:
        return np.full(len(blocks), 36.0)
    return np.interp(blocks, [low, high], AREAS)


def _sizes(blocks: pd.Series) -> list[tuple[str, float]]:
    """Return the fewest and the most blocks and one number between, with the marks' diameters."""
    known = sorted(blocks.dropna().unique())
    if len(known) < 2:
        return []
    shown = pd.Series(sorted({known[0], known[len(known) // 2], known[-1]}))
    names = [f"{count:.0f}" for count in shown]
    return list(zip(names, np.sqrt(areas(shown, blocks)), strict=True))


def _caption(analysis: Analysis) -> str:
    mark = (
        "a mean over seeds, with a line to each run"
        if (analysis.front["runs"] > 1).any()
        else "a run"
    )
    return (
        f"{analysis.aim.title} against seconds per epoch, and the front that no configuration "
        f"beats. A mark: {mark}; {_blocks(analysis.front)}. {_workers(analysis.weighed)}"
    )


def _blocks(found: pd.DataFrame) -> str:
    known = found["blocks"].dropna().unique()
    if len(known) > 1:
        return "area: the number of blocks"
    return f"all have {plain(known[0])} blocks" if len(known) else "the blocks are not recorded"


def _workers(runs: pd.DataFrame) -> str:
    """Say what the times mean, given how many trials shared the machine."""
    workers = runs["workers"]
    if workers.isna().any():
        return "How many trials ran at a time is not recorded."
    if workers.max() > 1:
        return f"Up to {workers.max():.0f} trials shared the machine: compare times here only."
    return "No two trials ran at a time."


PARETO = Plot(
    "pareto",
    "results",
    pareto,
    _caption,
    lambda analysis: (
        "" if len(analysis.front) else f"runs with {small(analysis.aim.title)} and a time"
    ),
)
