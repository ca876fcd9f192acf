"""One image file to one array of bytes; the only file that imports PIL."""

import io
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
"""Ends of names, in lower case, of the files taken for images."""

File = Path | zipfile.Path
"""An image file, of its own or in an archive."""
GREY = ("1", "L", "LA", "La", "I", "F")
"""PIL's modes of images without colour; those of 16 bits begin with I too."""


def decode(path: File, size: int, channels: int) -> NDArray[np.uint8]:
    """The image turned upright, its short side resized to ``size``, and the centre cropped.

    Transparent pixels show white, the first frame stands for an animation, and of 16 bits the upper
    eight are kept. Deep pixels with nothing in those eight are refused: some programs write values
    of 8 bits into deeper files, and they would become black.

    Args:
        path: The file.
        size: Side of the square, in pixels.
        channels: 1 for grey, 3 for colour.

    Shape:
        uint8 ``[channels, size, size]``

    Raises:
        Exception: Not an image, a grey one where colour is asked for, or one smaller than ``size``.
            PIL raises nearly anything on a broken file.
    """
    if not path.is_file():
        raise ValueError("not a file")  # opening a pipe would wait for ever
    with Image.open(io.BytesIO(path.read_bytes())) as file:
        if channels == 3 and file.mode.partition(";")[0] in GREY:
            raise ValueError("grey, while data.channels = 3 asks for colour")
        _check_depth(file)
        image = _eight_bits(ImageOps.exif_transpose(file))
    if min(image.size) < size:
        raise ValueError(f"{image.width} x {image.height} pixels, while data.size = {size}")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("L" if channels == 1 else "RGB")
    image = ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).reshape(size, size, channels).transpose(2, 0, 1)


DARK = "deeper than 8 bits, but no value is above 255: save it with 8 bits"


def _check_depth(image: ImageFile.ImageFile) -> None:
    """Refuse colours of 16 bits, of which PIL reads the upper 8, where those are all 0."""
    deep = any(";16" in str(tile.args) for tile in image.tile) and len(image.getbands()) > 1
    if deep and not np.asarray(image.convert("RGB")).any():
        raise ValueError(DARK)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Deep grey images scaled to 8 bits, which PIL's own conversion would clip to white."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no range of their own")
    if not image.mode.startswith("I"):
        return image
    deep = np.asarray(image).astype(np.int64)
    if deep.min() < 0 or deep.max() > 0xFFFF:
        raise ValueError("pixels of 32 bits are only read where their values fit into 16")
    if 0 < deep.max() <= 0xFF:
        raise ValueError(DARK)
    return Image.fromarray((deep >> 8).astype(np.uint8))
