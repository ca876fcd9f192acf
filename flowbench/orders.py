"""Orders in which a block runs over the patches; pure torch.

A block leaves its first patch as it is and knows least about the next ones, so successive blocks
take the patches in different orders.
"""

from collections.abc import Callable

from torch import Tensor

Order = Callable[[Tensor, int], Tensor]
"""Rearranges a tensor along a dimension; applied twice it is the identity."""


def raster(x: Tensor, dim: int) -> Tensor:  # noqa: ARG001 - the signature is Order's
    """Row by row from the top left."""
    return x


def reversed_raster(x: Tensor, dim: int) -> Tensor:
    """Row by row from the bottom right."""
    return x.flip(dim)


def alternate(block: int) -> Order:
    """Give block 0, 2, … the raster order and the others the reversed one, as TarFlow does."""
    return reversed_raster if block % 2 else raster
