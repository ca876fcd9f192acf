"""What happens around the training steps: timing, recording, pictures, exact resumption, signals."""

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from flowbench.errors import Interrupted

CHECKPOINT_SECONDS = 120.0


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place, syncs it, then renames: whole or not at all."""

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ARG002 - the signature is Lightning's
    ) -> None:
        """Save; a failure (a full disk, say) leaves an earlier checkpoint at ``path`` intact."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


class RandomState(Callback):
    """Keeps the random generators' states in checkpoints, which Lightning does not.

    Together with the loader's own state, a resumed run draws exactly what an uninterrupted one
    would have drawn.
    """

    def on_save_checkpoint(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Store plain values only, so that the file loads with ``weights_only=True``."""
        version, internal, gauss = random.getstate()
        name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)  # noqa: NPY002
        checkpoint["random_state"] = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
            "python": (version, list(internal), gauss),
            "numpy": (name, keys.tolist(), int(position), int(has_gauss), float(cached)),
        }

    def on_load_checkpoint(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        checkpoint: dict[str, Any],
    ) -> None:
        """Restore here: when training starts, the loader's iterator already exists."""
        state = checkpoint["random_state"]
        torch.set_rng_state(state["torch"])
        if len(state["cuda"]) == torch.cuda.device_count() > 0:
            torch.cuda.set_rng_state_all(state["cuda"])
        version, internal, gauss = state["python"]
        random.setstate((version, tuple(internal), gauss))
        name, keys, *rest = state["numpy"]
        np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))  # noqa: NPY002


class EpochClock(Callback):
    """Seconds that an epoch spends in training: without set-up, validation, pictures, checkpoints.

    An epoch that was interrupted and resumed counts what both parts took.
    """

    def __init__(self) -> None:
        self._seconds = 0.0
        self._images = 0
        self._since: float | None = None

    def lap(self) -> tuple[float, int]:
        """Give the seconds and the images (on all devices) since the last lap, and start anew."""
        lap = self._seconds, self._images
        self._seconds, self._images = 0.0, 0
        return lap

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out what happens inside."""
        running = self._since is not None
        self._stop()
        yield
        if running:
            self._start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Start with the first batch's loading."""
        self._start()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Count the batch, and stop behind the last one."""
        self._images += len(batch[0]) * trainer.world_size
        if batch_idx + 1 == trainer.num_training_batches:
            self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Stop for a validation in mid-epoch."""
        self._mid_epoch = self._since is not None
        self._stop()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Go on after a validation in mid-epoch."""
        if self._mid_epoch:
            self._start()

    def state_dict(self) -> dict[str, Any]:
        """Keep what an epoch in progress has taken so far."""
        return {"seconds": self._seconds, "images": self._images}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._seconds, self._images = state_dict["seconds"], state_dict["images"]

    def _start(self) -> None:
        self._since = self._now()

    def _stop(self) -> None:
        if self._since is not None:
            self._seconds += self._now() - self._since
            self._since = None

    @staticmethod
    def _now() -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter()


class EpochRecord(Callback):
    """Hands the measurements of every finished epoch to a function, once.

    Args:
        clock: The clock of the same trainer.
        record: Takes the metrics by name, and the number of the epoch (from 1).
    """

    def __init__(self, clock: EpochClock, record: Callable[[dict[str, float], int], None]) -> None:
        self.clock = clock
        self.record = record

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Collect what was logged, the time and the rate."""
        seconds, images = self.clock.lap()
        if not trainer.is_global_zero:
            return
        epoch = trainer.current_epoch + 1
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items()}
        metrics["lr"] = trainer.optimizers[0].param_groups[0]["lr"]
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

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Act where it is time, on one process."""
        epoch = trainer.current_epoch + 1
        if self.every and epoch % self.every == 0 and trainer.is_global_zero:
            self.act(epoch)


class KeepGoing(Callback):
    """Saves what a kill would lose: now and then in mid-epoch, and when a signal asks to stop.

    A first SIGINT or SIGTERM lets the batch end, saves and raises ``Interrupted``, since a signal in
    the middle of an optimiser step leaves weights that no run has; a second one stops at once.

    Args:
        path: The checkpoint.
        clock: The clock of the same trainer, which leaves the saving out.
    """

    def __init__(self, path: Path, clock: EpochClock) -> None:
        self.path = path
        self.clock = clock
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

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        if self._asked or not self._training:
            raise KeyboardInterrupt
        self._asked = True
        print("\nstopping after this batch; press again to stop at once", file=sys.stderr)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """From here on a signal waits for the end of a batch."""
        self._training = True

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,  # noqa: ARG002
        batch: Any,  # noqa: ARG002
        batch_idx: int,
    ) -> None:
        """Save if asked to stop or if it is time; the last batch's save waits for validation."""
        last = batch_idx + 1 == trainer.num_training_batches
        due = time.monotonic() - self._saved > CHECKPOINT_SECONDS
        if not last and (due or self._asked):
            self._save(trainer)
            self._stop_if_asked()

    def on_validation_batch_end(self, *_: Any) -> None:
        """Stop without saving: the epoch's last state is not whole before its end."""
        self._stop_if_asked()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Save the finished epoch."""
        self._save(trainer)
        self._stop_if_asked()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:  # noqa: ARG002
        """Signals stop at once again."""
        self._training = False

    def _save(self, trainer: Trainer) -> None:
        with self.clock.paused():
            trainer.save_checkpoint(self.path)
        self._saved = time.monotonic()

    def _stop_if_asked(self) -> None:
        if self._asked:
            raise Interrupted("stopped by a signal")
