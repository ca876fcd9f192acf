"""C files as libraries: compiled at first use for this machine's processor, then kept."""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flowbench.errors import UsageError
from flowbench.kernels.ordinary import ordinary

HERE = Path(__file__).parent
KERNELS = ("layer", "rqs", "step")
CONSTANTS = {"LANES": 16, "PANEL": 32, "TILE": 60, "MAX_BINS": 128}
"""Sizes that Python and C share: floats of a vector, columns of packed weights, sequences that go
through a network together, bins of a spline."""
OPENMP = ["-fopenmp"]
"""Its library is torch's own where that is loaded, so both share one pool of threads."""
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"]
FLAGS += [f"-D{name}={value}" for name, value in CONSTANTS.items()]

_only: tuple[str, ...] | None = None


def selected() -> tuple[str, ...]:
    """Return the kernels that may be used: all, or those that FLOWBENCH_NATIVE lists.

    Raises:
        UsageError: The environment variable names an unknown kernel.
    """
    return _from_environment() if _only is None else _only


@cache
def _from_environment() -> tuple[str, ...]:
    value = os.environ.get("FLOWBENCH_NATIVE", ",".join(KERNELS))
    names = () if value == "0" else tuple(name.strip() for name in value.split(","))
    for name in names:
        if name not in KERNELS:
            valid = f"0 for none, or some of {','.join(KERNELS)}"
            raise UsageError(f"FLOWBENCH_NATIVE = {value!r} is not valid: {valid}")
    return names


@contextmanager
def only(*names: str) -> Iterator[None]:
    """Use these kernels and no others inside, by flows that are built and run there."""
    global _only
    before, _only = _only, names
    try:
        yield
    finally:
        _only = before


def library(name: str) -> ctypes.CDLL | None:
    """Load ``name.c``; the first call on a machine compiles it, in some seconds.

    Returns:
        The library; None where there is no C compiler, or the kernel is not selected.
    """
    return _load(name) if name in selected() else None


@cache
def _load(name: str) -> ctypes.CDLL | None:
    compiler, source = os.environ.get("CC", "cc"), HERE / f"{name}.c"
    # Built for this processor: another machine that shares the directory builds its own.
    features = [
        line for line in _processor().splitlines() if line.startswith(("flags", "Features"))
    ]
    texts = [path.read_bytes() for path in (source, *sorted(HERE.glob("*.h")))]
    key = [*texts, compiler, *FLAGS, *OPENMP, platform.platform(), *features[:1]]
    built = f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    try:
        root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowbench"
        root.mkdir(parents=True, exist_ok=True)
        if not (root / built).exists():
            _compile(compiler, source, root / built)
        return ctypes.CDLL(str(root / built))
    except (OSError, RuntimeError, subprocess.CalledProcessError):  # RuntimeError: no home
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    return (
        path.read_text(encoding="utf-8", errors="replace")
        if path.exists()
        else platform.processor()
    )


def _compile(compiler: str, source: Path, path: Path) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        built = Path(directory) / path.name
        command = [compiler, *FLAGS, "-march=native", "-o", str(built), str(source), "-lm"]
        for threaded in (OPENMP, []):  # a compiler without OpenMP makes kernels of one thread
            done = subprocess.run([*command, *threaded], capture_output=True)
            if done.returncode == 0:
                break
        done.check_returncode()
        built.replace(path)


def threads(n: int, grain: int) -> int:
    """Return as many threads as torch would use for n items, at least ``grain`` items each."""
    return max(1, min(torch.get_num_threads(), n // grain))


def fills_vectors(width: int, heads: int, hidden: int) -> bool:
    """Return whether channels, those of a head and those of the MLP are whole vectors."""
    lanes = CONSTANTS["LANES"]
    return all(n % lanes == 0 for n in (width, width // heads, hidden))


def call(name: str, function: str, *arguments: Any) -> int:
    """Call a function of ``name.c``: tensors are passed as pointers, numbers as they are.

    Any other argument has to be of a ctypes type.

    Raises:
        TypeError: A tensor is more than memory of the CPU.
    """
    return getattr(_load(name), function)(*map(_plain, arguments))


def pointer(tensor: Tensor) -> ctypes.c_void_p:
    """Return where a tensor begins.

    Raises:
        TypeError: It is more than memory of the CPU.
    """
    if not (tensor.is_cpu and ordinary(tensor)):
        raise TypeError(f"a kernel in C cannot read {type(tensor).__name__} on {tensor.device}")
    return ctypes.c_void_p(tensor.data_ptr())


def _plain(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return pointer(argument)
    return ctypes.c_float(argument) if isinstance(argument, float) else argument
