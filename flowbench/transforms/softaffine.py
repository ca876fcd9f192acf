"""The affine transform with both parameters softly clipped."""

from dataclasses import dataclass

import torch
from torch import Tensor

from flowbench.transforms.affine import Affine

LIMIT = 4.0


@dataclass(frozen=True)
class SoftAffine(Affine):
    r"""Shift and scale by amounts that no single image can drive far.

    .. math:: z = (x - 4\tanh(b / 4))\, e^{-4\tanh(a / 4)}

    Near raw zeros it is the affine transform. :math:`|\log dz/dx| \le 4` and a shift of at most 4
    keep a few extreme images from dominating the loss, as they can with ``affine``.

    Shape:
        x ``[..., D]``, params ``[..., D, 2]`` -> z, log_slope ``[..., D]``

    Example:
        >>> SoftAffine().forward(torch.tensor([3.0]), torch.tensor([[0.0, 100.0]]))
        (tensor([-1.]), tensor([-0.]))

    References:
        Gu et al., *STARFlow: Scaling Latent Normalizing Flows for High-resolution Image Synthesis*
        (2025), https://arxiv.org/abs/2506.06276
    """

    name: str = "softaffine"

    def constrain(self, params: Tensor) -> tuple[Tensor, Tensor]:
        """Return a and b, each ``[..., D]``, of raw parameters ``[..., D, 2]``."""
        a, b = (LIMIT * torch.tanh(params / LIMIT)).unbind(-1)
        return a, b
