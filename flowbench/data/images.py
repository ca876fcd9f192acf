"""Images in memory, and the three parts of a data set; pure torch."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from flowbench.schema import IMAGES, SPREAD


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size with their classes, if they have any.

    Bytes, because a quarter of the memory of floats decides whether a data set fits, and because
    dequantisation needs the 256 levels.

    Args:
        pixels: uint8 in [0, 255].
        labels: int64 class of each image, or None.

    Shape:
        pixels ``[N, C, H, W]`` with N > 0, labels ``[N]``

    Raises:
        ValueError: A tensor of another type or shape.

    Example:
        >>> len(Images(torch.zeros(5, 1, 28, 28, dtype=torch.uint8), None))
        5
    """

    pixels: Tensor
    labels: Tensor | None

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if self.pixels.dtype != torch.uint8 or len(shape) != 4 or 0 in shape:
            raise ValueError(f"pixels are uint8 [N, C, H, W], not {self.pixels.dtype} {shape}")
        if self.labels is None:
            return
        if self.labels.dtype != torch.int64 or self.labels.shape != shape[:1]:
            got = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise ValueError(f"labels of {len(self)} images are int64 [{len(self)}], not {got}")

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def take(self, index: Tensor) -> Self:
        """A copy of the images at ``index``, int64 ``[n]``."""
        labels = None if self.labels is None else self.labels[index]
        return type(self)(self.pixels.index_select(0, index), labels)  # 30 times as fast as [index]


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set: three disjoint parts, the same for every experiment whatever its seed.

    Args:
        train: What the flow is fitted to.
        val: What choices between flows are made on.
        test: What is reported.
        classes: Number of classes; labels are in ``[0, classes)``. 0 where there are no labels.
        class_names: Names of the classes in the order of the labels, where a folder gives them.

    Raises:
        ValueError: The parts do not fit together.
    """

    train: Images
    val: Images
    test: Images
    classes: int
    class_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        parts = (self.train, self.val, self.test)
        if len({part.shape for part in parts}) != 1:
            raise ValueError(f"parts differ in shape: {', '.join(str(p.shape) for p in parts)}")
        if any((part.labels is not None) != (self.classes > 0) for part in parts):
            raise ValueError(f"all parts have labels or none has, and classes is {self.classes}")
        ends = [end for p in parts if p.labels is not None for end in p.labels.aminmax()]
        if any(not 0 <= int(end) < self.classes for end in ends):
            raise ValueError(f"labels are not in [0, {self.classes}): {min(ends)} to {max(ends)}")
        if self.class_names and len(self.class_names) != self.classes:
            raise ValueError(f"{len(self.class_names)} names for {self.classes} classes")

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""
        return self.train.shape

    @property
    def tags(self) -> dict[str, str]:
        """What a record says of the images: their hash, and the spread of their pixels."""
        return {IMAGES: self.digest, SPREAD: f"{self.spread:.4f}"}

    @cached_property
    def spread(self) -> float:
        """Standard deviation of the training images' pixels, on [−1, 1]."""
        pixels = self.train.pixels.flatten(1).split(1000)
        counts = sum(torch.bincount(part.flatten(), minlength=256).double() for part in pixels)
        levels = torch.arange(256) * (2 / 255) - 1
        assert isinstance(counts, Tensor)
        share = counts / counts.sum()
        mean = (share * levels).sum()
        return float((share * (levels - mean).square()).sum().sqrt())

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of a SHA-256 of all pixels and labels: equal for equal parts."""
        total = hashlib.sha256(f"{self.shape} {self.classes}".encode())
        for part in (self.train, self.val, self.test):
            labels = [] if part.labels is None else [part.labels]
            for tensor in (part.pixels, *labels):
                total.update(f"{len(tensor)}".encode())
                total.update(tensor.contiguous().numpy().data)
        return total.hexdigest()[:16]
