"""The recorded runs as files: CSV tables and an archive of samples, exact both ways."""

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
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
TEXT += ["device", "torch", "lightning", "flowbench", "commit", "started", "skipped"]
NUMBERS = [
    "bins",
    "blocks",
    "layers",
    "width",
    "patch",
    "seed",
    "epochs",
    "lr",
    "batch",
    "parameters",
]
NUMBERS += [*LOSSES, "seconds_per_epoch", "images_per_second", "seconds", "threads", "classes"]
NUMBERS += ["trial", "workers", "load"]
NUMBERS += [f"test/{name}" for name in ("draws", "bpd_se", "bpd_iw", "nll", "nll_se")]
NUMBERS += [f"bayes/{name}" for name in ("accuracy", "ece", "images")]
NUMBERS += [f"fidelity/{name}" for name in ("samples", "real", "kid_subset")]
NUMBERS += [f"patches/{name}" for name in ("ratio", "ratio_low", "ratio_high")]
KNOWN = [*TEXT, *NUMBERS]
"""The columns of the table of runs; others may follow, and any but the indispensable may miss."""
EXTRACTOR = "extractor_"
"""The column ``extractor_<suffix>`` has the hash of the weights that ``fid_<suffix>`` rests on."""

EVALUATION = {
    "patches": ["run_id", "patch", "row", "column"],
    "positions": ["run_id", "block", "position", "logdet"],
    "confusion": ["run_id", "label", "predicted", "count"],
    "calibration": ["run_id", "confidence", "accuracy", "count"],
}
"""The tables of the evaluation, and their indispensable columns."""
TIMING = "timing"
"""The table of the rounds in which another study, of times, measured flows like these."""
TABLES = {**EVALUATION, TIMING: ["run_id", "epoch", "transform", "seconds_per_epoch"]}
"""The further tables, each a file where it has rows."""
TIMED = ["run_id", "epoch", "transform", "blocks", "layers", "width", "patch", "data", "batch"]
TIMED += ["device", "threads", "torch", "scale", "started", "seconds_per_epoch", "load"]
"""What a row of ``timing`` may tell."""
PATCHES = ["bpd", "nll", "distance", "floor"]
"""What a row of ``patches`` may tell, by the run's noise and by what was evaluated."""

SEARCH = {
    "trials": ["trial", "place", "state", "retry_of", "started", "duration", "error"],
    "importances": ["objective", "parameter", "importance"],
}
"""The tables of a study's trials, kept as text, and their indispensable columns."""


class Recorded(NamedTuple):
    """What a report rests on."""

    runs: pd.DataFrame
    """A row a run: its settings, its final losses, its cost, its machine."""
    history: pd.DataFrame
    """A row a run and epoch."""
    samples: dict[str, np.ndarray]
    """For each transform the first draws of its best run, ``[rows, classes, H, W, C]``, uint8.

    Where the run has them, ``<transform>/guided`` and ``<transform>/denoised`` from the same noise,
    and ``<transform>/trajectory``: ``[blocks + 1, classes, H, W, C]``, the noise first.
    """
    evaluation: dict[str, pd.DataFrame]
    """The tables named in ``TABLES``, each empty where there is none."""
    search: Mapping[str, pd.DataFrame] = MappingProxyType({})
    """The tables named in ``SEARCH``, each empty where the study has not recorded it."""


def complete(recorded: Recorded) -> Recorded:
    """The same tables with every known column, empty where nothing was recorded.

    Raises:
        UsageError: A table lacks a column without which nothing can be said.
    """
    runs, history, samples, evaluation, search = recorded
    evaluation = {
        name: evaluation.get(name, pd.DataFrame(columns=columns))
        for name, columns in TABLES.items()
    }
    search = {
        name: search.get(name, pd.DataFrame(columns=columns)) for name, columns in SEARCH.items()
    }
    for name, table, needed in (
        (RUNS, runs, ["run_id", "status", "transform", "seed"]),
        (HISTORY, history, ["run_id", "epoch"]),
        *((f"{name}.csv", table, TABLES[name]) for name, table in evaluation.items()),
        *((f"{name}.csv", table, SEARCH[name]) for name, table in search.items()),
    ):
        if missing := [column for column in needed if column not in table]:
            raise UsageError(f"{name} lacks {', '.join(missing)}: it needs {', '.join(needed)}")
    metrics = [name for name in LOSSES if not name.startswith("test/")]
    runs = runs.reindex(columns=_with(runs.columns, KNOWN))
    history = history.reindex(columns=_with(history.columns, [*metrics, "seconds_per_epoch"]))
    patches = evaluation["patches"]
    evaluation["patches"] = patches.reindex(columns=_with(patches.columns, PATCHES))
    rounds = evaluation[TIMING]
    evaluation[TIMING] = rounds.reindex(columns=_with(rounds.columns, TIMED))
    return Recorded(runs, history, samples, evaluation, search)


def _with(columns: Iterable[str], wanted: list[str]) -> list[str]:
    return list(dict.fromkeys([*columns, *wanted]))


def write(recorded: Recorded, directory: Path) -> None:
    """Write the files from which ``load`` and every figure can be rebuilt."""
    recorded.runs.to_csv(directory / RUNS, index=False)
    recorded.history.to_csv(directory / HISTORY, index=False)
    for name, table in {**recorded.evaluation, **recorded.search}.items():
        if len(table):
            table.to_csv(directory / f"{name}.csv", index=False)
    np.savez_compressed(directory / SAMPLES, allow_pickle=False, **recorded.samples)


def load(directory: Path) -> Recorded:
    """Read the files back, every digit of them; those of evaluation and search where they are.

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
    paths = {name: directory / f"{name}.csv" for name in TABLES}
    evaluation = {name: _read(path) for name, path in paths.items() if path.exists()}
    paths = {name: directory / f"{name}.csv" for name in SEARCH}
    search = {name: _read(path, text=True) for name, path in paths.items() if path.exists()}
    return complete(Recorded(runs, history, samples, evaluation, search))


def is_hash(column: str) -> bool:
    """Whether a column of the table of runs holds the hash of a feature extractor.

    Example:
        >>> is_hash("extractor_digits"), is_hash("extractor_digits/accuracy")
        (True, False)
    """
    return column.startswith(EXTRACTOR) and "/" not in column


def _read(path: Path, text: bool = False) -> pd.DataFrame:
    # Only an empty cell is missing: a name may well be "None" or "NA".
    try:
        columns = pd.read_csv(path, nrows=0).columns
        words = columns if text else [*TEXT, *filter(is_hash, columns)]
        types = dict.fromkeys(words, "str")
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
