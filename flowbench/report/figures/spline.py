"""Figure of one rational-quadratic spline: the shape of the transform under study."""

import numpy as np
from matplotlib.figure import Figure

from flowbench.report.figures import style

KNOTS_X, KNOTS_Y, SLOPES = (-4.0, -1.0, 2.0, 4.0), (-4.0, -1.0, 1.0, 4.0), (1.0, 0.5, 2.0, 1.0)
"""The worked example: K = 3 bins on [-4, 4]."""
CAPTION = (
    "The transform under study, not a measurement: a rational-quadratic spline with K = 3 bins "
    "on [−B, B], B = 4, through knots at x = −4, −1, 2, 4 (left), and its slope (right). Outside "
    "[−B, B] it is the identity."
)


@style.context()
def spline() -> Figure:
    """Draw the spline through these knots with its identity tails, and its derivative."""
    x = np.linspace(-6, 6, 1201)
    z, slope = evaluate(x)
    inside = np.abs(x) <= KNOTS_X[-1]
    figure = Figure(figsize=(style.PAGE, 2.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    for axes, values, knots in ((left, z, KNOTS_Y), (right, slope, SLOPES)):
        for edge in (KNOTS_X[0], KNOTS_X[-1]):
            axes.axvline(edge, color=style.GREY, linewidth=0.6, linestyle="dotted")
            top = axes.get_xaxis_transform()
            axes.text(edge, 1.02, "B" if edge > 0 else "−B", transform=top, ha="center")
        axes.plot(x[inside], values[inside], color="#0072b2", label="spline, K = 3")
        for tail, name in ((x < KNOTS_X[0], "identity tail"), (x > KNOTS_X[-1], "_")):
            axes.plot(x[tail], values[tail], color=style.GREY, linestyle="dashed", label=name)
        axes.plot(KNOTS_X, knots, "o", color="#d55e00", markersize=4.5, label="knot", zorder=3)
        axes.set(xlabel="x", xlim=(-6, 6))
        axes.set_xticks([-6, *KNOTS_X, 6])
    left.plot(x, x, color=style.GREY, linewidth=0.5, zorder=1, label="z = x")
    left.set(ylabel="z = f(x)", ylim=(-6, 6), yticks=[-6, *KNOTS_Y, 6], aspect="equal")
    right.set(ylabel="dz/dx", ylim=(0, 2.2), yticks=[0, *sorted(set(SLOPES)), 1.5])
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4)
    return figure


def evaluate(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Evaluate the worked example, eq. 4 and 5 of *Neural Spline Flows*, and its derivative.

    Example:
        >>> z, slope = evaluate(np.array([-5.0, -1.0, 2.0]))
        >>> z.tolist(), slope.tolist()
        ([-5.0, -1.0, 1.0], [1.0, 0.5, 2.0])
    """
    at = np.clip(x, KNOTS_X[0], KNOTS_X[-1])
    k = np.clip(np.searchsorted(KNOTS_X, at, side="right") - 1, 0, len(KNOTS_X) - 2)
    width, height = np.diff(KNOTS_X)[k], np.diff(KNOTS_Y)[k]
    d0, d1 = np.array(SLOPES)[k], np.array(SLOPES)[k + 1]
    s, xi = height / width, (at - np.array(KNOTS_X)[k]) / width
    rest = 1 - xi
    below = s + (d0 + d1 - 2 * s) * xi * rest
    z = np.array(KNOTS_Y)[k] + height * (s * xi**2 + d0 * xi * rest) / below
    slope = s**2 * (d1 * xi**2 + 2 * s * xi * rest + d0 * rest**2) / below**2
    outside = at != x
    return np.where(outside, x, z), np.where(outside, 1.0, slope)
