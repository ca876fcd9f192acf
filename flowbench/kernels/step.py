"""A block's transformer for one token of many sequences, for sampling: ``step.c``."""

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from flowbench.kernels.build import CONSTANTS, call, fills_vectors, library, pointer, threads
from flowbench.kernels.ordinary import ordinary

PANEL, TILE = CONSTANTS["PANEL"], CONSTANTS["TILE"]
GRAIN = 16
"""Sequences per thread at least: a thread with fewer costs more time than it saves."""


class Sizes(NamedTuple):
    """A network's sizes in the order of the kernel's struct.

    Attributes:
        tanh: Whether GELU is its tanh approximation.
        eps: Added to the variance by every LayerNorm.
    """

    features: int
    width: int
    heads: int
    tokens: int
    layers: int
    hidden: int
    outputs: int
    tanh: bool
    eps: float


class _Network(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int) for name in Sizes._fields if name != "eps"),
        ("eps", ctypes.c_float),
    )


@dataclass(frozen=True)
class Packed:
    """A network's weights in the layout of the kernel.

    Args:
        sizes: The network's.
        weights: All of them in a row.
    """

    sizes: Sizes
    weights: Tensor

    def takes(self, *tensors: Tensor) -> bool:
        """Return whether ``step`` can be given these: no gradient would go through it."""
        if torch.is_grad_enabled() or not ordinary(*tensors):
            return False
        return all(each.is_cpu and each.dtype == torch.float32 for each in tensors)

    def step(self, x: Tensor, embedding: Tensor, cache: Sequence[Tensor], t: int) -> Tensor:
        """Run token t of every sequence through the network.

        Args:
            x: The token.
            embedding: Added to it in the first layer.
            cache: Keys and values of each layer; those of token t are written.
            t: Its position.

        Shape:
            x ``[B, D]``, embedding ``[B, C]``, cache ``[2, B, H, T, C/H]`` -> ``[B, outputs]``
        """
        sizes, batch = self.sizes, len(x)
        x = x if x.stride(1) == 1 else x.contiguous()
        out = x.new_empty(batch, sizes.outputs)
        network = ctypes.byref(_Network(*sizes))
        layers = (ctypes.c_void_p * len(cache))(*map(pointer, cache))
        widest = max(3 * sizes.width, sizes.hidden, _wide(sizes.outputs))
        workers = threads(batch, GRAIN)
        scratch = x.new_empty(workers, TILE * (2 * sizes.width + widest) + sizes.tokens)
        call(
            "step",
            "step",
            network,
            self.weights,
            x,
            ctypes.c_long(x.stride(0)),
            embedding,
            ctypes.c_long(embedding.stride(0)),
            layers,
            ctypes.c_long(batch),
            t,
            workers,
            out,
            scratch,
            ctypes.c_long(scratch.stride(0)),
        )
        return out


def fits(sizes: Sizes, weight: Tensor) -> bool:
    """Return whether the kernel can run a network of these sizes with weights of this type."""
    vectors = fills_vectors(sizes.width, sizes.heads, sizes.hidden)
    plain = weight.is_cpu and weight.dtype == torch.float32 and ordinary(weight)
    return plain and vectors and library("step") is not None


def pack(
    sizes: Sizes,
    first: nn.Linear,
    layers: Sequence[Sequence[tuple[nn.LayerNorm | None, nn.Linear]]],
    last: nn.Linear,
) -> Packed:
    """Lay out the weights of a network.

    Args:
        sizes: The network's.
        first: Map of the features.
        layers: The maps of every layer, each with the LayerNorm before it, if any.
        last: Map to the outputs.
    """
    maps = [(None, first), *(each for layer in layers for each in layer), (None, last)]
    parts = [part for norm, linear in maps for part in _panels(*_folded(norm, linear))]
    return Packed(sizes, torch.cat([part.flatten() for part in parts]))


def _folded(norm: nn.LayerNorm | None, linear: nn.Linear) -> tuple[Tensor, Tensor]:
    """Merge a LayerNorm's weight and bias into the linear map after it."""
    weight, bias = linear.weight.detach(), linear.bias.detach()
    if norm is None:
        return weight, bias
    return weight * norm.weight.detach(), bias + weight @ norm.bias.detach()


def _panels(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Cut ``[outputs, inputs]`` to ``[outputs / PANEL, inputs, PANEL]``, filled up with zeros."""
    missing = _wide(len(weight)) - len(weight)
    weight = nn.functional.pad(weight, (0, 0, 0, missing))
    return weight.unflatten(0, (-1, PANEL)).mT, nn.functional.pad(bias, (0, missing))


def _wide(outputs: int) -> int:
    return -(-outputs // PANEL) * PANEL
