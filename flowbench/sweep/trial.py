"""One trial: from its values to its records in Optuna and in the store."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from optuna.artifacts import upload_artifact
from optuna.study import Study
from optuna.trial import FrozenTrial, Trial, TrialState

from flowbench.config import Experiment
from flowbench.errors import Pruned, StoreError, UsageError
from flowbench.experiment import run
from flowbench.study import StudyFile
from flowbench.sweep.heartbeat import Heartbeat
from flowbench.sweep.planned import (
    END,
    ERROR,
    INDEX,
    OVERHEAD,
    RETRIED_AS,
    RETRIED_FROM,
    RETRY_OF,
    RUNS,
    STATE,
    STOPPED,
    TRIAL,
    WORKERS,
    PlannedTrials,
)
from flowbench.sweep.samplers import label, suggest
from flowbench.sweep.stop import Stop
from flowbench.sweep.storage import artifacts
from flowbench.terminal import say
from flowbench.tracking.store import MLFLOW_RUN_NAME, PARENT, PRUNED, Run, Store

TIMES = ("seconds_per_epoch", "images_per_second")

Judge = Callable[[dict[str, float], int], bool]


class Runner:
    """Runs the trials that this process claimed.

    Args:
        planned: The planned trials.
        store: The store of the runs.
        parent: Id of the study's parent run.
        workers: Number of workers of this machine, including this one.
        stop: The requests to stop.
    """

    def __init__(
        self, planned: PlannedTrials, store: Store, parent: str, workers: int, stop: Stop
    ) -> None:
        self.planned = planned
        self.study: StudyFile = planned.study
        self.trials: Study = planned.trials
        self.store = store
        self.parent = parent
        self.workers = workers
        self.stop = stop

    def run(self, trial: Trial) -> bool:
        """Run a claimed trial and report its result.

        Returns:
            Whether this process can run another: not after an error that the configuration does not
            explain, which may have left the device or the memory in any state.

        Raises:
            Interrupted: A signal stopped it; it is queued again, and continues from its checkpoint.
            StoreError: The store cannot be used; it is queued again.
        """
        began = time.monotonic()
        heart = Heartbeat(self.planned.storage.backend, self.planned.id(trial.number))
        try:
            with heart:
                values, busy = self._values(trial)
        except Pruned:
            self._report(trial, TrialState.PRUNED)
        except (KeyboardInterrupt, StoreError):
            if heart.lost:
                say(f"trial {trial.number}: another machine saw no heartbeat and took it over")
                return False
            self._report(trial, TrialState.FAIL, {END: STOPPED})
            raise
        except Exception as error:
            reason = " ".join((str(error) or type(error).__name__).split())
            say(f"trial {trial.number} failed: {reason}")
            self._report(trial, TrialState.FAIL, {ERROR: reason})
            return isinstance(error, UsageError)
        else:
            overhead = time.monotonic() - began - busy
            self._report(trial, TrialState.COMPLETE, {OVERHEAD: overhead}, values)
        return True

    def _report(
        self,
        trial: Trial,
        state: TrialState,
        attributes: Mapping[str, Any] | None = None,
        values: list[float] | None = None,
    ) -> None:
        for key, value in (attributes or {}).items():
            trial.set_user_attr(key, value)
        self.trials.tell(trial, values, state=state)
        for recorded in self._children(f"tags.`{TRIAL}` = '{trial.number}'"):
            self.store.tag(recorded.info.run_id, {STATE: state.name})

    def _values(self, trial: Trial) -> tuple[list[float], float]:
        """Run a trial's point, in a grid once, else for every seed; return means and seconds."""
        values = suggest(trial, self.study.space)
        seeds = self.study.seeds
        if self.study.points:
            seeds = (trial.suggest_categorical("seed", seeds),)
        measured, busy = [], 0.0
        ran: list[str] = []
        for seed in seeds:
            experiment = self.study.experiment(values, seed)
            judge = self._judge(trial) if seed == seeds[0] else None
            run_id, seconds = self._run(trial, experiment, judge)
            ran.append(run_id)
            trial.set_user_attr(RUNS, ran)
            measured.append(self._measured(run_id))
            busy += seconds
        self._show(trial, ran)
        means = [statistics.fmean(of_seeds) for of_seeds in zip(*measured, strict=True)]
        for objective, value in zip(self.study.objectives, means, strict=True):
            if not math.isfinite(value):
                raise UsageError(f"{objective} = {value} is not finite")
        return means, busy

    def _show(self, trial: Trial, runs: list[str]) -> None:
        """Give Optuna's dashboard the grids of samples of a trial's runs."""
        with tempfile.TemporaryDirectory() as directory:
            for run_id in runs:
                for path in self.store.pictures(run_id, Path(directory)):
                    upload_artifact(
                        artifact_store=artifacts(self.store.results),
                        file_path=str(path),
                        study_or_trial=trial,
                    )

    def _run(self, trial: Trial, experiment: Experiment, judge: Judge | None) -> tuple[str, float]:
        """Run an experiment, or use the run of an earlier attempt at the same planned trial.

        Returns:
            The run's id, and the seconds of its training and evaluation in this process.
        """
        tags = self._tags(trial)
        resume = None
        for earlier in self._earlier(trial, experiment):
            run_id, status = str(earlier.info.run_id), earlier.info.status
            if status == "FINISHED" or PRUNED in earlier.data.tags:  # Optuna does not know it yet
                self.store.tag(run_id, {key: tags[key] for key in tags if key != WORKERS})
                if PRUNED in earlier.data.tags:
                    raise Pruned
                return run_id, 0.0
            if (
                status == "RUNNING"
            ):  # its process is dead, else this one could not have claimed the trial
                self.store.finish(run_id, "KILLED")
            if status != "FAILED" and not resume and self.store.checkpoint(run_id).exists():
                resume = run_id
                most = max(self.workers, int(earlier.data.tags[WORKERS]))
                self.store.tag(run_id, {**tags, WORKERS: str(most)})
            else:
                self.store.tag(run_id, {RETRIED_AS: str(trial.number), STATE: "FAIL"})
        name = label({**trial.params, "seed": experiment.seed})
        tags |= {
            MLFLOW_RUN_NAME: name,
            "flowbench.role": "trial",
            "flowbench.study": self.study.name,
            "flowbench.scale": self.study.scale,
            PARENT: self.parent,
        }
        title = f"[{trial.user_attrs[INDEX] + 1}/{self.planned.total}] {name}"
        with self.stop.in_run():
            record = run(experiment, self.store, tags, resume=resume, label=title, judge=judge)
        return record.run_id, record.seconds

    def _tags(self, trial: Trial) -> dict[str, str]:
        tags = {TRIAL: str(trial.number), STATE: "RUNNING", WORKERS: str(self.workers)}
        if RETRY_OF in trial.user_attrs:
            tags[RETRIED_FROM] = str(trial.user_attrs[RETRY_OF])
        return tags

    def _earlier(self, trial: Trial, experiment: Experiment) -> list[Run]:
        """Find the runs of an experiment by earlier attempts: the finished, then the newest.

        The points of a grid differ, so their runs are found even if Optuna's journal was lost.
        """
        found = self._children(f"tags.`flowbench.digest` = '{experiment.digest()}'")
        if not self.study.points:
            attempts = {str(attempt.number) for attempt in self._attempts(trial)}
            found = [earlier for earlier in found if earlier.data.tags[TRIAL] in attempts]
        return sorted(found, key=lambda earlier: earlier.info.status != "FINISHED")

    def _attempts(self, trial: Trial) -> list[FrozenTrial]:
        """Return the attempts at the same planned trial, including this one."""
        place = trial.user_attrs[INDEX]
        return [t for t in self.planned.all_attempts() if t.user_attrs[INDEX] == place]

    def _children(self, which: str) -> list[Run]:
        return self.store.search(f"tags.`{PARENT}` = '{self.parent}' and {which}")

    def _judge(self, trial: Trial) -> Judge | None:
        """Make a function that reports every epoch to Optuna and asks whether to stop."""
        if self.study.pruner == "none":
            return None
        (objective,) = self.study.objectives
        reported: set[int] = set()
        for attempt in self._attempts(trial)[:-1]:
            for epoch, value in attempt.intermediate_values.items():
                if epoch not in reported:
                    trial.report(value, epoch)
                    reported.add(epoch)

        def judge(metrics: dict[str, float], epoch: int) -> bool:
            value = metrics.get(objective, math.nan)
            if epoch in reported or not math.isfinite(value):
                return False
            trial.report(value, epoch)
            return trial.should_prune()

        return judge

    def _measured(self, run_id: str) -> list[float]:
        """Read the objectives of a finished run.

        Raises:
            UsageError: One was not measured.
        """
        recorded = self.store.get(run_id).data
        metrics = recorded.metrics
        values = []
        for name in self.study.objectives:
            if name == "val/loss" and name not in metrics:
                name = "train/loss"  # without validation the training loss has to do
            if name not in metrics:
                why = recorded.tags.get("skipped") or f"the run has {', '.join(sorted(metrics))}"
                raise UsageError(f"objective {name} was not measured: {why}")
            values.append(self._typical(run_id, name) if name in TIMES else metrics[name])
        return values

    def _typical(self, run_id: str, name: str) -> float:
        """Return the median over a run's epochs after the first, which is slower."""
        history = self.store.client.get_metric_history(run_id, name)
        later = [point.value for point in history if point.step > 1]
        return statistics.median(later or [point.value for point in history])
