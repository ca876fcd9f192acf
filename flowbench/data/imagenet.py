"""``imagenet-old-32`` and its like: the two downsampled ImageNets, which are different images.

Old: PNGs without labels (van den Oord et al., 2016), the set of most published likelihoods; no
longer published by its authors. New: arrays with 1,000 classes (Chrabaszcz et al., 2017), resized
otherwise: its bits per dimension are lower.
"""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowbench.config import Data
from flowbench.data.gather import allocate, gather_parts, kept
from flowbench.data.images import Images, Splits
from flowbench.data.split import split
from flowbench.errors import UsageError

CLASSES = 1000
BATCHES = 10
_HELD_OUT = (99, 1)


def read(data: Data) -> Splits:
    """A hundredth of the training images for validation; the official validation is the test.

    Raises:
        UsageError: Files are missing or broken; none can be downloaded without an account.
    """
    _, kind, size = data.name.split("-")
    return (_old if kind == "old" else _new)(data, int(size))


def _old(data: Data, size: int) -> Splits:
    folders = f"train_{size}x{size}", f"valid_{size}x{size}"
    root = _find(data, [f"{name}/*.png" for name in folders])
    known, test = (sorted((root / name).glob("*.png")) for name in folders)
    chosen = split(torch.zeros(len(known), dtype=torch.int64), _HELD_OUT)
    parts = [[known[index] for index in part.sort().values.tolist()] for part in chosen]
    own = Data(data.name, str(root), size=size, channels=3)
    images = [Images(pixels, None) for pixels, _ in gather_parts([*parts, test], own)]
    return Splits(images[0], images[1], images[2], classes=0)


def _new(data: Data, size: int) -> Splits:
    names = [f"train_data_batch_{number}.npz" for number in range(1, BATCHES + 1)]
    root = _find(data, [*names, "val_data.npz"])
    known = _join(root, names, size)
    test = _join(root, ["val_data.npz"], size)
    assert known.labels is not None
    # The batches are mixed: the last images are as good as any, and a slice takes no memory.
    cut = len(known) - max(1, len(known) * _HELD_OUT[1] // sum(_HELD_OUT))
    train, val = (
        Images(known.pixels[part], known.labels[part]) for part in (slice(cut), slice(cut, None))
    )
    return Splits(train, val, test, classes=CLASSES)


def _find(data: Data, patterns: Sequence[str]) -> Path:
    """The directory that has all the files."""
    missing = {place: [p for p in patterns if not any(place.glob(p))] for place in data.places}
    for place, names in missing.items():
        if not names:
            return place
    place, names = min(missing.items(), key=lambda item: len(item[1]))
    raise UsageError(
        f"data.name = {data.name!r} needs {', '.join(names)} in {place}: the unpacked archive that "
        f"image-net.org lists; data.name = 'digits-on-photos' needs no files"
    )


def _join(root: Path, names: Sequence[str], size: int) -> Images:
    """Put the arrays of several files into one, a file at a time.

    Files have ``data``, bytes ``[n, 3 * size * size]``, and ``labels`` from 1 to 1,000.
    """
    labels = torch.cat([_labels(root / name) for name in names])

    def fill() -> Tensor:
        store, begin = allocate((len(labels), 3, size, size)), 0
        for name in names:
            own = _array(root / name, "data")
            if own.dtype != np.uint8 or own.ndim != 2 or own.shape[1] != 3 * size**2:
                expected = f"expected data of bytes [n, {3 * size**2}]"
                raise UsageError(f"{root / name}: {expected}, not {own.dtype} {own.shape}")
            if begin + len(own) > len(labels):
                raise UsageError(f"{root / name}: expected as many labels as images")
            store[begin : begin + len(own)] = own.reshape(-1, 3, size, size)
            begin += len(own)
        return torch.from_numpy(store)

    sizes = [(root / name).stat().st_size for name in names]
    return Images(kept(root, f"{size} {list(names)} {sizes}", fill), labels)


def _labels(path: Path) -> Tensor:
    labels = _array(path, "labels").astype(np.int64)
    if labels.ndim != 1 or len(labels) == 0 or labels.min() < 1 or labels.max() > CLASSES:
        raise UsageError(f"{path}: expected labels from 1 to {CLASSES}")
    return torch.from_numpy(labels) - 1


def _array(path: Path, name: str) -> np.ndarray[Any, Any]:
    try:
        with np.load(path) as file:
            found: np.ndarray[Any, Any] = file[name]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        expected = "expected a NumPy archive of data and labels"
        raise UsageError(f"{path}: {expected}, but it cannot be read: {error}") from error
    return found
