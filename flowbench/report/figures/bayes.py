"""Figure of a flow as a classifier: reliability of its confidence, and what it confuses."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from flowbench.report.analysis import Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import GROWING, Plot, Shades, heat
from flowbench.schema import TRANSFORM

BINS = 15
"""Bins of confidence on [0, 1] of the calibration tables."""
_LEAST = 1e-3  # share of a label's images where the shades begin
_AREA = 40.0  # points² of the mark of a bin with all images


@style.context()
def bayes(analysis: Analysis) -> Figure:
    """Draw the reliability of every transform in one panel, then a confusion matrix for each."""
    calibration, confusion = (analysis.evaluated[name] for name in ("calibration", "confusion"))
    looks = style.looks(confusion[TRANSFORM])
    deep = -(-(1 + len(looks)) // 4)
    columns = max(2, -(-(1 + len(looks)) // deep))
    size = (0.8 + 1.55 * columns, 0.45 + 1.75 * deep)
    figure = Figure(figsize=size, layout="compressed")
    panels = figure.subplots(deep, columns, squeeze=False).flatten()
    reliability, *matrices = panels
    _reliability(reliability, calibration)
    shades = Shades(GROWING, LogNorm(_LEAST, 1), "min")
    for axes, (name, look) in zip(matrices, looks.items(), strict=False):
        counts = over_labels(confusion, name)
        shares = counts / counts.sum(axis=1, keepdims=True).clip(1)
        heat(axes, shares.clip(_LEAST), shades)
        right = counts.trace() / counts.sum()
        axes.set(title=f"{look.label}\n{100 * right:.1f} % right")
        axes.set(xlabel="Predicted", ylabel="Label")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_locator(MaxNLocator(10, integer=True))
    for axes in matrices[len(looks) :]:
        axes.set_visible(False)
    bar = figure.colorbar(
        ScalarMappable(shades.norm, shades.name),
        ax=matrices,
        label="Share of the label's images",
        extend=shades.extend,
        aspect=30,
    )
    bar.ax.yaxis.set_major_formatter(lambda share, _: f"{100 * share:g} %")
    bar.ax.minorticks_off()
    bar.outline.set_visible(False)
    figure.legend(*reliability.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def _reliability(axes: Axes, calibration: pd.DataFrame) -> None:
    axes.plot([0, 1], [0, 1], color=style.GREY, linestyle="dashed", linewidth=0.8)
    for name, look in style.looks(calibration[TRANSFORM]).items():
        bins = over_bins(calibration, name)
        at, values = bins["confidence"], bins["accuracy"]
        axes.plot(at, values, color=look.colour, linestyle=look.line, label=look.label)
        area = 3 + _AREA * bins["count"] / bins["count"].sum()
        axes.scatter(at, values, area, color=look.colour, marker=look.marker)
    axes.set(title="Reliability", xlabel="Confidence", ylabel="Accuracy", aspect="equal")
    axes.set(xlim=(0, 1.04), ylim=(0, 1.04), xticks=[0, 0.5, 1], yticks=[0, 0.5, 1])


def over_bins(calibration: pd.DataFrame, transform: str) -> pd.DataFrame:
    """Join the bins of all runs of a transform: mean confidence, accuracy and count."""
    own = calibration[(calibration[TRANSFORM] == transform) & (calibration["count"] > 0)]
    place = (own["confidence"] * BINS).astype(int).clip(upper=BINS - 1)
    sums = own[["confidence", "accuracy"]].mul(own["count"], axis=0).groupby(place).sum()
    counts = own["count"].groupby(place).sum()
    return sums.div(counts, axis=0).assign(count=counts)


def over_labels(confusion: pd.DataFrame, transform: str) -> np.ndarray:
    """Count the images of a transform's runs by label (rows) and predicted class (columns)."""
    own = confusion[confusion[TRANSFORM] == transform]
    classes = range(int(own[["label", "predicted"]].to_numpy().max()) + 1)
    counts = own.pivot_table("count", "label", "predicted", aggfunc="sum", fill_value=0)
    return counts.reindex(index=classes, columns=classes, fill_value=0).to_numpy()


BAYES = Plot(
    "bayes",
    "appendix",
    bayes,
    lambda _: (
        "Test images classified by their likelihood under each class. Left: accuracy against "
        "confidence in 15 bins, the area of a mark growing with the bin's images; dashed: perfect "
        "calibration. Others: confusion matrices on a logarithmic scale."
    ),
    lambda analysis: (
        ""
        if len(analysis.evaluated["calibration"]) and len(analysis.evaluated["confusion"])
        else "classifications of test images"
    ),
)
