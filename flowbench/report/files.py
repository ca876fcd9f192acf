"""The recorded runs as files: CSV tables and an archive of samples, exact both ways."""

import json
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple, Self

import numpy as np
import pandas as pd

from flowbench import config, schema
from flowbench.errors import UsageError
from flowbench.parsing import parse_as
from flowbench.schema import (
    BATCH,
    BLOCKS,
    DATA,
    EPOCHS,
    LAYERS,
    NOISE,
    PATCH,
    SECONDS,
    SEED,
    TRANSFORM,
    WIDTH,
)

STUDY, RUNS, HISTORY, SAMPLES = "study.json", "runs.csv", "history.csv", "samples.npz"
NEEDED = [TRANSFORM, BLOCKS, LAYERS, WIDTH, PATCH, DATA, NOISE, BATCH, EPOCHS]
"""Settings that the report names; where they are not recorded their columns are empty."""

EVALUATION = {
    "patches": ["run_id", "patch", "row", "column"],
    "positions": ["run_id", "block", "position", "logdet"],
    "confusion": ["run_id", "label", "predicted", "count"],
    "calibration": ["run_id", "confidence", "accuracy", "count"],
    "latents": ["run_id", "set", "patch", "row", "column"],
    "probe": ["run_id", "block", "accuracy"],
}
"""The tables of the evaluation, and their indispensable columns."""
TIMING = "timing"
"""The table of the rounds in which a timing study measured flows like these."""
TABLES = {**EVALUATION, TIMING: ["run_id", "epoch", TRANSFORM, SECONDS]}
"""The further tables, each a file where it has rows."""
PATCHES = ["bpd", "nll", "distance", "floor"]
"""Optional columns of ``patches``: they depend on the noise and on what was evaluated."""
SEARCH = {
    "trials": ["trial", "place", "state", "retry_of", "started", "duration", "error"],
    "importances": ["objective", "parameter", "importance"],
}
"""The tables of a study's trials, kept as text, and their indispensable columns."""


