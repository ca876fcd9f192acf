"""Planned trials: each is claimed once, and again only if its process died or was stopped."""

import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import studies
from optuna.trial import Trial, TrialState

from flowbench.sweep.planned import (
    DIED,
    END,
    ERROR,
    HEARTBEAT,
    INDEX,
    OWNER,
    RETRY_OF,
    STOPPED,
    TRY,
    PlannedTrials,
)
from flowbench.sweep.samplers import suggest
from flowbench.sweep.storage import Storage
from flowbench.tracking.provenance import BOOT, HOST, NAMESPACE, PID, STARTED, owner


@pytest.fixture
def made(tmp_path: Path) -> PlannedTrials:
    """A grid of four points, queued."""
    made = studies.planned(studies.study(tmp_path), Storage(str(tmp_path / "which.log")))
    made.prepare(all_recorded)
    return made


@pytest.fixture
def search(tmp_path: Path) -> PlannedTrials:
    """Four random trials, queued."""
    which = studies.study(tmp_path, **studies.SEARCH)
    made = studies.planned(which, Storage(str(tmp_path / "which.log")))
    made.prepare(all_recorded)
    return made


def all_recorded() -> dict[int, int]:
    """Say that the store has the runs of every attempt."""
    return dict.fromkeys(range(100), 1)


def claimed(made: PlannedTrials, **process: str) -> Trial:
    """Claim a trial for a process, this one but for what is given, and give it values."""
    trial = made.claim()
    assert trial
    trial.set_user_attr(OWNER, {**owner(), **process})
    suggest(trial, made.study.space)
    return trial


def complete(made: PlannedTrials, trial: Trial) -> None:
    made.trials.tell(trial, [1.0])


def fail(made: PlannedTrials, trial: Trial) -> None:
    trial.set_user_attr(ERROR, "why")
    made.trials.tell(trial, state=TrialState.FAIL)


DEAD = {STARTED: "0.50"}  # a process of this number, but a later one


def test_points_are_claimed_in_the_grids_order(made: PlannedTrials) -> None:
    values = []
    while trial := made.claim():
        chosen = suggest(trial, made.study.space)
        values.append((chosen["model.transform"], trial.suggest_categorical("seed", [0, 1])))
    assert values == [("affine", 0), ("additive", 0), ("affine", 1), ("additive", 1)]
    assert made.count().running == made.total == 4
    assert not made.over()


def test_workers_that_claim_at_once_share_every_trial_out(tmp_path: Path) -> None:
    which = studies.study(tmp_path, **{**studies.SEARCH, "trials": 40})
    place = str(tmp_path / "which.log")
    studies.planned(which, Storage(place))
    taken: list[int] = []

    def take() -> None:
        mine = studies.planned(which, Storage(place))
        while trial := mine.claim():
            taken.append(trial.user_attrs[INDEX])
            complete(mine, trial)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(40))
    made = studies.planned(which, Storage(place))
    assert made.over()
    assert len(made.trials.trials) == 40


def test_what_a_dead_process_left_is_queued_again_as_it_was(search: PlannedTrials) -> None:
    left = claimed(search, **DEAD)
    again = search.claim()
    assert again
    assert search.trials.trials[left.number].state == TrialState.FAIL
    assert again.user_attrs["retry_of"] == left.number
    assert (again.user_attrs[INDEX], again.user_attrs[TRY]) == (0, 2)
    assert suggest(again, search.study.space) == left.params
    assert search.count().failed == 0


def test_values_survive_a_death_before_they_were_read(search: PlannedTrials) -> None:
    first = claimed(search, **DEAD)
    second = search.claim()
    assert second
    second.set_user_attr(OWNER, {**owner(), **DEAD})
    third = search.claim()
    assert third
    assert suggest(third, search.study.space) == first.params


def test_the_third_death_at_a_place_is_a_failure(made: PlannedTrials) -> None:
    for tries in (1, 2, 3):
        left = claimed(made, **DEAD)
        assert (left.user_attrs[INDEX], left.user_attrs[TRY]) == (0, tries)
    nxt = made.claim()
    assert nxt
    assert nxt.user_attrs[INDEX] == 1
    assert made.count().failed == 1


def test_a_living_process_keeps_its_trial_however_long_it_is_silent(made: PlannedTrials) -> None:
    trial = claimed(made)
    trial.set_user_attr(HEARTBEAT, time.time() - 1e6)
    claimed(made)
    assert made.trials.trials[trial.number].state == TrialState.RUNNING


@pytest.mark.parametrize("elsewhere", [HOST, BOOT, NAMESPACE])
@pytest.mark.parametrize("silent", [0.0, 290.0, 310.0])
def test_a_process_that_cannot_be_looked_up_is_known_by_its_heartbeat(
    made: PlannedTrials, elsewhere: str, silent: float
) -> None:
    trial = claimed(made, **{elsewhere: "another", PID: "1"})
    trial.set_user_attr(HEARTBEAT, time.time() - silent)
    claimed(made)
    state = made.trials.trials[trial.number].state
    assert state == (TrialState.FAIL if silent > 300 else TrialState.RUNNING)


