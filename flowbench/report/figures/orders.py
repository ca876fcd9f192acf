"""Figure of the orders of patches: the first block's path over the loss of every patch."""

import numpy as np
from matplotlib.figure import Figure

from flowbench import orders as definitions
from flowbench.report.analysis import Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import BAR, Plot, heat, scale, shades
from flowbench.report.options import ORDER
from flowbench.report.stats import over_seeds
from flowbench.report.text import number
from flowbench.schema import TRANSFORM

ACROSS = 4


@style.context()
def orders(analysis: Analysis) -> Figure:
    """Draw a panel per order, the best first: bits by patch, and the path of the first block."""
    runs, metric = analysis.runs, analysis.quality.metric
    transform = runs.sort_values(metric)[TRANSFORM].iloc[0]
    runs = runs[runs[TRANSFORM] == transform]
    table = analysis.recorded.evaluation["patches"].merge(runs[["run_id", ORDER]], on="run_id")
    kind = "bpd" if table["bpd"].notna().any() else "nll"
    losses = {name: over_seeds(own, metric)[0] for name, own in runs.groupby(ORDER)}
    names = sorted(losses, key=losses.__getitem__)
    maps = {
        name: table[table[ORDER] == name].pivot_table(kind, "row", "column").to_numpy()
        for name in names
    }
    shared = shades(maps.values())
    rows = -(-len(names) // ACROSS)
    heights = [1.9] * rows + [BAR]
    figure = Figure(figsize=(style.PAGE, 0.7 + sum(heights)), layout="constrained")
    grid = figure.add_gridspec(rows + 1, ACROSS, height_ratios=heights)
    for place, (name, values) in enumerate(maps.items()):
        axes = figure.add_subplot(grid[place // ACROSS, place % ACROSS])
        heat(axes, values, shared)
        path = definitions.path(str(name), 0, *values.shape).numpy()
        y, x = np.divmod(path, values.shape[1])
        axes.plot(x, y, color="white", linewidth=1.6)
        axes.plot(x, y, color="black", linewidth=0.8)
        axes.plot(x[0], y[0], "o", color="black", markeredgecolor="white", markersize=5)
        axes.set(xticks=[], yticks=[], title=f"{name}: {number(losses[name])}")
    unit = "Bits" if kind == "bpd" else "Nats"
    scale(figure, grid[-1, :], shared, f"{unit} per dimension")
    return figure


def _missing(analysis: Analysis) -> str:
    several = ORDER in analysis.runs and analysis.runs[ORDER].nunique() > 1
    patches = analysis.recorded.evaluation["patches"]
    return "" if several and len(patches) else "runs with several orders, evaluated by patch"


ORDERS = Plot(
    "orders",
    "results",
    orders,
    lambda analysis: (
        "Orders of the patches, the best first, with their mean "
        f"{analysis.quality.metric} ({analysis.quality.unit}): negative log-likelihood by patch, "
        "and the path of the first block from its dot. Later blocks follow the same cycle "
        "(README, options)."
    ),
    _missing,
)
