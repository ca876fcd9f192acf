"""The spline's kernel in C (``rqs.c``) as torch operators: compiled at first use, then kept.

A program without a C compiler does without: ``available`` is then false, and the spline runs as
torch operations, with the same results.
"""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).with_name("rqs.c")
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"]
MAX_BINS = 128
GRAIN = 8192  # features below which a second thread costs more than it brings


class Spline(ctypes.Structure):
    """What the kernel has to know of a spline."""

    _fields_ = (
        ("bins", ctypes.c_int),
        ("bound", ctypes.c_float),
        ("min_width", ctypes.c_float),
        ("min_slope", ctypes.c_float),
        ("max_log_bend", ctypes.c_float),
    )


def available() -> bool:
    """Whether the kernel is there; the first call on a machine compiles it, in some seconds.

    The environment variable FLOWBENCH_NATIVE=0 leaves it out.
    """
    return _library() is not None


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get("FLOWBENCH_NATIVE") == "0":
        return None
    compiler = os.environ.get("CC", "cc")
    # Built for this very processor: another machine that shares the directory builds its own.
    features = [
        line for line in _processor().splitlines() if line.startswith(("flags", "Features"))
    ]
    key = [SOURCE.read_text(), compiler, *FLAGS, platform.platform(), *features[:1]]
    name = f"rqs-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowbench"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / name).exists():
            _compile(compiler, root / name)
        return _declared(ctypes.CDLL(str(root / name)))
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else platform.processor()


def _compile(compiler: str, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        built = Path(directory) / path.name
        command = [compiler, *FLAGS, "-march=native", "-o", str(built), str(SOURCE), "-lm"]
        subprocess.run(command, check=True, capture_output=True)
        built.replace(path)


def _declared(library: ctypes.CDLL) -> ctypes.CDLL:
    pointer, count = ctypes.c_void_p, ctypes.c_long
    library.rqs_forward.argtypes = [pointer, *[count] * 3, ctypes.c_int, *[pointer] * 4]
    library.rqs_backward.argtypes = [pointer, *[count] * 3, *[pointer] * 6]
    for function in (library.rqs_forward, library.rqs_backward):
        function.restype = None
    return library


@torch.library.custom_op("flowbench::rqs", mutates_args=())
def rqs(x: Tensor, planes: Tensor, spline: list[float], inverse: bool) -> tuple[Tensor, Tensor]:
    """Evaluate, or invert, one spline for each of n features.

    Args:
        x: Where; float32 on the CPU.
        planes: Raw parameters, K widths, K heights, K − 1 bends.
        spline: The numbers of ``Spline``.
        inverse: Solve for x instead.

    Shape:
        x ``[n]``, planes ``[3K - 1, n]`` -> z and log dz/dx (or x and log dx/dz), ``[n]``
    """
    x, planes = x.contiguous(), planes.contiguous()
    out, slope = torch.empty_like(x), torch.empty_like(x)
    _run("rqs_forward", spline, len(x), inverse, x, planes, out, slope)
    log_slope = slope.log_()
    return out, log_slope.neg_() if inverse else log_slope


@torch.library.custom_op("flowbench::rqs_backward", mutates_args=())
def rqs_backward(
    x: Tensor, planes: Tensor, spline: list[float], g_z: Tensor, g_log_slope: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient with respect to x ``[n]`` and planes ``[3K - 1, n]``, from z's and log dz/dx's."""
    x, planes = x.contiguous(), planes.contiguous()
    g_x, g_planes = torch.empty_like(x), torch.empty_like(planes)
    gradients = g_z.contiguous(), g_log_slope.contiguous()
    _run("rqs_backward", spline, len(x), x, planes, *gradients, g_x, g_planes)
    return g_x, g_planes


@rqs.register_fake
def _(x: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(x)


@rqs_backward.register_fake
def _(x: Tensor, planes: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(planes)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: object) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs[:2])
    ctx.spline = inputs[2]


def _backward(ctx: Any, g_z: Tensor, g_log_slope: Tensor) -> tuple[Tensor | None, ...]:
    return *rqs_backward(*ctx.saved_tensors, ctx.spline, g_z, g_log_slope), None, None


rqs.register_autograd(_backward, setup_context=_keep)


def _run(function: str, spline: list[float], n: int, *arguments: Any) -> None:
    """Call the kernel, features shared among as many threads as torch would use."""
    about = Spline(int(spline[0]), *spline[1:])
    pointers = [a.data_ptr() if isinstance(a, Tensor) else a for a in arguments]
    kernel: Callable[..., None] = getattr(_library(), function)

    def work(start: int, end: int) -> None:
        kernel(ctypes.byref(about), n, start, end, *pointers)

    threads = max(1, min(torch.get_num_threads(), n // GRAIN))
    edges = [n * i // threads // 64 * 64 for i in range(threads)] + [n]
    others = [_threads().submit(work, *edges[i : i + 2]) for i in range(1, threads)]
    work(*edges[:2])
    for other in others:
        other.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "rqs")
