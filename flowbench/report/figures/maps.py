"""Figures of where a flow fails and works: maps over patches, and over blocks and positions."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from flowbench.report.analysis import Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import BAR, Plot, heat, scale, shades
from flowbench.report.options import START
from flowbench.report.stats import Interval, patch_ratio
from flowbench.report.text import number
from flowbench.schema import TRANSFORM

MAPS = {
    "distance": ("Distance", "Grey levels"),
    "bpd": ("Negative log-likelihood", "Bits per dimension"),
    "nll": ("Negative log-likelihood", "Nats per dimension"),
}
"""The maps that some run may have: title and unit."""
_EDGE = 2  # patches at either end of the raster order


@style.context()
def patches(analysis: Analysis) -> Figure:
    """Draw maps over the patches, a row per transform, and its ratio of edge to even noise."""
    table = analysis.evaluated["patches"]
    looks = style.looks(table[TRANSFORM])
    kinds = [kind for kind in MAPS if table[kind].notna().any()]
    ratios = {name: patch_ratio(analysis.best[analysis.best[TRANSFORM] == name]) for name in looks}
    rated = any(ratio.n for ratio in ratios.values())
    height = min(1.25, 7 / len(looks))
    widths = [1.0] * len(kinds) + [1.2] * rated
    heights = [height] * len(looks) + [BAR]
    figure = Figure(figsize=(style.PAGE, 0.9 + sum(heights)), layout="constrained")
    grid = figure.add_gridspec(
        len(heights), len(widths), width_ratios=widths, height_ratios=heights
    )
    for column, kind in enumerate(kinds):
        maps = {name: over_patches(table, name, kind) for name in looks}
        shared = shades(maps.values())
        title, unit = MAPS[kind]
        for row, (name, values) in enumerate(maps.items()):
            axes = figure.add_subplot(grid[row, column])
            axes.set(xticks=[], yticks=[], title="" if row else title)
            heat(axes, values, shared)
            _outline(axes, values.shape)
            if column == 0:
                axes.set_ylabel(looks[name].label, rotation=0, ha="right", va="center")
        scale(figure, grid[-1, column], shared, unit)
    if rated:
        first = figure.add_subplot(grid[0, -1])
        others = [figure.add_subplot(grid[row, -1], sharex=first) for row in range(1, len(looks))]
        for axes, name in zip([first, *others], looks, strict=True):
            _ratio(axes, ratios[name], looks[name])
        # Above, since the scales of the maps are below.
        first.set_xlabel("Edge ÷ even noise (ratio)")
        first.xaxis.set_label_position("top")
        first.xaxis.set_major_locator(MaxNLocator(5))
        first.tick_params(top=True, labeltop=True)
        first.spines["top"].set_visible(True)
    return figure


def over_patches(table: pd.DataFrame, transform: str, kind: str) -> np.ndarray:
    """Average a patch's value over the runs of a transform: ``[rows, columns]`` of the image."""
    own = table[table[TRANSFORM] == transform]
    return own.pivot_table(kind, "row", "column", dropna=False).to_numpy()


def _outline(axes: Axes, shape: tuple[int, ...]) -> None:
    """Mark the first and the last two patches in raster order."""
    rows, columns = shape
    ends = [*range(_EDGE), *range(rows * columns - _EDGE, rows * columns)]
    for patch in ends if rows * columns > 2 * _EDGE else []:
        row, column = divmod(patch, columns)
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=0.8))


def _ratio(axes: Axes, ratio: Interval, look: style.Look) -> None:
    axes.axvline(1, color=style.GREY, linestyle="dashed", linewidth=0.8)
    axes.plot([ratio.low, ratio.high], [0, 0], color=look.colour, linewidth=1)
    axes.plot(ratio.mean, 0, look.marker, color=look.colour, markersize=5)
    axes.set(yticks=[], ylim=(-1, 1))
    axes.tick_params(bottom=False, labelbottom=False)
    axes.spines[:].set_visible(False)


@style.context()
def positions(analysis: Analysis) -> Figure:
    """Draw the mean log-slope by block (rows) and position (columns), a panel per transform."""
    table = analysis.evaluated["positions"]
    looks = style.looks(table[TRANSFORM])
    maps = {name: over_positions(table, name) for name in looks}
    shared = shades(maps.values())
    columns = 1 if len(looks) <= 4 else 2  # more than four would not fit the height of a page
    deep = -(-len(looks) // columns)
    heights = [1.1] * deep + [BAR]
    size = (columns * style.COLUMN, 0.7 + sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(deep + 1, columns, height_ratios=heights)
    for place, (name, values) in enumerate(maps.items()):
        column, row = divmod(place, deep)
        axes = figure.add_subplot(grid[row, column])
        heat(axes, values, shared)
        axes.set(title=looks[name].label, aspect="auto", ylabel="Block")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        if row == deep - 1:
            axes.set_xlabel("Position in the block's own order")
    scale(figure, grid[-1, :], shared, "Mean log-slope (nats per dimension)")
    return figure


def over_positions(table: pd.DataFrame, transform: str) -> np.ndarray:
    """Average the log-slope over the runs of a transform, ``[blocks, positions]``."""
    own = table[table[TRANSFORM] == transform]
    return own.pivot_table("logdet", "block", "position", dropna=False).to_numpy()


def _patches_caption(analysis: Analysis) -> str:
    floor = number(analysis.evaluated["patches"]["floor"].mean(), 1)
    return (
        "By patch: distance of generated from test images in high-frequency amplitude (training "
        f"images: {floor}), and share of the negative log-likelihood. Outlined: the first and last "
        "two patches. Right: their noise divided by even noise, with 95 % interval."
    )


def _positions_caption(analysis: Analysis) -> str:
    runs = analysis.runs
    unchanged = START not in runs or runs[START].fillna("identity").eq("identity").all()
    return (
        "Mean log-slope on test images by block (0 is the nearest to the data) and position in "
        "that block's own order: how much the density gains there."
        + (" A block passes its first position through unchanged." if unchanged else "")
    )


PATCHES = Plot(
    "patches",
    "results",
    patches,
    _patches_caption,
    lambda analysis: "" if len(analysis.evaluated["patches"]) else "evaluations by patch",
)
POSITIONS = Plot(
    "positions",
    "appendix",
    positions,
    _positions_caption,
    lambda analysis: "" if len(analysis.evaluated["positions"]) else "log-slopes by position",
)
