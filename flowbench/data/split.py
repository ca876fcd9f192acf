"""The one way images are split into parts: fixed, stratified and in proportion; pure torch."""

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor


def split(labels: Tensor, parts: Sequence[int]) -> list[Tensor]:
    """Indices of each part, every class divided in the proportions of ``parts``.

    The shuffled images are lined up class by class and dealt like cards to ``sum(parts)`` seats, of
    which each part owns as many as its proportion. Hence two seats never differ by more than one
    image, nor by more than one of any class, and every part has images once N >= ``sum(parts)``.

    Args:
        labels: Class of each image; all equal where there are no classes.
        parts: Proportions, positive integers: (8, 1, 1) is 80/10/10 %.

    Shape:
        labels ``[N]`` -> for each part an int64 ``[n]``, in shuffled order so that the beginning of
        a part shows every class

    Example:
        >>> [len(part) for part in split(torch.arange(50) % 5, (8, 1, 1))]
        [40, 5, 5]
    """
    # Sorting raw bits, not `permutation`: NumPy promises that the stream of a bit generator never
    # changes, and a split that moved with a release would leak test images into training.
    order = torch.from_numpy(np.random.PCG64(0).random_raw(len(labels)).argsort(kind="stable"))
    lined_up = order[labels[order].argsort(stable=True)]
    seat = torch.empty_like(order)
    seat[lined_up] = torch.arange(len(order)) % sum(parts)
    owner = torch.bucketize(seat, torch.tensor(list(accumulate(parts))), right=True)
    return [order[owner[order] == part] for part in range(len(parts))]
