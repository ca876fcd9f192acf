"""The planned trials of a study, and Optuna's attempts at each of them.

A planned trial has a fixed index from 0: in a grid the number of its point. An attempt is a trial
of Optuna's with that index among its attributes; the last attempt decides the state of the planned
trial. The study is counted, and missing trials are found, by reading Optuna's storage; nothing is
remembered, and a planned trial that has ended is not attempted again.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.trial import FrozenTrial, Trial, TrialState

from flowbench.study import StudyFile
from flowbench.sweep.samplers import as_params
from flowbench.sweep.storage import Storage
from flowbench.terminal import say
from flowbench.tracking.provenance import is_gone, is_local, owner

# Attributes of an attempt in Optuna's storage; "place" is the index.
INDEX, TRY, RETRY_OF = "place", "try", "retry_of"
OWNER, HEARTBEAT = "owner", "heartbeat"
END, STOPPED, DIED = "end", "stopped", "died"
ERROR, OVERHEAD = "error", "overhead"
RUNS = "runs"
"""Ids of the trial's runs in MLflow, a seed each."""

# Tags of a trial's run in MLflow.
TRIAL = "optuna.trial"
"""Number of the attempt."""
STATE = "optuna.state"
"""RUNNING, then COMPLETE, PRUNED or FAIL, as in Optuna."""
RETRIED_FROM = "optuna.retry_of"
"""Number of the dead or stopped attempt that this one continues."""
RETRIED_AS = "optuna.retried_as"
"""Number of the next attempt, which could not continue this run."""
WORKERS = "flowbench.workers"
"""Number of workers that shared the machine; times count only where it is 1."""

TRIES = 3
"""Attempts whose processes die before the planned trial counts as failed."""
SILENT_SECONDS = 300.0
"""Age of the last heartbeat at which a process on another machine counts as dead."""


@dataclass(frozen=True)
class Count:
    """Number of planned trials in each state."""

    total: int
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
        states = ", ".join(f"{count} {name}" for name, count in parts.items() if count)
        return f"{self.ended} of {self.total} trials done" + (f" ({states})" if states else "")


