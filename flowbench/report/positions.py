"""Figure of how much each block stretches at each position of its own order."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowbench.report import style
from flowbench.report.heat import BAR, heat, scale, shades


@style.context()
def positions(table: pd.DataFrame) -> Figure:
    """Mean log-slope by block (rows) and position (columns), a panel a transform.

    Args:
        table: A row a run, block and position, with ``transform``.
    """
    looks = style.looks(table["transform"])
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
    """Mean log-slope over the runs of a transform, ``[blocks, positions]``."""
    own = table[table["transform"] == transform]
    return own.pivot_table("logdet", "block", "position", dropna=False).to_numpy()
