"""One experiment from configuration to record; the only way anything is trained."""

import inspect
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything

from flowbench import measure
from flowbench.callbacks import Average, Budget, EpochClock, EpochRecord, EveryEpochs
from flowbench.checkpoint import AtomicCheckpointIO, CheckpointCallback, check_resumable
from flowbench.config import Experiment
from flowbench.data import Splits
from flowbench.data.module import FlowData
from flowbench.errors import Interrupted, Pruned, UsageError
from flowbench.evaluation import protocol
from flowbench.evaluation.likelihood import bits_per_dim
from flowbench.evaluation.sampling import Sampling, draw_classes, grid
from flowbench.flow import Flow
from flowbench.kernels import memory
from flowbench.module import FlowModule
from flowbench.progress import EpochLines
from flowbench.tracking.provenance import processor
from flowbench.tracking.store import Store

# Lightning's messages at every start would hide the lines that matter.
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)

QUIET: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
    "enable_progress_bar": False,
}
OURS = {
    "logger": "runs are recorded in MLflow",
    "callbacks": "they are chosen by the experiment",
    "plugins": "they are chosen by the experiment",
    "enable_checkpointing": "checkpoints are always written",
    "limit_test_batches": "all test images are evaluated",
    "use_distributed_sampler": "the data are already split over the devices",
    "gradient_clip_val": "set optim.clip",
    "gradient_clip_algorithm": "optim.clip limits the norm",
}
"""Options of the Trainer that cannot be set, and why."""

Judge = Callable[[dict[str, float], int], bool]
"""Takes an epoch's metrics and its number; returns whether to stop the run."""


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
    seed_everything(experiment.seed, verbose=False)
    data = FlowData(experiment.data, experiment.seed)
    data.prepare_data()
    module = FlowModule(experiment, data.splits.shape, data.splits.classes)
    checkpoint = store.checkpoint(resume) if resume else None
    if checkpoint and checkpoint.exists():
        check_resumable(checkpoint, module)
    else:
        checkpoint = None

    first = trainer.is_global_zero
    run_id = _open(experiment, store, tags, resume) if first else ""
    clock, lines = EpochClock(), EpochLines(label or experiment.model.transform)
    record = EpochRecord(
        clock,
        module.trained,
        module.evaluated,
        partial(_record_epoch, experiment, store, run_id, lines, judge),
    )
    checkpoints = CheckpointCallback(store.checkpoint(run_id), clock)
    try:
        with checkpoints.handling_signals(), store.closing(run_id) if first else nullcontext():
            if first:
                device = trainer.strategy.root_device
                store.describe(run_id, experiment, facts(module.flow, experiment, device))
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            callbacks += _callbacks(module, store, run_id, data.splits, clock, lines, record)
            callbacks.append(checkpoints)  # last: what it saves includes what the others did
            with known_warnings():
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if record.stopped:
                raise Pruned(f"run {run_id} was stopped early")
            trained = time.monotonic()
            if first:
                lines.evaluating()
                found = measure.measured(module, trainer.strategy.root_device, data, store)
            evaluated = time.monotonic()
            if first:
                measure.record(store, run_id, found, trainer.current_epoch)
    except (KeyboardInterrupt, SystemExit) as error:
        if not first:
            raise Interrupted("stopped") from error
        kept = checkpoints.path if checkpoints.path.exists() else "no checkpoint yet"
        raise Interrupted(f"run {run_id} stopped; kept: {kept}", run_id) from error
    metrics = dict(store.get(run_id).data.metrics) if first else {}
    return Record(run_id, metrics, module.flow, clock.working + evaluated - trained)


def _record_epoch(
    experiment: Experiment,
    store: Store,
    run_id: str,
    lines: EpochLines,
    judge: Judge | None,
    metrics: dict[str, float],
    epoch: int,
) -> bool:
    """Record an epoch's metrics and show them; return whether the judge stops the run."""
    metrics |= _bits(metrics, experiment)
    store.log(run_id, metrics, epoch)
    lines.epoch_done(metrics, epoch)
    return judge is not None and judge(metrics, epoch)


