"""Rational-quadratic splines, forward and backward in one pass each: ``rqs.c``, ``rqs_gpu.py``."""

import ctypes
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from flowbench.kernels.build import CONSTANTS, call, library, selected, threads
from flowbench.kernels.ordinary import gradients

MAX_BINS = CONSTANTS["MAX_BINS"]
GRAIN = 8192
"""Features per thread at least: a thread with fewer costs more time than it saves."""


class _Spline(ctypes.Structure):
    _fields_ = (
        ("bins", ctypes.c_int),
        ("stable", ctypes.c_int),
        ("bound", ctypes.c_float),
        ("min_side", ctypes.c_float),
        ("min_slope", ctypes.c_float),
        ("max_log_bend", ctypes.c_float),
    )


def available() -> tuple[str, ...]:
    """Return the types of devices for which the kernel is selected and can be built."""
    cpu = ("cpu",) if library("rqs") is not None else ()
    return (*cpu, "cuda") if "rqs" in selected() and find_spec("triton") else cpu


def evaluate(x: Tensor, raw: Tensor, spline: list[float], inverse: bool) -> tuple[Tensor, Tensor]:
    """Evaluate, or invert, one spline for each of n features, without gradients.

    Args:
        x: Inputs, float32.
        raw: Raw parameters: K widths, K heights, K − 1 slopes. On a CPU float32, and read without a
            copy if features or parameters are contiguous in memory; on a GPU of any floating type.
        spline: K, B, the least side of a piece and the ``constants`` of a ``Spline``.
        inverse: Solve for x instead.

    Shape:
        x ``[n]``, raw ``[3K - 1, n]`` -> z and log dz/dx (or x and log dx/dz), ``[n]``
    """
    if x.is_cuda:
        from flowbench.kernels import rqs_gpu  # Triton is there on machines with a GPU

        return rqs_gpu.forward(x, raw, spline, inverse)
    x, raw, rows = x.contiguous(), *_dense(raw)
    out, slope = torch.empty_like(x), torch.empty_like(x)
    _run("rqs_forward", spline, len(x), rows, inverse, x, raw, out, slope)
    log_slope = slope.log_()
    return out, log_slope.neg_() if inverse else log_slope


rqs = torch.library.custom_op("flowbench::rqs", evaluate, mutates_args=())
"""``evaluate`` as an operator with gradients that torch can compile; a call takes 0.1 ms more."""


@torch.library.custom_op("flowbench::rqs_backward", mutates_args=())
def rqs_backward(
    x: Tensor, raw: Tensor, spline: list[float], g_z: Tensor, g_log_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute gradients of x ``[n]`` and raw ``[3K - 1, n]`` from those of z and log dz/dx."""
    if x.is_cuda:
        from flowbench.kernels import rqs_gpu

        return rqs_gpu.backward(x, raw, spline, g_z, g_log_slope)
    x, raw, rows = x.contiguous(), *_dense(raw)
    g_x, g_raw = torch.empty_like(x), torch.empty_like(raw)
    given = g_z.resolve_neg().contiguous(), g_log_slope.resolve_neg().contiguous()
    _run("rqs_backward", spline, len(x), rows, x, raw, *given, g_x, g_raw)
    return g_x, g_raw


@rqs.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@rqs_backward.register_fake
def _(x: Tensor, raw: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(raw)


Plain = Callable[[Tensor, Tensor, list[float], bool], tuple[Tensor, Tensor]]


def register_gradients(plain: Plain) -> None:
    """Give ``rqs`` its gradients.

    Args:
        plain: ``evaluate`` in torch's operations, for gradients that are to be differentiated.
    """

    def keep(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:  # noqa: ARG001
        ctx.save_for_backward(*inputs[:2])
        ctx.about = inputs[2:]

    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.compiler.is_compiling() and torch.is_grad_enabled():

            def again(x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
                return plain(x, raw, *ctx.about)

            needed = ctx.needs_input_grad[:2]
            return *gradients(again, ctx.saved_tensors, needed, of_outputs), None, None
        return *rqs_backward(*ctx.saved_tensors, ctx.about[0], *of_outputs), None, None

    rqs.register_autograd(backward, setup_context=keep)


def _dense(raw: Tensor) -> tuple[Tensor, bool]:
    """Return the parameters, copied if need be, and whether they lie innermost in memory."""
    if raw.T.is_contiguous():
        return raw, True
    return raw.contiguous(), False


def _run(function: str, spline: list[float], n: int, *arguments: Any) -> None:
    """Call the kernel for n features."""
    bins, *sizes, stable = spline
    about = ctypes.byref(_Spline(int(bins), int(stable), *sizes))
    call("rqs", function, about, ctypes.c_long(n), threads(n, GRAIN), *arguments)
