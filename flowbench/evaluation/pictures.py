"""Drawn images as files: one grid, one file for each, or an array."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from flowbench.errors import UsageError
from flowbench.evaluation.sampling import Array, grid


def form(out: Path | str) -> str:
    """Return the format that a path asks for: ``.png``, ``.npy``, or ``/`` for a directory.

    Raises:
        UsageError: It is none of these.
    """
    if str(out).endswith("/") or Path(out).is_dir():
        return "/"
    if (suffix := Path(out).suffix.lower()) in (".png", ".npy"):
        return suffix
    raise UsageError(f"--out {out} is not valid: a .png, a .npy, or a directory, which ends in /")


def save(images: Array, labels: Sequence[int], out: Path | str) -> None:
    """Write rows and columns of images, as a PNG each where ``out`` is a directory.

    Args:
        images: The images.
        labels: Class of every column; −1 is none.
        out: ``.png`` for a grid, ``.npy`` for an array uint8 ``[N, H, W, C]`` row by row, or a
            directory, for files such as ``class3-0007.png``.

    Shape:
        uint8 ``[rows, columns, H, W, C]``

    Raises:
        UsageError: The path asks for something else.
    """
    kind, path = form(out), Path(out)
    directory = path if kind == "/" else path.parent
    directory.mkdir(parents=True, exist_ok=True)
    if kind == ".png":
        _write(grid(images), path)
    elif kind == ".npy":
        np.save(path, images.reshape(-1, *images.shape[2:]))
    else:
        for row, line in enumerate(images):
            for column, (image, label) in enumerate(zip(line, labels, strict=True)):
                number = row if label >= 0 else row * len(labels) + column
                name = f"class{label}" if label >= 0 else "sample"
                _write(image, path / f"{name}-{number:04d}.png")


def _write(image: Array, path: Path) -> None:
    Image.fromarray(image.squeeze()).save(path, format="PNG")
