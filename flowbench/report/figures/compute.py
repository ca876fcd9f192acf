"""Figure of fixed compute: every budget's loss against the size of the flow."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from flowbench.report.analysis import Analysis
from flowbench.report.compute_tables import flops
from flowbench.report.figures import style
from flowbench.report.figures.scaling import powers
from flowbench.report.figures.style import Plot
from flowbench.report.text import label


@style.context()
def budgets(analysis: Analysis) -> Figure:
    """Draw a panel for each transform, with a curve for each budget."""
    found = analysis.curves
    transforms = list(dict.fromkeys(one.transform for one in found))
    every = sorted({one.flops for one in found})
    colours = colormaps[style.GROWING](np.linspace(0, 0.9, len(every)))
    figure = Figure(figsize=(style.PAGE, 3.1), layout="constrained")
    panels = figure.subplots(1, len(transforms), squeeze=False, sharey=True, sharex=True)[0]
    for axes, transform in zip(panels, transforms, strict=True):
        for one in found:
            if one.transform != transform:
                continue
            colour, name = colours[every.index(one.flops)], f"{flops(one.flops)} FLOPs"
            axes.plot(one.points["x"], one.points["loss"], ".", color=colour, alpha=0.5, mew=0)
            axes.plot(one.means.index, one.means, "o", color=colour, mfc="white", label=name)
            if len(one.means) > 2:
                x = np.geomspace(one.means.index[0], one.means.index[-1], 100)
                axes.plot(x, one.parabola(x), color=colour)
            if one.best is not None:
                at = np.array([one.best.mean])
                axes.plot(at, one.parabola(at), "*", color=colour, markersize=11)
        axes.set_title(label(transform))
        axes.set_xscale("log")
        axes.set_xlabel("Parameters")
        powers(axes)
    panels[0].set_ylabel(analysis.quality.title)
    style.legend_below(figure)
    return figure


def _caption(analysis: Analysis) -> str:
    return (
        f"{analysis.quality.title} of flows of several sizes, each trained for the same FLOPs. "
        "Circles: means over seeds; dots: single runs; lines: parabolas in the logarithm of "
        "the size, fitted to all runs of a budget. Stars: best sizes, where they are determined."
    )


def _missing(analysis: Analysis) -> str:
    return "" if analysis.curves else "flows of several widths, trained for equal FLOPs"


COMPUTE = Plot("compute", "results", budgets, _caption, _missing)
