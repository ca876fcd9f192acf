"""One experiment from configuration to record; the only way anything is trained."""

import inspect
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from PIL import Image

from flowbench.callbacks import (
    AtomicCheckpointIO,
    Average,
    Budget,
    EpochClock,
    EpochRecord,
    EveryEpochs,
    KeepGoing,
)
from flowbench.checkpoint import check_resumable, load
from flowbench.config import Experiment
from flowbench.data import Splits
from flowbench.data.module import FlowData
from flowbench.errors import Interrupted, Pruned, UsageError
from flowbench.evaluation import protocol
from flowbench.evaluation.likelihood import bits_per_dim
from flowbench.evaluation.protocol import Evaluation
from flowbench.evaluation.sampling import Sampling, draw_classes, grid
from flowbench.flow import Flow
from flowbench.kernels import memory
from flowbench.module import FlowModule
from flowbench.progress import EpochLines
from flowbench.terminal import say
from flowbench.tracking.provenance import processor
from flowbench.tracking.store import Store
from flowbench.tracking.tables import EVALUATION

# What Lightning tells of itself at every start would bury the lines that matter.
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
    "use_distributed_sampler": "the data deal themselves to the devices",
    "gradient_clip_val": "set optim.clip",
    "gradient_clip_algorithm": "optim.clip limits the norm",
}
"""Options of the Trainer that are not free, and why."""


@dataclass(frozen=True)
class Record:
    """What a run came to: its id, the last value of its metrics, its trained flow.

    ``seconds`` is the time of training, validation and evaluation, in this process alone: what else
    a run takes is what it costs to start and to record it.
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
    judge: Callable[[dict[str, float], int], bool] | None = None,
) -> Record:
    """Train, test and record one experiment.

    Where a strategy starts further processes, each comes here; the first one alone records.

    Args:
        experiment: All that decides the result.
        store: Where it is recorded.
        tags: Tags of a new run, beside those that every run gets.
        resume: Id of a stopped run of the same experiment that goes on from its checkpoint.
        label: What the progress lines call this run.
        judge: Told every epoch's metrics and number; true stops the run before it is tested.

    Returns:
        The record of the finished run.

    Raises:
        UsageError: The configuration or its files are at fault; nothing has been recorded then.
        Diverged: A loss was not finite; the run is marked failed.
        Pruned: ``judge`` has stopped it; the run is marked so.
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

    recording = trainer.is_global_zero
    run_id = _open(experiment, store, tags, resume) if recording else ""
    clock = EpochClock()
    pruned = False

    def judged(metrics: dict[str, float], epoch: int) -> None:
        nonlocal pruned
        pruned = judge is not None and judge(metrics, epoch)
        trainer.should_stop |= pruned

    keep = KeepGoing(store.checkpoint(run_id), clock)
    try:
        with keep.handling_signals(), store.closing(run_id) if recording else nullcontext():
            if recording:
                device = trainer.strategy.root_device
                store.describe(run_id, experiment, facts(module.flow, experiment, device))
            lines = EpochLines(label or experiment.model.transform)
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            callbacks += _callbacks(module, store, run_id, clock, lines, judged, data.splits)
            callbacks.append(keep)  # last: what it saves has in it what the others did
            with known_warnings():
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if pruned:
                raise Pruned(f"run {run_id} was stopped early")
            trained = time.monotonic()
            if recording:
                lines.evaluating()
                found = _evaluated(module, trainer.strategy.root_device, data, store)
            evaluated = time.monotonic()
            if recording:
                _record(store, run_id, found, trainer.current_epoch)
    except (KeyboardInterrupt, SystemExit) as error:
        if not recording:
            raise Interrupted("stopped") from error
        kept = keep.path if keep.path.exists() else "no checkpoint yet"
        raise Interrupted(f"run {run_id} stopped; kept: {kept}", run_id) from error
    metrics = dict(store.get(run_id).data.metrics) if recording else {}
    return Record(run_id, metrics, module.flow, clock.working + evaluated - trained)


def evaluate(
    run: str,
    store: Store,
    settings: Mapping[str, Any],
    device: str | None = None,
    out: Path | None = None,
) -> dict[str, float]:
    """Measure the flow of a run or a checkpoint, by the protocol of its experiment.

    Args:
        run: Id of a run, where all is recorded if the run is finished; or path of a checkpoint.
        store: Where runs, and what evaluations share, are kept.
        settings: Fields of ``Evaluate`` that are to be others than the experiment's.
        device: Where to; None for a GPU if there is one.
        out: Directory for tables and images.

    Raises:
        UsageError: There is no such run, checkpoint or device, or a setting is not valid.
    """
    module = load(store.checkpoint_of(run), device)
    experiment = module.experiment
    changed = replace(experiment, evaluate=replace(experiment.evaluate, **settings))
    module.experiment = changed
    data = FlowData(changed.data, changed.seed)
    data.prepare_data()
    found = _evaluated(module, module.device, data, store)
    if out:
        _write(found, out)
    if Path(run).exists():
        return found.metrics
    recorded = store.client.get_metric_history(run, "test/loss")
    if recorded and store.get(run).info.status == "FINISHED":
        _record(store, run, found, recorded[-1].step)
    else:
        say(f"run {run} is not finished: this is not recorded")
    return found.metrics


