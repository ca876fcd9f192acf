"""``cifar10``, ``cifar100``, ``svhn``: labelled colour images of 32 x 32 pixels.

torchvision downloads their archives, checks them and reads them.
"""

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flowbench.atomic import locked
from flowbench.config import Data
from flowbench.data.images import Images, Splits
from flowbench.data.split import split
from flowbench.errors import UsageError, last_line

CLASSES = {"cifar10": 10, "cifar100": 100, "svhn": 10}
"""The sets and their number of classes."""


def read(data: Data) -> Splits:
    """Nine tenths of the official training images, the others for validation, the official test.

    Raises:
        UsageError: The files are missing and cannot be downloaded, or not the official ones.
    """
    known, test = (_images(opened) for opened in find(data))
    assert known.labels is not None
    train, val = (known.take(part.sort().values) for part in split(known.labels, (9, 1)))
    return Splits(train, val, test, classes=CLASSES[data.name])


def prepare(data: Data) -> None:
    """Download the files of ``data.name`` unless they are there; they are checked when read.

    Raises:
        UsageError: They cannot be downloaded.
    """
    names = _unpacked(_class(data.name))
    if not any(all((place / name).is_file() for name in names) for place in data.places):
        find(data)


def find(data: Data) -> tuple[Any, Any]:
    """Open the training and test images, downloaded if need be, in torchvision's classes.

    They are looked for in ``root/<name>`` and in ``root``, as archives or unpacked, and downloaded
    to the former.

    Raises:
        UsageError: They are in neither and cannot be downloaded, or an archive is not the official.
    """
    from torchvision.datasets.utils import check_integrity

    name, of, places = data.name, _class(data.name), data.places
    for place in places:
        with contextlib.suppress(RuntimeError):
            return _open(of, place, download=False)
    archives = _archives(of)
    there = [place / archive for place in places for archive in archives]
    there = [path for path in there if path.is_file()]
    for path in there:
        if not check_integrity(path, archives[path.name]):
            raise UsageError(
                f"{path}: expected the official archive of {name}, of MD5 {archives[path.name]}: "
                f"remove it, and it is downloaded again"
            )
    place = there[0].parent if there else places[0]
    try:
        with locked(place / ".lock"), contextlib.redirect_stdout(sys.stderr):
            return _open(of, place, download=True)  # an archive that is there is only unpacked
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"data.name = {name!r} needs {', '.join(archives)} in {places[0]}, and downloading "
            f"failed ({last_line(error)}); data.name = 'digits-on-photos' needs no files"
        ) from error


def _class(name: str) -> Any:
    from torchvision import datasets  # two seconds that only these sets are worth

    return {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100, "svhn": datasets.SVHN}[name]


def _open(of: Any, root: Path, download: bool) -> tuple[Any, Any]:
    if hasattr(of, "split_list"):
        return of(root, "train", download=download), of(root, "test", download=download)
    return of(root, train=True, download=download), of(root, train=False, download=download)


def _archives(of: Any) -> dict[str, str]:
    """Names of the official files and their MD5."""
    if hasattr(of, "split_list"):
        return {of.split_list[part][1]: of.split_list[part][2] for part in ("train", "test")}
    return {of.filename: of.tgz_md5}


def _unpacked(of: Any) -> list[str]:
    """Names of the files that are read."""
    if hasattr(of, "split_list"):
        return [*_archives(of)]
    return [f"{of.base_folder}/{name}" for name, _ in of.train_list + of.test_list]


def _images(opened: Any) -> Images:
    """Copy torchvision's arrays, channels last or first, to one tensor of bytes."""
    pixels = torch.from_numpy(np.ascontiguousarray(opened.data))
    if pixels.shape[-1] == 3:
        pixels = pixels.permute(0, 3, 1, 2).contiguous()
    labels = opened.targets if hasattr(opened, "targets") else opened.labels
    return Images(pixels, torch.as_tensor(labels, dtype=torch.int64))
