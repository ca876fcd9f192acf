"""Files of tensors, as torch writes them, read only if every byte is as it was written."""

import zipfile
from pathlib import Path
from typing import Any

import torch


def read_tensors(path: Path) -> Any:
    """Read a file of ``torch.save``: tensors and plain values only.

    torch writes a checksum of every tensor and does not look at it when reading: a flipped bit
    would make a weight of 0.015 one of 5e36. The file is a ZIP archive, whose checksums Python
    tests.

    Raises:
        OSError: The file cannot be read, is damaged or is of another kind.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is None:
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both readers raise nearly anything on a broken file
        raise OSError("it is cut short, damaged or of another kind") from error
    raise OSError(f"it is damaged: {damaged} is not what was written")
