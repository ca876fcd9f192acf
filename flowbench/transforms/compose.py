"""Composition of elementwise transforms, the left one first."""

from dataclasses import dataclass

from torch import Tensor

from flowbench.transforms.base import Elementwise, kernels


@dataclass(frozen=True)
class Compose:
    """One transform after another, each with its own slice of the raw parameters.

    ``affine+rqs-8`` shifts and scales a feature before the spline bends it, which a spline that
    maps [−B, B] onto itself cannot do alone.

    Args:
        parts: The transforms in the order in which data passes through them.

    Shape:
        x ``[..., D]``, params ``[..., D, P₁ + P₂ + …]`` -> z, log_slope ``[..., D]``

    Example:
        >>> from flowbench.transforms import parse
        >>> parse("affine+rqs-8").num_params
        25
    """

    parts: tuple[Elementwise, ...]

    @property
    def name(self) -> str:
        """The parts' names joined by ``+``."""
        return "+".join(part.name for part in self.parts)

    @property
    def num_params(self) -> int:
        """Raw parameters of all parts together."""
        return sum(part.num_params for part in self.parts)

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise; see the class."""
        slopes = []
        for part, own in zip(self.parts, self._split(params), strict=True):
            x, log_slope = part.forward(x, own)
            slopes.append(log_slope)
        return x, sum(slopes[1:], slopes[0])

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data; see the class."""
        slopes = []
        for part, own in reversed(list(zip(self.parts, self._split(params), strict=True))):
            z, log_slope = part.inverse(z, own)
            slopes.append(log_slope)
        return z, sum(slopes[1:], slopes[0])

    def outside(self, x: Tensor, params: Tensor) -> Tensor:
        """Inputs that any part meets in its tails."""
        first, *rest = zip(self.parts, self._split(params), strict=True)
        part, own = first
        outside = part.outside(x, own)
        for following, its in rest:
            x, _ = part.forward(x, own)
            part, own = following, its
            outside = outside | part.outside(x, own)
        return outside

    def kernels(self, x: Tensor) -> tuple[str, ...]:
        """Name the hand-written kernels of all parts."""
        return tuple(name for part in self.parts for name in kernels(part, x))

    def _split(self, params: Tensor) -> tuple[Tensor, ...]:
        return params.split([part.num_params for part in self.parts], dim=-1)
