"""A loader that cuts batches straight out of images in memory, and can be resumed; pure torch."""

import math
from collections.abc import Iterator
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from flowbench.data.images import Images
from flowbench.errors import UsageError

SHARE = 4
"""A GPU holds images that take at most one part in so many of its free memory."""


class Batch(NamedTuple):
    """Some of many images.

    Attributes:
        pixels: uint8 ``[B, C, H, W]``.
        labels: int64 ``[B]``; -1 where there are none.
        ids: int64 ``[B]``: which of the images they are.
    """

    pixels: Tensor
    labels: Tensor
    ids: Tensor


class Batches:
    """The batches of one device.

    Indexing bytes in memory is faster than any worker process could hand them over, and leaves the
    global random state alone, so that how data are read never changes what is trained. A GPU that
    has room for all images gets them once, and gathers its batches itself.

    For training (``shuffle``) every device gets the same number of whole batches and the rest of
    the epoch's order is left out; a share smaller than one batch is one small batch. For evaluation
    every image is in exactly one batch of one device. Its batches are of nearly equal size, at most
    ``batch``, since all devices then take equally many steps without padding with repeats.

    Args:
        images: The images of all devices.
        batch: Images in a batch, on each device.
        seed: Decides, with the epoch, the order.
        shuffle: A new order in each epoch, for training; otherwise the order of the images.
        rank: Number of this device, in ``[0, world)``.
        world: Number of devices.
        device: The device. Batches are there if it is a GPU with room for all images; otherwise on
            the CPU, and in pinned memory where there is a GPU.

    Raises:
        UsageError: There are too few images for each device to have one in every batch; or, at the
            first batch, an epoch is resumed with other images, another batch, seed or world.

    Example:
        >>> images = Images(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), None)
        >>> [len(batch.ids) for batch in Batches(images, batch=4, seed=0, shuffle=True)]
        [4, 4]
        >>> [len(batch.ids) for batch in Batches(images, batch=4, seed=0, shuffle=False)]
        [4, 3, 3]
    """

    batch_sampler = None  # Lightning reads it of every loader that has a sampler

    def __init__(
        self,
        images: Images,
        batch: int,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world: int = 1,
        device: torch.device | None = None,
    ) -> None:
        count = len(images)
        labels = torch.full((count,), -1) if images.labels is None else images.labels
        home = device if device and _has_room(device, images) else torch.device("cpu")
        self._pixels, self._labels = images.pixels.to(home), labels.to(home)
        # Lightning calls its set_epoch. It adds the epoch to the seed: seeds are spread, or seed 0
        # would see in its second epoch what seed 1 sees in its first.
        self.sampler: DistributedSampler[int] = DistributedSampler(
            cast("Dataset[int]", range(count)), world, rank, shuffle, seed << 20, drop_last=shuffle
        )
        share = len(self.sampler)
        if shuffle:
            self._length = max(1, share // batch)
            self._used = min(share, self._length * batch)
        else:
            self._length = math.ceil(share / batch)
            self._used = len(range(rank, count, world))  # the sampler pads shares with repeats
        if count // world < self._length:
            raise UsageError(
                f"data.batch = {batch}: {count} images do not fill batches on {world} devices; "
                f"valid: a batch of at least 2 and an image for each device"
            )
        self._order = {"images": count, "batch": batch, "seed": seed, "world": world}
        self._position = {"epoch": 0, "batches": 0}
        self._resumed: dict[str, int] | None = None
        self._pinned = torch.cuda.is_available()

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        # A generator, because Lightning asks for the iterator before it sets the epoch: all of this
        # waits for the first batch.
        epoch = self.sampler.epoch
        start = self._start(epoch)
        order = torch.tensor(list(self.sampler), pin_memory=self._pinned)[: self._used]
        order = order.to(self._labels.device)
        for number, index in enumerate(order.tensor_split(len(self))):
            if number >= start:
                self._position = {"epoch": epoch, "batches": number + 1}
                yield self._take(index)

    def state_dict(self) -> dict[str, int]:
        """The epoch, its batches handed out so far, and what their order follows from."""
        return self._resumed or {**self._order, **self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Let the next iteration, if it is of the saved epoch, go on with the next batch of it."""
        self._resumed = dict(state)

    def _start(self, epoch: int) -> int:
        """Number of the first batch: above 0 only where a checkpoint was written in this epoch."""
        saved, self._resumed = self._resumed, None
        if saved is None or saved["epoch"] != epoch:
            return 0
        order = {key: saved[key] for key in self._order}
        if order != self._order:
            raise UsageError(
                f"the checkpoint was written within an epoch whose batches follow from {order}; "
                f"valid: the same, not {self._order}"
            )
        return saved["batches"]

    def _take(self, index: Tensor) -> Batch:
        return Batch(self._rows(self._pixels, index), self._rows(self._labels, index), index)

    def _rows(self, source: Tensor, index: Tensor) -> Tensor:
        """Rows of ``source``, gathered in one copy even where they have to be in pinned memory.

        On the CPU by NumPy: torch would share so small a copy among threads, and on a busy machine
        wait for them a hundred times longer than the copy takes.
        """
        if source.device.type != "cpu":
            return source[index]
        shape = (len(index), *source.shape[1:])
        rows = torch.empty(shape, dtype=source.dtype, pin_memory=self._pinned)
        # Nothing is out of range to be clipped; the default mode would make a second copy.
        np.take(source.numpy(), index.numpy(), axis=0, out=rows.numpy(), mode="clip")
        return rows


def _has_room(device: torch.device, images: Images) -> bool:
    """Whether a device is a GPU with room for the images."""
    if device.type != "cuda":
        return False
    free, _ = torch.cuda.mem_get_info(device)
    return images.pixels.nbytes <= free // SHARE
