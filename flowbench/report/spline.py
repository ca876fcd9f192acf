"""Figure of one rational-quadratic spline: what the transform under study looks like."""

import numpy as np
from matplotlib.figure import Figure

from flowbench.report import style

KNOTS_X, KNOTS_Y, SLOPES = (-4.0, -1.0, 2.0, 4.0), (-4.0, -1.0, 1.0, 4.0), (1.0, 0.5, 2.0, 1.0)
"""The worked example: K = 3 bins on [-4, 4]."""


@style.context()
def spline() -> Figure:
    """The spline through these knots with its identity tails, and its derivative."""
    x = np.linspace(-6, 6, 1201)
    z, slope = _evaluate(x)
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


def _evaluate(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import torch  # here, because importing it takes longer than the rest of a report

    from flowbench.transforms.rqs import rational_quadratic

    at = torch.from_numpy(x)
    knots = (at.new_tensor(values).expand(len(x), -1) for values in (KNOTS_X, KNOTS_Y, SLOPES))
    z, log_slope = rational_quadratic(at, *knots)
    return z.numpy(), log_slope.exp().numpy()
