"""Figure of how much of each objective's variance each parameter explains."""

from matplotlib.figure import Figure

from flowbench import schema
from flowbench.report.analysis import Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import Plot
from flowbench.report.text import short

CHANCE = "#c4c4c4"
"""Colour of the seed's bar, lighter than the others' in grey print too."""


@style.context()
def importances(analysis: Analysis) -> Figure:
    """Draw a panel per objective, a bar per parameter; the seed's, which is chance, is grey."""
    table = analysis.recorded.search["importances"]
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
        axes.set(title=schema.find(objective).axis, xlabel="Share of the variance", xlim=(0, 1.12))
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1])
        axes.grid(visible=False, axis="y")
    panels[0].invert_yaxis()
    return figure


def _caption(analysis: Analysis) -> str:
    table = analysis.recorded.search["importances"]
    chance = " Grey: the seed, which is chance." if (table["parameter"] == "seed").any() else ""
    return (
        "Share of the variance of an objective over the complete trials that a parameter explains "
        f"by itself, by Optuna's fANOVA.{chance} From so few trials a hint, no test."
    )


IMPORTANCES = Plot(
    "importances",
    "appendix",
    importances,
    _caption,
    lambda analysis: (
        ""
        if len(analysis.recorded.search["importances"])
        else "importances, which need two parameters and eight trials"
    ),
)
