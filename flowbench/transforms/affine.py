r"""The affine transform of TarFlow, z = (x − b)·exp(−a)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowbench.transforms.base import widen

EXACT = 8.0


def soft_clip(a: Tensor) -> Tensor:
    """Leave ``|a| ≤ 8`` as it is and bend the rest smoothly into (−9, 9)."""
    inner = a.clamp(-EXACT, EXACT)
    return inner + torch.tanh(a - inner)


@dataclass(frozen=True)
class Affine:
    r"""Shift by b and scale by :math:`e^{-a}`: the transform that others are compared with.

    .. math:: z = (x - b)\, e^{-a}

    exactly so for :math:`|a| \le 8`; beyond, a is bent smoothly below 9, so
    :math:`|\log dz/dx| < 9`. The raw parameters are (a, b), in TarFlow's order.

    Shape:
        x ``[..., D]``, params ``[..., D, 2]`` -> z, log_slope ``[..., D]``

    Example:
        >>> Affine().forward(torch.tensor([3.0]), torch.tensor([[-1.0, 1.0]]))
        (tensor([5.4366]), tensor([1.]))

    References:
        Zhai et al., *Normalizing Flows are Capable Generative Models* (2024),
        https://arxiv.org/abs/2412.06329
    """

    name: str = "affine"
    num_params: int = 2

    def constrain(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b, each ``[..., D]``, of raw parameters ``[..., D, 2]``."""
        a, b = params.unbind(-1)
        return soft_clip(a), b

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise; see the class."""
        x, params = widen(x, params)
        a, b = self.constrain(params)
        z = (x - b) * torch.exp(-a)
        return z, -a.expand_as(z)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data; see the class."""
        z, params = widen(z, params)
        a, b = self.constrain(params)
        x = z * torch.exp(a) + b
        return x, a.expand_as(x)

    def outside(self, x: Tensor, params: Tensor) -> Tensor:
        """Nothing: an affine map acts everywhere."""
        return torch.zeros_like(x, dtype=torch.bool)
