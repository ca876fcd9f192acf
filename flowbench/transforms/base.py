"""The contract of an elementwise transform; imports only torch."""

from typing import Protocol

import torch
from torch import Tensor


class Elementwise(Protocol):
    """A strictly increasing bijection of ℝ, applied to each of D features with its own parameters.

    The network emits raw reals and the transform constrains them, so that it alone decides what
    they mean; raw zeros are exactly the identity, so a zero-initialised head makes a new flow the
    identity. ``forward`` is data → noise. Implementations are frozen dataclasses without state.

    Laws (each a test over every transform): outputs have the shape of the input, never reduced over
    D; finite input and parameters give finite values and gradients; raw zeros are the identity;
    strictly increasing, with a documented bound on ``|log_slope|``; ``inverse`` undoes ``forward``;
    results are at least float32; no data-dependent control flow.
    """

    @property
    def name(self) -> str:
        """The string that ``parse`` turns back into this transform."""
        ...

    @property
    def num_params(self) -> int:
        """Raw parameters P per feature."""
        ...

    def forward(self, x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map data to noise.

        Shape:
            x ``[..., D]``, params ``[..., D, P]`` -> z and log dz/dx, both ``[..., D]``
        """
        ...

    def inverse(self, z: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
        """Map noise to data.

        Shape:
            z ``[..., D]``, params ``[..., D, P]`` -> x and log dx/dz, both ``[..., D]``
        """
        ...

    def outside(self, x: Tensor, params: Tensor) -> Tensor:
        """Tell which inputs lie where the transform can only be the identity (a spline's tails).

        Shape:
            x ``[..., D]``, params ``[..., D, P]`` -> bool ``[..., D]``
        """
        ...


def kernels(transform: Elementwise, x: Tensor) -> tuple[str, ...]:
    """Name the hand-written kernels that a transform runs on a tensor of this device and type.

    A transform with kernels has a method of this name; the others need none.
    """
    own = getattr(transform, "kernels", None)
    return own(x) if own else ()


def widen(x: Tensor, params: Tensor) -> tuple[Tensor, Tensor]:
    """Promote both to their common dtype, at least float32, whatever the autocast."""
    dtype = torch.promote_types(torch.promote_types(x.dtype, params.dtype), torch.float32)
    return x.to(dtype), params.to(dtype)


def clip(x: Tensor, low: float, high: float) -> Tensor:
    """Clamp; at the bounds themselves the gradient is 1, where some versions of torch have 0."""
    return torch.where(x < low, low, torch.where(x > high, high, x))


def fit(x: Tensor, params: Tensor) -> Tensor:
    """Expand x ``[..., D]`` to the leading dimensions that it and params ``[..., D, P]`` share."""
    return torch.broadcast_tensors(x, params[..., 0])[0]


def bounded(raw: Tensor, limit: float) -> Tensor:
    """Bend raw numbers smoothly into (−limit, limit), with slope 1 at 0."""
    return raw / (1 + raw.abs() / limit)
