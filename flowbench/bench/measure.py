"""Seconds and memory of cases that take turns."""

import ctypes
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from statistics import quantiles
from typing import Any

import psutil
import torch

from flowbench.terminal import tracked

Work = Callable[[], object]


def seconds(cases: Mapping[str, Work], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Time all cases in turns, so that the machine's drift affects all of them equally.

    Args:
        cases: The work, by name.
        repeats: Rounds that count.
        warmup: Rounds before them that do not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in cases}
    for number in tracked(range(-warmup, repeats), "measuring"):
        for name, work in cases.items():
            _wait()
            began = time.perf_counter()
            work()
            _wait()
            if number >= 0:
                taken[name].append(time.perf_counter() - began)
    return taken


def peak_memory(work: Work) -> float:
    """Return the bytes that the work needs at its peak, above those before it; NaN if unknown.

    On a GPU the memory that torch allocates, on Linux that of the process.
    """
    work()  # workspaces and code that stay are loaded now
    _wait()
    _give_back()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return float(torch.cuda.max_memory_allocated() - before)
    try:
        # Resets the peak to the present memory.
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except OSError:
        return float("nan")
    before = psutil.Process().memory_info().rss
    work()
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return float(int(line.split()[1]) * 1024 - before)
    return float("nan")


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return median, quartiles and minimum of repeated measurements."""
    low, middle, high = quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return {
        "seconds": middle,
        "seconds_low": low,
        "seconds_high": high,
        "seconds_least": min(values),
        "repeats": len(values),
    }


def _give_back() -> None:
    """Return freed memory to the system: memory that glibc keeps would hide a new need."""
    with suppress(AttributeError, OSError, TypeError):  # other C libraries
        ctypes.CDLL(None).malloc_trim(0)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
