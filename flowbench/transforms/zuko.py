"""A doorway to the transforms of zuko, for comparison; needs ``pip install zuko``."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flowbench.errors import UsageError
from flowbench.transforms.base import fit, widen

PREFIX = "zuko:"
Shapes = Sequence[tuple[int, ...]]
TABLE: dict[str, tuple[str, Callable[[int], Shapes]]] = {
    "affine": ("MonotonicAffineTransform", lambda _: [(), ()]),
    "rqs": ("MonotonicRQSTransform", lambda K: [(K,), (K,), (K - 1,)]),
    "bernstein": ("BernsteinTransform", lambda K: [(K,)]),
    "sos": ("SOSPolynomialTransform", lambda K: [(K, 3)]),
}
"""Name → the class in ``zuko.transforms``, and its parameters' shapes for a number K."""
NAME = re.compile(r"zuko:(affine|(?:rqs|bernstein|sos)-([1-9][0-9]{0,2}))")


@dataclass(frozen=True)
class Zuko:
    """A transform of zuko, by name, in double precision.

    Raw parameters are handed over as they are. How far it can be inverted and whether huge
    parameters give finite values is zuko's affair; so is whether zeros are the identity, which they
    are not for ``bernstein`` and only nearly for ``sos``.

    Args:
        name: ``zuko:affine``, or with a number K of bins, coefficients or polynomials
            ``zuko:rqs-8``, ``zuko:bernstein-16``, ``zuko:sos-4``.

    Raises:
        UsageError: The name is none of these, or zuko is not installed.

    Shape:
        x ``[..., D]``, params ``[..., D, P]`` -> z, log_slope ``[..., D]``
    """

    name: str

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            valid = ", ".join(f"{PREFIX}{kind}" + "-K" * (kind != "affine") for kind in TABLE)
            raise UsageError(f"unknown transform {self.name!r}: valid are {valid}")
        _module(self.name)

    @property
    def shapes(self) -> Shapes:
        """Shapes of the parameters of one feature."""
        kind, _, number = self.name.removeprefix(PREFIX).partition("-")
        return TABLE[kind][1](int(number or 0))

    @property
    def num_params(self) -> int:
        """All numbers in all parameters."""
        return sum(torch.Size(shape).numel() for shape in self.shapes)

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise; see the class."""
        x, params = widen(x, params)
        z, log_slope = self._transform(params).call_and_ladj(fit(x, params).double())
        return z.to(x.dtype), log_slope.to(x.dtype)

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data; see the class."""
        z, params = widen(z, params)
        transform = self._transform(params)
        x = transform.inv(fit(z, params).double())
        return x.to(z.dtype), -transform.log_abs_det_jacobian(x, z).to(z.dtype)

    def outside(self, x: Tensor, params: Tensor) -> Tensor:
        """Unknown, so nothing."""
        return torch.zeros_like(x, dtype=torch.bool)

    def _transform(self, params: Tensor) -> Any:
        sizes = [torch.Size(shape).numel() for shape in self.shapes]
        parts = params.double().split(sizes, -1)
        own = [part.unflatten(-1, shape) if shape else part.squeeze(-1)
               for part, shape in zip(parts, self.shapes, strict=True)]  # fmt: skip
        kind = self.name.removeprefix(PREFIX).partition("-")[0]
        return getattr(_module(self.name), TABLE[kind][0])(*own)


def _module(name: str) -> Any:
    try:
        import zuko.transforms
    except ImportError as error:
        raise UsageError(f"transform {name} needs zuko: pip install zuko") from error
    return zuko.transforms
