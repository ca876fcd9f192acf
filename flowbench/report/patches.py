"""Figure of where in the image the flow fails: patch distance, patch likelihood, edge ratio."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from flowbench.report import style
from flowbench.report.heat import BAR, heat, scale, shades
from flowbench.report.seeds import Interval, patch_ratio

MAPS = {
    "distance": ("Distance", "Grey levels"),
    "bpd": ("Negative log-likelihood", "Bits per dimension"),
    "nll": ("Negative log-likelihood", "Nats per dimension"),
}
"""What is mapped where some run has it: its title and its unit."""
_EDGE = 2  # patches at either end of the raster order


@style.context()
def patches(table: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Maps over the patches, a row a transform, each transform's ratio of edge to even noise.

    Args:
        table: A row a run and patch, with ``transform``.
        runs: The finished runs.
    """
    looks = style.looks(table["transform"])
    kinds = [kind for kind in MAPS if table[kind].notna().any()]
    ratios = {name: patch_ratio(runs, name) for name in looks}
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
        # Above, since below are the scales of the maps.
        first.set_xlabel("Edge ÷ even noise (ratio)")
        first.xaxis.set_label_position("top")
        first.xaxis.set_major_locator(MaxNLocator(5))
        first.tick_params(top=True, labeltop=True)
        first.spines["top"].set_visible(True)
    return figure


def over_patches(table: pd.DataFrame, transform: str, kind: str) -> np.ndarray:
    """Mean of a patch's value over the runs of a transform: ``[rows, columns]`` of the image."""
    own = table[table["transform"] == transform]
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
