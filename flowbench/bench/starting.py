"""What everyone waits for: the command line's help, and a data set of MNIST's size."""

import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from flowbench.bench.measure import Work, seconds, spread
from flowbench.config import Data
from flowbench.data import load
from flowbench.data.mnist import CLASSES, FILES

SIDE, TRAIN, TEST = 28, 60_000, 10_000
PYTHON = "python that does nothing"


def rows(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure; a row for an idle Python, for the help, and for reading and dealing the images."""
    with tempfile.TemporaryDirectory() as directory:
        write(Path(directory))
        cases: dict[str, Work] = {
            PYTHON: partial(_python, "-c", "pass"),
            "flowbench --help": partial(_python, "-m", "flowbench", "--help"),
            f"load {TRAIN + TEST:,} images": partial(load, Data("mnist", root=directory)),
        }
        taken = seconds(cases, repeats)
    for name, times in taken.items():
        yield {"case": name, "setting": "start", **spread(times)}


def write(directory: Path) -> None:
    """Write the four files of a data set like MNIST, of random bytes."""
    generator = np.random.default_rng(0)
    for file in FILES:
        count = TRAIN if file.startswith("train") else TEST
        images = "images" in file
        shape = (count, SIDE, SIDE) if images else (count,)
        values = generator.integers(0, 256 if images else CLASSES, shape, dtype=np.uint8)
        header = bytes([0, 0, 8, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)
        (directory / file).write_bytes(header + values.tobytes())


def _python(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
