"""What happens around the training steps: timing, recording, pictures, averages, signals."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging

from flowbench.errors import Interrupted, UsageError
from flowbench.means import Means
from flowbench.module import FlowModule
from flowbench.terminal import say

CHECKPOINT_SECONDS = 120.0


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place, syncs it, then renames: whole or not at all."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,
    ) -> None:
        """Save.

        Raises:
            UsageError: It cannot be written (a full disk, say); an earlier one at ``path`` stays.
        """
        path = Path(path)
        partial = path.with_name(f"{path.name}.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        except (OSError, RuntimeError) as error:  # torch's writer hides the one behind the other
            raise UsageError(f"checkpoint {path} cannot be written: {error}") from error
        finally:
            with suppress(OSError):  # there is none after success
                partial.unlink()


class Average(EMAWeightAveraging):
    """Moving average of the weights, which takes the place of the weights wherever they are judged.

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
    """Seconds that an epoch spends in training: without set-up, validation, pictures, checkpoints.

    An epoch that was interrupted and resumed counts what both parts took.

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
        """Give the seconds, images (of all devices) and batches since the last lap; start anew."""
        self._stop()
        lap = self._seconds, self._images, self._batches
        self._before += self._seconds
        self._clear()
        return lap

    def elapsed(self) -> float:
        """Give the seconds of all laps and of the one in progress; waits for no device."""
        running = 0.0 if self._since is None else self._now() - self._since
        return self._before + self._seconds + running

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside."""
        running = self._stop()
        yield
        if running:
            self._start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start: Lightning does not start an epoch again that is resumed in its middle."""
        self._start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start with the first batch's loading."""
        self._start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch, and stop behind the last one."""
        self._images += len(batch[0]) * trainer.world_size
        self._batches += 1
        if batch_idx + 1 == trainer.num_training_batches:
            self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out a validation in mid-epoch."""
        self._paused = self._stop()
        self._validating = self._now()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on after it."""
        self.working += self._now() - self._validating
        if self._paused:
            self._start()

    def state_dict(self) -> dict[str, Any]:
        """Keep what the epochs before and the one in progress have taken so far."""
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
        """Stop, and tell whether the clock was running."""
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

    It tells the module what is spent, which is what the learning rate follows. All devices go by
    the clock of the first, so they stop, and change their rates, at the same step.

    Args:
        seconds: Training seconds of the whole run, all of its sittings together.
        clock: The clock of the same trainer, which has to come before in its list of callbacks.
        module: The module that is trained.
    """

    def __init__(self, seconds: float, clock: EpochClock, module: FlowModule) -> None:
        self.seconds = seconds
        self.clock = clock
        self.module = module

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with what an earlier sitting left; if that is nothing, train no further."""
        self._spend(trainer)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at the clock where a step ends, which may take several batches."""
        ends = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if ends or batch_idx + 1 == trainer.num_training_batches:
            self._spend(trainer)

    def _spend(self, trainer: Trainer) -> None:
        self.module.spent = trainer.strategy.broadcast(self.clock.elapsed())
        if self.module.spent >= self.seconds:
            trainer.should_stop = True


class EpochRecord(Callback):
    """Hands the measurements of every finished epoch to a function, once.

    Args:
        clock: The clock of the same trainer.
        trained: What the module measures in training.
        evaluated: What it measures in validation.
        record: Takes the metrics by name, and the number of the epoch (from 1).
    """

    def __init__(
        self,
        clock: EpochClock,
        trained: Means,
        evaluated: Means,
        record: Callable[[dict[str, float], int], None],
    ) -> None:
        self.clock = clock
        self.trained = trained
        self.evaluated = evaluated
        self.record = record

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Collect the means, the time and the rate; no time for an epoch that ended early."""
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
        self.record(metrics, epoch)


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
        """Act where it is time, on one process."""
        epoch = trainer.current_epoch + 1
        if self.every and epoch % self.every == 0 and trainer.is_global_zero:
            self.act(epoch)


class KeepGoing(Callback):
    """Saves what a kill would lose: now and then in mid-epoch, and when a signal asks to stop.

    A first SIGINT or SIGTERM lets the step end, saves and raises ``Interrupted``, since a signal in
    the middle of an optimiser step leaves weights that no run has; a second one stops at once.

    Args:
        path: The checkpoint.
        clock: The clock of the same trainer, which leaves the saving out.
    """

    def __init__(self, path: Path, clock: EpochClock) -> None:
        self.path = path
        self.clock = clock
        self._place: dict[str, Any] | None = None
        self._asked = False
        self._training = False
        self._saved = time.monotonic()

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM inside; the earlier handlers return behind."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._asked or not self._training:
            raise KeyboardInterrupt
        self._asked = True
        say("stopping after this step; once more to stop at once")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go on with the next batch; from here on a signal waits for the end of a step."""
        if self._place:
            self._loader(trainer).load_state_dict(self._place)
        self._training = True
        # Lightning has put a handler of its own before ours, which stops without saving.
        signal.signal(signal.SIGTERM, self._on_signal)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if asked to stop or if it is time, where the state is whole.

        Between the batches of one step it lacks their gradients; and resumed behind an epoch's last
        batch, or the last of the whole training, Lightning would leave out the validation.
        """
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = batch_idx + 1 == trainer.num_training_batches or trainer.should_stop
        if whole and not last:
            due = time.monotonic() - self._saved > CHECKPOINT_SECONDS
            # Saving and stopping take all devices, so they have to agree.
            if trainer.strategy.reduce_boolean_decision(due or self._asked, all=False):
                self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the finished epoch."""
        self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keep the loader's place.

        Lightning's own way to do so brings a loader back only if it did not exist before, and the
        learning rate's schedule needs it earlier, to count the steps.
        """
        checkpoint["loader"] = self._loader(trainer).state_dict()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the loader's place until there is a loader."""
        self._place = checkpoint["loader"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Signals stop at once again."""
        self._training = False
        self._stop_if_asked(trainer)

    @staticmethod
    def _loader(trainer: Trainer) -> Any:
        return trainer.train_dataloader

    def _save(self, trainer: Trainer) -> None:
        with self.clock.paused():
            trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            raise Interrupted("stopped by a signal")