def _evaluated(
    module: FlowModule, device: torch.device, data: FlowData, store: Store
) -> Evaluation:
    began = time.monotonic()
    # Training may have run in bf16, and Lightning has left the GPU.
    flow = module.flow.to(device, torch.float32).eval()
    found = protocol.evaluate(flow, module.dequantise, module.experiment, data.splits, store.cache)
    found.metrics["evaluation/seconds"] = time.monotonic() - began
    return found


def _record(store: Store, run_id: str, found: Evaluation, epoch: int) -> None:
    """Record what was measured of a run's flow, in the place of what was before."""
    store.log(run_id, found.metrics, epoch)
    store.tag(run_id, {"skipped": "", **found.tags})
    with tempfile.TemporaryDirectory() as directory:
        _write(found, Path(directory))
        store.client.log_artifacts(run_id, directory)


def _write(found: Evaluation, directory: Path) -> None:
    """Write images as pictures and as arrays, and tables as CSV."""
    for folder in ("samples", EVALUATION):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    for name, images in found.images.items():
        np.save(directory / f"{name}.npy", images)
        Image.fromarray(grid(images).squeeze()).save(directory / "samples" / f"{name}.png")
    for name, table in found.tables.items():
        table.to_csv(directory / EVALUATION / f"{name}.csv", index=False)


def make_trainer(experiment: Experiment) -> Trainer:
    """Make a trainer with the options of an experiment.

    Raises:
        UsageError: An option is unknown or not free, its value is not valid, or nothing ends the
            training.
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
        told = ", ".join(f"{key} = {value!r}" for key, value in ends.items())
        valid = "one of them ends the training, an integer above 0, or seconds does"
        raise UsageError(f"{told} is not valid: {valid}")
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
            raise UsageError(f"run {resume} is finished: there is nothing to go on with")
        store.reopen(resume)
        return resume
    own = {"flowbench.role": "run", "flowbench.digest": experiment.digest()}
    name = f"{experiment.model.transform} seed {experiment.seed}"
    return store.start(experiment.name, name, {**own, **(tags or {})})


def _callbacks(
    module: FlowModule,
    store: Store,
    run_id: str,
    clock: EpochClock,
    lines: EpochLines,
    judged: Callable[[dict[str, float], int], None],
    splits: Splits,
) -> list[Callback]:
    experiment = module.experiment
    average = Average(experiment.optim.ema) if experiment.optim.ema else None
    budget = [Budget(experiment.seconds, clock, module)] if experiment.seconds else []

    def record(metrics: dict[str, float], epoch: int) -> None:
        metrics |= _bits(metrics, experiment)
        store.log(run_id, metrics, epoch)
        lines.epoch_done(metrics, epoch)
        judged(metrics, epoch)

    def judged_samples(epoch: int) -> None:
        with average.in_place(module.trainer, module) if average else nullcontext():
            store.log(run_id, protocol.check(module.flow, experiment, splits, store.cache), epoch)

    def picture(epoch: int) -> None:
        with average.in_place(module.trainer, module) if average else nullcontext():
            images = draw_classes(module.flow, module.classes, 1, Sampling(experiment.seed))
        store.client.log_image(run_id, grid(images), f"samples/epoch_{epoch:04d}.png")

    recording = EpochRecord(clock, module.trained, module.evaluated, record)
    acts = [
        EveryEpochs(experiment.evaluate.samples_every, picture),
        EveryEpochs(experiment.evaluate.fidelity_every, judged_samples),
    ]
    return [clock, *budget, lines, *([average] if average else []), recording, *acts]


@contextmanager
def known_warnings() -> Iterator[None]:
    """Leave out what torch tells Lightning, and nobody else can heed."""
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
    """Bits per dimension of every loss, where the noise gives them a meaning."""
    if experiment.data.noise != "uniform":
        return {}
    losses = {key: value for key, value in metrics.items() if key.endswith("/loss")}
    return {key.replace("/loss", "/bpd"): bits_per_dim(value) for key, value in losses.items()}
