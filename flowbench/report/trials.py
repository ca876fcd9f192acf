"""Figure of the course of a study: what each trial came to, and the best until then."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowbench.report import style
from flowbench.report.attempts import is_complete, is_failed, is_pruned
from flowbench.report.labels import metric_label

COMPLETE: dict[str, Any] = {"color": "#0072b2", "marker": "o", "linestyle": "none"}
PRUNED: dict[str, Any] = {
    "color": "#e69f00",
    "marker": "v",
    "linestyle": "none",
    "markerfacecolor": "none",
}
FAILED: dict[str, Any] = {"color": "#d55e00", "marker": "x", "linestyle": "none", "markersize": 4.5}
BEST: dict[str, Any] = {"color": "#000000", "linewidth": 1.1}


@style.context()
def trials(table: pd.DataFrame, objectives: Mapping[str, str]) -> Figure:
    """A panel an objective: its value against the number of the trial.

    Args:
        table: The trials.
        objectives: minimize or maximize by metric.
    """
    columns = min(2, len(objectives))
    rows = -(-len(objectives) // columns)
    width = style.COLUMN if columns == 1 else style.PAGE
    figure = Figure(figsize=(width, 0.5 + 2.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    panels = list(grid.flat)
    for axes, (metric, direction) in zip(panels, objectives.items(), strict=False):
        _panel(axes, table, metric, direction)
    for axes in panels[len(objectives) :]:
        axes.remove()
    marks = {"complete": (COMPLETE, True), "best so far": (BEST, True)}
    marks |= {
        "pruned": (PRUNED, is_pruned(table).any()),
        "failed": (FAILED, is_failed(table).any()),
    }
    handles = [Line2D([], [], label=name, **look) for name, (look, there) in marks.items() if there]
    figure.legend(handles=handles, loc="outside lower center", ncols=2 * columns)
    return figure


def best_so_far(values: pd.Series, direction: str) -> pd.Series:
    """The best of the values up to each one."""
    return values.cummax() if direction == "maximize" else values.cummin()


def _panel(axes: Axes, table: pd.DataFrame, metric: str, direction: str) -> None:
    number = table["trial"].astype(int)
    values = table[metric].astype(float)
    complete, pruned, failed = is_complete(table), is_pruned(table), is_failed(table)
    axes.plot(number[complete], values[complete], **COMPLETE)
    axes.plot(number[pruned], values[pruned], **PRUNED)
    best = best_so_far(values[complete], direction)
    axes.step(number[complete], best, where="post", **BEST)
    if failed.any():  # it has no value, so its place is below those that have
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.1 * (high - low), high)
        foot = axes.get_xaxis_transform()
        axes.plot(number[failed], [0.04] * failed.sum(), transform=foot, **FAILED)
    axes.set(xlabel="Trial", ylabel=metric_label(metric).replace(" (nats", "\n(nats"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
