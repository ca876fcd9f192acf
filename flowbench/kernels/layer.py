"""A transformer layer for training on a CPU, with its gradient by hand: ``layer.c`` and oneDNN.

Between the matrix products this takes half the time of torch and autograd, because it reads every
activation only once per pass. The products along the rows use oneDNN: torch uses MKL for float32,
which selects its widest instructions by the maker of the processor, while oneDNN selects them by
its features.
"""

import ctypes
import math
import platform
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flowbench.kernels.build import call, fills_vectors, library, threads
from flowbench.kernels.ordinary import gradients, ordinary

GRAIN = 64
"""Tokens per thread at least: a thread with fewer costs more time than it saves."""
PARTS = 8
"""Parts into which a batch is split for a weight's gradient: MKL is faster on shorter sums."""
ONEDNN = (
    torch.backends.mkldnn.is_available()
    and platform.machine() in ("x86_64", "AMD64")
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


class Kind(NamedTuple):
    """A layer's options."""

    heads: int
    hidden: int
    """Channels of the MLP."""
    tanh: bool
    """Whether GELU is by its tanh approximation."""


Maps = Sequence[tuple[nn.LayerNorm | None, nn.Linear]]
"""A layer's four linear maps in their order, each with the norm before it, if any: to queries, keys
and values, from the heads, into the MLP and out of it."""


def fits(x: Tensor, kind: Kind, maps: Maps) -> bool:
    """Return whether the kernel can run such a layer over x ``[B, T, C]``."""
    if torch.compiler.is_compiling():
        return False
    tensors = x, *_parameters(maps)
    if not ordinary(*tensors) or not all(t.is_cpu and t.dtype == torch.float32 for t in tensors):
        return False
    vectors = fills_vectors(x.shape[-1], kind.heads, kind.hidden)
    known = _precision() in (torch.float32, torch.bfloat16)
    return vectors and known and len(x) > 0 and library("layer") is not None


def layer(x: Tensor, kind: Kind, maps: Maps, plain: Callable[..., Tensor]) -> Tensor:
    """Run a pre-norm layer of causal attention and an MLP over all tokens.

    Under autocast to bfloat16 the products and their results are in bfloat16; the residual stream
    and all sums stay in float32.

    Args:
        x: Tokens.
        kind: The layer's.
        maps: The layer's.
        plain: The same layer in torch's operations, given x and the weight and bias of every norm
            and map in their order; for gradients that are to be differentiated again.

    Shape:
        x ``[B, T, C]`` -> same
    """
    norm, _ = maps[0]
    assert norm is not None
    return _Layer.apply(x, kind, norm.eps, plain, *_parameters(maps))


def _parameters(maps: Maps) -> list[Tensor]:
    modules = [module for pair in maps for module in pair if module is not None]
    return [each for module in modules for each in (module.weight, module.bias)]


class _Weights(NamedTuple):
    norm: Tensor
    norm_b: Tensor
    qkv: Tensor
    qkv_b: Tensor
    proj: Tensor
    proj_b: Tensor
    mlp_norm: Tensor
    mlp_norm_b: Tensor
    into: Tensor
    into_b: Tensor
    out: Tensor
    out_b: Tensor


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        kind: Kind,
        eps: float,
        plain: Callable[..., Tensor],
        *parameters: Tensor,
    ) -> Tensor:
        w = _Weights(*parameters)
        dtype = _precision()
        cast = _Weights(*(each.to(dtype) for each in parameters))
        given, x = x, x.contiguous()
        _, moments, normed = _norm(x, None, w.norm, w.norm_b, eps, dtype)
        qkv = _product(normed, cast.qkv, cast.qkv_b)
        mixed = _attention(qkv, kind.heads)
        branch = _product(mixed, cast.proj, cast.proj_b)
        middle, mlp_moments, mlp_normed = _norm(x, branch, w.mlp_norm, w.mlp_norm_b, eps, dtype)
        slope = _product(mlp_normed, cast.into, cast.into_b)
        hidden = _gelu(slope, kind.tanh)
        branch = _product(hidden, cast.out, cast.out_b)
        ctx.heads, ctx.dtype, ctx.plain = kind.heads, dtype, plain
        ctx.save_for_backward(
            *(given, *parameters),
            *(x, moments, normed, qkv, mixed, middle, mlp_moments, mlp_normed, slope, hidden),
            *(cast.qkv, cast.proj, cast.into, cast.out),
        )
        return middle + branch

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        count = 1 + len(_Weights._fields)
        kept = ctx.saved_tensors  # read once: recomputed activations are given once
        inputs, saved = kept[:count], kept[count:]
        if torch.is_grad_enabled():
            with torch.autocast("cpu", ctx.dtype, enabled=ctx.dtype != torch.float32):
                needed = ctx.needs_input_grad[0], *ctx.needs_input_grad[4:]
                of_x, *others = gradients(ctx.plain, inputs, needed, [g])
            return of_x, None, None, None, *others
        w = _Weights(*inputs[1:])
        x, moments, normed, qkv, mixed, middle, mlp_moments, mlp_normed, *rest = saved
        slope, hidden, qkv_w, proj_w, into_w, out_w = rest
        g = g.resolve_neg().contiguous()
        of_out_b = g.sum((0, 1))
        g_branch = g.to(qkv.dtype)
        of_out = _of_weight(g_branch, hidden)
        g_hidden = _product(g_branch, out_w.t())
        of_into_b = _gelu_backward(g_hidden, slope)
        of_into = _of_weight(g_hidden, mlp_normed)
        g_normed = _product(g_hidden, into_w.t())
        g, g_branch, of_mlp_norm = _norm_backward(g_normed, middle, mlp_moments, w.mlp_norm, g)
        of_proj = _of_weight(g_branch, mixed)
        g_qkv, of_qkv_b = _attention_backward(qkv, _product(g_branch, proj_w.t()), ctx.heads)
        of_qkv = _of_weight(g_qkv, normed)
        g_normed = _product(g_qkv, qkv_w.t())
        g, _, of_norm = _norm_backward(g_normed, x, moments, w.norm, g)
        of_weights = _Weights(
            norm=of_norm[0],
            norm_b=of_norm[1],
            qkv=of_qkv,
            qkv_b=of_qkv_b,
            proj=of_proj,
            proj_b=of_mlp_norm[2],
            mlp_norm=of_mlp_norm[0],
            mlp_norm_b=of_mlp_norm[1],
            into=of_into,
            into_b=of_into_b,
            out=of_out,
            out_b=of_out_b,
        )
        return g, None, None, None, *of_weights


