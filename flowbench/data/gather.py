"""Many image files to one tensor, in memory where it fits and in a mapped file where not.

The decoded pixels of many images are saved in a file beside them, and read from there later.
"""

import hashlib
import math
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
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
"""Images from which on the decoded ones are kept."""


def gather(paths: Sequence[File], data: Data) -> tuple[Tensor, Tensor]:
    """Decode all ``paths``, in their order, to ``data.size`` and ``data.channels``.

    Many images are decoded once. Their pixels are saved in a hidden file in ``data.root``, if that
    can be written, and are mapped from it until an image changes.

    Returns:
        uint8 pixels ``[n, C, size, size]`` of the n readable images, and which of the N paths those
        are, bool ``[N]``.

    Raises:
        UsageError: An image cannot be decoded and ``data.skip_unreadable`` is off, or the images
            fit neither into memory nor onto the disk.
    """
    if len(paths) < _KEPT or data.skip_unreadable:  # what is left out is to be said every time
        return _decode(paths, data)
    identity = f"{data.size} {data.channels} {[_identity(path) for path in paths]}"
    pixels = kept(Path(data.root), identity, lambda: _decode(paths, data)[0])
    return pixels, torch.ones(len(paths), dtype=torch.bool)


def gather_parts(parts: Sequence[Sequence[File]], data: Data) -> list[tuple[Tensor, Tensor]]:
    """Decode the images of every part, as ``gather`` does, all in one tensor.

    Returns:
        Of each part its pixels and which of its images are readable.
    """
    pixels, readable = gather([path for part in parts for path in part], data)
    read = readable.split([len(part) for part in parts])
    # Slices, not indices: they stay in the file where the images are mapped from one.
    return list(zip(pixels.split([int(own.sum()) for own in read]), read, strict=True))


def kept(root: Path, identity: str, make: Callable[[], Tensor]) -> Tensor:
    """Make an array of bytes once and map it from a hidden file in ``root`` afterwards.

    Where the file cannot be written, the array is made every time.

    Args:
        root: Directory of the images.
        identity: All that the array follows from.
        make: Makes it.
    """
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    path = root / f".flowbench-{name}.npy"
    try:
        with locked(path.with_suffix(".lock"), lambda: say(f"waiting for another process: {path}")):
            if not path.exists():
                made = make()
                with replacing(path) as file:
                    np.save(file, made.numpy())
                return made
            return torch.from_numpy(np.load(path, mmap_mode="c"))
    except OSError as error:
        say(f"the decoded images are not kept for the next time: {error}")
        return make()


def _identity(path: File) -> tuple[str, int, int]:
    """Name, size, and time or checksum of a file."""
    if isinstance(path, Path):
        status = path.stat()
        return str(path), status.st_size, status.st_mtime_ns
    member = path.root.getinfo(path.at)
    return str(path), member.file_size, member.CRC


def _decode(paths: Sequence[File], data: Data) -> tuple[Tensor, Tensor]:
    """``gather`` without keeping anything."""
    store = allocate((len(paths), data.channels, data.size, data.size))
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


def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
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
