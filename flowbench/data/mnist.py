"""``mnist``, ``fashion-mnist``, ``kmnist``: 60,000 + 10,000 grey images of 28 x 28 pixels each.

The only file that imports torchvision, and only to download.
"""

import contextlib
import hashlib
import sys
import tempfile
from pathlib import Path

import torch

from flowbench.config import Data
from flowbench.data import idx
from flowbench.data.images import Images, Splits
from flowbench.data.split import split
from flowbench.errors import UsageError, last_line

CLASSES = 10
FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "kmnist": "KMNIST"}
"""torchvision's name of each set: of its class, and of the directory it downloads to."""

_DIGITS = "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5"
"""SHA-256 of MNIST's test labels, by which its files are known whatever directory they lie in."""


def read(data: Data) -> Splits:
    """55,000 images for training, 5,000 of the same file for validation, 10,000 for the test.

    Raises:
        UsageError: The files are missing and cannot be downloaded, or they are not what they
            should be.
    """
    paths = find(data)
    known, test = _pair(*paths[:2]), _pair(*paths[2:])
    assert known.labels is not None
    assert test.labels is not None
    content = hashlib.sha256(test.labels.byte().numpy().tobytes()).hexdigest()
    if data.name != "mnist" and content == _DIGITS:
        raise UsageError(f"{paths[3]}: expected the labels of {data.name}, but these are mnist's")
    if known.shape != test.shape:
        sizes = f"{known.shape[1:]} in {paths[0]}, {test.shape[1:]} in {paths[2]}"
        raise UsageError(f"images for training and for the test must have one size, not {sizes}")
    if len(known) < 12:
        raise UsageError(f"{paths[0]}: expected at least 12 images, one in 12 is for validation")
    # In the order of the file, which is mixed already: a copy in order is twice as fast.
    train, val = (known.take(part.sort().values) for part in split(known.labels, (11, 1)))
    return Splits(train, val, test, classes=CLASSES)


def find(data: Data) -> list[Path]:
    """The four files, in the order of ``FILES``, downloaded if need be.

    They are looked for, raw or as ``.gz``, in ``root/<name>``, in torchvision's directory below
    root, and in root itself. Directories that lack one of the four are passed over.

    Raises:
        UsageError: They are in none of these and cannot be downloaded.
    """
    if paths := there(data):
        return paths
    root, name = Path(data.root), data.name
    try:
        _download(root, name)
    except (RuntimeError, OSError) as error:
        raise UsageError(
            f"data.name = {name!r} needs {', '.join(FILES)} (raw or .gz) in {root / name}, and "
            f"downloading them failed ({last_line(error)}); data.name = 'mnist-5k' needs no files"
        ) from error
    return there(data)


def there(data: Data) -> list[Path]:
    """The four files where they are found without downloading; none unless all are there."""
    own, root = data.places
    places = (own, root / TORCHVISION[data.name] / "raw", root)
    return next(filter(None, map(_complete, places)), [])


def _complete(directory: Path) -> list[Path]:
    """Paths of the four files in ``directory``, or none unless all are there."""
    choices = [(directory / file, directory / f"{file}.gz") for file in FILES]
    found = [next(filter(Path.is_file, pair), None) for pair in choices]
    return [path for path in found if path] if all(found) else []


def _pair(images: Path, labels: Path) -> Images:
    pixels, classes = idx.read(images, dims=3), idx.read(labels, dims=1)
    if len(classes) != len(pixels):
        expected = f"expected a label for each of the {len(pixels)} images of {images.name}"
        raise UsageError(f"{labels}: {expected}, but it has {len(classes)}")
    if classes.max() >= CLASSES:
        raise UsageError(f"{labels}: expected labels 0 to {CLASSES - 1}, but found {classes.max()}")
    return Images(pixels.unsqueeze(1), classes.to(torch.int64))


def _download(root: Path, name: str) -> None:
    """Fetch and verify with torchvision's checksums, into torchvision's directory below root.

    By way of a temporary directory: an interrupted download leaves nothing that looks like data,
    and processes that download at the same time cannot spoil each other's files.
    """
    from torchvision import datasets  # two seconds that only a download is worth

    root.mkdir(parents=True, exist_ok=True)
    folder = TORCHVISION[name]
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as temporary:
        with contextlib.redirect_stdout(sys.stderr):  # torchvision prints; stdout is for results
            getattr(datasets, folder)(temporary, download=True)
        (root / folder / "raw").mkdir(parents=True, exist_ok=True)
        for file in FILES:
            (Path(temporary) / folder / "raw" / file).replace(root / folder / "raw" / file)
