"""``digits-on-photos``, ``photo-crops``: small colour sets, made of what comes with two packages.

The digits are those of ``mnist-5k``; the photos are the two that scikit-learn ships, a temple and a
flower, both CC-BY. There is no more colour in these sets than two photos have.
"""

from functools import cache

import numpy as np
import torch
from torch import Tensor

from flowbench.config import Data
from flowbench.data import mnist5k
from flowbench.data.images import Images, Splits

SIDE = 28
PARTS = (4000, 500, 500)
"""Images for training, validation and test, as ``mnist-5k`` has digits."""
STRIPE = 160
"""Columns after which the stripes that the parts are cut from begin again, four times a photo."""
COLUMNS = ((0, 80), (80, 120), (120, 160))
"""Columns of a stripe that the crops of each part come from; no pixel is in two parts."""


@cache
def photos() -> Tensor:
    """The two photos, read once: not to be written to.

    Shape:
        uint8 ``[2, 3, 427, 640]``
    """
    from sklearn.datasets import load_sample_image  # half a second that few runs need

    both = [load_sample_image(name) for name in ("china.jpg", "flower.jpg")]
    return torch.from_numpy(np.stack(both)).permute(0, 3, 1, 2).contiguous()


def crops(part: int) -> Tensor:
    """Crops of the photos at random places, the same in every call.

    Args:
        part: 0, 1 or 2: training, validation or test.

    Shape:
        uint8 ``[N, 3, 28, 28]``, N as ``PARTS`` says
    """
    source = photos()
    low, high = COLUMNS[part]
    stripes = source.shape[3] // STRIPE
    ends = len(source), source.shape[2] - SIDE + 1, stripes, high - low - SIDE + 1
    # Raw bits, whose stream no release of NumPy changes.
    raw = np.random.PCG64(part).random_raw((PARTS[part], 4)) % np.array(ends, np.uint64)
    photo, row, stripe, column = torch.from_numpy(raw.astype(np.int64)).T
    windows = source.unfold(2, SIDE, 1).unfold(3, SIDE, 1)
    return windows[photo, :, row, stripe * STRIPE + low + column].contiguous()


def read_crops(_: Data) -> Splits:
    """4,000, 500 and 500 crops without classes, from different stripes of the photos."""
    train, val, test = (Images(crops(part), None) for part in range(3))
    return Splits(train, val, test, classes=0)


def read_digits(data: Data) -> Splits:
    """The digits of ``mnist-5k`` in its own parts, each blended with a crop: |crop − digit|."""
    digits = mnist5k.read(data)
    parts = (digits.train, digits.val, digits.test)
    train, val, test = (
        Images(blend(crops(number), part.pixels), part.labels) for number, part in enumerate(parts)
    )
    return Splits(train, val, test, classes=digits.classes)


def blend(background: Tensor, digit: Tensor) -> Tensor:
    """Invert a background where a digit is white.

    Shape:
        uint8 ``[N, 3, H, W]``, uint8 ``[N, 1, H, W]`` -> uint8 ``[N, 3, H, W]``

    Example:
        >>> blend(torch.tensor([[[[200]]]]).byte(), torch.tensor([[[[255]]]]).byte()).item()
        55
    """
    return (background.short() - digit.short()).abs().byte()
