"""Progress of a sweep: a line for every change, and on a terminal the state of each worker."""

import statistics
import sys
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.table import Table

from flowbench.sweep.planned import END, ERROR, INDEX, OVERHEAD, STOPPED, PlannedTrials, params_of
from flowbench.sweep.pool import Pool
from flowbench.sweep.samplers import label
from flowbench.terminal import duration, say


class Display:
    """Shows a study's trials as they change after this object was made.

    Args:
        planned: The planned trials.
        pool: The workers of this machine.
    """

    def __init__(self, planned: PlannedTrials, pool: Pool) -> None:
        self.planned = planned
        self.pool = pool
        self._shown = {trial.number: trial.state for trial in planned.all_attempts()}
        self._live = Live(console=Console(stderr=True), transient=True) if _on_terminal() else None

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.show()
        if self._live:
            self._live.stop()

    def show(self) -> None:
        """Show the changes since the last call."""
        for attempt in self.planned.all_attempts():
            waiting = attempt.state == TrialState.WAITING or not params_of(attempt)
            if waiting or self._shown.get(attempt.number) == attempt.state:
                continue
            self._shown[attempt.number] = attempt.state
            place = f"[{attempt.user_attrs[INDEX] + 1}/{self.planned.total}]"
            say(f"{place} {label(params_of(attempt))} {self._news(attempt)}")
        if self._live:
            self._live.update(self._table(), refresh=True)

    def _news(self, attempt: FrozenTrial) -> str:
        if attempt.state == TrialState.RUNNING:
            return "is running"
        if attempt.state == TrialState.COMPLETE:
            named = zip(self.planned.study.objectives, attempt.values, strict=True)
            parts = [", ".join(f"{name} {value:.4f}" for name, value in named)]
            return " · ".join([*parts, duration(_seconds(attempt)), self._progress()])
        if attempt.state == TrialState.PRUNED:
            return f"pruned after epoch {attempt.last_step} · {self._progress()}"
        if ERROR in attempt.user_attrs:
            return f"failed: {attempt.user_attrs[ERROR]} · {self._progress()}"
        if attempt.user_attrs.get(END) == STOPPED:
            return "stopped; it continues later"
        return f"its process died · {self._progress()}"

    def _progress(self) -> str:
        """Describe the progress of the study."""
        count = self.planned.count()
        parts = [str(count)]
        if best := self._best():
            parts.append(f"best {best}")
        left = time_left(self.planned.last_attempts(), count.total, len(self.pool.workers))
        if left and count.ended < count.total:
            parts.append(f"about {duration(left)} left")
        return " · ".join(parts)

    def _best(self) -> str:
        complete = [t for t in self.planned.all_attempts() if t.state == TrialState.COMPLETE]
        directions = self.planned.trials.directions
        if not complete:
            return ""
        if len(directions) > 1:
            return f"{len(self.planned.trials.best_trials)} on the Pareto front"
        best = min if directions == [StudyDirection.MINIMIZE] else max
        return f"{best(trial.values[0] for trial in complete):.4f}"

    def _table(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for worker in self.pool.workers:
            table.add_row(f"worker {worker.number}", worker.last_line())
        table.add_row("", self._progress())
        return table


def time_left(attempts: Sequence[FrozenTrial], planned: int, workers: int) -> float | None:
    """Estimate the seconds to the end from the complete trials; None before the first.

    Args:
        attempts: The last attempts at the planned trials.
        planned: Number of planned trials.
        workers: Number of workers that share the rest.
    """
    took = [_seconds(attempt) for attempt in attempts if attempt.state == TrialState.COMPLETE]
    if not took:
        return None
    running = sum(attempt.state == TrialState.RUNNING for attempt in attempts)
    ended = sum(attempt.state.is_finished() for attempt in attempts)
    return statistics.fmean(took) * (planned - ended - running / 2) / min(workers, planned)


def overhead(attempts: Sequence[FrozenTrial]) -> str:
    """Say how long trials took in addition to training and evaluation; empty where unknown."""
    seconds = [t.user_attrs[OVERHEAD] for t in attempts if OVERHEAD in t.user_attrs]
    if not seconds:
        return ""
    return (
        f"in addition to training and evaluation a trial took {statistics.median(seconds):.1f} s "
        f"(median; at most {max(seconds):.1f} s)"
    )


def _seconds(attempt: FrozenTrial) -> float:
    assert attempt.duration
    return attempt.duration.total_seconds()


def _on_terminal() -> bool:
    return sys.stderr.isatty()
