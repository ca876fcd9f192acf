"""``folder``: one's own images, flat or in one sub-directory for each class.

They are divided 8 : 1 : 1, unless they come as ``train``, ``test`` and perhaps ``val``. Wherever a
directory may stand, a zip archive of it may.
"""

import zipfile
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from flowbench.config import Data
from flowbench.data.decode import SUFFIXES, File
from flowbench.data.gather import gather_parts
from flowbench.data.images import Images, Splits
from flowbench.data.split import split
from flowbench.errors import UsageError

_DIVIDED, _HELD_OUT = (8, 1, 1), (9, 1)
_LAYOUT = "valid are images in it, or in its sub-directories, one for each class, but not both"
_GIVEN = "train", "val", "test"


def read(data: Data) -> Splits:
    """80/10/10 % of the images in ``data.root``, stratified by class, or the parts as they come.

    Where there is a ``train`` and a ``test`` but no ``val``, a tenth of the first is in its place.
    The split follows from the sorted names alone: no seed moves it, nor a file that is skipped.

    Raises:
        UsageError: No such directory, none of the layouts, too few images, or one that cannot be
            used while ``data.skip_unreadable`` is off.
    """
    root = Path(data.root)
    if given := _parts(root):
        found = {part: _scan(place) for part, place in given.items()}
        names = _classes(found["train"])
        for part, files in found.items():
            if _classes(files) != names:
                expected, has = (", ".join(own) or "none" for own in (names, _classes(files)))
                of = f"{given[part]}: expected the classes of {given['train']}"
                raise UsageError(f"{of}, {expected}, but it has {has}")
        parts = [list(found[part].items()) for part in found]
        if "val" not in found:
            known, rest = parts
            chosen = split(_labels((name for name, _ in known), names), _HELD_OUT)
            parts = [[known[index] for index in own.tolist()] for own in chosen] + [rest]
    else:
        images = list(_scan(root).items())
        names = _classes(name for name, _ in images)
        chosen = split(_labels((name for name, _ in images), names), _DIVIDED)
        parts = [[images[index] for index in own.tolist()] for own in chosen]

    gathered = gather_parts([[file for _, file in part] for part in parts], data)
    counts = [len(pixels) for pixels, _ in gathered]
    if sum(counts) < sum(_DIVIDED) or not all(counts):
        needed = f"at least {sum(_DIVIDED)}, with some in each of the three parts"
        raise UsageError(f"{root}: expected {needed}, but {sum(counts)} images can be decoded")
    labels = [_labels((name for name, _ in part), names) for part in parts]
    train, val, test = (
        Images(pixels, own[readable] if names else None)
        for (pixels, readable), own in zip(gathered, labels, strict=True)
    )
    return Splits(train, val, test, classes=len(names), class_names=tuple(names))


def _parts(root: Path) -> dict[str, Path]:
    """Where the parts are, if ``root`` has directories and archives of parts alone.

    Raises:
        UsageError: One of the two that are needed is missing.
    """
    if not root.is_dir():
        raise UsageError(f"data.root = {str(root)!r} is not a directory: {_LAYOUT}")
    places = [path for path in root.iterdir() if path.is_dir() or path.suffix == ".zip"]
    inside = {path.stem: path for path in places if not path.name.startswith(".")}
    if not inside or not inside.keys() <= set(_GIVEN):
        return {}
    for part in ("train", "test"):
        if part not in inside:
            has = ", ".join(sorted(path.name for path in inside.values()))
            raise UsageError(
                f"data.root = {str(root)!r} has {has}, but no {part}: valid are train and test, "
                f"with or without val, each a directory or a zip archive"
            )
    return {part: inside[part] for part in _GIVEN if part in inside}


def _classes(names: Iterable[str]) -> list[str]:
    """Sorted names of the sub-directories; a single one, often a way of packing, is no class."""
    parents = sorted({name.rpartition("/")[0] for name in names} - {""})
    return parents if len(parents) > 1 else []


def _labels(names: Iterable[str], classes: list[str]) -> Tensor:
    number = {name: label for label, name in enumerate(classes)}
    return torch.tensor([number.get(name.rpartition("/")[0], 0) for name in names])


def _scan(place: Path) -> dict[str, File]:
    """The images by their names within ``place``, sorted; all of them there or a level below."""
    files, folders = _archive(place) if place.suffix == ".zip" else _directory(place)
    flat, nested, deep = (
        [name for name in files if min(name.count("/"), 2) == n] for n in range(3)
    )
    shown = repr(str(place))
    if sum(map(bool, (flat, nested, deep))) > 1 or deep:
        examples = ", ".join(str(files[found[0]]) for found in (flat, nested, deep) if found)
        raise UsageError(f"{shown} has images in {examples}: {_LAYOUT}")
    if len(files) < sum(_DIVIDED):
        expected = f"expected at least {sum(_DIVIDED)} ({' '.join(SUFFIXES)}), {_LAYOUT}"
        raise UsageError(f"{shown} has {len(files)} images: {expected}")
    filled = _classes(files)
    if filled and (empty := sorted(folders - set(filled))):
        raise UsageError(f"{shown}: its class {empty[0]} has no images; remove it or fill it")
    return files


def _directory(place: Path) -> tuple[dict[str, File], set[str]]:
    """The images up to two levels below a directory, and its sub-directories."""
    found = [path for pattern in ("*", "*/*", "*/*/*") for path in place.glob(pattern)]
    names = {path.relative_to(place).as_posix(): path for path in found}
    folders = {path.name for path in place.iterdir() if path.is_dir() and path.name[0] != "."}
    return {name: names[name] for name in sorted(names) if _is_image(name)}, folders


def _archive(place: Path) -> tuple[dict[str, File], set[str]]:
    """The images in a zip archive, and its directories."""
    try:
        archive = zipfile.ZipFile(place)
    except (OSError, zipfile.BadZipFile) as error:
        raise UsageError(f"{place} cannot be read as a zip archive: {error}") from error
    top = f"{place.stem}/"  # where the directory itself was packed, not only what is in it
    names = {name.removeprefix(top): zipfile.Path(archive, name) for name in archive.namelist()}
    folders = {name.split("/")[0] for name in names if "/" in name and name[0] not in "._"}
    return {name: names[name] for name in sorted(names) if _is_image(name)}, folders


def _is_image(name: str) -> bool:
    """Whether a file is named like an image, and nothing on its way is hidden (``._photo.jpg``)."""
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and name.lower().endswith(SUFFIXES)
