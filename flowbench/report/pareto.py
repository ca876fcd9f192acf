"""Figure of quality against time: every configuration, and those that no other beats in both."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowbench.report import style
from flowbench.report.front import SECONDS
from flowbench.report.labels import metric_label

AREAS = (16.0, 110.0)
"""Areas of a mark, in square points, for the fewest blocks and for the most."""
WIDE = 8.0
"""Ratio of the longest time to the shortest above which times have a logarithmic axis."""


@style.context()
def pareto(table: pd.DataFrame, runs: pd.DataFrame, metric: str) -> Figure:
    """Means over seeds by transform (colour, shape) and blocks (size); single runs as dots.

    Args:
        table: The configurations.
        runs: Their runs.
        metric: What is drawn against seconds per epoch.
    """
    looks = style.looks(table["transform"])
    figure = Figure(figsize=(style.COLUMN * 1.35, 3.6), layout="constrained")
    axes = figure.subplots()
    if (table["runs"] > 1).any():
        for name, own in runs.groupby("transform"):
            axes.scatter(own[SECONDS], own[metric], s=3, color=looks[name].colour, linewidth=0)
    front = table[table["front"]]
    axes.step(
        front[SECONDS], front[metric], where="post", color=style.GREY, linewidth=0.9, zorder=2
    )
    for name, look in looks.items():
        own = table[table["transform"] == name]
        axes.scatter(
            own[SECONDS],
            own[metric],
            s=areas(own["blocks"], table["blocks"]),
            marker=look.marker,
            color=look.colour,
            alpha=0.85,
            edgecolor="white",
            linewidth=0.6,
            zorder=3,
        )
    if table[SECONDS].max() > WIDE * table[SECONDS].min():
        axes.set_xscale("log")
    axes.set(xlabel="Time per epoch (s)", ylabel=metric_label(metric))
    handles = [
        Line2D(
            [],
            [],
            color=look.colour,
            marker=look.marker,
            markersize=5,
            linestyle="none",
            label=look.label,
        )
        for look in looks.values()
    ]
    handles += [
        Line2D([], [], color=style.GREY, marker="o", markersize=size, linestyle="none", label=label)
        for label, size in _sizes(table["blocks"])
    ]
    handles.append(Line2D([], [], color=style.GREY, linewidth=0.9, label="not beaten in both"))
    figure.legend(
        handles=handles, loc="outside lower center", ncols=4, columnspacing=1.2, handletextpad=0.4
    )
    return figure


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
    names = [f"{count:.0f} block{'' if count == 1 else 's'}" for count in shown]
    return list(zip(names, np.sqrt(areas(shown, blocks)), strict=True))
