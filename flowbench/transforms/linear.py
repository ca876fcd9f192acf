"""The linear spline: a density of K steps."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowbench.transforms.box import Piecewise, find, take


@dataclass(frozen=True)
class LinearSpline(Piecewise):
    r"""K straight pieces of equal width and learned heights: the K raw parameters.

    .. math:: z = y_k + (x - x_k) \, (y_{k+1} - y_k) / (x_{k+1} - x_k)

    Each piece is at least 0.001 of the box high, so :math:`0.001 K \le dz/dx < K`. The slope jumps
    at the knots.

    Shape:
        x ``[..., D]``, params ``[..., D, K]`` -> z, log_slope ``[..., D]``

    References:
        Müller et al., *Neural Importance Sampling* (2019), https://arxiv.org/abs/1808.03856
    """

    family: ClassVar[str] = "linear"

    @property
    def num_params(self) -> int:
        """K heights."""
        return self.bins

    def _forward(self, inside: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        x0, w, y0, h = self._piece(inside, params, 0)
        z = inside + ((y0 - x0) + (h / w - 1) * (inside - x0))
        return z, torch.log(h / w)

    def _inverse(self, inside: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        x0, w, y0, h = self._piece(inside, params, 1)
        x = inside + ((x0 - y0) + (w / h - 1) * (inside - y0))
        return x, torch.log(w / h)

    def _piece(self, inside: Tensor, params: Tensor, axis: int) -> list[Tensor]:
        w, h = self.sides(params.new_zeros(self.bins)), self.sides(params)
        x, y = self.knots(w), self.knots(h)
        k = find(inside, (x, y)[axis])
        return take(k, x, w, y, h)
