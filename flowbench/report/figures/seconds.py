"""Figure of the seconds that an epoch takes with each transform."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flowbench.report.analysis import SHARED, Analysis
from flowbench.report.figures import style
from flowbench.report.figures.style import Plot
from flowbench.report.text import AFFINE, number
from flowbench.schema import SECONDS


@style.context()
def seconds(analysis: Analysis) -> Figure:
    """Draw every run's seconds per epoch, each configuration's median, and its ratio to affine."""
    found = analysis.timed_configurations
    looks = style.looks(one.transform for one in found)
    figure = Figure(figsize=(style.COLUMN, 0.9 + 0.32 * len(found)), layout="constrained")
    axes = figure.subplots()
    for row, one in enumerate(found):
        look, times = looks[one.transform], one.runs[SECONDS]
        middle = times.median()
        axes.plot([middle, middle], [row - 0.3, row + 0.3], color=look.colour, linewidth=2)
        axes.plot(
            times,
            [row] * len(times),
            look.marker,
            color=look.colour,
            markerfacecolor="none",
            markersize=5,
        )
        if AFFINE in looks:
            _note(axes, row, number(analysis.run_time_ratios[one.name].mean, 2))
    if AFFINE in looks:
        _note(axes, -0.8, "÷ affine")
    axes.set_yticks(range(len(found)), [one.name for one in found])
    longest = max(one.runs[SECONDS].max() for one in found)
    axes.set(xlabel="Time per epoch (s)", xlim=(0, longest * 1.08))
    axes.set_ylim(len(found) - 0.4, -0.6)
    axes.grid(visible=False, axis="y")
    figure.legend(
        handles=[
            Line2D([], [], color=style.GREY, marker="o", markerfacecolor="none", linestyle="none"),
            Line2D([], [], color=style.GREY, marker="|", markersize=9, linestyle="none", mew=2),
        ],
        labels=["one run", "median"],
        loc="outside lower center",
        ncols=2,
    )
    return figure


def _note(axes: Axes, row: float, text: str) -> None:
    axes.annotate(
        text,
        (1.02, row),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize="small",
        annotation_clip=False,
    )


def _caption(analysis: Analysis) -> str:
    counts = analysis.counts(analysis.runs.dropna(subset=[SECONDS]))
    return (
        "Seconds per epoch: the median of each run over all epochs but the first. Right: the time "
        f"divided by affine's, geometric mean over seeds at equal settings and machine. {counts}"
    )


def _missing(analysis: Analysis) -> str:
    if analysis.timed_configurations:
        return ""
    return f"seconds per epoch ({SHARED})" if analysis.shared else "seconds per epoch"


SECONDS_PER_EPOCH = Plot("seconds_per_epoch", "results", seconds, _caption, _missing)
