"""The quadratic spline: a density of K straight pieces."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowbench.transforms.base import bounded
from flowbench.transforms.box import Piecewise, find, take

MAX_LOG = math.log(1000)


@dataclass(frozen=True)
class QuadraticSpline(Piecewise):
    r"""K parabolas whose slopes :math:`δ_k` at the knots are joined by straight lines.

    .. math:: z = y_k + w_k (δ_k t + (δ_{k+1} - δ_k) t^2 / 2), \quad t = (x - x_k) / w_k

    The slope at ±B is 1, as in the tails. The 2K − 1 raw parameters are K widths and the logarithms
    of K − 1 inner slopes, which are bent into ±log 1000 and then scaled together, so that the
    pieces end at B: every slope is between 10⁻⁶ and 10⁶.

    Shape:
        x ``[..., D]``, params ``[..., D, 2K - 1]`` -> z, log_slope ``[..., D]``

    References:
        Müller et al., *Neural Importance Sampling* (2019), https://arxiv.org/abs/1808.03856
    """

    family: ClassVar[str] = "quadratic"

    @property
    def num_params(self) -> int:
        """K widths, K − 1 slopes."""
        return 2 * self.bins - 1

    def _forward(self, inside: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        x0, w, y0, d0, d1 = self._piece(inside, params, 0)
        t = (inside - x0) / w
        z = inside + ((y0 - x0) + w * ((d0 - 1) * t + (d1 - d0) * t * t / 2))
        slope = d0 + (d1 - d0) * t
        return z, slope.log()

    def _inverse(self, inside: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        x0, w, y0, d0, d1 = self._piece(inside, params, 1)
        rise = inside - y0
        # Slopes at the ends bound the slope between them, whatever rounding does to its square.
        least, most = torch.minimum(d0, d1), torch.maximum(d0, d1)
        square = d0 * d0 + 2 * (d1 - d0) * rise / w
        slope = square.maximum(least * least).minimum(most * most).sqrt()
        x = inside + ((x0 - y0) + rise * (2 / (d0 + slope) - 1))
        return x, -slope.log()

    def _piece(self, inside: Tensor, params: Tensor, axis: int) -> list[Tensor]:
        w = self.sides(params[..., : self.bins])
        v = bounded(params[..., self.bins :], MAX_LOG).exp()
        around = w[..., :-1] + w[..., 1:]
        # The ends have slope 1; all inner slopes together make up for the rest of the height.
        v = v * (around.sum(-1, keepdim=True) / (around * v).sum(-1, keepdim=True))
        one = torch.ones_like(w[..., :1])
        d = torch.cat([one, v, one], -1)
        x, y = self.knots(w), self.knots(w * ((d[..., :-1] + d[..., 1:]) / 2))
        k = find(inside, (x, y)[axis])
        return take(k, x, w, y, d, d[..., 1:])
