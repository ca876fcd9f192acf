"""What transforms in pieces share: K pieces on the box [−B, B], the identity outside."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from flowbench.errors import UsageError
from flowbench.transforms.base import clip, fit, widen

BOUND = 4.0
MIN_SIDE = 1e-3


@dataclass(frozen=True)
class Piecewise:
    """K pieces that map [−B, B] onto itself.

    Args:
        bins: Number of pieces K, at least 1 and below 1000.
        bound: B, half the side of the square that the pieces map onto itself.

    Raises:
        UsageError: K pieces of the least width do not fit, or B is not positive.
    """

    bins: int
    bound: float = BOUND

    family: ClassVar[str]

    def __post_init__(self) -> None:
        if self.bins % 1 or not 1 <= self.bins < 1 / MIN_SIDE:
            raise UsageError(
                f"{self.family}-{self.bins}: {self.bins} bins do not fit; valid are 1 to "
                f"{math.ceil(1 / MIN_SIDE) - 1}, each at least {MIN_SIDE} of the interval wide"
            )
        if not 0 < self.bound < math.inf:
            name = f"{self.family}-{self.bins}-{self.bound:g}"
            raise UsageError(f"{name}: valid is a finite bound above 0")

    @property
    def name(self) -> str:
        """Family and K, followed by B where it is not the default."""
        if self.bound == BOUND:
            return f"{self.family}-{self.bins}"
        whole = int(self.bound) == self.bound
        return f"{self.family}-{self.bins}-{int(self.bound) if whole else self.bound}"

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise; see the class."""
        return self.plain_forward(*widen(x, params))

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data; see the class."""
        return self.plain_inverse(*widen(z, params))

    def plain_forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """``forward`` in torch's own operations: for every device and type."""
        inside = clip(x, -self.bound, self.bound)
        return identity_outside(x, inside, *self._forward(fit(inside, params), params))

    def plain_inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """``inverse`` in torch's own operations."""
        inside = clip(z, -self.bound, self.bound)
        return identity_outside(z, inside, *self._inverse(fit(inside, params), params))

    def _forward(self, inside: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """``forward`` of values in [−B, B], with the leading dimensions of the parameters."""
        raise NotImplementedError

    def _inverse(self, inside: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """``inverse`` of values in [−B, B], with the leading dimensions of the parameters."""
        raise NotImplementedError

    def outside(self, x: Tensor, params: Tensor) -> Tensor:
        """Inputs beyond ±B."""
        return x.abs() > self.bound

    def sides(self, raw: Tensor) -> Tensor:
        """Turn raw numbers ``[..., K]`` into the sides of the pieces, 2B in all."""
        return 2 * self.bound * (MIN_SIDE + (1 - self.bins * MIN_SIDE) * raw.softmax(-1))

    def knots(self, sides: Tensor) -> Tensor:
        """Add sides up from −B to B; ``[..., K]`` -> ``[..., K + 1]``."""
        inner = sides[..., :-1].cumsum(-1) - self.bound
        ends = inner.new_tensor([-self.bound, self.bound]).expand(*sides.shape[:-1], 2)
        return torch.cat([ends[..., :1], inner, ends[..., 1:]], -1)


def find(inside: Tensor, knots: Tensor) -> Tensor:
    """Number of the piece in which each value lies; ``[...]``, ``[..., K + 1]`` -> ``[..., 1]``."""
    passed = inside.detach()[..., None] >= knots[..., 1:-1].detach()
    return passed.sum(-1, keepdim=True)


def take(k: Tensor, *values: Tensor) -> list[Tensor]:
    """Take entry k of each ``[..., ≥K]``; k ``[..., 1]`` -> ``[...]`` each."""
    return [
        value.expand(*k.shape[:-1], value.shape[-1]).gather(-1, k).squeeze(-1) for value in values
    ]


def identity_outside(
    x: Tensor, inside: Tensor, z: Tensor, log_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Replace what was computed of the clamped x by the identity where x was clamped."""
    within = x == inside  # selecting after the clamp keeps the gradients outside finite
    return torch.where(within, z, x), torch.where(within, log_slope, 0.0)