def test_a_stop_is_no_death(made: PlannedTrials) -> None:
    for _ in range(5):
        trial = claimed(made)
        assert (trial.user_attrs[INDEX], trial.user_attrs[TRY]) == (0, 1)
        trial.set_user_attr(END, STOPPED)
        made.trials.tell(trial, state=TrialState.FAIL)


def test_a_command_tries_the_failed_points_of_a_grid_again(made: PlannedTrials) -> None:
    fail(made, claimed(made))
    assert claimed(made).user_attrs[INDEX] == 1
    made.prepare(all_recorded)  # while somebody is at the study
    assert made.count().failed == 1
    for attempt in made.last_attempts():
        if attempt.state == TrialState.RUNNING:
            made.trials.tell(attempt.number, [1.0])
    made.prepare(all_recorded)
    assert made.count().failed == 0
    again = claimed(made)
    assert (again.user_attrs[INDEX], again.user_attrs[TRY]) == (0, 1)


def test_a_trial_fits_a_budget_if_it_is_as_short_as_the_longest(made: PlannedTrials) -> None:
    assert made.fits(time.time() + 0.01)  # nothing is known yet
    assert not made.fits(time.time() - 0.01)
    trial = claimed(made)
    time.sleep(0.5)
    complete(made, trial)
    assert not made.fits(time.time() + 0.4)
    assert made.fits(time.time() + 5)


def test_a_failure_is_a_result_of_a_search(search: PlannedTrials) -> None:
    fail(search, claimed(search))
    search.prepare(all_recorded)
    assert search.count().failed == 1
    assert claimed(search).user_attrs[INDEX] == 1


def test_a_failure_of_a_search_is_tried_again_with_its_values_if_asked_for(
    search: PlannedTrials,
) -> None:
    failed = claimed(search)
    rate = failed.suggest_float("optim.lr", 1e-4, 1e-2, log=True)
    fail(search, failed)
    search.prepare(all_recorded, retry=True)
    again = claimed(search)
    assert (again.user_attrs[INDEX], again.user_attrs[RETRY_OF]) == (0, failed.number)
    assert again.suggest_float("optim.lr", 1e-4, 1e-2, log=True) == rate


def test_an_ended_trial_whose_runs_are_gone_is_queued_again(made: PlannedTrials) -> None:
    for _ in range(4):
        complete(made, claimed(made))
    assert made.over()
    made.prepare(lambda: {0: 1, 1: 1, 3: 1})
    assert not made.over()
    assert claimed(made).user_attrs[INDEX] == 2
    assert made.claim() is None


def test_a_kill_between_failure_and_queueing_loses_no_trial(made: PlannedTrials) -> None:
    trial = claimed(made)
    trial.set_user_attr(END, DIED)
    made.trials.tell(trial, state=TrialState.FAIL)  # and killed here
    again = claimed(made)
    assert (again.user_attrs[INDEX], again.user_attrs[TRY]) == (0, 2)


def test_a_number_of_trials_is_neither_passed_nor_missed(tmp_path: Path) -> None:
    which = studies.study(tmp_path, **studies.SEARCH)
    storage = Storage(str(tmp_path / "which.log"))
    for planned, more in ((4, 3), (2, 0), (6, 3)):  # the fourth of the first four stays queued
        made = studies.planned(which, storage, planned)
        made.prepare(all_recorded)
        ran = 0
        while ran < 3 and (trial := made.claim()):
            complete(made, trial)
            ran += 1
        assert ran == more
    assert made.over()
    assert len(made.trials.trials) == 6


@pytest.mark.parametrize(("failures", "stops"), [(0.5, [False, False, True]), (0.0, [True] * 3)])
def test_more_failures_than_the_share_allows_stop_a_study(
    tmp_path: Path, failures: float, stops: list[bool]
) -> None:
    which = studies.study(tmp_path, failures=failures)
    made = studies.planned(which, Storage(str(tmp_path / "which.log")))
    assert not made.too_many_failed()
    for stop in stops:
        fail(made, claimed(made))
        assert made.too_many_failed() == stop


def test_trials_of_others_are_left_alone(made: PlannedTrials) -> None:
    made.trials.enqueue_trial({})
    foreign = made.trials.trials[-1].number
    while made.claim():
        pass
    assert made.trials.trials[foreign].state == TrialState.WAITING
    assert made.count().running == made.total


ENDS: dict[str, Callable[[PlannedTrials, Trial], Any]] = {
    "complete": complete,
    "failed": fail,
    "pruned": lambda made, trial: made.trials.tell(trial, state=TrialState.PRUNED),
}


@pytest.mark.parametrize("ends", list(itertools.product(ENDS, repeat=2)), ids="-".join)
def test_a_study_is_over_when_every_place_is(tmp_path: Path, ends: tuple[str, str]) -> None:
    which = studies.study(tmp_path, **{**studies.SEARCH, "trials": 2})
    made = studies.planned(which, Storage(str(tmp_path / "which.log")))
    for end in ends:
        assert not made.over()
        ENDS[end](made, claimed(made))
    assert made.over()
    assert made.count().ended == 2
    told = str(made.count())
    assert told.startswith("2 of 2 trials done (")
    assert all(end in told for end in ends)
