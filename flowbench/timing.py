"""Seconds per epoch of a study's points, which take turns alone on the machine."""

import os
import random
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache

import torch

from flowbench.callbacks import EpochClock
from flowbench.config import flat
from flowbench.data.module import FlowData
from flowbench.errors import Interrupted
from flowbench.module import FlowModule
from flowbench.recording import facts
from flowbench.size import check_fits
from flowbench.space import put
from flowbench.study import Point, StudyFile
from flowbench.terminal import duration, say
from flowbench.tracking.store import PARENT, Run, Store
from flowbench.tracking.tables import children
from flowbench.trainer import known_warnings, make_trainer

BUSY = 0.5
"""Load average above which another program must be running; this command adds 0.2."""
SECONDS = "seconds_per_epoch"
ONE_EPOCH = {"max_epochs": 1, "max_steps": -1, "limit_val_batches": 0}


@dataclass(frozen=True)
class Timed:
    """A timed point: its flow, which continues training from round to round, and its run."""

    label: str
    module: FlowModule
    data: FlowData
    run_id: str

    def epoch(self) -> dict[str, float]:
        """Train for one epoch; return its time and rate."""
        experiment = self.module.experiment
        trainer = make_trainer(replace(experiment, trainer={**experiment.trainer, **ONE_EPOCH}))
        clock = EpochClock()
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        with known_warnings():
            trainer.fit(self.module, datamodule=self.data)
        self.module.trained.clear()
        seconds, images, _ = clock.lap()
        return {SECONDS: seconds, "images_per_second": images / seconds}


def measure(study: StudyFile, store: Store, parent: str) -> None:
    """Time the points of a study: an epoch of each in every round, as many rounds as its epochs.

    All points train in this process, and every round takes them in another order, so a slower
    machine affects all of them, and none always follows the largest. The timed step is that of any
    run, by the same clock; nothing is validated or tested. Each point has a run below the study's,
    whose epochs are the rounds, with the load average before each round; from the second round
    on that load includes the measurement itself.

    The first round of a process is a warm-up. The same call after an interruption therefore repeats
    the last whole round without recording it, and then the interrupted one.

    Args:
        study: A timing study.
        store: The store of the runs.
        parent: Id of the study's run.

    Raises:
        Interrupted: A signal stopped it; all whole rounds are recorded.
        UsageError: A point cannot be trained, or another process runs it.
    """
    known = {run.data.tags["flowbench.digest"]: run for run in children(store, parent)}
    runs = [known.get(point.experiment.digest()) for point in study.points]
    rounds = int(study.points[0].experiment.trainer["max_epochs"])
    done = min(_rounds(store, run) for run in runs)
    say(f"study {study.name}: {done} of {rounds} rounds over its {len(runs)} flows done")
    if all(run and run.info.status == "FINISHED" for run in runs):
        return
    if (load := os.getloadavg()[0]) > BUSY:
        say(f"the machine is busy (load average {load:.1f}): epochs will take longer than usual")
    try:
        with ExitStack() as open_runs:
            data = cache(FlowData)  # the same images are read once
            timed = []
            for point, run in zip(study.points, runs, strict=True):
                run_id = _open(study, store, parent, point, run)
                open_runs.enter_context(store.closing(run_id))
                images = data(point.experiment.data, point.experiment.seed)
                timed.append(_timed(point, images, run_id))
                device = make_trainer(point.experiment).strategy.root_device
                about = facts(timed[-1].module.flow, point.experiment, device)
                store.describe(run_id, point.experiment, about)
            if 0 < done < rounds:
                _round(timed, done, None)
            for number in range(done + 1, rounds + 1):
                began = time.monotonic()
                _round(timed, number, store)
                left = (rounds - number) * (time.monotonic() - began)
                say(f"round {number} of {rounds} done, about {duration(left)} left")
    except (KeyboardInterrupt, SystemExit) as error:
        raise Interrupted("stopped; all whole rounds are recorded") from error


def _rounds(store: Store, run: Run | None) -> int:
    """Return the number of recorded rounds of a point."""
    if run is None:
        return 0
    history = store.client.get_metric_history(run.info.run_id, SECONDS)
    return max((point.step for point in history), default=0)


def _open(study: StudyFile, store: Store, parent: str, point: Point, run: Run | None) -> str:
    """Continue a point's run, or start it."""
    if run:
        store.reopen(run.info.run_id)
        return str(run.info.run_id)
    tags = {
        "flowbench.role": "trial",
        "flowbench.study": study.name,
        "flowbench.scale": study.scale,
        "flowbench.digest": point.experiment.digest(),
        "flowbench.workers": "1",
        PARENT: parent,
    }
    return store.start(study.name, f"{_label(point)} seed {point.seed}", tags)


def _label(point: Point) -> str:
    values = flat(put({}, point.values))
    words = [f"{key.rpartition('.')[2]} {value}" for key, value in values.items()]
    return " ".join(words).removeprefix("transform ")


def _timed(point: Point, images: FlowData, run_id: str) -> Timed:
    images.prepare_data()
    of_data = images.splits.shape, images.splits.classes
    check_fits(point.experiment, *of_data, make_trainer(point.experiment).strategy.root_device)
    torch.manual_seed(point.seed)
    module = FlowModule(point.experiment, *of_data)
    return Timed(_label(point), module, images, run_id)


def _round(timed: Sequence[Timed], number: int, store: Store | None) -> None:
    """Train each for one epoch; without a store this is a warm-up."""
    load = os.getloadavg()[0]
    for one in random.Random(str(number)).sample(timed, len(timed)):
        measured = one.epoch()
        say(f"{one.label} · {measured[SECONDS]:.2f} s/epoch" + ("" if store else " (warming up)"))
        if store:
            about = {"first_epoch": float(number == 1), "load": load}
            store.log(one.run_id, {**measured, **about}, number)