def _callbacks(
    module: FlowModule,
    store: Store,
    run_id: str,
    splits: Splits,
    clock: EpochClock,
    lines: EpochLines,
    record: EpochRecord,
) -> list[Callback]:
    """List the callbacks of a run in their order."""
    experiment = module.experiment
    evaluate, optim = experiment.evaluate, experiment.optim
    average = Average(optim.ema) if optim.ema else None

    def weights() -> AbstractContextManager[None]:
        return average.in_place(module.trainer, module) if average else nullcontext()

    def fidelity(epoch: int) -> None:
        with weights():
            store.log(run_id, protocol.check(module.flow, experiment, splits, store.cache), epoch)

    def picture(epoch: int) -> None:
        with weights():
            images = draw_classes(module.flow, module.classes, 1, Sampling(experiment.seed))
        store.client.log_image(run_id, grid(images), f"samples/epoch_{epoch:04d}.png")

    return [
        clock,  # first: the others' work after a step is not training time
        *([Budget(experiment.seconds, clock, module)] if experiment.seconds else []),
        lines,
        *([average] if average else []),  # before all that use the averaged weights
        record,
        EveryEpochs(evaluate.samples_every, picture),
        EveryEpochs(evaluate.fidelity_every, fidelity),
    ]


def make_trainer(experiment: Experiment) -> Trainer:
    """Make a trainer with the options of an experiment.

    Raises:
        UsageError: An option is unknown or cannot be set, its value is not valid, or nothing ends
            the training.
    """
    options = experiment.trainer
    known = [key for key in inspect.signature(Trainer).parameters if key not in OURS]
    for key in options:
        if key in OURS:
            raise UsageError(f"trainer.{key} cannot be set: {OURS[key]}")
        if key not in known:
            raise UsageError(f"unknown key trainer.{key}: valid are {', '.join(known)}")
    ends = {f"trainer.{key}": options.get(key) for key in ("max_epochs", "max_steps")}
    if not (experiment.seconds or any(type(end) is int and end > 0 for end in ends.values())):
        given = ", ".join(f"{key} = {value!r}" for key, value in ends.items())
        valid = "one of them ends the training, an integer above 0, or seconds does"
        raise UsageError(f"{given} is not valid: {valid}")
    memory.keep()
    try:
        return Trainer(
            **{"devices": 1, "num_sanity_val_steps": 0, "max_epochs": -1, **QUIET, **options},
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UsageError(f"trainer: {error}") from error


def _open(
    experiment: Experiment, store: Store, tags: Mapping[str, str] | None, resume: str | None
) -> str:
    if resume:
        if store.get(resume).info.status == "FINISHED":
            raise UsageError(f"run {resume} is finished: there is nothing to resume")
        store.reopen(resume)
        return resume
    own = {"flowbench.role": "run", "flowbench.digest": experiment.digest()}
    name = f"{experiment.model.transform} seed {experiment.seed}"
    return store.start(experiment.name, name, {**own, **(tags or {})})


@contextmanager
def known_warnings() -> Iterator[None]:
    """Hide a warning of torch that only Lightning can act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        yield


def facts(flow: Flow, experiment: Experiment, device: torch.device) -> dict[str, Any]:
    """Gather what the configuration does not say outright, and the machine that trains.

    Args:
        flow: The flow, on the CPU or where it trains.
        experiment: Its configuration.
        device: Where it trains.
    """
    cuda = device.type == "cuda"
    return {
        "bins": getattr(flow.blocks[0].transform, "bins", ""),
        "classes": flow.classes,
        "parameters": sum(parameter.numel() for parameter in flow.parameters()),
        "device": torch.cuda.get_device_name(device) if cuda else processor(),
        "threads": torch.get_num_threads(),
        "precision": experiment.trainer.get("precision") or "32-true",
        "kernels": "none" if cuda else flow.kernels(experiment.compile),
    }


def _bits(metrics: Mapping[str, float], experiment: Experiment) -> dict[str, float]:
    """Compute bits per dimension of every loss; with uniform noise only."""
    if experiment.data.noise != "uniform":
        return {}
    losses = {key: value for key, value in metrics.items() if key.endswith("/loss")}
    return {key.replace("/loss", "/bpd"): bits_per_dim(value) for key, value in losses.items()}
