"""The runs of a study, through Optuna; the only module that imports it."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import GridSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, Trial, TrialState

from flowbench.errors import UsageError
from flowbench.experiment import run
from flowbench.study import Point, StudyFile
from flowbench.terminal import duration, say
from flowbench.tracking.store import PARENT, Store
from flowbench.tracking.tables import children


def sweep(study: StudyFile, store: Store) -> str:
    """Run what is missing of a study, one experiment after another.

    The same call after an interruption goes on: a finished point is not run again, a stopped one
    continues from its checkpoint, a failed one is tried once more.

    Args:
        study: The study.
        store: Where its runs are recorded.

    Returns:
        The id of the study's parent run in the store.

    Raises:
        Interrupted: A signal stopped the run in progress.
        UsageError: Another process runs the study, or every run that was tried failed.
    """
    for key in ("devices", "num_nodes"):
        for point in study.points:
            asked = point.experiment.trainer.get(key, 1)
            if asked != 1:  # each process of such a run would start the whole study again
                raise UsageError(f"trainer.{key} = {asked!r} is not valid in a study: 1")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    parent = _parent(study, store)
    with store.closing(parent):
        trials = _open(study, store.results)
        points = len(study.points)
        missing = _queue(trials, study)
        say(f"study {study.name}: {points - missing} of {points} runs done, {missing} to go")
        objective = _objective(study, store, parent, points - missing)
        trials.optimize(objective, missing, catch=(Exception,), callbacks=[_time_left(missing)])
        failed = points - len(_complete(trials))
        if failed == points:
            raise UsageError(f"every run of study {study.name} failed; see their traceback.txt")
        if failed:
            say(f"{failed} of {points} runs failed and are left out; see their traceback.txt")
    return parent


class _Grid(GridSampler):
    """Optuna's, without its own idea of the end of a study.

    It takes a point whose trial was stopped or failed for visited, and breaks at a queued trial
    when one point is left; here every trial is queued and counted.
    """

    def after_trial(self, *_: Any) -> None:
        """Leave the study alone."""


def _open(study: StudyFile, results: Path) -> optuna.Study:
    journal = results / "optuna" / f"{study.name}.log"
    journal.parent.mkdir(parents=True, exist_ok=True)
    try:
        return optuna.create_study(
            study_name=f"{study.name}-{study.digest()}",
            storage=JournalStorage(JournalFileBackend(str(journal))),
            sampler=_Grid(study.grid, seed=0),
            load_if_exists=True,
        )
    except (ValueError, KeyError) as error:
        raise UsageError(
            f"{journal} cannot be read: {error}; move it away, and the runs that the store has as "
            "finished are taken from there"
        ) from error


def _queue(trials: optuna.Study, study: StudyFile) -> int:
    """Queue every point that is not complete, in the grid's order; give their number."""
    for trial in _in_state(trials, TrialState.RUNNING):
        trials.tell(trial.number, state=TrialState.FAIL)
    complete = _complete(trials)
    missing = [point for point in study.points if _key(point.values) not in complete]
    waiting = {_key(t.system_attrs["fixed_params"]) for t in _in_state(trials, TrialState.WAITING)}
    for point in missing:
        if _key(point.values) not in waiting:
            trials.enqueue_trial(point.values)
    return len(missing)


def _time_left(missing: int) -> Callable[..., None]:
    """After every run, tell how many are left, and how long they take if like those before."""
    began = time.monotonic()
    left = missing

    def tell(*_: object) -> None:
        nonlocal left
        left -= 1
        each = (time.monotonic() - began) / (missing - left)
        if left:
            say(f"{left} runs to go, about {duration(each * left)}")

    return tell


def _in_state(trials: optuna.Study, state: TrialState) -> list[FrozenTrial]:
    return trials.get_trials(deepcopy=False, states=(state,))


def _complete(trials: optuna.Study) -> set[str]:
    return {_key(trial.params) for trial in _in_state(trials, TrialState.COMPLETE)}


def _key(values: dict[str, object]) -> str:
    return repr(sorted(values.items()))


def _objective(study: StudyFile, store: Store, parent: str, done: int) -> Callable[[Trial], float]:
    points = {_key(point.values): point for point in study.points}
    count = done

    def objective(trial: Trial) -> float:
        nonlocal count
        count += 1
        chosen = {key: trial.suggest_categorical(key, values) for key, values in study.grid.items()}
        words = " ".join(f"{key.rpartition('.')[2]} {value}" for key, value in chosen.items())
        label = f"[{count}/{len(study.points)}] {words.removeprefix('transform ')}"
        try:
            return _run(study, store, parent, points[_key(chosen)], label, trial.number)
        except Exception as error:
            say(f"{label} failed: {error}")
            raise

    return objective


def _run(
    study: StudyFile, store: Store, parent: str, point: Point, label: str, trial: int
) -> float:
    tags = {
        "flowbench.role": "trial",
        "flowbench.study": study.name,
        "flowbench.scale": study.scale,
        "flowbench.trial": str(trial),
        PARENT: parent,
    }
    resume = None
    for earlier in children(store, parent):
        if earlier.data.tags["flowbench.digest"] == point.experiment.digest():
            if earlier.info.status == "FINISHED":  # killed before Optuna was told
                return _value(earlier.data.metrics)
            if earlier.info.status == "KILLED":
                resume = str(earlier.info.run_id)
    return _value(run(point.experiment, store, tags, resume=resume, label=label).metrics)


def _value(metrics: dict[str, float]) -> float:
    """What Optuna is told; a study without validation has nothing better than its training loss."""
    return metrics.get("val/loss", metrics["train/loss"])


def _parent(study: StudyFile, store: Store) -> str:
    """Find the parent run of this very study, or open one."""
    digest = study.digest()
    for found in store.search("tags.`flowbench.role` = 'study'"):
        tags = found.data.tags
        if tags["flowbench.study"] == study.name and tags["flowbench.digest"] == digest:
            run_id: str = found.info.run_id
            store.reopen(run_id)
            return run_id
    tags = {
        "flowbench.role": "study",
        "flowbench.study": study.name,
        "flowbench.scale": study.scale,
        "flowbench.digest": digest,
        "flowbench.question": study.question,
        "flowbench.expected": study.expected,
        "flowbench.command": f"flowbench sweep {study.path} --scale {study.scale}",
    }
    parent = store.start(study.name, study.name, tags)
    store.client.log_artifact(parent, os.fspath(study.path))
    return parent
