"""``folder``: one's own images, flat or in one sub-directory for each class.

A single sub-directory makes no classes.
"""

from itertools import accumulate, pairwise
from pathlib import Path

import torch

from flowbench.config import Data
from flowbench.data.decode import SUFFIXES
from flowbench.data.gather import gather
from flowbench.data.images import Images, Splits
from flowbench.data.split import split
from flowbench.errors import UsageError

_PARTS = (8, 1, 1)
_LAYOUT = "valid are images in it, or in its sub-directories, one for each class, but not both"


def read(data: Data) -> Splits:
    """80/10/10 % of the images in ``data.root``, stratified by class.

    The split follows from the sorted names alone: no seed moves it, nor a file that is skipped.

    Raises:
        UsageError: No such directory, not one of the two layouts, too few images, or one that
            cannot be decoded while ``data.skip_unreadable`` is off.
    """
    root = Path(data.root)
    paths = _scan(root)
    names = sorted({path.parent.name for path in paths if path.parent != root})
    nested = len(names) > 1  # the only directory is how sets without labels are often packed
    names = names if nested else []
    number = {name: label for label, name in enumerate(names)}
    labels = torch.tensor([number.get(path.parent.name, 0) for path in paths])

    parts = split(labels, _PARTS)
    order = torch.cat(parts)
    pixels, readable = gather([paths[index] for index in order.tolist()], data)
    ends = [int(readable[:end].sum()) for end in accumulate(map(len, parts), initial=0)]
    if len(pixels) < sum(_PARTS) or len(set(ends)) < len(ends):
        needed = f"at least {sum(_PARTS)}, with some in each of the three parts"
        raise UsageError(f"{root}: expected {needed}, but {len(pixels)} images can be decoded")
    labels = labels[order][readable]
    # Slices, not indices: they stay in the file where the images are mapped from one.
    train, val, test = (
        Images(pixels[start:end], labels[start:end] if nested else None)
        for start, end in pairwise(ends)
    )
    return Splits(train, val, test, classes=len(names), class_names=tuple(names))


def _scan(root: Path) -> list[Path]:
    """Paths of the images, sorted; all of them directly in ``root``, or all one level below."""
    if not root.is_dir():
        raise UsageError(f"data.root = {str(root)!r} is not a directory: {_LAYOUT}")
    flat, nested, deep = (_images(root, pattern) for pattern in ("*", "*/*", "*/*/*"))
    if sum(map(bool, (flat, nested, deep))) > 1 or deep:
        examples = ", ".join(str(found[0]) for found in (flat, nested, deep) if found)
        raise UsageError(f"data.root = {str(root)!r} has images in {examples}: {_LAYOUT}")
    paths = flat or nested
    if len(paths) < sum(_PARTS):
        suffixes = " ".join(SUFFIXES)
        expected = f"expected at least {sum(_PARTS)} ({suffixes}), {_LAYOUT}"
        raise UsageError(f"data.root = {str(root)!r} has {len(paths)} images: {expected}")
    return paths


def _images(root: Path, pattern: str) -> list[Path]:
    """Files named like images that match, nothing hidden (``.git``, ``._photo.jpg``)."""
    found = (path.relative_to(root) for path in root.glob(pattern))
    named = (path for path in found if path.suffix.lower() in SUFFIXES)
    visible = (path for path in named if not any(part.startswith(".") for part in path.parts))
    return [root / path for path in sorted(visible, key=Path.as_posix)]
