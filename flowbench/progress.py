"""Progress of a training run: a bar on a terminal, and a line for every epoch."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from flowbench.terminal import duration


class EpochLines(Callback):
    """Shows the batches of an epoch as a bar, then prints one line.

    Without a terminal there is no bar, only the lines.

    Args:
        label: What to call the run.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._epochs: int | None = None
        self._began = 0.0
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember where a resumed run began, to estimate the remaining time."""
        endless = trainer.max_epochs is None or trainer.max_epochs < 0  # max_steps ends it
        self._epochs = None if endless else trainer.max_epochs
        self._first = trainer.current_epoch
        self._began = time.monotonic()

    def on_train_batch_start(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Open the epoch's bar, or advance it."""
        if not (self._console.is_terminal and trainer.is_global_zero):
            return
        if self._bar is None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            title = f"{self.label} · epoch {trainer.current_epoch + 1}"
            self._bar.add_task(title, total=trainer.num_training_batches)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=batch_idx)

    def epoch_done(self, metrics: dict[str, float], epoch: int) -> None:
        """Print the epoch's line."""
        self.close()
        parts = [f"{self.label} · epoch {epoch}" + (f"/{self._epochs}" if self._epochs else "")]
        parts.append(f"train loss {metrics['train/loss']:.4f}")
        if "val/loss" in metrics:
            parts.append(f"val loss {metrics['val/loss']:.4f}")
        if "val/bpd" in metrics:
            parts.append(f"val bpd {metrics['val/bpd']:.3f}")
        if "seconds_per_epoch" in metrics:
            parts.append(f"{metrics['seconds_per_epoch']:.1f} s/epoch")
        if self._epochs and epoch < self._epochs:
            each = (time.monotonic() - self._began) / (epoch - self._first)
            parts.append(f"{duration(each * (self._epochs - epoch))} left")
        self._console.print(" · ".join(parts))

    def evaluating(self) -> None:
        """Say that the evaluation begins."""
        self._console.print(f"{self.label} · evaluating")

    def on_exception(self, *_: Any) -> None:
        """Close the bar."""
        self.close()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar:
            self._bar.stop()
            self._bar = None