def _precision() -> torch.dtype:
    """Return the type of the products: float32, or that of the autocast."""
    auto = torch.is_autocast_enabled("cpu")
    return torch.get_autocast_dtype("cpu") if auto else torch.float32


def _product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    if not ONEDNN:
        return F.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _of_weight(gradient: Tensor, x: Tensor) -> Tensor:
    parts = math.gcd(len(x), PARTS)
    g, x = (each.view(parts, -1, each.shape[-1]) for each in (gradient, x))
    return torch.bmm(g.mT, x).sum(0, dtype=torch.float32)


def _norm(
    x: Tensor, branch: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the branch to x and normalize: the sum, its moments, and the normalized sum."""
    stream = x if branch is None else torch.empty_like(x)
    moments = x.new_empty(*x.shape[:-1], 2)
    out = torch.empty_like(x, dtype=dtype)
    call("layer", "norm_forward", x, branch, weight, bias, eps, *_rows(out), stream, moments, out)
    return stream, moments, out


def _norm_backward(
    g_out: Tensor, x: Tensor, moments: Tensor, weight: Tensor, g_stream: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradient of x, its rounded copy, and those of weight, bias and an addend to x."""
    g_x = torch.empty_like(x)
    rounded = g_x if g_out.dtype == x.dtype else torch.empty_like(g_out)
    *rows, workers = _rows(g_out)
    sums = x.new_empty(workers, 3, x.shape[-1])
    given, made = (g_out, x, moments, weight, g_stream), (g_x, rounded, sums)
    call("layer", "norm_backward", *given, *rows, workers, *made)
    return g_x, rounded, sums.sum(0)


def _gelu(x: Tensor, tanh: bool) -> Tensor:
    """Return GELU of x; x is overwritten with its slope."""
    out = torch.empty_like(x)
    *rows, workers = _rows(x)
    call("layer", "gelu_forward", x, *rows, tanh, workers, out)
    return out


def _gelu_backward(gradient: Tensor, slope: Tensor) -> Tensor:
    """Multiply the gradient by the slope in place; return its sum over all tokens."""
    *rows, workers = _rows(gradient)
    sums = gradient.new_empty(workers, gradient.shape[-1], dtype=torch.float32)
    call("layer", "gelu_backward", gradient, slope, *rows, workers, sums)
    return sums.sum(0)


def _rows(x: Tensor) -> tuple[ctypes.c_long, int, bool, int]:
    """Return the rows, their width, whether they are bfloat16, and the number of threads."""
    rows = x.numel() // x.shape[-1]
    return ctypes.c_long(rows), x.shape[-1], x.dtype == torch.bfloat16, threads(rows, GRAIN)


class _Shape(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int) for name in ("batch", "tokens", "heads", "size", "bf16"))


def _attention(qkv: Tensor, heads: int) -> Tensor:
    """Attend: ``[B, T, 3C]`` -> ``[B, T, C]``."""
    shape, rooms = _attention_rooms(qkv, heads)
    out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
    call("layer", "attention_forward", shape, qkv, len(rooms), rooms, out)
    return out


def _attention_backward(qkv: Tensor, g_out: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Return the gradient of qkv, and its sum over all tokens."""
    shape, rooms = _attention_rooms(qkv, heads)
    g_qkv, sums = torch.empty_like(qkv), rooms.new_empty(len(rooms), qkv.shape[-1])
    call("layer", "attention_backward", shape, qkv, g_out, len(rooms), rooms, g_qkv, sums)
    return g_qkv, sums.sum(0)


def _attention_rooms(qkv: Tensor, heads: int) -> tuple[Any, Tensor]:
    """Return the kernel's sizes, and working memory for each thread."""
    batch, tokens, wide = qkv.shape
    shape = _Shape(batch, tokens, heads, wide // 3 // heads, qkv.dtype == torch.bfloat16)
    room = call("layer", "attention_room", ctypes.byref(shape))
    return ctypes.byref(shape), torch.empty(threads(batch * tokens, GRAIN), room)
