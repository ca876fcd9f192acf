"""Inverses without a closed form: Newton's method, kept inside a bracket by bisection."""

from collections.abc import Callable

import torch
from torch import Tensor

ITERATIONS = 40
"""Steps for every value: always as many, so that nothing depends on the data. Newton's method
needs four to eight; a step of it that leaves the bracket or gains little is replaced by one of
bisection."""


def root(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve forward(x) = z for an increasing function.

    Gradients follow from the last step, by the implicit function theorem.

    Args:
        forward: x -> its value and log-slope, elementwise.
        z: The values.
        low: Where x is at least.
        high: Where x is at most.

    Returns:
        x and log dx/dz, each ``[...]``.
    """
    with torch.no_grad():
        low, high = torch.minimum(low, high), torch.maximum(low, high)
        x = torch.minimum(torch.maximum(z, low), high)
        moved = high - low
        for _ in range(ITERATIONS):
            value, log_slope = forward(x)
            low, high = torch.where(value <= z, x, low), torch.where(value >= z, x, high)
            step = (z - value) * torch.exp(-log_slope)
            good = (x + step >= low) & (x + step <= high) & (2 * step.abs() <= moved)
            step = torch.where(good, step, low + (high - low) / 2 - x)
            x, moved = x + step, step.abs()
    value, log_slope = forward(x)
    x = x - (value - z) * torch.exp(-log_slope.detach())
    return x, -forward(x)[1]
