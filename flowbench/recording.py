"""The record of a run in training: opened before its first step, filled after every epoch."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any, Self

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from flowbench import schema
from flowbench.config import Experiment
from flowbench.data import Splits
from flowbench.errors import UsageError
from flowbench.evaluation.likelihood import bits_per_dim
from flowbench.flow import Flow
from flowbench.module import FlowModule
from flowbench.progress import EpochLines
from flowbench.tracking.provenance import processor
from flowbench.tracking.store import MLFLOW_RUN_NAME, Store

Judge = Callable[[dict[str, float], int], bool]
"""Takes an epoch's metrics and its number; returns whether to stop the run."""


class Recording(Callback):
    """Opens a run when Lightning has accepted all of its options, and closes it at the exit.

    Only the first of several processes records.

    Args:
        module: The module in training.
        splits: Its images, of which a new run says which they are.
        store: Where the run is recorded.
        tags: Tags of a new run, in addition to those of every run.
        resume: Id of the stopped run that goes on; it is opened at once.
        lines: Show the epochs.
        judge: Called after every epoch; if it returns true, the run stops.

    Attributes:
        run_id: The run's id; empty before it is opened.
        begun: Whether a first step was about to be trained.
    """

    def __init__(
        self,
        module: FlowModule,
        splits: Splits,
        store: Store,
        tags: Mapping[str, str],
        resume: str | None,
        lines: EpochLines,
        judge: Judge | None,
    ) -> None:
        self.experiment = module.experiment
        self.flow = module.flow
        self.splits = splits
        self.store = store
        self.tags = tags
        self.resume = resume
        self.lines = lines
        self.judge = judge
        self.run_id = ""
        self.begun = False
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._exit.__exit__(*error)

    def open(self, trainer: Trainer) -> None:
        """Open the run and record what it is; on one process, and once."""
        self.begun = True
        if self.run_id or not trainer.is_global_zero:
            return
        run_id = self._continue(self.resume) if self.resume else self._start()
        self._exit.enter_context(self.store.closing(run_id))
        self.run_id = run_id
        device = trainer.strategy.root_device
        self.store.describe(run_id, self.experiment, facts(self.flow, self.experiment, device))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open a new run."""
        self.open(trainer)

    def epoch(self, metrics: dict[str, float], epoch: int) -> bool:
        """Record an epoch's metrics and show them; return whether the judge stops the run."""
        metrics |= _bits(metrics, self.experiment)
        self.store.log(self.run_id, metrics, epoch)
        self.lines.epoch_done(metrics, epoch)
        return self.judge is not None and self.judge(metrics, epoch)

    def not_validated(self, epoch: int) -> bool:
        """Return whether an epoch has no validation on record, asked on the first process."""
        if not self.run_id:
            return False
        history = self.store.client.get_metric_history(self.run_id, "val/loss")
        return all(point.step < epoch for point in history)

    def validated(self, metrics: dict[str, float], epoch: int) -> None:
        """Record a validation after the training."""
        if self.run_id:
            self.store.log(self.run_id, metrics | _bits(metrics, self.experiment), epoch)

    def _start(self) -> str:
        return start(self.store, self.experiment, {**self.splits.tags, **self.tags})

    def _continue(self, run_id: str) -> str:
        if self.store.get(run_id).info.status == "FINISHED":
            raise UsageError(f"run {run_id} is finished: there is nothing to resume")
        self.store.reopen(run_id)
        return run_id


def start(store: Store, experiment: Experiment, tags: Mapping[str, str]) -> str:
    """Open a run of an experiment; return its id.

    Args:
        store: Where it is recorded.
        experiment: Its configuration.
        tags: Those of its images (``Splits.tags``), and others in addition to those of every run,
            its name among them if it has one of its own.
    """
    own = {"flowbench.role": "run", "flowbench.digest": experiment.digest()}
    name = tags.get(MLFLOW_RUN_NAME) or f"{experiment.model.transform} seed {experiment.seed}"
    run_id = store.start(experiment.name, name, {**own, **tags})
    store.data(run_id, experiment.data, tags[schema.IMAGES])
    return run_id


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
        "kernels": flow.kernels(experiment.compile, device),
    }


def _bits(metrics: Mapping[str, float], experiment: Experiment) -> dict[str, float]:
    """Compute bits per dimension of every loss; with uniform noise only."""
    if experiment.data.noise != "uniform":
        return {}
    losses = {key: value for key, value in metrics.items() if key.endswith("/loss")}
    return {key.replace("/loss", "/bpd"): bits_per_dim(value) for key, value in losses.items()}
