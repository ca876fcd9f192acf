r"""The additive transform, z = x − b, which preserves volume."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowbench.transforms.base import widen


@dataclass(frozen=True)
class Additive:
    r"""Shift by b alone: what is left of the affine transform without its scale.

    .. math:: z = x - b

    Its log-slope is 0 everywhere, so a flow made of it cannot concentrate density: the reference
    that shows what scaling is worth.

    Shape:
        x ``[..., D]``, params ``[..., D, 1]`` -> z, log_slope ``[..., D]``

    Example:
        >>> Additive().forward(torch.tensor([3.0]), torch.tensor([[1.0]]))
        (tensor([2.]), tensor([0.]))

    References:
        Dinh et al., *NICE: Non-linear Independent Components Estimation* (2014),
        https://arxiv.org/abs/1410.8516
    """

    name: str = "additive"
    num_params: int = 1

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise; see the class."""
        x, params = widen(x, params)
        z = x - params[..., 0]
        return z, torch.zeros_like(z)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data; see the class."""
        z, params = widen(z, params)
        x = z + params[..., 0]
        return x, torch.zeros_like(x)

    def outside(self, x: Tensor, params: Tensor) -> Tensor:
        """Nothing: a shift acts everywhere."""
        return torch.zeros_like(x, dtype=torch.bool)
