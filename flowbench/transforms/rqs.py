r"""The rational-quadratic spline of *Neural Spline Flows*."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowbench.transforms.spline import Spline

MIN_SLOPE = 1e-3
SIGMA = 1 - math.exp(MIN_SLOPE - 1)


@dataclass(frozen=True)
class RationalQuadraticSpline(Spline):
    r"""The spline as published: widths, heights and slopes all free, each with a floor of 0.001.

    Widths and heights are softmaxes, :math:`0.001 + (1 - 0.001 K)\, \mathrm{softmax}(r)_k` of the
    square's side; the inner slopes are :math:`δ_k = 0.001 + \mathrm{softplus}(r + c)` with
    :math:`c = \log(e^{1 - 0.001} - 1)`, so that r = 0 gives slope 1.

    With raw slopes of at most R,
    :math:`-\log(10^6 (1 + R)) < \log dz/dx < \log\max(2000, 1 + R)`: a piece can be steep at its
    ends and nearly flat between, and no float32 z near 4, known to 2e-7, determines its x any more.
    The most that a round trip was seen to lose of x, with normal parameters of standard deviation

    ======  =======  =======
    σ       float32  float64
    ======  =======  =======
    0.1     1e-6     2e-15
    0.3     4e-6     7e-15
    1       0.02     9e-12
    3       1        2e-9
    30      7        4e-8
    ======  =======  =======

    (800,000 splines; at σ = 1 all but one in a thousand stay below 1e-4). In every case z itself is
    met again to rounding. A run records the largest error of its own flow, and ``srqs`` avoids it.

    Shape:
        x ``[..., D]``, params ``[..., D, 3K - 1]`` -> z, log_slope ``[..., D]``

    Example:
        >>> RationalQuadraticSpline(bins=4).num_params
        11

    References:
        Durkan et al., *Neural Spline Flows* (2019), https://arxiv.org/abs/1906.04032
    """

    family: ClassVar[str] = "rqs"
    constants: ClassVar[list[float]] = [MIN_SLOPE, 0.0, 0.0]

    def _end_slopes(
        self, s: Tensor, s_left: Tensor, s_right: Tensor, r_left: Tensor, r_right: Tensor
    ) -> tuple[Tensor, Tensor]:
        return knot_slope(r_left) / s, knot_slope(r_right) / s


def knot_slope(r: Tensor) -> Tensor:
    """0.001 + softplus(r + c), written so that r = 0 gives 1 to the last bit."""
    # log(1 + σ(e^r − 1)) with σ = sigmoid(c); of a positive r the large part is taken out first.
    # Selected, not clamped: the gradient of a clamp is lost at 0, where every flow begins.
    positive = r > 0
    below, above = torch.where(positive, 0, r), torch.where(positive, r, 0)
    falls = torch.log1p(SIGMA * torch.expm1(below))
    rises = above + torch.log1p((1 - SIGMA) * torch.expm1(-above))
    return 1 + torch.where(positive, rises, falls)
