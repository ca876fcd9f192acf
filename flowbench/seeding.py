"""Random numbers of images that follow from their place, not from earlier draws; pure torch."""

import math

import torch
from torch import Tensor

# SplitMix64: Steele et al., Fast Splittable Pseudorandom Number Generators (2014), with the
# multipliers of Stafford's variant 13. As signed numbers, since torch multiplies no others.
_STEP, _FIRST, _SECOND = (
    number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
)


class Noise:
    """Random numbers for some of many images: those of an image follow from place and image alone.

    They are the same in any batch, on any number of devices and after a resumption. They are made
    where ``ids`` is, by counting and mixing, so that a GPU makes its own; the uniform ones are
    the same on every device, the normal ones to rounding. Asked twice, it gives the same numbers.

    Args:
        place: Non-negative integers, such as seed and epoch; other places share nothing.
        ids: Numbers of the images.

    Shape:
        ids int64 ``[B]``

    Example:
        >>> alone = Noise(0, 7, ids=torch.tensor([3])).uniform(2)
        >>> together = Noise(0, 7, ids=torch.tensor([1, 3])).uniform(2)
        >>> bool((alone[0] == together[1]).all())
        True
    """

    def __init__(self, *place: int, ids: Tensor) -> None:
        self._images = _mix((ids + 1) * _STEP + _key(place))

    def uniform(self, *shape: int) -> Tensor:
        """Return numbers in [0, 1), multiples of 2⁻²⁴; float32 ``[B, *shape]``."""
        size = math.prod(shape)
        halves = self._words(size).view(torch.int32)[:, :size]
        return ((halves >> 8) & (2**24 - 1)).float().mul_(2**-24).reshape(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """Return numbers of a standard normal, by Box and Muller; float32 ``[B, *shape]``.

        No number is beyond ±6.8.
        """
        size = math.prod(shape)
        words = self._words(size)
        share = (words >> 32).bitwise_and_(2**32 - 1).float().add_(0.5).mul_(2**-32)
        radius = share.log_().mul_(-2).sqrt_()
        angle = words.to(torch.int32).float().mul_(2 * math.pi * 2**-32)
        both = torch.cat([radius * angle.cos(), radius * angle.sin()], 1)
        return both[:, :size].reshape(-1, *shape)

    def _words(self, count: int) -> Tensor:
        """Random bits, 64 for every two of so many numbers; int64 ``[B, ⌈count / 2⌉]``."""
        counter = torch.arange(1, math.ceil(count / 2) + 1, device=self._images.device)
        return _mix(self._images[:, None] + counter * _STEP)


def _key(place: tuple[int, ...]) -> int:
    """Mix the integers of a place into one of 64 bits, in the same way as ``_mix``."""
    key = 0
    for number in (len(place), *place):
        key = (key + (number + 1) * _STEP) % 2**64
        for bits, factor in ((30, _FIRST), (27, _SECOND), (31, 1)):
            key = (key ^ key >> bits) * factor % 2**64
    return key if key < 2**63 else key - 2**64


def _mix(x: Tensor) -> Tensor:
    """Mix the bits of each number, one to one."""
    x = _folded(x, 30).mul_(_FIRST)
    x = _folded(x, 27).mul_(_SECOND)
    return _folded(x, 31)


def _folded(x: Tensor, bits: int) -> Tensor:
    # torch's shift repeats the sign: what it shifts in is taken off.
    return (x >> bits).bitwise_and_(2 ** (64 - bits) - 1).bitwise_xor_(x)
