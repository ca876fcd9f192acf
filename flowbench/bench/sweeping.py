"""A small study by one worker and by two, of a thread each: seconds, and what a trial adds."""

import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from flowbench.bench.measure import spread
from flowbench.study import StudyFile, read
from flowbench.sweep.optuna_study import open_study
from flowbench.sweep.parent import journal, sweep
from flowbench.sweep.planned import OVERHEAD
from flowbench.sweep.pool import THREADS
from flowbench.sweep.storage import Storage
from flowbench.tracking.store import Store

STUDY: dict[str, Any] = {
    "question": "What do a second worker and the sweep itself cost?",
    "expected": "Two workers take half the time of one, and a trial adds a second or two.",
    "cost": {"quick": "about a minute"},
    "base": {
        "model": {"transform": "affine", "blocks": 4, "layers": 1, "width": 64},
        "data": {"name": "mnist-5k", "batch": 128},
        "trainer": {"max_epochs": 4, "accelerator": "cpu"},
        "evaluate": {"samples_every": 0, "draws": 1, "bayes": 0, "samples": 0},
    },
    "space": {"optim.lr": [1.0e-3, 2.0e-3]},
    "seeds": [0, 1],
    "scales": {"quick": {}},
}
"""Trials of more than ten seconds, so that how long a worker takes to start decides nothing."""
WORKERS = (1, 2)


def rows(repeats: int) -> Iterator[dict[str, Any]]:
    """Measure; a row for each number of workers: seconds of the study, ratio, a trial's overhead.

    ``overhead``: median over trials of the seconds in addition to training and evaluation.
    """
    taken: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    overheads: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    for _ in range(repeats):
        for workers in WORKERS:
            seconds, overhead = run(workers)
            taken[workers].append(seconds)
            overheads[workers] += overhead
    for workers in WORKERS:
        times = spread(taken[workers])
        yield {
            "case": f"{workers} worker{'s' * (workers > 1)}",
            "setting": f"{len(overheads[workers]) // repeats} trials, a thread each",
            **times,
            "ratio": spread(taken[WORKERS[0]])["seconds"] / times["seconds"],
            "ratio_of": "one worker's seconds / these",
            "overhead": statistics.median(overheads[workers]),
        }


def run(workers: int) -> tuple[float, list[float]]:
    """Sweep the study from its beginning: the seconds, and those that each trial added."""
    with tempfile.TemporaryDirectory() as directory, one_thread():
        study = written(Path(directory))
        store = Store(Path(directory) / "results")
        began = time.perf_counter()
        sweep(study, store, workers=workers)
        taken = time.perf_counter() - began
        recorded = open_study(study, Storage(journal(study, store.results)), store, False)
        return taken, [trial.user_attrs[OVERHEAD] for trial in recorded.trials]


def written(directory: Path) -> StudyFile:
    """Write the study's file and read it."""
    path = directory / "bench.yaml"
    path.write_text(yaml.safe_dump(STUDY), encoding="utf-8")
    return read(path)


@contextmanager
def one_thread() -> Iterator[None]:
    """Give the workers that start meanwhile a thread each, as they have on as many cores."""
    before = os.environ.get(THREADS)
    os.environ[THREADS] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[THREADS]
        else:
            os.environ[THREADS] = before
