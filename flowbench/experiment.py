"""One experiment from configuration to record; the only way anything is trained."""

import inspect
import logging
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything

from flowbench.callbacks import (
    AtomicCheckpointIO,
    Average,
    EpochClock,
    EpochRecord,
    EveryEpochs,
    KeepGoing,
)
from flowbench.checkpoint import check_resumable, load
from flowbench.config import Experiment
from flowbench.data.module import FlowData
from flowbench.errors import Interrupted, UsageError
from flowbench.evaluation.likelihood import bits_per_dim
from flowbench.evaluation.samples import draw_classes, grid
from flowbench.flow import Flow
from flowbench.module import FlowModule
from flowbench.progress import EpochLines
from flowbench.tracking.provenance import processor
from flowbench.tracking.store import Store
from flowbench.tracking.tables import SAMPLES

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
    "use_distributed_sampler": "the data deal themselves to the devices",
    "gradient_clip_val": "set optim.clip",
    "gradient_clip_algorithm": "optim.clip limits the norm",
}
"""Options of the Trainer that are not free, and why."""


@dataclass(frozen=True)
class Record:
    """What a run came to: its id, the last value of its metrics, its trained flow."""

    run_id: str
    metrics: dict[str, float]
    flow: Flow


def run(
    experiment: Experiment,
    store: Store,
    tags: Mapping[str, str] | None = None,
    resume: str | None = None,
    label: str = "",
) -> Record:
    """Train, test and record one experiment.

    Where a strategy starts further processes, each comes here; the first one alone records.

    Args:
        experiment: All that decides the result.
        store: Where it is recorded.
        tags: Tags of a new run, beside those that every run gets.
        resume: Id of a stopped run of the same experiment that goes on from its checkpoint.
        label: What the progress lines call this run.

    Returns:
        The record of the finished run.

    Raises:
        UsageError: The configuration or its files are at fault; nothing has been recorded then.
        Diverged: A loss was not finite; the run is marked failed.
        Interrupted: A signal stopped it; the run is marked killed and can be resumed.
    """
    trainer = _trainer(experiment.trainer)
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
    keep = KeepGoing(store.checkpoint(run_id), clock)
    try:
        with keep.handling_signals(), store.closing(run_id) if recording else nullcontext():
            if recording:
                store.describe(run_id, experiment, _facts(module.flow))
            lines = EpochLines(label or experiment.model.transform)
            callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
            callbacks += _callbacks(module, store, run_id, clock, lines)
            callbacks.append(keep)  # last: what it saves has in it what the others did
            with _known_warnings():
                trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            tested = _tested(trainer, module, data)
            if recording:
                store.log(run_id, tested, trainer.current_epoch)
                _log_samples(store, run_id, module)
    except (KeyboardInterrupt, SystemExit) as error:
        if not recording:
            raise Interrupted("stopped") from error
        kept = keep.path if keep.path.exists() else "no checkpoint yet"
        raise Interrupted(f"run {run_id} stopped; kept: {kept}", run_id) from error
    metrics = dict(store.get(run_id).data.metrics) if recording else {}
    return Record(run_id, metrics, module.flow)


def test(checkpoint: Path, draws: int) -> dict[str, float]:
    """Measure the test likelihood of a checkpoint's flow, over so many draws of the noise."""
    module = load(checkpoint)
    module.experiment = replace(
        module.experiment, evaluate=replace(module.experiment.evaluate, draws=draws)
    )
    data = FlowData(module.experiment.data, module.experiment.seed)
    return _tested(Trainer(**QUIET), module, data)


def _trainer(options: Mapping[str, Any]) -> Trainer:
    """Make a trainer with these options.

    Raises:
        UsageError: An option is unknown or not free, or its value is not valid.
    """
    known = [key for key in inspect.signature(Trainer).parameters if key not in OURS]
    for key in options:
        if key in OURS:
            raise UsageError(f"trainer.{key} cannot be set: {OURS[key]}")
        if key not in known:
            raise UsageError(f"unknown key trainer.{key}: valid are {', '.join(known)}")
    ends = {f"trainer.{key}": options.get(key) for key in ("max_epochs", "max_steps")}
    if not any(isinstance(end, int) and end > 0 for end in ends.values()):
        told = ", ".join(f"{key} = {value!r}" for key, value in ends.items())
        raise UsageError(f"{told} is not valid: one of them ends the training, an integer above 0")
    try:
        return Trainer(
            **{"devices": 1, "num_sanity_val_steps": 0, **QUIET, **options},
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
    module: FlowModule, store: Store, run_id: str, clock: EpochClock, lines: EpochLines
) -> list[Callback]:
    experiment = module.experiment
    average = Average(experiment.optim.ema) if experiment.optim.ema else None

    def record(metrics: dict[str, float], epoch: int) -> None:
        metrics |= _bits(metrics, experiment)
        store.log(run_id, metrics, epoch)
        lines.epoch_done(metrics, epoch)

    def picture(epoch: int) -> None:
        with average.in_place(module.trainer, module) if average else nullcontext():
            images = draw_classes(module.flow, module.classes, 1, experiment.seed)
        store.client.log_image(run_id, grid(images), f"samples/epoch_{epoch:04d}.png")

    recording = EpochRecord(clock, module.trained, module.evaluated, record)
    pictures = EveryEpochs(experiment.evaluate.samples_every, picture)
    return [clock, lines, *([average] if average else []), recording, pictures]


def _tested(trainer: Trainer, module: FlowModule, data: FlowData) -> dict[str, float]:
    with _known_warnings():
        trainer.test(module, datamodule=data, verbose=False)
    metrics = module.evaluated.take()
    return metrics | _bits(metrics, module.experiment)


@contextmanager
def _known_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        yield


def _facts(flow: Flow) -> dict[str, Any]:
    """What the configuration does not say outright."""
    cuda = torch.cuda.is_available()
    return {
        "bins": getattr(flow.blocks[0].transform, "bins", ""),
        "parameters": sum(parameter.numel() for parameter in flow.parameters()),
        "device": torch.cuda.get_device_name() if cuda else processor(),
        "threads": torch.get_num_threads(),
    }


def _bits(metrics: Mapping[str, float], experiment: Experiment) -> dict[str, float]:
    """Bits per dimension of every loss, where the noise gives them a meaning."""
    if experiment.data.noise != "uniform":
        return {}
    losses = {key: value for key, value in metrics.items() if key.endswith("/loss")}
    return {key.replace("/loss", "/bpd"): bits_per_dim(value) for key, value in losses.items()}


def _log_samples(store: Store, run_id: str, module: FlowModule) -> None:
    """Record the finished flow's samples: as an image to look at, as numbers to draw from."""
    experiment = module.experiment
    rows = experiment.evaluate.samples_per_class
    images = draw_classes(module.flow, module.classes, rows, experiment.seed)
    store.client.log_image(run_id, grid(images), "samples/final.png")
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / SAMPLES
        np.save(path, images)
        store.client.log_artifact(run_id, str(path))
