"""The trials that a study plans, each a place, and the attempts that Optuna has seen at each.

A planned trial keeps its place, a number from 0, whatever happens to it: in a grid that of its
point, else just a number. An attempt is a trial of Optuna's with that place among its attributes;
the last attempt tells what has become of the place. So a study is counted, and its missing trials
are found, by looking, never by remembering, and a place that is over is not attempted again.
"""

import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from flowbench.study import StudyFile
from flowbench.sweep.samplers import as_params
from flowbench.sweep.storage import Storage
from flowbench.tracking.provenance import is_gone, is_local, owner

PLACE, TRY, RETRY_OF = "place", "try", "retry_of"
OWNER, HEARTBEAT = "owner", "heartbeat"
END, STOPPED, DIED = "end", "stopped", "died"
ERROR, OVERHEAD = "error", "overhead"

TRIES = 3
"""Attempts at a place whose processes die, before it counts as failed."""
SILENT_SECONDS = 300.0
"""Age of the last heartbeat at which the process of another machine is taken for dead."""


@dataclass(frozen=True)
class Count:
    """How many of the planned trials are where."""

    planned: int
    complete: int
    pruned: int
    failed: int
    running: int

    @property
    def ended(self) -> int:
        """Those that need no further attempt."""
        return self.complete + self.pruned + self.failed

    def __str__(self) -> str:
        parts = {"complete": self.complete, "pruned": self.pruned, "failed": self.failed}
        told = ", ".join(f"{count} {name}" for name, count in parts.items() if count)
        return f"{self.ended} of {self.planned} trials done" + (f" ({told})" if told else "")


class Places:
    """The planned trials of a study.

    Args:
        trials: Optuna's study.
        storage: Where it is kept; its lock makes every change here one that is seen whole.
        study: The study.
        planned: Number of places.
    """

    def __init__(
        self, trials: optuna.Study, storage: Storage, study: StudyFile, planned: int
    ) -> None:
        self.trials = trials
        self.storage = storage
        self.study = study
        self.planned = planned

    def claim(self) -> Trial | None:
        """Take the next trial for this process; None where there is none to take now.

        What dead processes have left is queued again first, so that whoever is idle looks after
        the others.
        """
        with self.storage.locked():
            self._bring_up_to_date()
            waiting = [t for t in self.last_attempts() if t.state == TrialState.WAITING]
            if not waiting:
                return None
            trial_id, backend = self.id(waiting[0].number), self.storage.backend
            backend.set_trial_user_attr(trial_id, OWNER, owner())
            backend.set_trial_user_attr(trial_id, HEARTBEAT, time.time())
            backend.set_trial_state_values(trial_id, TrialState.RUNNING)
        return Trial(self.trials, trial_id)

    def prepare(self) -> None:
        """Queue what is missing, at the start of a command.

        The points of a grid that have failed are tried again, unless somebody is at the study.
        Elsewhere a failure is a result like others: the sampler has learnt from it.
        """
        with self.storage.locked():
            self._bring_up_to_date()
            attempts = self.last_attempts()
            busy = any(attempt.state == TrialState.RUNNING for attempt in attempts)
            if self.study.points and not busy:
                for attempt in attempts:
                    if attempt.state == TrialState.FAIL:
                        self._queue(attempt.user_attrs[PLACE], attempt)

    def last_attempts(self) -> list[FrozenTrial]:
        """Give the last attempt at every place that has one, in the order of the places."""
        last = {attempt.user_attrs[PLACE]: attempt for attempt in self.all_attempts()}
        return [last[place] for place in sorted(last)]

    def all_attempts(self) -> list[FrozenTrial]:
        """Give all attempts at the planned places, in the order in which they were queued."""
        trials = self.trials.get_trials(deepcopy=False)
        return [t for t in trials if t.user_attrs.get(PLACE, self.planned) < self.planned]

    def id(self, number: int) -> int:
        """Give the storage's name for a trial."""
        study = self.storage.backend.get_study_id_from_name(self.trials.study_name)
        return self.storage.backend.get_trial_id_from_study_id_trial_number(study, number)

    def count(self) -> Count:
        """Count the places."""
        attempts = self.last_attempts()
        states = Counter(attempt.state for attempt in attempts)
        return Count(
            planned=self.planned,
            complete=states[TrialState.COMPLETE],
            pruned=states[TrialState.PRUNED],
            failed=sum(has_failed(attempt) for attempt in attempts),
            running=states[TrialState.RUNNING],
        )

    def over(self) -> bool:
        """Tell whether every place is."""
        return self.count().ended == self.planned

    def too_many_failed(self) -> bool:
        """Tell whether more of the planned trials have failed than the study allows."""
        return self.count().failed > self.study.failures * self.planned

    def _bring_up_to_date(self) -> None:
        for attempt in self.last_attempts():
            if attempt.state == TrialState.RUNNING and _is_dead(attempt):
                self.storage.backend.set_trial_user_attr(self.id(attempt.number), END, DIED)
                self.trials.tell(attempt.number, state=TrialState.FAIL)
        attempted = {attempt.user_attrs[PLACE]: attempt for attempt in self.last_attempts()}
        for place in range(self.planned):
            last = attempted.get(place)
            if last is None:
                self._queue(place)
            elif last.state == TrialState.FAIL and not has_failed(last):
                tries = last.user_attrs[TRY] + (last.user_attrs[END] == DIED)
                self._queue(place, last, tries)

    def _queue(self, place: int, last: FrozenTrial | None = None, tries: int = 1) -> None:
        """Queue an attempt: with the values of the one before, with a grid's, or with none yet."""
        params = params_of(last) if last else {}
        if self.study.points:
            point = self.study.points[place]
            params = {**as_params(point.values), "seed": point.seed}
        attributes = {PLACE: place, TRY: tries, **({RETRY_OF: last.number} if last else {})}
        self.trials.enqueue_trial(params, user_attrs=attributes)


def params_of(attempt: FrozenTrial) -> dict[str, Any]:
    """Give an attempt's values, those too that it was queued with and has not read yet."""
    return {**attempt.system_attrs.get("fixed_params", {}), **attempt.params}


def has_failed(attempt: FrozenTrial) -> bool:
    """Tell whether a place is over without a result: an error, or as many deaths as it may see."""
    end, tries = attempt.user_attrs.get(END), attempt.user_attrs[TRY]
    exhausted = end == DIED and tries >= TRIES
    return attempt.state == TrialState.FAIL and (end is None or exhausted)


def _is_dead(attempt: FrozenTrial) -> bool:
    """Tell whether nobody is at a running attempt any more."""
    process = attempt.user_attrs[OWNER]
    if is_local(process):
        return is_gone(process)
    return time.time() - float(attempt.user_attrs[HEARTBEAT]) > SILENT_SECONDS
