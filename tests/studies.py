"""What the tests of sweeps share: a study of seconds, and its parts without any process started."""

from pathlib import Path
from typing import Any

import optuna
import tiny
import yaml

from flowbench.space import parts, put
from flowbench.study import StudyFile, read
from flowbench.sweep.optuna_study import PARENT_RUN, open_study
from flowbench.sweep.parent import ended_runs, journal
from flowbench.sweep.planned import PlannedTrials
from flowbench.sweep.stop import Stop
from flowbench.sweep.storage import Storage
from flowbench.sweep.worker import WorkerArguments, work
from flowbench.tracking.store import PARENT, Run, Store

GRID = {"space": {"model.transform": ["affine", "additive"]}, "seeds": [0, 1]}
SEARCH = {
    "space": {"optim.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
    "sampler": "random",
    "trials": 4,
}


def base(space: dict[str, Any]) -> dict[str, Any]:
    """The tiny experiment's options but those that vary, for one epoch."""
    options = {**tiny.OPTIONS, "trainer.max_epochs": 1}
    varied = [part for joined in space for part in parts(joined)]
    return put({}, {key: value for key, value in options.items() if key not in varied})


def study(directory: Path, **changes: Any) -> StudyFile:
    """Write and read a grid of two transforms and two seeds, or what the changes make of it."""
    changes = changes if "space" in changes else {**GRID, **changes}
    content = {
        "question": "Which?",
        "expected": "This one.",
        "cost": {"quick": "seconds"},
        "base": base(changes["space"]),
        "scales": {"quick": {}},
        **changes,
    }
    directory.mkdir(exist_ok=True)
    file = directory / "which.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    return read(file)


def planned(which: StudyFile, storage: Storage, total: int | None = None) -> PlannedTrials:
    """The planned trials of a study of this name, made where there is none, without a store."""
    directions = ["minimize"] * len(which.objectives)
    trials = optuna.create_study(
        study_name=which.name, storage=storage.backend, directions=directions, load_if_exists=True
    )
    return PlannedTrials(trials, storage, which, total or which.trials)


def run(
    which: StudyFile, store: Store, stop: Stop | None = None, workers: int = 1
) -> PlannedTrials:
    """Sweep in this very process: what the command does, then what its worker does."""
    storage = Storage(journal(which, store.results))
    opened = open_study(which, storage, store, new_version=False)
    made = PlannedTrials(opened, storage, which, which.trials)
    made.prepare(lambda: ended_runs(store, opened.user_attrs[PARENT_RUN]))
    arguments = WorkerArguments(
        file=str(which.path),
        scale=which.scale,
        results=str(store.results),
        storage=storage.place,
        name=opened.study_name,
        planned=which.trials,
        workers=workers,
    )
    work(arguments, stop or Stop())
    return made


def recorded(store: Store, made: PlannedTrials) -> list[Run]:
    """The runs of a study, in the order in which they were started."""
    parent = made.trials.user_attrs[PARENT_RUN]
    return list(reversed(store.search(f"tags.`{PARENT}` = '{parent}'")))


def states(made: PlannedTrials) -> list[str]:
    """The states of all attempts, in the order in which they were queued."""
    return [attempt.state.name for attempt in made.all_attempts()]


def assert_agreement(store: Store, made: PlannedTrials) -> None:
    """Optuna and the store tell the same of every trial."""
    known = {str(attempt.number): attempt.state.name for attempt in made.all_attempts()}
    for run in recorded(store, made):
        assert known[run.data.tags["optuna.trial"]] == run.data.tags["optuna.state"]
        complete = run.data.tags["optuna.state"] == "COMPLETE"
        assert complete == (run.info.status == "FINISHED")


def assert_complete(store: Store, made: PlannedTrials) -> None:
    """Every planned trial has come to its end once; both sides know, and nothing is open."""
    last = made.last_attempts()
    assert [attempt.state.name for attempt in last] == ["COMPLETE"] * made.total
    finished = [run for run in recorded(store, made) if run.info.status == "FINISHED"]
    assert len(finished) == made.total * (1 if made.study.points else len(made.study.seeds))
    assert not {run.info.status for run in recorded(store, made)} & {"RUNNING", "SCHEDULED"}
    assert_agreement(store, made)
