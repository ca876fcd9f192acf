"""C files as libraries: compiled at first use for the machine's own processor, then kept."""

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

import torch

HERE = Path(__file__).parent
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
    key = [*texts, compiler, *FLAGS, platform.platform(), *features[:1]]
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
        subprocess.run(command, check=True, capture_output=True)
        built.replace(path)


def share(work: Callable[[int, int], None], n: int, grain: int, step: int = 1) -> None:
    """Do n things in C, divided among as many threads as torch would use.

    Args:
        work: Does those from its first argument to before its second; it releases Python's lock.
        n: How many.
        grain: Fewer than this are not worth a thread.
        step: Things that stay together.
    """
    threads = max(1, min(torch.get_num_threads(), n // grain))
    edges = [n * i // threads // step * step for i in range(threads)] + [n]
    others = [_threads().submit(work, *edges[i : i + 2]) for i in range(1, threads)]
    work(*edges[:2])
    for other in others:
        other.result()


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "kernel")
