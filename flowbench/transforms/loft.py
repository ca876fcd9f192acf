"""The affine transform with logarithmic tails."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flowbench.transforms.affine import Affine

START = 100.0
LARGEST = 20.0


@dataclass(frozen=True)
class SoftLogAffine:
    r"""An affine map whose results beyond ±100 grow like a logarithm, against exploding flows.

    .. math:: z = f((x - b) e^{-a}), \quad
        f(y) = \operatorname{sign}(y) (\min(|y|, 100) + \log(1 + \max(|y| - 100, 0)))

    with a as in ``affine``. Where the logarithm has reached 20, at 5·10⁸, it goes on as a straight
    line, so :math:`|\log dz/dx| < 29` and the inverse is finite in float32. The raw parameters are
    (a, b); zeros are the identity within ±100.

    Shape:
        x ``[..., D]``, params ``[..., D, 2]`` -> z, log_slope ``[..., D]``

    References:
        Andrade, *Stable Training of Normalizing Flows for High-dimensional Variational Inference*
        (2024), https://arxiv.org/abs/2402.16408
    """

    name: str = "loft"
    num_params: int = 2

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise; see the class."""
        y, log_slope = Affine().forward(x, params)
        inner = y.clamp(-START, START)
        beyond = (y - inner).abs()
        bent = beyond.clamp(max=math.expm1(LARGEST))
        log = bent.log1p()
        straight = (beyond - bent) * math.exp(-LARGEST)
        return inner + torch.sign(y) * (log + straight), log_slope - log

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data; see the class."""
        inner = z.clamp(-START, START)
        beyond = (z - inner).abs()
        log = beyond.clamp(max=LARGEST)
        y = inner + torch.sign(z) * (log.expm1() + (beyond - log) * math.exp(LARGEST))
        x, log_slope = Affine().inverse(y, params)
        return x, log_slope + log

    def outside(self, x: Tensor, params: Tensor) -> Tensor:
        """Nothing: it acts everywhere."""
        return torch.zeros_like(x, dtype=torch.bool)
