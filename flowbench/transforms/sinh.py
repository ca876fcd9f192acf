"""An affine map seen through the hyperbolic sine."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowbench.transforms.base import bounded, clip, widen

LIMIT = 3.0
FAR = 20.0


@dataclass(frozen=True)
class SinhConjugation:
    r"""Scale and shift between sinh and its inverse: strong near 0, a mere shift far out.

    .. math:: z = \operatorname{asinh}(e^a \sinh x + \sinh b)

    with the raw parameters (a, b) bent smoothly into (−3, 3), so :math:`|\log dz/dx| < 6`. Beyond
    ±20, where the slope is 1 to rounding, it goes on with slope 1 exactly. The inverse is in closed
    form. It shifts by less than 6 and its tails cannot scale: join it with ``affine``.

    Shape:
        x ``[..., D]``, params ``[..., D, 2]`` -> z, log_slope ``[..., D]``

    References:
        *Analytic bijections for smooth and interpretable normalizing flows* (2026),
        https://arxiv.org/abs/2601.10774
    """

    name: str = "sinh"
    num_params: int = 2

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise; see the class."""
        x, params = widen(x, params)
        a, b = bounded(params, LIMIT).unbind(-1)
        inside = clip(x, -FAR, FAR)
        s = inside.sinh()
        moved, log_slope = _conjugate(s, a.exp() * s + b.sinh(), a)
        return x + moved, torch.where(x == inside, log_slope, 0.0)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data; see the class."""
        z, params = widen(z, params)
        a, b = bounded(params, LIMIT).unbind(-1)
        scale, shift = a.exp(), b.sinh()
        s = z.new_tensor([-FAR, FAR]).sinh()
        low, high = (z.new_tensor(sign * FAR) + _conjugate(s[i], scale * s[i] + shift, a)[0]
                     for i, sign in enumerate((-1, 1)))  # fmt: skip
        inside = torch.where(z < low, low, torch.where(z > high, high, z))
        u = inside.sinh()
        moved, log_slope = _conjugate(u, (u - shift) / scale, -a)
        return z + moved, torch.where(z == inside, log_slope, 0.0)

    def outside(self, x: Tensor, params: Tensor) -> Tensor:
        """Nothing: its tails shift."""
        return torch.zeros_like(x, dtype=torch.bool)


def _conjugate(s: Tensor, u: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """How far it moves from asinh s to asinh u, and the log-slope there."""
    return u.asinh() - s.asinh(), a + 0.5 * (torch.log1p(s * s) - torch.log1p(u * u))
