"""One experiment from configuration to record; the only way anything is trained."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from lightning.pytorch import Callback, Trainer, seed_everything

from flowbench import measure
from flowbench.callbacks import Average, Budget, EpochClock, EpochRecord, EveryEpochs
from flowbench.checkpoint import CheckpointCallback, check_resumable
from flowbench.config import Experiment
from flowbench.data import Splits
from flowbench.data.module import FlowData
from flowbench.errors import Interrupted, Pruned, UsageError
from flowbench.evaluation import protocol
from flowbench.evaluation.sampling import grid
from flowbench.flow import Flow
from flowbench.module import FlowModule
from flowbench.progress import EpochLines
from flowbench.recording import Judge, Recording
from flowbench.size import check_fits
from flowbench.tracking.store import Store
from flowbench.trainer import known_warnings, make_trainer, refused_early


@dataclass(frozen=True)
class Record:
    """The result of a run.

    Attributes:
        run_id: Its id in the store.
        metrics: The last value of each metric.
        flow: Its trained flow.
        seconds: Seconds of training, validation and evaluation in this process. A run's further
            time is spent on starting and recording.
    """

    run_id: str
    metrics: dict[str, float]
    flow: Flow
    seconds: float


def run(
    experiment: Experiment,
    store: Store,
    tags: Mapping[str, str] | None = None,
    resume: str | None = None,
    label: str = "",
    judge: Judge | None = None,
) -> Record:
    """Train, test and record one experiment.

    If a strategy starts further processes, each calls this function; only the first one records.

    Args:
        experiment: The whole configuration.
        store: Where it is recorded.
        tags: Tags of a new run, in addition to those of every run.
        resume: Id of a stopped run of the same experiment to continue from its checkpoint.
        label: Name of the run in the progress lines.
        judge: Called after every epoch; if it returns true, the run stops before it is tested.

    Returns:
        The record of the finished run.

    Raises:
        UsageError: The configuration or its files are wrong; nothing has been recorded then.
        Diverged: A loss was not finite; the run is marked failed.
        Pruned: ``judge`` stopped it; the run is marked so.
        Interrupted: A signal stopped it; the run is marked killed and can be resumed.
    """
    trainer = make_trainer(experiment)
    protocol.check_possible(experiment)
    seed_everything(experiment.seed, verbose=False)
    data = FlowData(experiment.data, experiment.seed)
    data.prepare_data()
    of_data = data.splits.shape, data.splits.classes
    check_fits(experiment, *of_data, trainer.strategy.root_device)
    module = FlowModule(experiment, *of_data)
    checkpoint = store.checkpoint(resume) if resume else None
    if checkpoint and checkpoint.exists():
        check_resumable(checkpoint, module)
    else:
        checkpoint = None

    first = trainer.is_global_zero
    clock, lines = EpochClock(), EpochLines(label or experiment.model.transform)
    recording = Recording(module, data.splits, store, tags or {}, resume, lines, judge)
    record = EpochRecord(clock, module.trained, module.evaluated, recording.epoch)
    checkpoints = CheckpointCallback(lambda: store.checkpoint(recording.run_id), clock)
    try:
        with checkpoints.handling_signals(), recording:
            if resume:
                recording.open(trainer)
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            callbacks += _callbacks(module, recording, data.splits, clock, record)
            callbacks.append(checkpoints)  # last: what it saves includes what the others did
            with known_warnings(), refused_early(lambda: recording.begun):
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if not recording.begun:
                raise UsageError(f"trainer = {experiment.trainer} is not valid: it trains nothing")
            if record.stopped:
                raise Pruned(f"run {recording.run_id} was stopped early")
            # Unlike trainer.current_epoch this is right also where no step was left to train.
            epochs: int = trainer.fit_loop.epoch_progress.current.processed  # type: ignore[attr-defined]
            _validate_last(trainer, module, data, recording, epochs)
            trained = time.monotonic()
            if first:
                lines.evaluating()
                found = measure.measured(module, trainer.strategy.root_device, data, store)
            evaluated = time.monotonic()
            if first:
                measure.record(store, recording.run_id, found, epochs)
    except (KeyboardInterrupt, SystemExit) as error:
        if not recording.run_id:
            raise Interrupted("stopped before the first step was recorded") from error
        path = store.checkpoint(recording.run_id)
        kept = path if path.exists() else "no checkpoint yet"
        message = f"run {recording.run_id} stopped; kept: {kept}"
        raise Interrupted(message, recording.run_id) from error
    metrics = dict(store.get(recording.run_id).data.metrics) if first else {}
    return Record(recording.run_id, metrics, module.flow, clock.working + evaluated - trained)


def _validate_last(
    trainer: Trainer, module: FlowModule, data: FlowData, recording: Recording, epoch: int
) -> None:
    """Validate the trained flow where Lightning validated earlier epochs only, or none."""
    missing = trainer.limit_val_batches != 0 and recording.not_validated(epoch)
    if trainer.strategy.broadcast(missing):
        with known_warnings():
            trainer.validate(module, datamodule=data, verbose=False)
        recording.validated(module.evaluated.take(), epoch)


def _callbacks(
    module: FlowModule,
    recording: Recording,
    splits: Splits,
    clock: EpochClock,
    record: EpochRecord,
) -> list[Callback]:
    """List the callbacks of a run in their order."""
    experiment, store = module.experiment, recording.store
    evaluate, optim = experiment.evaluate, experiment.optim
    average = Average(optim.ema) if optim.ema else None

    def weights() -> AbstractContextManager[None]:
        return average.in_place(module.trainer, module) if average else nullcontext()

    def fidelity(epoch: int) -> None:
        with weights():
            found = protocol.check(module.flow, experiment, splits, store.cache)
        store.log(recording.run_id, found, epoch)

    def picture(epoch: int) -> None:
        with weights():
            images = protocol.sketch(module.flow, experiment, module.classes)
        if images is not None:
            # With a key and steps, so that MLflow's page has a slider over the epochs.
            store.client.log_image(recording.run_id, grid(images), key="samples", step=epoch)

    return [
        clock,  # first: the others' work after a step is not training time
        recording,
        *([Budget(experiment.seconds, clock, module)] if experiment.seconds else []),
        recording.lines,
        *([average] if average else []),  # before all that use the averaged weights
        record,
        EveryEpochs(evaluate.samples_every, picture),
        EveryEpochs(evaluate.fidelity_every, fidelity),
    ]
