"""The data as Lightning wants them; the only file of the package that imports it."""

from functools import cached_property

from lightning.pytorch import LightningDataModule

from flowbench.config import Data, check
from flowbench.data import Batches, Images, Splits, load, prepare


class FlowData(LightningDataModule):
    """One data set and its batches, split over the devices of the trainer.

    Args:
        data: Which images, and how many in a batch.
        seed: Decides the order of the training batches.

    Example:
        >>> FlowData(Data(), seed=0).splits.shape
        (1, 28, 28)
    """

    def __init__(self, data: Data, seed: int) -> None:
        super().__init__()
        self.data = data
        self.seed = seed

    @cached_property
    def splits(self) -> Splits:
        """The images, read at the first use and once only.

        Raises:
            UsageError: The files are missing or broken, or hold less than ``data.train_images``.
        """
        splits, wanted = load(self.data), self.data.train_images
        valid = f"at most {len(splits.train)}, the training images of {self.data.name}, or null"
        check((wanted or 0) <= len(splits.train), "data.train_images", wanted, valid)
        return splits

    @property
    def train(self) -> Images:
        """The images that the flow is fitted to: those for training, or the first of them."""
        every, most = self.splits.train, self.data.train_images
        return Images(every.pixels[:most], None if every.labels is None else every.labels[:most])

    def prepare_data(self) -> None:
        """Download what is missing; Lightning calls this in one process of each node."""
        prepare(self.data)

    def setup(self, stage: str) -> None:
        """Read the images."""
        _ = self.splits

    def train_dataloader(self) -> Batches:
        """Whole batches in an order of each epoch's own, or always the same to overfit."""
        overfit = getattr(self.trainer, "overfit_batches", 0) > 0
        return self._batches(self.train, shuffle=not overfit)

    def val_dataloader(self) -> Batches:
        """Every image for validation once."""
        return self._batches(self.splits.val, shuffle=False)

    def _batches(self, images: Images, shuffle: bool) -> Batches:
        rank = getattr(self.trainer, "global_rank", 0)
        world = getattr(self.trainer, "world_size", 1)
        device = self.trainer.strategy.root_device if self.trainer else None
        return Batches(images, self.data.batch, self.seed, shuffle, rank, world, device)