class PlannedTrials:
    """The planned trials of a study.

    Args:
        trials: Optuna's study.
        storage: Its storage, whose lock makes every change here atomic.
        study: The study.
        total: Number of planned trials.
    """

    def __init__(
        self, trials: optuna.Study, storage: Storage, study: StudyFile, total: int
    ) -> None:
        self.trials = trials
        self.storage = storage
        self.study = study
        self.total = total

    def claim(self) -> Trial | None:
        """Take the next waiting trial for this process; None where there is none now.

        Trials of dead processes are queued again first, so idle workers take over from dead ones.
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

    def prepare(self, recorded: Callable[[], Mapping[int, int]], retry: bool = False) -> None:
        """Queue what is missing, at the start of a command.

        Failed points of a grid are tried again, unless another command works on the study. In other
        studies a failure is a result, from which the sampler has learnt, and is tried again only if
        asked for. A trial that ended, but whose runs are no longer in the store, was deleted there,
        and is run again.

        Args:
            recorded: Counts the runs in the store that ended, by the number of their attempt.
            retry: Try failed trials again also where the study is not a grid.
        """
        with self.storage.locked():
            self._bring_up_to_date()
            attempts = self.last_attempts()
            runs = recorded()  # read later than the attempts, each of which records before it ends
            seeds = 1 if self.study.points else len(self.study.seeds)
            needed = {TrialState.COMPLETE: seeds, TrialState.PRUNED: 1}
            for attempt in attempts:
                if runs.get(attempt.number, 0) < needed.get(attempt.state, 0):
                    say(f"trial {attempt.number} has ended, but its runs are not in the store")
                    self._queue(attempt.user_attrs[INDEX], attempt)
            busy = any(attempt.state == TrialState.RUNNING for attempt in attempts)
            if (self.study.points or retry) and not busy:
                for attempt in attempts:
                    if attempt.state == TrialState.FAIL:
                        self._queue(attempt.user_attrs[INDEX], attempt)

    def last_attempts(self) -> list[FrozenTrial]:
        """Return the last attempt at every planned trial that has one, in their order."""
        last = {attempt.user_attrs[INDEX]: attempt for attempt in self.all_attempts()}
        return [last[index] for index in sorted(last)]

    def all_attempts(self) -> list[FrozenTrial]:
        """Return all attempts at the planned trials, in the order in which they were queued."""
        trials = self.trials.get_trials(deepcopy=False)
        return [t for t in trials if t.user_attrs.get(INDEX, self.total) < self.total]

    def id(self, number: int) -> int:
        """Return the storage's id of a trial."""
        study = self.storage.backend.get_study_id_from_name(self.trials.study_name)
        return self.storage.backend.get_trial_id_from_study_id_trial_number(study, number)

    def count(self) -> Count:
        """Count the planned trials by state."""
        attempts = self.last_attempts()
        states = Counter(attempt.state for attempt in attempts)
        return Count(
            total=self.total,
            complete=states[TrialState.COMPLETE],
            pruned=states[TrialState.PRUNED],
            failed=sum(has_failed(attempt) for attempt in attempts),
            running=states[TrialState.RUNNING],
        )

    def fits(self, deadline: float) -> bool:
        """Return whether a trial that starts now would end in time, were it as long as the longest.

        Args:
            deadline: Time in seconds since 1970.
        """
        taken = [
            attempt.duration.total_seconds()
            for attempt in self.all_attempts()
            if attempt.state == TrialState.COMPLETE and attempt.duration
        ]
        return time.time() + max(taken, default=0.0) <= deadline

    def over(self) -> bool:
        """Return whether every planned trial has ended."""
        return self.count().ended == self.total

    def too_many_failed(self) -> bool:
        """Return whether more of the planned trials have failed than the study allows."""
        return self.count().failed > self.study.failures * self.total

    def _bring_up_to_date(self) -> None:
        """Mark attempts of dead processes as failed; queue every trial that needs an attempt."""
        for attempt in self.last_attempts():
            if attempt.state == TrialState.RUNNING and _is_dead(attempt):
                self.storage.backend.set_trial_user_attr(self.id(attempt.number), END, DIED)
                self.trials.tell(attempt.number, state=TrialState.FAIL)
        attempted = {attempt.user_attrs[INDEX]: attempt for attempt in self.last_attempts()}
        for index in range(self.total):
            last = attempted.get(index)
            if last is None:
                self._queue(index)
            elif last.state == TrialState.FAIL and not has_failed(last):
                tries = last.user_attrs[TRY] + (last.user_attrs[END] == DIED)
                self._queue(index, last, tries)

    def _queue(self, index: int, last: FrozenTrial | None = None, tries: int = 1) -> None:
        """Queue an attempt: with the values of the last one, with a grid's, or with none yet."""
        params = params_of(last) if last else {}
        if self.study.points:
            point = self.study.points[index]
            params = {**as_params(point.values), "seed": point.seed}
        attributes = {INDEX: index, TRY: tries, **({RETRY_OF: last.number} if last else {})}
        self.trials.enqueue_trial(params, user_attrs=attributes)


def params_of(attempt: FrozenTrial) -> dict[str, Any]:
    """Return an attempt's values, including queued ones that it has not read yet."""
    return {**attempt.system_attrs.get("fixed_params", {}), **attempt.params}


def has_failed(attempt: FrozenTrial) -> bool:
    """Return whether a planned trial ended without a result: by an error, or by too many deaths."""
    end, tries = attempt.user_attrs.get(END), attempt.user_attrs[TRY]
    exhausted = end == DIED and tries >= TRIES
    return attempt.state == TrialState.FAIL and (end is None or exhausted)


def _is_dead(attempt: FrozenTrial) -> bool:
    """Return whether the process of a running attempt is dead."""
    process = attempt.user_attrs[OWNER]
    if is_local(process):
        return is_gone(process)
    return time.time() - float(attempt.user_attrs[HEARTBEAT]) > SILENT_SECONDS
