"""Many image files to one tensor, in memory where it fits and in a mapped file where not.

What took long to decode is kept in a file of its own beside the images.
"""

import hashlib
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from flowbench.atomic import locked, replacing
from flowbench.config import Data
from flowbench.data.decode import File, decode
from flowbench.errors import UsageError
from flowbench.terminal import say

_MANY = 1000
"""Images that take long enough for a progress bar; also those that threads decode ahead."""
_KEPT = 5000
"""Images from which on the decoded ones are kept, in ``root/.flowbench-….npy``."""


def gather(paths: Sequence[File], data: Data) -> tuple[Tensor, Tensor]:
    """Decode all ``paths``, in their order, to ``data.size`` and ``data.channels``.

    Many images are decoded once: they are kept in a hidden file in ``data.root``, if it can be
    written to, and mapped from there until an image changes.

    Returns:
        uint8 pixels ``[n, C, size, size]`` of the n readable images, and which of the N paths those
        are, bool ``[N]``.

    Raises:
        UsageError: An image cannot be decoded and ``data.skip_unreadable`` is off, or the images
            fit neither into memory nor onto the disk.
    """
    if len(paths) < _KEPT:
        return _decode(paths, data)
    kept = Path(data.root) / f".flowbench-{_identity(paths, data)}.npy"
    try:
        with locked(kept.with_suffix(".lock"), lambda: say(f"waiting for another process: {kept}")):
            if not kept.exists():
                pixels, readable = _decode(paths, data)
                if not readable.all():  # which were left out is to be said every time
                    return pixels, readable
                with replacing(kept) as file:
                    np.save(file, pixels.numpy())
            mapped = np.load(kept, mmap_mode="c")
    except OSError as error:
        say(f"the decoded images are not kept for the next time: {error}")
        return _decode(paths, data)
    return torch.from_numpy(mapped), torch.ones(len(paths), dtype=torch.bool)


def _identity(paths: Sequence[File], data: Data) -> str:
    """A hash of what the decoded images follow from: names, sizes and times of the files."""
    total = hashlib.sha256(f"{data.size} {data.channels} ".encode())
    for path in paths:
        if isinstance(path, Path):
            status = path.stat()
            about = f"{path} {status.st_size} {status.st_mtime_ns}"
        else:
            about = f"{path} {path.root.getinfo(path.at).CRC}"
        total.update(about.encode())
    return total.hexdigest()[:16]


def _decode(paths: Sequence[File], data: Data) -> tuple[Tensor, Tensor]:
    """``gather`` without keeping anything."""
    store = _allocate((len(paths), data.channels, data.size, data.size))
    readable = torch.zeros(len(paths), dtype=torch.bool)
    skipped: list[str] = []
    bar = partial(track, description="decoding", total=len(paths), console=Console(stderr=True))
    for index, result in enumerate(bar(_decoded(paths, data), disable=len(paths) < _MANY)):
        if isinstance(result, Exception):
            skipped.append(str(paths[index]))
            if not data.skip_unreadable:
                hint = "repair or remove it, or set data.skip_unreadable = true"
                raise UsageError(f"{paths[index]} cannot be decoded ({result}): {hint}") from result
        else:
            store[index - len(skipped)] = result
            readable[index] = True
    if skipped:
        files = f"{', '.join(skipped[:5])}{', ...' if len(skipped) > 5 else ''}"
        message = f"skipped {len(skipped)} of {len(paths)} images that cannot be decoded: {files}"
        warnings.warn(message, stacklevel=2)
    return torch.from_numpy(store[: len(paths) - len(skipped)]), readable


def _decoded(paths: Sequence[File], data: Data) -> Iterator[NDArray[np.uint8] | Exception]:
    """Each image or what is wrong with it, decoded by threads a bounded number ahead."""

    def attempt(path: File) -> NDArray[np.uint8] | Exception:
        try:
            return decode(path, data.size, data.channels)
        except Exception as error:  # of any kind, says decode
            return error

    with ThreadPoolExecutor() as threads:
        for start in range(0, len(paths), _MANY):
            yield from threads.map(attempt, paths[start : start + _MANY])


def _allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Room for the images: memory, or a file that is gone with the last tensor that uses it."""
    size = math.prod(shape)
    if size <= psutil.virtual_memory().available // 2:
        return np.empty(shape, np.uint8)
    directory = tempfile.gettempdir()
    if size > (free := shutil.disk_usage(directory).free):
        # Writing to a mapped file on a full disk kills the process: ask beforehand.
        room = f"{size / 2**30:.1f} GiB, but {directory} has {free / 2**30:.1f} GiB free"
        raise UsageError(f"the images need {room}: choose a smaller data.size or another TMPDIR")
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.uint8, "w+", shape=shape)
