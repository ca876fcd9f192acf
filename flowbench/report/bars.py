"""Figure of a benchmark: the time of every case, a panel for each setting."""

import pandas as pd
from matplotlib.figure import Figure

from flowbench.report import style


@style.context()
def bars(table: pd.DataFrame) -> Figure:
    """Median milliseconds of every case with their quartiles.

    Args:
        table: Rows of ``setting case seconds seconds_low seconds_high``.
    """
    settings = list(dict.fromkeys(table["setting"]))
    cases = list(dict.fromkeys(table["case"]))
    columns = min(3, len(settings))
    deep = -(-len(settings) // columns)
    size = (style.PAGE, deep * (0.6 + 0.2 * len(cases)))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(deep, columns, squeeze=False, sharey=True)
    for axes, setting in zip(grid.flat, settings, strict=False):
        rows = table[table["setting"] == setting].set_index("case").reindex(cases)
        middle, low, high = (1e3 * rows[key] for key in ("seconds", "seconds_low", "seconds_high"))
        axes.barh(cases, middle, xerr=[middle - low, high - middle], color="#0072b2", height=0.6)
        axes.set(title=setting)
        axes.grid(visible=False, axis="y")
    grid[0, 0].invert_yaxis()
    for axes in grid[-1]:
        axes.set_xlabel("Milliseconds (median, quartiles)")
    for axes in list(grid.flat)[len(settings) :]:
        axes.remove()
    return figure
