"""Figure of how far generated images are from test images, in each extractor's features."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D

from flowbench.report.analysis import Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import Plot
from flowbench.report.runs import Extractor
from flowbench.schema import TRANSFORM

_WIDE = 30.0  # ratio of the largest to the smallest value beyond which an axis is logarithmic


def _mark(**look: Any) -> Line2D:
    return Line2D([], [], **{"color": style.GREY, "linestyle": "none", **look})


@style.context()
def fidelity(analysis: Analysis) -> Figure:
    """Draw FID, KID, and precision against recall; a row of panels per extractor."""
    found = analysis.best_extractors
    counts = [extractor.runs[TRANSFORM].nunique() for extractor in found]
    heights = [0.95 + max(1.1, 0.26 * count) for count in counts]
    figure = Figure(figsize=(style.PAGE, 0.3 + sum(heights)), layout="constrained")
    rows = figure.subfigures(len(found), squeeze=False, height_ratios=heights).flatten()
    for row, extractor in zip(rows, found, strict=True):
        row.suptitle(f"{extractor.name}: {extractor.counts}", fontsize="medium")
        fid, kid, both = row.subplots(1, 3, width_ratios=[1, 1, 0.9])
        _dots(fid, extractor, "fid")
        _dots(kid, extractor, "kid")
        kid.tick_params(labelleft=False)
        _precision_recall(both, extractor)
    marks: list[Any] = [
        _mark(marker="o", mfc="none"),
        (_mark(marker="|", mew=2, ms=9), _mark(marker="o")),
        (_mark(linestyle="dashed", lw=0.8), _mark(marker="*")),
    ]
    figure.legend(
        marks,
        ["one run", "mean", "floor"],
        handler_map={tuple: HandlerTuple(ndivide=None, pad=1)},
        loc="outside lower center",
        ncols=3,
    )
    return figure


def _dots(axes: Axes, extractor: Extractor, score: str) -> None:
    """Draw every run of each transform on a line of its own, their mean, and the floor."""
    values = extractor.column(score)
    looks = style.looks(extractor.runs[TRANSFORM])
    for row, (name, look) in enumerate(looks.items()):
        own = values[extractor.runs[TRANSFORM] == name]
        axes.plot([own.mean()] * 2, [row - 0.3, row + 0.3], color=look.colour, linewidth=2)
        axes.plot(own, [row] * len(own), look.marker, color=look.colour, mfc="none", markersize=5)
    floor = extractor.column(f"{score}_floor").mean()
    if pd.notna(floor):
        axes.axvline(floor, color=style.GREY, linestyle="dashed", linewidth=0.8)
        at = axes.get_xaxis_transform()
        axes.text(floor, 1.02, "floor", transform=at, fontsize="small", color=style.GREY)
    axes.set(xlabel=f"{score.upper()} ({extractor.suffix})")
    axes.set_yticks(range(len(looks)), [look.label for look in looks.values()])
    axes.set_ylim(len(looks) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    least = np.nanmin([values.min(), floor])
    if least > 0 and values.max() > _WIDE * values.min():
        axes.set_xscale("log")
    else:
        axes.set_xlim(min(0, least), None)


def _precision_recall(axes: Axes, extractor: Extractor) -> None:
    precision, recall = extractor.column("precision"), extractor.column("recall")
    if precision.isna().all():
        axes.set_visible(False)
        return
    for name, look in style.looks(extractor.runs[TRANSFORM]).items():
        own = extractor.runs[TRANSFORM] == name
        axes.plot(recall[own], precision[own], look.marker, color=look.colour, mfc="none", ms=5)
        axes.plot(recall[own].mean(), precision[own].mean(), look.marker, color=look.colour, ms=3)
    floor = (extractor.column(f"{score}_floor").mean() for score in ("recall", "precision"))
    axes.plot(*floor, "*", color=style.GREY, markersize=7, zorder=1)
    axes.set(xlabel=f"Recall ({extractor.suffix})", ylabel=f"Precision ({extractor.suffix})")
    axes.margins(0.15)


def _caption(analysis: Analysis) -> str:
    runs = pd.concat([extractor.runs for extractor in analysis.best_extractors])
    best = "The best configuration of each transform. " if analysis.varied else ""
    return (
        "Generated against test images in an extractor's features; FID and KID are better the "
        f"lower. Floor: training images in place of generated ones. {best}"
        f"{analysis.counts(runs)}"
    )


FIDELITY = Plot(
    "fidelity",
    "results",
    fidelity,
    _caption,
    lambda analysis: "" if analysis.best_extractors else "scores of generated images",
    samples=True,
)
