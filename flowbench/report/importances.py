"""Figure of how much of each objective's variance each parameter explains."""

import pandas as pd
from matplotlib.figure import Figure

from flowbench.report import style
from flowbench.report.labels import metric_label, short

CHANCE = "#c4c4c4"
"""Colour of the seed's bar, lighter than the others' in grey print too."""


@style.context()
def importances(table: pd.DataFrame) -> Figure:
    """A panel an objective, a bar a parameter; the seed's, which is chance, is grey.

    Args:
        table: Rows of ``objective parameter importance``.
    """
    shares = table.assign(importance=table["importance"].astype(float))
    wide = shares.pivot(index="parameter", columns="objective", values="importance")
    wide = wide.loc[wide.mean(axis=1).sort_values(ascending=False).index]
    objectives = list(dict.fromkeys(table["objective"]))
    width = style.COLUMN if len(objectives) == 1 else style.PAGE
    figure = Figure(figsize=(width, 0.7 + 0.26 * len(wide)), layout="constrained")
    panels = figure.subplots(1, len(objectives), squeeze=False, sharey=True)[0]
    colours = [CHANCE if name == "seed" else "#0072b2" for name in wide.index]
    for axes, objective in zip(panels, objectives, strict=True):
        bars = axes.barh(
            [short(name) for name in wide.index], wide[objective], color=colours, height=0.6
        )
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=7)
        axes.set(title=metric_label(objective), xlabel="Share of the variance", xlim=(0, 1.12))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.grid(visible=False, axis="y")
    panels[0].invert_yaxis()
    return figure
