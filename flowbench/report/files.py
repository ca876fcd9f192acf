"""The recorded runs as files: two CSV tables and an archive of samples, exact both ways."""

import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from flowbench.errors import UsageError

RUNS, HISTORY, SAMPLES = "runs.csv", "history.csv", "samples.npz"

LOSSES = [f"{stage}/{term}" for stage in ("train", "val", "test") for term in ("loss", "bpd")] + [
    f"{stage}/{term}" for stage in ("train", "val", "test") for term in ("prior", "logdet")
]
# Read as text even where they look like numbers: the commit 12e4567, the version 2.10.
TEXT = ["run_id", "name", "scale", "status", "transform", "data", "noise"]
TEXT += ["device", "torch", "lightning", "flowbench", "commit", "started"]
NUMBERS = ["bins", "blocks", "layers", "width", "patch", "seed", "epochs", "batch", "parameters"]
NUMBERS += [*LOSSES, "seconds_per_epoch", "images_per_second", "seconds", "threads"]
KNOWN = [*TEXT, *NUMBERS]
"""The columns of the table of runs; others may follow, and any but the indispensable may miss."""


class Recorded(NamedTuple):
    """What a report rests on."""

    runs: pd.DataFrame
    """A row a run: its settings, its final losses, its cost, its machine."""
    history: pd.DataFrame
    """A row a run and epoch."""
    samples: dict[str, np.ndarray]
    """For each transform the first draws of its best run, ``[rows, classes, H, W, C]``, uint8."""


def complete(recorded: Recorded) -> Recorded:
    """The same tables with every known column, empty where nothing was recorded.

    Raises:
        UsageError: A table lacks a column without which nothing can be said.
    """
    runs, history, samples = recorded
    for name, table, needed in (
        (RUNS, runs, ["run_id", "status", "transform", "seed"]),
        (HISTORY, history, ["run_id", "epoch"]),
    ):
        if missing := [column for column in needed if column not in table]:
            raise UsageError(f"{name} lacks {', '.join(missing)}: it needs {', '.join(needed)}")
    metrics = [name for name in LOSSES if not name.startswith("test/")]
    runs = runs.reindex(columns=_with(runs.columns, KNOWN))
    history = history.reindex(columns=_with(history.columns, [*metrics, "seconds_per_epoch"]))
    return Recorded(runs, history, samples)


def _with(columns: Iterable[str], wanted: list[str]) -> list[str]:
    return list(dict.fromkeys([*columns, *wanted]))


def write(recorded: Recorded, directory: Path) -> None:
    """Write the three files, from which ``load`` and every figure can be rebuilt."""
    recorded.runs.to_csv(directory / RUNS, index=False)
    recorded.history.to_csv(directory / HISTORY, index=False)
    np.savez_compressed(directory / SAMPLES, allow_pickle=False, **recorded.samples)


def load(directory: Path) -> Recorded:
    """Read the three files back, every digit of them.

    Raises:
        UsageError: A file is missing or lacks an indispensable column.
    """
    try:
        runs, history = (_read(directory / name) for name in (RUNS, HISTORY))
        with np.load(directory / SAMPLES) as archive:
            samples = dict(archive)
    except FileNotFoundError as error:
        wanted = f"{RUNS}, {HISTORY} and {SAMPLES}"
        raise UsageError(f"{error.filename} does not exist: a report has {wanted}") from error
    return complete(Recorded(runs, history, samples))


def _read(path: Path) -> pd.DataFrame:
    # Only an empty cell is missing: a name may well be "None" or "NA".
    types = dict.fromkeys(TEXT, "str")
    try:
        return pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    except ValueError as error:
        raise UsageError(f"{path} is not a table of runs: {error}".replace("\n", " ")) from error


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """A directory to fill; its files replace those of ``out`` only once all of them are written.

    Raises:
        UsageError: ``out`` cannot be written to.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".report-", dir=out) as staging:
            yield Path(staging)
            for path in sorted(Path(staging).iterdir()):
                path.replace(out / path.name)
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror or error}") from error
