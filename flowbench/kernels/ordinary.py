"""What a hand-written kernel cannot do: follow more than memory, be differentiated twice."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def ordinary(*tensors: Tensor) -> bool:
    """Return whether these are plain tensors that nothing follows but autograd.

    Code that sees only memory is wrong for a tensor that is more: sparse, nested, of a subclass
    (such as torch's fake ones), or followed by forward-mode gradients, ``torch.func``,
    ``jit.trace``, ``make_fx`` or another dispatch mode. For all of these use torch's operations.
    """
    if torch._C._are_functorch_transforms_active() or torch._C._is_tracing():
        return False
    if torch._C._len_torch_dispatch_stack() or forward_ad._current_level >= 0:
        return False
    return all(map(_is_memory, tensors))


def _is_memory(tensor: Tensor) -> bool:
    dense = type(tensor) in (Tensor, nn.Parameter) and tensor.layout is torch.strided
    return dense and not (tensor.is_nested or tensor.is_neg() or tensor._is_zerotensor())


def gradients(
    plain: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor],
    needed: Sequence[bool],
    of_outputs: Sequence[Tensor],
) -> list[Tensor | None]:
    """Compute a kernel's gradients such that they can be differentiated again.

    Args:
        plain: The same function in torch's operations.
        inputs: Its arguments, as the kernel was given them.
        needed: Of which of them a gradient is asked for.
        of_outputs: The gradients of its outputs.
    """
    with torch.enable_grad():
        outputs = plain(*inputs)
    wanted = [each for each, wants in zip(inputs, needed, strict=True) if wants]
    found = iter(torch.autograd.grad(outputs, wanted, of_outputs, create_graph=True))
    return [next(found) if wants else None for wants in needed]
