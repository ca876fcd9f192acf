"""The images: read once, split into fixed parts, cut into batches."""

from collections.abc import Callable

from flowbench.config import Data
from flowbench.data import celeba, colour, folder, imagenet, mnist, mnist5k, photos
from flowbench.data.batches import Batch, Batches
from flowbench.data.images import Images, Splits

__all__ = ["READERS", "Batch", "Batches", "Images", "Splits", "load", "prepare"]

READERS: dict[str, Callable[[Data], Splits]] = {
    "mnist-5k": mnist5k.read,
    "mnist": mnist.read,
    "fashion-mnist": mnist.read,
    "kmnist": mnist.read,
    "digits-on-photos": photos.read_digits,
    "photo-crops": photos.read_crops,
    "cifar10": colour.read,
    "cifar100": colour.read,
    "svhn": colour.read,
    "celeba": celeba.read,
    "imagenet-old-32": imagenet.read,
    "imagenet-old-64": imagenet.read,
    "imagenet-new-32": imagenet.read,
    "imagenet-new-64": imagenet.read,
    "folder": folder.read,
}
"""What each ``data.name`` is read by. Nothing falls back from one set to another."""


def load(data: Data) -> Splits:
    """The images of ``data.name`` in their three parts, the same for every seed.

    Raises:
        UsageError: The files are missing or broken; the message says which, and what is expected.

    Example:
        >>> len(load(Data("mnist-5k")).train)
        4000
    """
    return READERS[data.name](data)


def prepare(data: Data) -> None:
    """Download the files of ``data.name`` unless they are there.

    Raises:
        UsageError: They cannot be downloaded; the message says where to put them.
    """
    if data.name in mnist.TORCHVISION:
        mnist.find(data)
    elif data.name in colour.CLASSES:
        colour.prepare(data)
