"""Figure of the latents: where the class is after every block, and how normal the noise is."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowbench.report.analysis import Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import Plot
from flowbench.report.stats import over_seeds
from flowbench.schema import SEED, TRANSFORM


@style.context()
def latents(analysis: Analysis) -> Figure:
    """Draw the accuracy of a linear classifier after every block, and distances from a normal."""
    tables = {name: _with_seeds(analysis, name) for name in ("probe", "latents")}
    figure = Figure(figsize=(style.PAGE, 2.9), layout="constrained")
    probe, distance = figure.subplots(1, 2, width_ratios=[3, 2])
    looks = style.looks(tables["latents"][TRANSFORM])
    for place, (name, look) in enumerate(looks.items()):
        own = tables["probe"][tables["probe"][TRANSFORM] == name]
        if len(own):
            _stages(probe, own, look)
        _distances(distance, tables["latents"][tables["latents"][TRANSFORM] == name], place, look)
    probe.set(xlabel="Block (0: the image)", ylabel="Accuracy of a linear classifier")
    probe.xaxis.set_major_locator(MaxNLocator(integer=True))
    distance.set_xticks(range(len(looks)), [look.label for look in looks.values()], rotation=20)
    distance.set(ylabel="Distance from a normal", xlim=(-0.5, len(looks) - 0.5), ylim=(0, None))
    style.legend_below(figure)
    return figure


def _with_seeds(analysis: Analysis, name: str) -> pd.DataFrame:
    return analysis.evaluated[name].merge(analysis.runs[["run_id", SEED]], on="run_id")


def _stages(axes: Axes, own: pd.DataFrame, look: style.Look) -> None:
    bars = {block: over_seeds(values, "accuracy") for block, values in own.groupby("block")}
    middle = [mean for mean, _, _ in bars.values()]
    spread = [0.0 if n < 2 else sd for _, sd, n in bars.values()]
    axes.errorbar(
        list(bars),
        middle,
        yerr=spread,
        color=look.colour,
        linestyle=look.line,
        marker=look.marker,
        markerfacecolor="white",
        capsize=2,
        label=look.label,
    )


def _distances(axes: Axes, own: pd.DataFrame, place: int, look: style.Look) -> None:
    for side, shift, filled in (("train", -0.12, "white"), ("test", 0.12, look.colour)):
        values = own[own["set"] == side].groupby(SEED)["ks"].mean()
        axes.plot([place + shift] * len(values), values, look.marker, color=look.colour, mfc=filled)


CAPTION = (
    "Left: accuracy, on test images, of a linear classifier of what each block gives, mean ± 1 "
    "standard deviation over seeds; a flow with classes gets every image's label. Right: distance "
    "of the noise from a standard normal (Kolmogorov–Smirnov); open: training, filled: test images."
)


def _missing(analysis: Analysis) -> str:
    known = "latents" in analysis.evaluated and len(analysis.evaluated["latents"])
    return "" if known else "latents (evaluate.latents)"


LATENTS = Plot("latents", "appendix", latents, lambda _: CAPTION, _missing, expected=False)
