"""The cubic spline: Steffen's monotone interpolation."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowbench.transforms.base import bounded
from flowbench.transforms.box import Piecewise, find, take
from flowbench.transforms.root import root

MAX_LOG = math.log(1000)


@dataclass(frozen=True)
class CubicSpline(Piecewise):
    r"""K cubics through K + 1 knots, with the slopes that Steffen's method gives the inner ones.

    .. math:: z = y_k + w_k (δ_k t + (3 s_k - 2 δ_k - δ_{k+1}) t^2 + (δ_k + δ_{k+1} - 2 s_k) t^3)

    with :math:`t = (x - x_k)/w_k` and the chord's slope :math:`s_k`. The 2K + 2 raw parameters are
    K widths, K heights, and the slopes at the two ends, between 0 and three times the chord's; the
    slope jumps there. :math:`-13.5 < \log dz/dx < 8.1`. The inverse is searched (``root``): in
    float32 the closed form of a cubic's root loses most of its digits.

    Shape:
        x ``[..., D]``, params ``[..., D, 2K + 2]`` -> z, log_slope ``[..., D]``

    References:
        Durkan et al., *Cubic-Spline Flows* (2019), https://arxiv.org/abs/1906.02145; Steffen, *A
        simple method for monotonic interpolation in one dimension* (1990)
    """

    family: ClassVar[str] = "cubic"

    @property
    def num_params(self) -> int:
        """K widths, K heights, 2 slopes."""
        return 2 * self.bins + 2

    def _forward(self, inside: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        return _evaluate(inside, *self._piece(inside, params, 0))

    def _inverse(self, inside: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        x0, w, *rest = self._piece(inside, params, 1)
        return root(lambda x: _evaluate(x, x0, w, *rest), inside, x0, x0 + w)

    def _piece(self, inside: Tensor, params: Tensor, axis: int) -> list[Tensor]:
        K = self.bins
        w, h = self.sides(params[..., :K]), self.sides(params[..., K : 2 * K])
        s = h / w
        left, right = s[..., :-1], s[..., 1:]
        w0, w1 = w[..., :-1], w[..., 1:]
        middle = (left * w1 + right * w0) / (w0 + w1)
        inner = torch.minimum(middle, 2 * torch.minimum(left, right))
        ends = 3 / (1 + 2 * torch.exp(-bounded(params[..., 2 * K :], MAX_LOG)))
        d = torch.cat([s[..., :1] * ends[..., :1], inner, s[..., -1:] * ends[..., 1:]], -1)
        x, y = self.knots(w), self.knots(h)
        k = find(inside, (x, y)[axis])
        return take(k, x, w, y, s, d, d[..., 1:])


def _evaluate(
    x: Tensor, x0: Tensor, w: Tensor, y0: Tensor, s: Tensor, d0: Tensor, d1: Tensor
) -> tuple[Tensor, Tensor]:
    t = (x - x0) / w
    a, b = 3 * s - 2 * d0 - d1, d0 + d1 - 2 * s
    z = x + ((y0 - x0) + w * t * ((d0 - 1) + t * (a + t * b)))
    # As a sum of positive terms, but for the middle one, which the others outweigh.
    u = 1 - t
    slope = d0 * u * (u - 2 * t) + d1 * t * (t - 2 * u) + 6 * s * t * u
    slope = torch.where((d0 == s) & (d1 == s), s, slope)
    return z, slope.clamp_min(1e-12).log()
