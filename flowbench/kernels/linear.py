"""Linear maps in float32 by oneDNN: the products of a training step on a CPU.

torch leaves float32 products to MKL, which uses the widest instructions of one maker's processors
alone; oneDNN asks the processor. By it the products that go along the rows are 10 to 25 % faster on
an AMD processor with AVX-512; the gradient of the weights is not, and stays with MKL.
"""

import platform
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_OPERATOR = "_linear_pointwise"
AVAILABLE = (
    torch.backends.mkldnn.is_available()
    and platform.machine() in ("x86_64", "AMD64")
    and hasattr(torch.ops.mkldnn, _OPERATOR)
)


class Linear(nn.Linear):
    """``nn.Linear``, by whatever is the fastest."""

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[..., inputs]`` to ``[..., outputs]``."""
        plain = x.is_cpu and x.dtype == self.weight.dtype == torch.float32
        eager = not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
        if AVAILABLE and plain and eager:
            return _Linear.apply(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = gradient.flatten(0, -2)
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(gradient, weight.t(), None) if of_x else None,
            rows.t() @ x.flatten(0, -2) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
