"""The runs of a study, through Optuna; the only module that imports it."""

import os
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.samplers import GridSampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import Trial, TrialState

from flowbench.errors import Interrupted, UsageError
from flowbench.experiment import run
from flowbench.progress import say
from flowbench.study import Point, StudyFile
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
        UsageError: Every run that was tried failed.
    """
    parent = _parent(study, store)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    trials = _open(study, store.results)
    missing = _requeue(trials, study)
    done = len(study.points) - missing
    say(f"study {study.name}: {done} of {len(study.points)} runs done, {missing} to go")
    objective = _objective(study, store, parent, done)
    try:
        for _ in range(missing):
            # One at a time: the sampler stops the loop it is in once the grid has been visited,
            # also when points that failed are still queued.
            trials.optimize(objective, n_trials=1, catch=(Exception,))
    except Interrupted:
        store.finish(parent, "KILLED")
        raise
    failed = len(study.points) - len(_complete(trials))
    if failed == len(study.points):
        store.finish(parent, "FAILED")
        raise UsageError(f"every run of study {study.name} failed; see their traceback.txt")
    if failed:
        say(f"{failed} of {len(study.points)} runs failed and are left out; see their traceback.txt")
    store.finish(parent, "FINISHED")
    return parent


def _open(study: StudyFile, results: Path) -> optuna.Study:
    directory = results / "optuna"
    directory.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        study_name=f"{study.name}-{study.digest()}",
        storage=JournalStorage(JournalFileBackend(str(directory / f"{study.name}.log"))),
        sampler=GridSampler(study.grid, seed=0),
        load_if_exists=True,
    )


def _requeue(trials: optuna.Study, study: StudyFile) -> int:
    """Queue the points whose trial was stopped or failed; give the number of points not complete."""
    for trial in trials.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        trials.tell(trial.number, state=TrialState.FAIL)
    complete = _complete(trials)
    waiting = {_key(trial.params) for trial in _in_state(trials, TrialState.WAITING)}
    for trial in _in_state(trials, TrialState.FAIL):
        key = _key(trial.params)
        if trial.params and key not in complete | waiting:
            trials.enqueue_trial(trial.params)
            waiting.add(key)
    return sum(_key(point.values) not in complete for point in study.points)


def _in_state(trials: optuna.Study, state: TrialState) -> list[optuna.trial.FrozenTrial]:
    return trials.get_trials(deepcopy=False, states=(state,))


def _complete(trials: optuna.Study) -> set[str]:
    return {_key(trial.params) for trial in _in_state(trials, TrialState.COMPLETE)}


def _key(values: dict[str, object]) -> str:
    return repr(sorted(values.items()))


def _objective(
    study: StudyFile, store: Store, parent: str, done: int
) -> Callable[[Trial], float]:
    points = {_key(point.values): point for point in study.points}
    count = done

    def objective(trial: Trial) -> float:
        nonlocal count
        count += 1
        chosen = {key: trial.suggest_categorical(key, values) for key, values in study.grid.items()}
        point = points[_key(chosen)]
        words = " ".join(f"{key.rpartition('.')[2]} {value}" for key, value in chosen.items())
        label = f"[{count}/{len(study.points)}] {words.removeprefix('transform ')}"
        try:
            return _run(study, store, parent, point, label, trial)
        except Exception as error:
            say(f"{label} failed: {error}")
            raise

    return objective


def _run(
    study: StudyFile, store: Store, parent: str, point: Point, label: str, trial: Trial
) -> float:
    tags = {
        "flowbench.role": "trial",
        "flowbench.study": study.name,
        "flowbench.scale": study.scale,
        "flowbench.trial": str(trial.number),
        PARENT: parent,
    }
    stopped = _stopped(store, parent, point)
    record = run(point.experiment, store, tags, resume=stopped, label=label)
    return record.metrics["val/loss"]


def _stopped(store: Store, parent: str, point: Point) -> str | None:
    """Find the killed run of this point that left a checkpoint."""
    for candidate in children(store, parent):
        same = candidate.data.tags["flowbench.digest"] == point.experiment.digest()
        if same and candidate.info.status == "KILLED":
            run_id: str = candidate.info.run_id
            return run_id if store.checkpoint(run_id).exists() else None
    return None


def _parent(study: StudyFile, store: Store) -> str:
    """Find the parent run of this very study, or open one."""
    digest = study.digest()
    for found in store.search("tags.`flowbench.role` = 'study'"):
        tags = found.data.tags
        if tags["flowbench.study"] == study.name and tags["flowbench.digest"] == digest:
            run_id: str = found.info.run_id
            if found.info.status == "RUNNING":
                owner = f"process {tags['flowbench.pid']} on {tags['flowbench.host']}"
                raise UsageError(f"study {study.name} is being run by {owner}: wait, or stop it")
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
