"""The command's side of a sweep: opens the study, starts workers, watches them, tells the end."""

import time
from pathlib import Path

from optuna.trial import TrialState

from flowbench.errors import Interrupted, UsageError
from flowbench.study import TIMING, StudyFile
from flowbench.sweep.display import Display, overhead
from flowbench.sweep.places import ERROR, Places
from flowbench.sweep.pool import Pool, layout
from flowbench.sweep.preview import first_experiment
from flowbench.sweep.record import record
from flowbench.sweep.storage import Storage
from flowbench.sweep.studies import PARENT_RUN, open_study
from flowbench.sweep.tags import STATE, TRIAL
from flowbench.sweep.worker import Orders
from flowbench.terminal import say
from flowbench.tracking.store import PARENT, Store

LOOK_SECONDS = 1.0


def journal(study: StudyFile, results: Path) -> str:
    """Where the trials are kept unless a database is named."""
    return str(results / "optuna" / f"{study.name}.log")


def sweep(
    study: StudyFile,
    store: Store,
    storage: str | None = None,
    workers: int | None = None,
    trials: int | None = None,
    new_version: bool = False,
) -> str:
    """Run what is missing of a study.

    The same call after an interruption goes on, and the same call elsewhere, with a storage and a
    store that both reach, shares the work.

    Args:
        study: The study.
        store: Where its runs are recorded.
        storage: Where Optuna keeps its trials; none for a journal below the results.
        workers: Number of processes; none for what suits the machine.
        trials: Number of trials, in place of the study's own.
        new_version: Start the study anew, beside what there is of it.

    Returns:
        The id of the study's parent run in the store.

    Raises:
        Interrupted: A signal stopped it, after the workers had saved their runs.
        UsageError: The study cannot be run as asked, its file has changed since it began, or too
            many of its trials failed.
    """
    _check(study, workers, trials)
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
    places = Places(optuna_study, opened, study, trials or study.trials)
    places.prepare()
    if store.get(parent).info.status != "RUNNING":  # else another command is at it: join in
        store.reopen(parent)
    with store.closing(parent):
        try:
            _run(places, store, workers)
        finally:
            _agree(places, store, parent)
            record(places, store, parent)
        _conclude(places)
    return parent


def _check(study: StudyFile, workers: int | None, trials: int | None) -> None:
    for key in ("devices", "num_nodes"):
        asked = first_experiment(study).trainer.get(key, 1)
        if asked != 1:  # each process of such a run would start the whole study again
            raise UsageError(f"trainer.{key} = {asked!r} is not valid in a study: 1")
    if trials and study.points:
        points = len(study.points)
        raise UsageError(f"--trials {trials} is not valid: this study is a grid of {points} points")
    if workers not in (None, 1) and study.mode == TIMING:
        raise UsageError(f"--workers {workers} is not valid: a study of times runs alone")


def _run(places: Places, store: Store, workers: int | None) -> None:
    study, name = places.study, places.trials.study_name
    count = places.count()
    if places.over():
        say(f"study {name}: {count}")
        return
    missing = count.planned - count.ended
    chosen = layout(study, missing, workers)
    logs = store.results / "logs" / study.name
    say(f"study {name}: {count}, {missing} to go with {chosen}; their output is in {logs}")
    orders = Orders(
        file=str(study.path),
        scale=study.scale,
        results=str(store.results),
        storage=places.storage.place,
        name=name,
        planned=places.planned,
        workers=chosen.workers,
    )
    pool = Pool(chosen, orders, logs)
    try:
        with Display(places, pool) as display, pool:
            while pool.watch(places.count().ended) and not places.too_many_failed():
                display.show()
                time.sleep(LOOK_SECONDS)
    except KeyboardInterrupt as stopped:
        raise Interrupted(f"study {name} stopped with {places.count()}") from stopped


def _agree(places: Places, store: Store, parent: str) -> None:
    """Close what killed processes have left open in the store, and tell it what Optuna knows."""
    states = {attempt.number: attempt.state for attempt in places.all_attempts()}
    for run in store.search(f"tags.`{PARENT}` = '{parent}' and tags.`{STATE}` = 'RUNNING'"):
        state = states.get(int(run.data.tags[TRIAL]), TrialState.FAIL)
        if state.is_finished():
            if run.info.status == "RUNNING":
                store.finish(run.info.run_id, "KILLED")
            store.tag(run.info.run_id, {STATE: state.name})


def _conclude(places: Places) -> None:
    """Tell of failures, and of what the trials cost beside their work.

    Raises:
        UsageError: There were too many failures.
    """
    count, attempts = places.count(), places.last_attempts()
    errors = [attempt.user_attrs[ERROR] for attempt in attempts if ERROR in attempt.user_attrs]
    why = errors[-1] if errors else "their processes died"
    if places.too_many_failed():
        raise UsageError(
            f"{count.failed} of {count.planned} trials of study {places.trials.study_name} failed, "
            f"more than failures = {places.study.failures:g} allows; the last: {why}"
        )
    if count.failed:
        say(f"{count.failed} of {count.planned} trials failed and are left out; the last: {why}")
    if told := overhead(attempts):
        say(told)
