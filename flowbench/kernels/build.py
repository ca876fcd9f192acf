"""C files as libraries: compiled at first use for the machine's own processor, then kept."""

import ctypes
import hashlib
import os
import platform
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

HERE = Path(__file__).parent
OPENMP = ["-fopenmp"]
"""Its library is torch's own where that is loaded, and so are the threads: two pools would wait for
each other's places on the processor."""
FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared"]


@cache
def library(name: str) -> ctypes.CDLL | None:
    """Load ``name.c``, which the first call on a machine compiles, in some seconds.

    Returns:
        The library; None where there is no C compiler, or the environment says so.
    """
    if os.environ.get("FLOWBENCH_NATIVE") == "0":
        return None
    compiler, source = os.environ.get("CC", "cc"), HERE / f"{name}.c"
    # Built for this very processor: another machine that shares the directory builds its own.
    features = [
        line for line in _processor().splitlines() if line.startswith(("flags", "Features"))
    ]
    texts = [path.read_text() for path in (source, *sorted(HERE.glob("*.h")))]
    key = [*texts, compiler, *FLAGS, *OPENMP, platform.platform(), *features[:1]]
    built = f"{name}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "flowbench"
    try:
        root.mkdir(parents=True, exist_ok=True)
        if not (root / built).exists():
            _compile(compiler, source, root / built)
        return ctypes.CDLL(str(root / built))
    except (OSError, subprocess.CalledProcessError):
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else platform.processor()


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
    """As many threads as torch would use for n things, of which fewer than grain are worth none."""
    return max(1, min(torch.get_num_threads(), n // grain))


def call(name: str, function: str, *arguments: Any) -> int:
    """Call a function of ``name.c``: tensors go as pointers, floats as such, ints and bools as int.

    What is anything else goes as it is, and so has to be one of ctypes' types.
    """
    return getattr(library(name), function)(*map(_plain, arguments))


def _plain(argument: Any) -> Any:
    if isinstance(argument, Tensor):
        return ctypes.c_void_p(argument.data_ptr())
    return ctypes.c_float(argument) if isinstance(argument, float) else argument
