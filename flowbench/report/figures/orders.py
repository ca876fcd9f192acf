"""Figures of the loss of every patch, by order of the patches and by what the first one becomes."""

from functools import partial

import numpy as np
from matplotlib.figure import Figure

from flowbench import orders
from flowbench.report.analysis import Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import BAR, Plot, heat, scale, shades
from flowbench.report.options import ORDER, START
from flowbench.report.stats import over_seeds
from flowbench.report.text import label, number
from flowbench.schema import TRANSFORM

ACROSS = 4


@style.context()
def by_patch(option: str, analysis: Analysis) -> Figure:
    """Draw a panel per value of an option, the best first; for orders the first block's path."""
    metric, best = analysis.quality.metric, _best(analysis)
    runs = analysis.runs[analysis.runs[TRANSFORM] == best]
    table = analysis.recorded.evaluation["patches"].merge(runs[["run_id", option]], on="run_id")
    kind = "bpd" if table["bpd"].notna().any() else "nll"
    losses = {str(name): over_seeds(own, metric)[0] for name, own in runs.groupby(option)}
    maps = {
        name: table[table[option] == name].pivot_table(kind, "row", "column").to_numpy()
        for name in sorted(losses, key=losses.__getitem__)
    }
    shared = shades(maps.values())
    across = min(ACROSS, len(maps))
    rows = -(-len(maps) // across)
    heights = [style.PAGE / ACROSS] * rows + [BAR]
    size = (style.PAGE * across / ACROSS, 0.7 + sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(rows + 1, across, height_ratios=heights)
    for place, (name, values) in enumerate(maps.items()):
        axes = figure.add_subplot(grid[place // across, place % across])
        heat(axes, values, shared)
        axes.set(xticks=[], yticks=[], title=f"{name}: {number(losses[name])}")
        if option == ORDER:
            y, x = np.divmod(orders.path(name, 0, *values.shape).numpy(), values.shape[1])
            axes.plot(x, y, color="white", linewidth=1.6)
            axes.plot(x, y, color="black", linewidth=0.8)
            axes.plot(x[0], y[0], "o", color="black", markeredgecolor="white", markersize=5)
    unit = "Bits" if kind == "bpd" else "Nats"
    scale(figure, grid[-1, :], shared, f"{unit} per dimension")
    return figure


def _best(analysis: Analysis) -> str:
    """The transform of the run with the lowest loss."""
    return str(analysis.runs.sort_values(analysis.quality.metric)[TRANSFORM].iloc[0])


def _caption(what: str, ending: str, analysis: Analysis) -> str:
    return (
        f"{what}, the best first, with {label(_best(analysis))}'s mean {analysis.quality.metric} "
        f"({analysis.quality.unit}): negative log-likelihood of test images by patch{ending}."
    )


def _missing(option: str, analysis: Analysis) -> str:
    several = option in analysis.runs and analysis.runs[option].nunique() > 1
    patches = analysis.recorded.evaluation["patches"]
    lacking = f"runs with several values of {option}, evaluated by patch"
    return "" if several and len(patches) else lacking


_PATH = ", and the path of the first block from its dot; later blocks go on in the cycle"
ORDERS = Plot(
    "orders",
    "results",
    partial(by_patch, ORDER),
    partial(_caption, "Orders of the patches", _PATH),
    partial(_missing, ORDER),
    expected=False,
)
STARTS = Plot(
    "start",
    "results",
    partial(by_patch, START),
    partial(_caption, "What becomes of the first patch of every block", ""),
    partial(_missing, START),
    expected=False,
)
