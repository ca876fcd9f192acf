"""Figure of a benchmark: the time of every case, a panel for each setting."""

import pandas as pd
from matplotlib.figure import Figure

from flowbench.report.figures import style


def unit(table: pd.DataFrame) -> tuple[str, float]:
    """Choose the unit for a table of medians: its name and how many of it are a second.

    Example:
        >>> unit(pd.DataFrame({"seconds": [0.01, 2.0]})), unit(pd.DataFrame({"seconds": [40.0]}))
        (('ms', 1000.0), ('s', 1.0))
    """
    return ("s", 1.0) if table["seconds"].min() >= 1 else ("ms", 1e3)


@style.context()
def bars(table: pd.DataFrame) -> Figure:
    """Median time of every case with its quartiles.

    Args:
        table: Rows of ``setting case seconds seconds_low seconds_high``.
    """
    settings = list(dict.fromkeys(table["setting"]))
    cases = list(dict.fromkeys(table["case"]))
    name, scale = unit(table)
    columns = min(3, len(settings))
    deep = -(-len(settings) // columns)
    size = (style.PAGE, deep * (0.6 + 0.2 * len(cases)))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(deep, columns, squeeze=False, sharey=True)
    for axes, setting in zip(grid.flat, settings, strict=False):
        rows = table[table["setting"] == setting].set_index("case").reindex(cases)
        middle, low, high = (scale * rows[f"seconds{end}"] for end in ("", "_low", "_high"))
        axes.barh(cases, middle, xerr=[middle - low, high - middle], color="#0072b2", height=0.6)
        axes.set(title=setting)
        axes.grid(visible=False, axis="y")
    grid[0, 0].invert_yaxis()
    for axes in grid[-1]:
        axes.set_xlabel(f"Time in {name} (median, quartiles)")
    for axes in list(grid.flat)[len(settings) :]:
        axes.remove()
    return figure
