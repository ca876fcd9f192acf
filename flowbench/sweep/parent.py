"""The command's side of a sweep: opens the study, starts and watches workers, sums up."""

import time
from collections import Counter
from pathlib import Path

from optuna.trial import TrialState

from flowbench.errors import Interrupted, UsageError
from flowbench.study import TIMING, StudyFile
from flowbench.sweep.display import Display, overhead
from flowbench.sweep.optuna_study import PARENT_RUN, open_study
from flowbench.sweep.planned import ERROR, STATE, TRIAL, PlannedTrials
from flowbench.sweep.pool import Pool, layout
from flowbench.sweep.preview import first_experiment
from flowbench.sweep.record import record
from flowbench.sweep.storage import Storage
from flowbench.sweep.worker import WorkerArguments
from flowbench.terminal import say
from flowbench.tracking.store import PARENT, PRUNED, Store

LOOK_SECONDS = 1.0


def journal(study: StudyFile, results: Path) -> str:
    """Return the path of Optuna's journal, used where no database is given."""
    return str(results / "optuna" / f"{study.name}.log")


def sweep(
    study: StudyFile,
    store: Store,
    storage: str | None = None,
    workers: int | None = None,
    trials: int | None = None,
    new_version: bool = False,
    budget: float | None = None,
    retry: bool = False,
) -> str:
    """Run what is missing of a study.

    The same call after an interruption continues; the same call on another machine that reaches the
    storage and the store shares the work.

    Args:
        study: The study.
        store: Where its runs are recorded.
        storage: Optuna's storage; None for a journal below the results.
        workers: Number of processes; None for as many as suit the machine.
        trials: Number of trials that replaces the study's own.
        new_version: Start a new version of the study and keep the earlier ones.
        budget: Seconds within which trials should end; None: any number.
        retry: Try failed trials again also where the study is not a grid.

    Returns:
        The id of the study's parent run in the store.

    Raises:
        Interrupted: A signal stopped it, after the workers saved their runs.
        UsageError: The study cannot be run with these options, its file has changed since it
            began, or too many of its trials failed.
    """
    _check(study, workers, trials, budget)
    if storage == store.uri:  # each writes its version to a table of the same name
        raise UsageError("--storage and MLFLOW_TRACKING_URI name one database: each needs its own")
    place = storage or journal(study, store.results)
    opened = Storage(place)
    optuna_study = open_study(study, opened, store, new_version)
    parent: str = optuna_study.user_attrs[PARENT_RUN]
    if study.mode == TIMING:
        from flowbench.timing import measure

        if store.get(parent).info.status != "RUNNING":
            store.reopen(parent)
        with store.closing(parent):
            measure(study, store, parent)
        return parent
    planned = PlannedTrials(optuna_study, opened, study, trials or study.trials)
    planned.prepare(lambda: ended_runs(store, parent), retry)
    if store.get(parent).info.status != "RUNNING":  # else another command runs it too
        store.reopen(parent)
    with store.closing(parent):
        try:
            _run(planned, store, workers, budget)
        finally:
            _agree(planned, store, parent)
            record(planned, store, parent)
        _conclude(planned)
    return parent


def ended_runs(store: Store, parent: str) -> Counter[int]:
    """Count a study's runs that are finished or pruned, by the number of their attempt."""
    runs = store.search(f"tags.`{PARENT}` = '{parent}'")
    ended = [run for run in runs if run.info.status == "FINISHED" or PRUNED in run.data.tags]
    return Counter(int(run.data.tags[TRIAL]) for run in ended if TRIAL in run.data.tags)


def _check(study: StudyFile, workers: int | None, trials: int | None, budget: float | None) -> None:
    for key in ("devices", "num_nodes"):
        asked = first_experiment(study).trainer.get(key, 1)
        if asked != 1:  # each process of such a run would start the study again
            raise UsageError(f"trainer.{key} = {asked!r} is not valid in a study: 1")
    if any(objective.endswith("_inception") for objective in study.objectives):
        from flowbench.evaluation.inception import find

        weights = first_experiment(study).evaluate.inception_weights
        find(Path(weights) if weights else None)
    if trials and study.points:
        points = len(study.points)
        raise UsageError(f"--trials {trials} is not valid: this study is a grid of {points} points")
    if budget and study.mode == TIMING:
        raise UsageError("--budget is not valid: a study of times runs its rounds to the end")
    if workers not in (None, 1) and study.mode == TIMING:
        raise UsageError(f"--workers {workers} is not valid: a study of times runs alone")


def _run(planned: PlannedTrials, store: Store, workers: int | None, budget: float | None) -> None:
    study, name = planned.study, planned.trials.study_name
    count = planned.count()
    if planned.over():
        say(f"study {name}: {count}")
        return
    missing = count.total - count.ended
    chosen = layout(study, missing, workers)
    logs = store.results / "logs" / study.name
    say(f"study {name}: {count}, {missing} to go with {chosen}; output in {logs}")
    arguments = WorkerArguments(
        file=str(study.path),
        scale=study.scale,
        results=str(store.results),
        storage=planned.storage.place,
        name=name,
        planned=planned.total,
        workers=chosen.workers,
        deadline=time.time() + budget if budget else None,
    )
    pool = Pool(chosen, arguments, logs)
    try:
        with Display(planned, pool) as display, pool:
            while pool.watch(planned.count().ended) and not planned.too_many_failed():
                display.show()
                time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt as stopped:
        raise Interrupted(f"study {name} stopped with {planned.count()}") from stopped
    if budget and not planned.over() and not planned.too_many_failed():
        say(f"the budget is spent: {planned.count()}; the same command goes on")


def _agree(planned: PlannedTrials, store: Store, parent: str) -> None:
    """Close runs that killed processes left open in the store, and copy the states of Optuna."""
    states = {attempt.number: attempt.state for attempt in planned.all_attempts()}
    for run in store.search(f"tags.`{PARENT}` = '{parent}' and tags.`{STATE}` = 'RUNNING'"):
        state = states.get(int(run.data.tags[TRIAL]), TrialState.FAIL)
        if state.is_finished():
            if run.info.status == "RUNNING":
                store.finish(run.info.run_id, "KILLED")
            store.tag(run.info.run_id, {STATE: state.name})


def _conclude(planned: PlannedTrials) -> None:
    """Report failures, and the time that trials took in addition to their work.

    Raises:
        UsageError: There were too many failures.
    """
    count, attempts = planned.count(), planned.last_attempts()
    errors = [attempt.user_attrs[ERROR] for attempt in attempts if ERROR in attempt.user_attrs]
    why = errors[-1] if errors else "their processes died"
    if planned.too_many_failed():
        raise UsageError(
            f"{count.failed} of {count.total} trials of study {planned.trials.study_name} failed, "
            f"more than failures = {planned.study.failures:g} allows; the last: {why}"
        )
    if count.failed:
        say(f"{count.failed} of {count.total} trials failed and are left out; the last: {why}")
    if sentence := overhead(attempts):
        say(sentence)
