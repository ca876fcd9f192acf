"""Callbacks around the training steps: timing, budget, averaged weights, recording."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from flowbench.means import Means
from flowbench.module import FlowModule


class Average(EMAWeightAveraging):
    """Moving average of the weights; validation, pictures and the test use it in their place.

    Args:
        decay: Share of the earlier average that every step keeps.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(decay=decay)

    @contextmanager
    def in_place(self, trainer: Trainer, module: LightningModule) -> Iterator[None]:
        """Evaluate the average inside, as Lightning does around a validation."""
        self.on_validation_epoch_start(trainer, module)
        yield
        self.on_validation_epoch_end(trainer, module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the average in place also where a resumed run had no step left to train."""
        self.on_train_end(trainer, pl_module)


class EpochClock(Callback):
    """Seconds that an epoch trains, without set-up, validation, pictures and checkpoints.

    An epoch that was interrupted and resumed counts the seconds of both parts.

    Attributes:
        working: Seconds of training and of validation in this process, all epochs together.
    """

    def __init__(self) -> None:
        self.working = 0.0
        self._clear()
        self._before = 0.0
        self._since: float | None = None
        self._paused = False
        self._validating = 0.0

    def lap(self) -> tuple[float, int, int]:
        """Return seconds, images (of all devices) and batches of this lap; start a new one."""
        self._stop()
        lap = self._seconds, self._images, self._batches
        self._before += self._seconds
        self._clear()
        return lap

    def elapsed(self) -> float:
        """Return the seconds of all laps and the one in progress; waits for no device."""
        running = 0.0 if self._since is None else self._now() - self._since
        return self._before + self._seconds + running

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Exclude the context from the time."""
        running = self._stop()
        yield
        if running:
            self._start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start: Lightning starts no epoch that is resumed in its middle."""
        self._start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with the loading of the first batch."""
        self._start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch, and stop after the last one."""
        self._images += len(batch[0]) * trainer.world_size
        self._batches += 1
        if batch_idx + 1 == trainer.num_training_batches:
            self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exclude a validation in mid-epoch."""
        self._paused = self._stop()
        self._validating = self._now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on after it."""
        self.working += self._now() - self._validating
        if self._paused:
            self._start()

    def state_dict(self) -> dict[str, Any]:
        """Return the seconds of the earlier epochs and the counts of the one in progress."""
        lap = {"seconds": self._seconds, "images": self._images, "batches": self._batches}
        return {"before": self._before, **lap}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._before = state_dict["before"]
        self._seconds, self._images = state_dict["seconds"], state_dict["images"]
        self._batches = state_dict["batches"]

    def _clear(self) -> None:
        self._seconds, self._images, self._batches = 0.0, 0, 0

    def _start(self) -> None:
        self._wait()
        self._since = self._now()

    def _stop(self) -> bool:
        """Stop, and return whether the clock was running."""
        if self._since is None:
            return False
        self._wait()
        seconds = self._now() - self._since
        self._seconds += seconds
        self.working += seconds
        self._since = None
        return True

    @staticmethod
    def _wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    @staticmethod
    def _now() -> float:
        return time.perf_counter()


class Budget(Callback):
    """Ends the training at the end of the step in which its seconds run out.

    It sets the module's ``spent`` seconds, which the learning rate follows. All devices use the
    clock of the first, so they stop, and change their rates, at the same step.

    Args:
        seconds: Training seconds of the whole run, all of its sittings together.
        clock: The clock of the same trainer, which precedes this callback in its list.
        module: The module in training.
    """

    def __init__(self, seconds: float, clock: EpochClock, module: FlowModule) -> None:
        self.seconds = seconds
        self.clock = clock
        self.module = module

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue with the seconds that are left; without any, train no further."""
        self._spend(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Read the clock at the end of a step, which may take several batches."""
        ends = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ends or batch_idx + 1 == trainer.num_training_batches:
            self._spend(trainer)

    def _spend(self, trainer: Trainer) -> None:
        self.module.spent = trainer.strategy.broadcast(self.clock.elapsed())
        if self.module.spent >= self.seconds:
            trainer.should_stop = True


class Steps(Callback):
    """Ends the training after a number of steps, and has that step's flow validated.

    Their number is the module's ``last_step``: of the whole run, all of its sittings together.
    Lightning's own ``max_steps`` loses count of the epochs of a resumed run, and does not validate.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further where all steps are done."""
        assert isinstance(pl_module, FlowModule)
        self.most = pl_module.last_step or math.inf
        trainer.should_stop |= trainer.global_step >= self.most

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop at the last step."""
        trainer.should_stop |= trainer.global_step >= self.most


class EpochRecord(Callback):
    """Passes the measurements of every finished epoch to a function, once.

    Args:
        clock: The clock of the same trainer.
        trained: Means that the module measures in training.
        evaluated: Means that it measures in validation.
        record: Takes the metrics by name and the number of the epoch (from 1); returns whether to
            stop the training.

    Attributes:
        stopped: Whether ``record`` stopped the training.
    """

    def __init__(
        self,
        clock: EpochClock,
        trained: Means,
        evaluated: Means,
        record: Callable[[dict[str, float], int], bool],
    ) -> None:
        self.clock = clock
        self.trained = trained
        self.evaluated = evaluated
        self.record = record
        self.stopped = False

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect means, time and learning rate; an epoch that ended early has no time."""
        seconds, images, batches = self.clock.lap()
        metrics = {**self.trained.take(), **self.evaluated.take()}
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        metrics["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        if batches == trainer.num_training_batches:
            metrics["seconds_per_epoch"] = seconds
            metrics["images_per_second"] = images / seconds
            metrics["first_epoch"] = float(epoch == 1)
        self.stopped = self.record(metrics, epoch)
        trainer.should_stop |= self.stopped


class EveryEpochs(Callback):
    """Calls a function after every n-th epoch; n = 0: never.

    Args:
        every: n.
        act: Takes the number of the epoch (from 1).
    """

    def __init__(self, every: int, act: Callable[[int], None]) -> None:
        self.every = every
        self.act = act

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Act after every n-th epoch, on one process."""
        epoch = trainer.current_epoch + 1
        if self.every and epoch % self.every == 0 and trainer.is_global_zero:
            self.act(epoch)
