"""Images drawn from a flow, by class, and laid out in a grid."""

from typing import Any

import numpy as np
import torch

from flowbench.flow import Flow
from flowbench.terminal import say

UNLABELLED_COLUMNS = 10
BATCH = 100
Array = np.ndarray[Any, Any]


def draw_classes(flow: Flow, classes: int, rows: int, seed: int) -> Array:
    """Draw so many images of every class, as they come.

    The noise depends on the seed alone: two flows given the same seed start from the same noise.

    Args:
        flow: A flow, on any device.
        classes: Number of classes; 0 makes columns without one.
        rows: Images of each class.
        seed: Seed of the noise.

    An image that is not finite is left black, and their number told: a flow that fails at some
    samples is no reason to lose what it has learnt.

    Shape:
        uint8 ``[rows, classes, height, width, channels]``
    """
    columns = classes or UNLABELLED_COLUMNS
    device = next(flow.parameters()).device
    y = torch.arange(columns) if classes else torch.full((columns,), -1)
    y = y.repeat(rows).to(device)
    generator = torch.Generator().manual_seed(seed)
    images = torch.cat([flow.sample(part, generator).cpu() for part in y.split(BATCH)])
    broken = ~images.isfinite().flatten(1).all(1)
    if count := int(broken.sum()):
        say(f"{count} of {len(images)} samples are not finite and left black")
        images[broken] = -1
    return to_pixels(images).reshape(rows, columns, *images.shape[2:], images.shape[1])


def to_pixels(images: torch.Tensor) -> Array:
    """Round images in [−1, 1] to 256 levels; ``[N, C, H, W]`` -> uint8 ``[N, H, W, C]``."""
    levels = ((images + 1) * 128).floor().clamp(0, 255).to(torch.uint8)
    return levels.permute(0, 2, 3, 1).numpy()


def grid(images: Array, margin: int = 2) -> Array:
    """Lay rows and columns of images out as one, a white margin between.

    Shape:
        uint8 ``[rows, columns, H, W, C]`` -> uint8 ``[height, width, C]``
    """
    around = ((0, 0), (0, 0), (margin, 0), (margin, 0), (0, 0))
    tiles = np.pad(images, around, constant_values=255)
    rows, columns, height, width, channels = tiles.shape
    whole = tiles.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    return np.pad(whole, ((0, margin), (0, margin), (0, 0)), constant_values=255)
