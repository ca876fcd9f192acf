"""One experiment from configuration to record; the only way anything is trained."""

import inspect
import logging
import tempfile
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging

from flowbench.callbacks import (
    AtomicCheckpointIO,
    EpochClock,
    EpochRecord,
    EveryEpochs,
    KeepGoing,
    RandomState,
)
from flowbench.checkpoint import check_resumable, load
from flowbench.config import Experiment
from flowbench.data.module import FlowData
from flowbench.errors import Interrupted, UsageError
from flowbench.evaluation.likelihood import bits_per_dim
from flowbench.evaluation.samples import Array, draw_classes, grid
from flowbench.flow import Flow
from flowbench.module import FlowModule
from flowbench.progress import EpochLines
from flowbench.tracking.provenance import processor
from flowbench.tracking.store import Store, one_line_errors
from flowbench.tracking.tables import SAMPLES
from flowbench.transforms import parse

# What they tell of themselves at every start would bury the lines that matter.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
logging.getLogger("mlflow").setLevel(logging.WARNING)

OURS = ("logger", "callbacks", "plugins", "enable_checkpointing", "use_distributed_sampler")


@dataclass(frozen=True)
class Record:
    """What a run came to: its id, its last metrics, its trained flow."""

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
    seed_everything(experiment.seed, verbose=False)
    data = FlowData(experiment.data, experiment.seed)
    data.prepare_data()
    splits = data.splits
    module = FlowModule(experiment, splits.shape, splits.classes)
    check_trainer(experiment.trainer)

    if resume is None:
        own = {"flowbench.role": "run", "flowbench.digest": experiment.digest()}
        name = f"{experiment.model.transform} seed {experiment.seed}"
        run_id = store.start(experiment.name, name, {**own, **(tags or {})}, experiment)
        _describe(store, run_id, experiment, module.flow)
    else:
        run_id = resume
        if store.checkpoint(run_id).exists():
            check_resumable(store.checkpoint(run_id), module)
        store.reopen(run_id)
    path = store.checkpoint(run_id)
    clock = EpochClock()
    keep = KeepGoing(path, clock)
    try:
        with keep.handling_signals(), one_line_errors(store.uri):
            trainer = _trainer(experiment, store, run_id, module, clock, keep, label)
            _fit(trainer, module, data, path if resume and path.exists() else None)
            return _evaluate(trainer, module, data, store, run_id)
    except (KeyboardInterrupt, SystemExit, Interrupted) as error:
        store.finish(run_id, "KILLED")
        kept = path if path.exists() else "no checkpoint yet"
        raise Interrupted(f"run {run_id} stopped; kept: {kept}", run_id) from error
    except BaseException:
        store.client.log_text(run_id, traceback.format_exc(), "traceback.txt")
        store.finish(run_id, "FAILED")
        raise


def test(checkpoint: Path, draws: int) -> dict[str, float]:
    """Measure the test likelihood of a checkpoint's flow, over so many draws of the noise."""
    module = load(checkpoint)
    module.experiment = replace(
        module.experiment, evaluate=replace(module.experiment.evaluate, draws=draws)
    )
    data = FlowData(module.experiment.data, module.experiment.seed)
    trainer = Trainer(
        logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    return _tested(trainer, module, data)


def check_trainer(options: Mapping[str, Any]) -> None:
    """Refuse what is no option of Lightning's Trainer.

    Raises:
        UsageError: Names the key and the valid ones.
    """
    known = [key for key in inspect.signature(Trainer).parameters if key not in OURS]
    for key in options:
        if key not in known:
            raise UsageError(f"unknown key trainer.{key}: valid are {', '.join(known)}")


def _trainer(
    experiment: Experiment,
    store: Store,
    run_id: str,
    module: FlowModule,
    clock: EpochClock,
    keep: KeepGoing,
    label: str,
) -> Trainer:
    logger = store.logger(run_id)
    evaluate = experiment.evaluate
    lines = EpochLines(label or experiment.model.transform)

    def record(metrics: dict[str, float], epoch: int) -> None:
        metrics |= _bits(metrics, experiment)
        logger.log_metrics(metrics, epoch)
        lines.epoch_done(metrics, epoch)

    def picture(epoch: int) -> None:
        with clock.paused():
            images = draw_classes(module.flow, module.classes, 1, experiment.seed)
            store.client.log_image(run_id, grid(images), f"samples/epoch_{epoch:04d}.png")

    callbacks: list[Callback] = [
        clock,
        RandomState(),
        EpochRecord(clock, record),
        EveryEpochs(evaluate.samples_every, picture),
        lines,
        keep,
    ]
    if experiment.optim.ema:
        callbacks.append(EMAWeightAveraging(decay=experiment.optim.ema))
    options = {
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "num_sanity_val_steps": 0,
        **experiment.trainer,
    }
    try:
        return Trainer(
            logger=logger,
            callbacks=callbacks,
            plugins=[AtomicCheckpointIO()],
            enable_checkpointing=False,
            use_distributed_sampler=False,
            **options,
        )
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise UsageError(f"trainer: {str(error).splitlines()[0]}") from error


def _fit(trainer: Trainer, module: FlowModule, data: FlowData, checkpoint: Path | None) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        warnings.filterwarnings("ignore", ".*smaller than the logging interval")  # we log by epoch
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)


def _evaluate(
    trainer: Trainer, module: FlowModule, data: FlowData, store: Store, run_id: str
) -> Record:
    experiment = module.experiment
    final = {key: value.item() for key, value in trainer.callback_metrics.items()}
    tested = _tested(trainer, module, data)
    if trainer.is_global_zero:
        store.logger(run_id).log_metrics(tested, trainer.current_epoch)
        rows = experiment.evaluate.samples_per_class
        images = draw_classes(module.flow, module.classes, rows, experiment.seed)
        store.client.log_image(run_id, grid(images), "samples/final.png")
        _log_array(store, run_id, images)
        store.finish(run_id, "FINISHED")
    return Record(run_id, final | tested, module.flow)


def _tested(trainer: Trainer, module: FlowModule, data: FlowData) -> dict[str, float]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        trainer.test(module, datamodule=data, verbose=False)
    metrics = {key: value.item() for key, value in trainer.callback_metrics.items()}
    return metrics | _bits(metrics, module.experiment)


def _describe(store: Store, run_id: str, experiment: Experiment, flow: Flow) -> None:
    """Record what the configuration does not say outright."""
    bins = getattr(parse(experiment.model.transform), "bins", "")
    parameters = sum(parameter.numel() for parameter in flow.parameters())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    facts = {"bins": bins, "parameters": parameters, "device": device}
    for key, value in {**facts, "threads": torch.get_num_threads()}.items():
        store.client.log_param(run_id, key, value)


def _bits(metrics: Mapping[str, float], experiment: Experiment) -> dict[str, float]:
    """Bits per dimension of every loss, where the noise gives them a meaning."""
    if experiment.data.noise != "uniform":
        return {}
    losses = {key: value for key, value in metrics.items() if key.endswith("/loss")}
    return {key.replace("/loss", "/bpd"): bits_per_dim(value) for key, value in losses.items()}


def _log_array(store: Store, run_id: str, array: Array) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / SAMPLES
        np.save(path, array)
        store.client.log_artifact(run_id, str(path))
