"""``celeba``: 202,599 faces in colour, without labels, as their authors publish them."""

from pathlib import Path

import pandas as pd

from flowbench.config import Data
from flowbench.data.gather import gather_parts
from flowbench.data.images import Images, Splits
from flowbench.errors import UsageError

FOLDER, PARTITION = "img_align_celeba", "list_eval_partition.txt"


def read(data: Data) -> Splits:
    """The official three parts, the middle 178 x 178 pixels resized to ``data.size``.

    Raises:
        UsageError: The images or the list of the parts are missing or broken. Neither can be
            downloaded without a browser.
    """
    root = next((place for place in data.places if _is(place)), None)
    if root is None:
        raise UsageError(
            f"data.name = 'celeba' needs {FOLDER}/ (the archive {FOLDER}.zip, unpacked) and "
            f"{PARTITION} in {data.places[0]}: they are on the page of CelebA, for a "
            f"browser; data.name = 'digits-on-photos' needs no files"
        )
    listed = root / PARTITION
    try:
        table = pd.read_csv(listed, sep=r"\s+", header=None, names=["file", "part"])
        parts = [table.loc[table["part"] == part, "file"].tolist() for part in range(3)]
    except (ValueError, OSError) as error:
        raise UsageError(f"{listed}: expected lines of a file and 0, 1 or 2: {error}") from error
    if not all(parts):
        raise UsageError(f"{listed}: expected images of each of the parts 0, 1 and 2")
    paths = [[root / FOLDER / name for name in names] for names in parts]
    train, val, test = (Images(pixels, None) for pixels, _ in gather_parts(paths, data))
    return Splits(train, val, test, classes=0)


def _is(directory: Path) -> bool:
    return (directory / FOLDER).is_dir() and (directory / PARTITION).is_file()
