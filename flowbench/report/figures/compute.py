"""Figure of fixed compute: every budget's loss against the size of the flow."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from flowbench.report.analysis import Analysis
from flowbench.report.compute import Curve
from flowbench.report.figures import style
from flowbench.report.figures.scaling import powers
from flowbench.report.figures.style import Plot
from flowbench.report.text import flops, label


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
            axes.plot(one.means.index, one.means, ":", color=colour, linewidth=0.8)
            if one.best is not None:
                x = np.geomspace(one.near["x"].min(), one.near["x"].max(), 100)
                axes.plot(x, one.parabola(x), color=colour)
                at = np.array([one.best.mean])
                axes.plot(at, one.parabola(at), "*", color=colour, markersize=11)
        axes.set_title(label(transform))
        axes.set_xscale("log")
        axes.set_xlabel("Parameters")
        powers(axes)
    panels[0].set_ylabel(analysis.quality.title)
    low = min(one.means.min() for one in found)
    panels[0].set_ylim(low - 0.05 * (_top(found) - low), _top(found))
    style.legend_below(figure)
    return figure


def _top(found: list[Curve]) -> float:
    """Where the loss is cut off: sizes far from the best would leave the others no room."""
    worst = max(float(one.near.groupby("x")["loss"].mean().max()) for one in found)
    least = min(float(one.means.min()) for one in found)
    return worst + 0.05 * (worst - least)


def _caption(analysis: Analysis) -> str:
    top = _top(analysis.curves)
    beyond = sum(int((one.means > top).sum()) for one in analysis.curves)
    cut = f" Not drawn: {beyond} sizes above {top:.2f}." if beyond else ""
    return (
        f"{analysis.quality.title} of flows of several sizes, each trained for the same FLOPs. "
        "Circles: means over seeds; dots: runs. Line: parabola through the best trained size and "
        f"its neighbours; star: its least loss, where determined.{cut}"
    )


def _missing(analysis: Analysis) -> str:
    return "" if analysis.curves else "flows of several widths, trained for equal FLOPs"


COMPUTE = Plot("compute", "results", budgets, _caption, _missing)
