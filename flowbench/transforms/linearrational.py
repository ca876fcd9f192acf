"""The linear-rational spline: two hyperbolas in every piece."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowbench.transforms.base import bounded
from flowbench.transforms.box import Piecewise, find, take

MAX_LOG = math.log(1000)
LEAST = 0.025


@dataclass(frozen=True)
class LinearRationalSpline(Piecewise):
    r"""K pieces, each of two linear-rational functions that meet at a part λ of its width.

    .. math::
        z - y_k = \frac{w_c\, c\, t}{λ + (w_c - 1) t} \;(t \le λ), \quad
        y_{k+1} - z = \frac{w_c (h - c) u}{w_b (1 - λ) + (w_c - w_b) u} \;(u = 1 - t < 1 - λ)

    with the chord's slope s and the slopes :math:`δ` at the ends of the piece,
    :math:`w_b = \sqrt{δ_k / δ_{k+1}}, \; w_c = (λ δ_k + (1 - λ) w_b δ_{k+1}) / s` and
    :math:`c = λ w_b h / (1 - λ + λ w_b)`. The slope is continuous and 1 at ±B; the inverse is of
    the same kind. The 4K − 1 raw parameters are K widths, K heights, the logarithms of K − 1 inner
    slopes (bent into ±log 1000) and K parts λ, between 0.025 and 0.975;
    :math:`|\log dz/dx| < 25`.

    Shape:
        x ``[..., D]``, params ``[..., D, 4K - 1]`` -> z, log_slope ``[..., D]``

    References:
        Dolatabadi et al., *Invertible Generative Modeling using Linear Rational Splines* (2020),
        https://arxiv.org/abs/2001.05168
    """

    family: ClassVar[str] = "lrs"

    @property
    def num_params(self) -> int:
        """K widths, K heights, K − 1 slopes, K parts."""
        return 4 * self.bins - 1

    def _forward(self, inside: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        x0, w, x1, y0, h, y1, part, wb, wc, c = self._piece(inside, params, 0)
        before = inside - x0 <= part * w
        t = ((inside - x0) / w).clamp(min=0).minimum(part)
        u = ((x1 - inside) / w).clamp(min=0).minimum(1 - part)
        left = part + (wc - 1) * t
        right = wb * (1 - part) + (wc - wb) * u
        near = (y0 - x0) + t * (wc * c - w * left) / left
        far = (y1 - x1) + u * (w * right - wc * (h - c)) / right
        z = inside + torch.where(before, near, far)
        log_slope = torch.where(
            before,
            torch.log(wc * c * part / (left * left * w)),
            torch.log(wb * wc * (h - c) * (1 - part) / (right * right * w)),
        )
        return z, log_slope

    def _inverse(self, inside: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        x0, w, x1, y0, h, y1, part, wb, wc, c = self._piece(inside, params, 1)
        before = inside - y0 <= c
        rise = (inside - y0).clamp(min=0).minimum(c)
        fall = (y1 - inside).clamp(min=0).minimum(h - c)
        left = wc * c + (1 - wc) * rise
        right = wc * (h - c) + (wb - wc) * fall
        near = (x0 - y0) + rise * (w * part - left) / left
        far = (x1 - y1) - fall * (w * wb * (1 - part) - right) / right
        x = inside + torch.where(before, near, far)
        log_slope = torch.where(
            before,
            torch.log(w * part * wc * c / (left * left)),
            torch.log(w * wb * (1 - part) * wc * (h - c) / (right * right)),
        )
        return x, log_slope

    def _piece(self, inside: Tensor, params: Tensor, axis: int) -> list[Tensor]:
        K = self.bins
        widths, heights, slopes, parts = params.split([K, K, K - 1, K], -1)
        w, h = self.sides(widths), self.sides(heights)
        one = torch.ones_like(w[..., :1])
        d = torch.cat([one, bounded(slopes, MAX_LOG).exp(), one], -1)
        x, y = self.knots(w), self.knots(h)
        k = find(inside, (x, y)[axis])
        x0, w, x1, y0, h, y1, d0, d1, raw = take(
            k, x, w, x[..., 1:], y, h, y[..., 1:], d, d[..., 1:], parts
        )
        part = 0.5 + (0.5 - LEAST) * torch.tanh(raw / 2)
        wb = torch.sqrt(d0 / d1)
        wc = (part * d0 + (1 - part) * wb * d1) * (w / h)
        c = part * wb * h / (1 - part + part * wb)
        return [x0, w, x1, y0, h, y1, part, wb, wc, c]
