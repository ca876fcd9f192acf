"""The spline against other libraries' on equal inputs: forward and backward, time and memory."""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from flowbench.bench.measure import peak_memory, seconds, spread
from flowbench.terminal import say
from flowbench.transforms import parse
from flowbench.transforms.spline import BOUND
from flowbench.transforms.spline import Spline as OwnSpline

SCALARS = 200_704
BINS = (8, 32)
PEERS = ("zuko", "normflows", "nflows")
Spline = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def rows(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure; a row for each spline: its case, bins, times, peak memory and ratios to zuko."""
    for bins in BINS:
        x = torch.randn(SCALARS)
        raw = torch.randn(3 * bins - 1, SCALARS)  # the layout in which a flow's network leaves it
        cases = {name: partial(_step, f, x, raw) for name, f in _splines(bins).items()}
        taken = seconds(cases, repeats, warmup=2)
        memory = {name: peak_memory(work) for name, work in cases.items()}
        for name, values in taken.items():
            row = {"case": name, "setting": f"K={bins}", **spread(values)}
            row |= {"scalars": SCALARS, "peak_bytes": memory[name]}
            if "zuko" in taken:
                row["ratio"] = spread(taken["zuko"])["seconds"] / row["seconds"]
                row["ratio_of"] = "zuko's seconds / these"
                row["peak_ratio"] = memory[name] / memory["zuko"]
            yield row


def _step(spline: Spline, x: Tensor, raw: Tensor) -> None:
    x, planes = x.requires_grad_(), raw.requires_grad_()
    z, log_slope = spline(x, planes.movedim(0, -1))
    torch.autograd.grad((z, log_slope), (x, planes), (z, log_slope))


def _splines(bins: int) -> dict[str, Spline]:
    own = parse(f"rqs-{bins}")
    assert isinstance(own, OwnSpline)
    found: dict[str, Spline] = {"flowbench": own.forward, "flowbench, plain": own.plain_forward}
    for name in PEERS:
        if find_spec(name):
            found[name] = partial(_PEER[name], bins)
        else:
            say(f"{name} is not installed and left out: pip install 'flowbench[peers]'")
    return found


def _zuko(bins: int, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    from zuko.transforms import MonotonicRQSTransform

    widths, heights, slopes = params.split([bins, bins, bins - 1], -1)
    z, log_slope = MonotonicRQSTransform(widths, heights, slopes, bound=BOUND).call_and_ladj(x)
    return z, log_slope


def _nflows(bins: int, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    from nflows.transforms.splines import unconstrained_rational_quadratic_spline

    widths, heights, slopes = params.split([bins, bins, bins - 1], -1)
    return unconstrained_rational_quadratic_spline(
        x, widths, heights, slopes, tails="linear", tail_bound=BOUND
    )


def _normflows(bins: int, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    from normflows.utils.splines import unconstrained_rational_quadratic_spline

    widths, heights, slopes = params.split([bins, bins, bins - 1], -1)
    return unconstrained_rational_quadratic_spline(
        x, widths, heights, slopes, tails="linear", tail_bound=BOUND
    )


_PEER = {"zuko": _zuko, "nflows": _nflows, "normflows": _normflows}
