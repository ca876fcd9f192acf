"""Inverses without a closed form: Newton's method, kept inside a bracket by bisection."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

ITERATIONS = 40
"""Steps at most, and always in compiled code, which cannot look at values. Newton's method needs
four to eight; a step of it that leaves the bracket or gains little is replaced by one of
bisection."""
CONVERGED = 4.0
"""Machine epsilons, times |x| + 1 or |z| + 1, within which x or forward(x) is as good as found."""

_counts: list[int] | None = None


@contextmanager
def counting() -> Iterator[list[int]]:
    """Keep the number of steps of every search inside."""
    global _counts
    before, _counts = _counts, []
    try:
        yield _counts
    finally:
        _counts = before


def root(
    forward: Callable[[Tensor], tuple[Tensor, Tensor]], z: Tensor, low: Tensor, high: Tensor
) -> tuple[Tensor, Tensor]:
    """Solve forward(x) = z for an increasing function.

    Gradients follow by the implicit function theorem.

    Args:
        forward: x -> its value and log-slope, elementwise.
        z: The values.
        low: Where x is at least.
        high: Where x is at most.

    Returns:
        x and log dx/dz, each ``[...]``.
    """
    near = CONVERGED * torch.finfo(z.dtype).eps
    with torch.no_grad():
        low, high = torch.minimum(low, high), torch.maximum(low, high)
        x = torch.minimum(torch.maximum(z, low), high)
        moved = high - low
        taken = 0
        while taken < ITERATIONS:
            taken += 1
            value, log_slope = forward(x)
            low, high = torch.where(value <= z, x, low), torch.where(value >= z, x, high)
            error = z - value
            step = error * torch.exp(-log_slope)
            # What only rounding decides stays: bisection would throw it far away again.
            found = (error.abs() <= near * (1 + z.abs())) | (step.abs() <= near * (1 + x.abs()))
            good = (x + step >= low) & (x + step <= high) & (2 * step.abs() <= moved)
            middle = torch.where(found, x, low + (high - low) / 2)
            step = torch.where(good, step, middle - x)
            x, moved = x + step, step.abs()
            if not torch.compiler.is_compiling() and found.all():
                break
    if _counts is not None:
        _counts.append(taken)
    value, log_slope = forward(x)
    step = (z - value) * torch.exp(-log_slope.detach())
    far = step.abs() > math.sqrt(near) * (1 + x.abs())  # the function is flat: only gradients move
    x = x + step - torch.where(far, step.detach(), 0.0)
    return x, -forward(x)[1]
