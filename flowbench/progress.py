"""What a training run shows while it runs: a bar on a terminal, a line for every epoch anywhere."""

import sys
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class EpochLines(Callback):
    """Shows the batches of an epoch as a bar, then leaves one line behind.

    Where standard error is not a terminal there is no bar, only the lines.

    Args:
        label: What to call the run.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._epochs: int | None = None
        self._began = time.monotonic()
        self._first = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Remember where a resumed run began, for the time that is left."""
        self._epochs = trainer.max_epochs
        self._first = trainer.current_epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Open the epoch's bar."""
        if not (self._console.is_terminal and trainer.is_global_zero):
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._bar.add_task(
            f"{self.label} · epoch {trainer.current_epoch + 1}", total=trainer.num_training_batches
        )
        self._bar.start()

    def on_train_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Advance the bar."""
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=batch_idx + 1)

    def epoch_done(self, metrics: dict[str, float], epoch: int) -> None:
        """Leave the epoch's line."""
        self.close()
        parts = [f"{self.label} · epoch {epoch}" + (f"/{self._epochs}" if self._epochs else "")]
        parts.append(f"train loss {metrics['train/loss']:.4f}")
        if "val/loss" in metrics:
            parts.append(f"val loss {metrics['val/loss']:.4f}")
        if "val/bpd" in metrics:
            parts.append(f"val bpd {metrics['val/bpd']:.3f}")
        parts.append(f"{metrics['seconds_per_epoch']:.1f} s/epoch")
        if self._epochs and epoch < self._epochs:
            each = (time.monotonic() - self._began) / (epoch - self._first)
            parts.append(f"{duration(each * (self._epochs - epoch))} left")
        self._console.print(" · ".join(parts))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:  # noqa: ARG002, E501
        """Give the terminal back."""
        self.close()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """Write seconds as people say them.

    Example:
        >>> duration(42), duration(754)
        ('42 s', '12 min 34 s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def say(text: str) -> None:
    """Tell the user something at once, on standard error."""
    print(f"flowbench: {text}", file=sys.stderr, flush=True)
