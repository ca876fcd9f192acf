"""The spline against other libraries' on equal inputs: forward and backward, time and memory.

Every library is timed with the parameters in either order in memory, and stands in the comparison
with the faster: features innermost, as a flow's network leaves them, or parameters innermost.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from flowbench.bench.measure import peak_memory, seconds, spread
from flowbench.terminal import say
from flowbench.transforms import parse
from flowbench.transforms.box import BOUND
from flowbench.transforms.spline import Spline as Own

SCALARS = 200_704
FEATURES = 16
BINS = (8, 32)
PEERS = ("zuko", "normflows", "nflows")
LAYOUTS = ("features innermost", "parameters innermost")
Spline = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def rows(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure; a row for each spline and order of the parameters.

    ``better`` marks a spline's faster order; ratios are to zuko in its faster order.
    """
    for bins in BINS:
        for shape in ((SCALARS,), (SCALARS // FEATURES, FEATURES)):
            yield from _rows(bins, shape, repeats)


def _rows(bins: int, shape: tuple[int, ...], repeats: int) -> Iterator[dict[str, Any]]:
    x, params = torch.randn(shape), torch.randn(*shape, 3 * bins - 1)
    splines = _splines(bins)
    names = {f"{name}, {layout}": name for name in splines for layout in LAYOUTS}
    cases = {
        f"{name}, {layout}": partial(_step, spline, x, _laid_out(params, layout))
        for name, spline in splines.items()
        for layout in LAYOUTS
    }
    taken = seconds(cases, repeats, warmup=2)
    memory = {case: peak_memory(work) for case, work in cases.items()}
    spreads = {case: spread(values) for case, values in taken.items()}
    better: dict[str, str] = {}
    for case in sorted(cases, key=lambda case: -spreads[case]["seconds"]):
        better[names[case]] = case  # the fastest is the last
    size = f"[N, {shape[1]}]" if len(shape) > 1 else "[N]"
    for case, values in spreads.items():
        row = {"case": case, "setting": f"K={bins}, {size}", **values}
        row |= {"spline": names[case], "better": case == better[names[case]]}
        row |= {"scalars": SCALARS, "peak_bytes": memory[case]}
        if zuko := better.get("zuko"):
            row["ratio"] = spreads[zuko]["seconds"] / row["seconds"]
            row["ratio_of"] = f"seconds of {zuko} / these"
            row["peak_ratio"] = memory[case] / memory[zuko]
        yield row


def _laid_out(params: Tensor, layout: str) -> Tensor:
    """Copy params ``[..., D, P]`` into an order of memory, without a change of shape."""
    if layout == "parameters innermost":
        return params.clone()
    # As a network leaves them: all outputs of a parameter together, the leading dims innermost.
    last = params.dim() - 1
    order = (last, last - 1, *range(last - 1)) if last > 1 else (last, 0)
    return params.permute(order).contiguous().permute(*(order.index(i) for i in range(last + 1)))


def _step(spline: Spline, x: Tensor, params: Tensor) -> None:
    x, params = x.requires_grad_(), params.requires_grad_()
    z, log_slope = spline(x, params)
    torch.autograd.grad((z, log_slope), (x, params), (z, log_slope))


def _splines(bins: int) -> dict[str, Spline]:
    own, stable = parse(f"rqs-{bins}"), parse(f"srqs-{bins}")
    assert isinstance(own, Own)
    found: dict[str, Spline] = {
        "flowbench": own.forward,
        "flowbench, plain": own.plain_forward,
        "flowbench, stable": stable.forward,
    }
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
