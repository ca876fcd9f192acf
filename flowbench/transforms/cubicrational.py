"""The line with one smooth bump of slope."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowbench.transforms.base import bounded, fit, widen
from flowbench.transforms.root import root

LIMIT = 2.0
PLACE = 8.0


@dataclass(frozen=True)
class CubicRational:
    r"""The identity, steeper or flatter around one place.

    .. math:: z = x + l \frac{x - g}{1 + u^2}, \quad u = (x - g) / s

    increasing for :math:`-1 < l < 8`. The raw parameters are :math:`\log(1 + l)` and
    :math:`\log s`, bent smoothly into (−2, 2), and g, into (−8, 8). The slope is
    :math:`1 + l (1 - u^2)/(1 + u^2)^2`, between 0.13 and 7.4. The inverse, the root of
    a cubic, is searched (``root``), since its closed form loses digits in float32.

    Shape:
        x ``[..., D]``, params ``[..., D, 3]`` -> z, log_slope ``[..., D]``

    References:
        *Analytic bijections for smooth and interpretable normalizing flows* (2026),
        https://arxiv.org/abs/2601.10774
    """

    name: str = "crat"
    num_params: int = 3

    def constrain(self, params: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return l, g and s, each ``[..., D]``, of raw parameters ``[..., D, 3]``."""
        depth, g, s = params.unbind(-1)
        return bounded(depth, LIMIT).expm1(), bounded(g, PLACE), bounded(s, LIMIT).exp()

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise; see the class."""
        x, params = widen(x, params)
        return _evaluate(x, *self.constrain(params))

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data; see the class."""
        z, params = widen(z, params)
        bump, g, s = self.constrain(params)
        z = fit(z, params)
        reach = (bump * s).abs() / 2  # the bump moves no point further than this
        return root(lambda x: _evaluate(x, bump, g, s), z, z - reach, z + reach)

    def outside(self, x: Tensor, params: Tensor) -> Tensor:
        """Nothing: it acts everywhere, if weakly."""
        return torch.zeros_like(x, dtype=torch.bool)


def _evaluate(x: Tensor, bump: Tensor, g: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    u = (x - g) / s
    below = 1 + u * u
    return x + bump * (s * u / below), torch.log1p(bump * ((1 - u) / below) * ((1 + u) / below))
