"""Figure of the course of a study: the value of each trial, and the best so far.

A planned trial is attempted until it ends, so it may have several rows: the last one counts.
"""

from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from flowbench import schema
from flowbench.report.analysis import Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import Plot

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
def trials(analysis: Analysis) -> Figure:
    """Draw a panel per objective: its value against the number of the trial."""
    table, objectives = analysis.recorded.search["trials"], analysis.study.objectives
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
    """Return the best of the values up to each one."""
    return values.cummax() if direction == "maximize" else values.cummin()


def _panel(axes: Axes, table: pd.DataFrame, metric: str, direction: str) -> None:
    number = table["trial"].astype(int)
    values = table[metric].astype(float)
    complete, pruned, failed = is_complete(table), is_pruned(table), is_failed(table)
    axes.plot(number[complete], values[complete], **COMPLETE)
    axes.plot(number[pruned], values[pruned], **PRUNED)
    best = best_so_far(values[complete], direction)
    axes.step(number[complete], best, where="post", **BEST)
    if failed.any():  # it has no value, so its mark is below those that have
        low, high = axes.get_ylim()
        axes.set_ylim(low - 0.1 * (high - low), high)
        foot = axes.get_xaxis_transform()
        axes.plot(number[failed], [0.04] * failed.sum(), transform=foot, **FAILED)
    axes.set(xlabel="Trial", ylabel=schema.find(metric).axis.replace(" (nats", "\n(nats"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def is_complete(trials: pd.DataFrame) -> pd.Series:
    """Return which rows have a result."""
    return trials["state"] == "COMPLETE"


def is_pruned(trials: pd.DataFrame) -> pd.Series:
    """Return which rows were stopped early."""
    return trials["state"] == "PRUNED"


def is_failed(trials: pd.DataFrame) -> pd.Series:
    """Return which rows ended in an error; not those that were stopped and attempted again."""
    return (trials["state"] == "FAIL") & trials["error"].notna()


def census(trials: pd.DataFrame) -> str:
    """Count the planned trials by the state of their last attempt, in a sentence."""
    last = trials.drop_duplicates("place", keep="last")
    states = {
        "complete": is_complete(last).sum(),
        "pruned": is_pruned(last).sum(),
        "failed": is_failed(last).sum(),
    }
    states["unfinished"] = len(last) - sum(states.values())
    counts = ", ".join(
        f"{count} {state}" for state, count in states.items() if count or state != "unfinished"
    )
    again = len(trials) - len(last)
    attempts = f" {again} earlier attempts failed or were interrupted." if again else ""
    return f"{len(last)} trials: {counts}.{attempts}"


def _caption(analysis: Analysis) -> str:
    return (
        "The value of each trial in their order; line: the best so far. A pruned trial has its "
        f"value when it was stopped. {census(analysis.recorded.search['trials'])}"
    )


TRIALS = Plot(
    "trials",
    "appendix",
    trials,
    _caption,
    lambda analysis: (
        ""
        if len(analysis.recorded.search["trials"]) and analysis.study.objectives
        else "records of the trials"
    ),
)