@dataclass(frozen=True)
class Study:
    """The texts at the head of a report; the numbers come from the recorded runs.

    Attributes:
        name: The study's name, under which its runs are recorded.
        question: What the study asks.
        expected: What was expected before any run.
        command: The command that makes these runs and this report again.
        objectives: minimize or maximize by metric; empty where it is not recorded.
    """

    name: str
    question: str
    expected: str
    command: str
    objectives: dict[str, str] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write the texts next to the tables, so that the report can be made from these files."""
        text = json.dumps(asdict(self), indent=2, ensure_ascii=False)
        (directory / STUDY).write_text(text + "\n", encoding="utf-8")

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read back what ``write`` wrote.

        Raises:
            UsageError: The file is missing or not of this kind.
        """
        path = directory / STUDY
        try:
            return parse_as(cls, json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UsageError(f"{path} does not exist: no report was made there") from error
        except (TypeError, AttributeError, ValueError) as error:
            raise UsageError(f"{path} is not the description of a study: {error}") from error


class Recorded(NamedTuple):
    """The data of a report.

    Attributes:
        runs: A row per run: its settings, final losses, cost and machine.
        history: A row per run and epoch.
        samples: For each transform the first draws of its best run,
            ``[rows, classes, H, W, C]``, uint8. Where the run has them, ``<transform>/guided`` and
            ``<transform>/denoised`` from the same noise, and ``<transform>/trajectory``:
            ``[blocks + 1, classes, H, W, C]``, the noise first.
        evaluation: The tables named in ``TABLES``, each empty where there is none.
        search: The tables named in ``SEARCH``, each empty where the study has not recorded it.
    """

    runs: pd.DataFrame
    history: pd.DataFrame
    samples: dict[str, np.ndarray]
    evaluation: Mapping[str, pd.DataFrame] = MappingProxyType({})
    search: Mapping[str, pd.DataFrame] = MappingProxyType({})


def complete(recorded: Recorded) -> Recorded:
    """Return the same tables with every known column, empty where nothing was recorded.

    Raises:
        UsageError: A table lacks an indispensable column.
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
        (RUNS, runs, ["run_id", "status", TRANSFORM, SEED]),
        (HISTORY, history, ["run_id", "epoch"]),
        *((f"{name}.csv", table, TABLES[name]) for name, table in evaluation.items()),
        *((f"{name}.csv", table, SEARCH[name]) for name, table in search.items()),
    ):
        if missing := [column for column in needed if column not in table]:
            raise UsageError(f"{name} lacks {', '.join(missing)}: it needs {', '.join(needed)}")
    epochs = [name for name in schema.NAMES if schema.find(name).epochs]
    machine = [*schema.MACHINE, "workers", "started", "scale", "load"]
    runs = _extended(runs, [*NEEDED, *schema.NAMES])
    history = _extended(history.drop(columns=[TRANSFORM, SEED], errors="ignore"), epochs)
    evaluation["patches"] = _extended(evaluation["patches"], PATCHES)
    evaluation[TIMING] = _extended(evaluation[TIMING], [*NEEDED, *machine])
    return Recorded(runs, history, samples, evaluation, search)


def _extended(table: pd.DataFrame, wanted: Iterable[str]) -> pd.DataFrame:
    return table.reindex(columns=list(dict.fromkeys([*table.columns, *wanted])))


def write(recorded: Recorded, directory: Path) -> None:
    """Write the files from which ``load`` and every figure can be rebuilt; no empty columns."""
    needed = {RUNS: ["status", TRANSFORM, SEED], HISTORY: ["epoch"]}
    tables = {RUNS: recorded.runs, HISTORY: recorded.history}
    for name, table in {**recorded.evaluation, **recorded.search}.items():
        if len(table):
            tables[f"{name}.csv"] = table
            needed[f"{name}.csv"] = {**TABLES, **SEARCH}[name]
    for name, table in tables.items():
        kept = [c for c in table if c in ("run_id", *needed[name]) or table[c].notna().any()]
        table[kept].to_csv(directory / name, index=False)
    np.savez_compressed(directory / SAMPLES, allow_pickle=False, **recorded.samples)


def load(directory: Path) -> Recorded:
    """Read the files back, every digit of them; those of evaluation and search where they exist.

    Raises:
        UsageError: A file is missing or damaged, lacks an indispensable column, or has text where
            a number belongs.
    """
    try:
        runs, history = (_read(directory / name) for name in (RUNS, HISTORY))
        samples = _pictures(directory / SAMPLES)
    except FileNotFoundError as error:
        wanted = f"{RUNS}, {HISTORY} and {SAMPLES}"
        raise UsageError(f"{error.filename} does not exist: a report has {wanted}") from error
    paths = {name: directory / f"{name}.csv" for name in TABLES}
    evaluation = {name: _read(path) for name, path in paths.items() if path.exists()}
    paths = {name: directory / f"{name}.csv" for name in SEARCH}
    search = {name: _read(path, text=True) for name, path in paths.items() if path.exists()}
    whole = search.get("importances", pd.DataFrame()).notna()
    if not whole.all(axis=None):
        line = int(whole.all(axis=1).to_numpy().argmin()) + 2
        raise UsageError(f"{paths['importances']}, line {line}: a value is missing")
    return complete(Recorded(runs, history, samples, evaluation, search))


def _pictures(path: Path) -> dict[str, np.ndarray]:
    try:
        # numpy leaves a broken file that it opened itself open.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            samples = dict(archive)
    except FileNotFoundError:
        raise
    except Exception as error:  # numpy and its ZIP reader raise nearly anything on a broken file
        raise UsageError(f"{path} is damaged or no archive of images: {error}") from error
    for name, images in samples.items():
        if images.dtype != np.uint8 or images.ndim != 5 or images.size == 0:
            found = f"{images.dtype} {list(images.shape)}"
            valid = "uint8 [rows, classes, height, width, channels]"
            raise UsageError(f"{path}: {name} is {found}; valid is {valid}")
    return samples


def _read(path: Path, text: bool = False) -> pd.DataFrame:
    # Only an empty cell is missing: a name may well be "None" or "NA".
    try:
        columns = pd.read_csv(path, nrows=0).columns
        words = columns if text else [name for name in columns if schema.find(name).text]
        types = dict.fromkeys(words, "str")
        table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=[""])
    except ValueError as error:
        raise UsageError(f"{path} is not a table of runs: {error}".replace("\n", " ")) from error
    if twice := [name for name in columns if f"{name}.1" in columns]:
        raise UsageError(f"{path} has the column {twice[0]} twice")
    for name in columns.difference([*words, *NOT_NUMBERS]):
        _check_numbers(path, name, table[name])
    truths = [name for name in table if pd.api.types.infer_dtype(table[name], True) == "boolean"]
    return table.assign(**{name: table[name].map(str, na_action="ignore") for name in truths})


NOT_NUMBERS = {"objective", "parameter", "state", "error", "label", "set"}


def _check_numbers(path: Path, name: str, values: pd.Series) -> None:
    """Check that a column has numbers, unless it is an option's that takes other values."""
    if schema.is_setting(name) and not config.is_number(name):
        return
    wrong = values.notna() & pd.to_numeric(values, errors="coerce").isna()
    if wrong.any():
        line = int(wrong.to_numpy().argmax()) + 2
        raise UsageError(f"{path}, line {line}: {name} is {values[wrong].iloc[0]!r}, not a number")


@contextmanager
def published(out: Path) -> Iterator[Path]:
    """Yield a directory to fill; its files replace those of ``out`` once all of them are written.

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
