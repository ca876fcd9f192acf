"""The IDX file format, in which MNIST and its relatives are published."""

import gzip
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowbench.errors import UsageError

_UINT8 = 0x08


def read(path: Path, dims: int) -> Tensor:
    """The bytes of an IDX file, compressed with gzip or not whatever its name says.

    Args:
        path: The file.
        dims: Dimensions it must have: 3 for images, 1 for labels.

    Shape:
        uint8 with ``dims`` dimensions, none of them empty

    Raises:
        UsageError: Not a whole IDX file of unsigned bytes with ``dims`` dimensions, and nothing
            else after them.
    """
    expected = f"expected an IDX file of unsigned bytes with {dims} dimension{'s'[: dims > 1]}"
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content.startswith(b"\x1f\x8b") else content
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"{path}: {expected}, but it cannot be read: {error}") from error

    header = 4 + 4 * dims
    magic = bytes([0, 0, _UINT8, dims])
    if content[:4] != magic:
        found = content[:4].hex(" ") or "nothing"
        raise UsageError(f"{path}: {expected} (it begins {magic.hex(' ')}), but found {found}")
    if len(content) < header:
        raise UsageError(f"{path}: {expected}, but it ends within the header of {header} bytes")
    shape = struct.unpack(f">{dims}I", content[4:header])
    if 0 in shape:
        raise UsageError(f"{path}: {expected} and something in it, but its shape is {shape}")
    if len(content) != header + math.prod(shape):
        size = f"{header + math.prod(shape):,} bytes for its shape {shape}"
        raise UsageError(f"{path}: {expected}, {size}, but it has {len(content):,}")
    # A copy, because a tensor must own memory that can be written to.
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=header).reshape(shape).copy())
