"""Checkpoints: written whole or not at all, when a run needs them, and read back with checks."""

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Callback, LightningModule, Trainer

from flowbench.archive import read_tensors
from flowbench.atomic import replacing
from flowbench.callbacks import EpochClock
from flowbench.config import flat
from flowbench.errors import Interrupted, UsageError
from flowbench.module import FlowModule
from flowbench.parsing import build
from flowbench.terminal import say

CHECKPOINT_SECONDS = 120.0
TRAINING = {"epoch", "global_step", "loader", "loops", "lr_schedulers", "optimizer_states"}
"""What a checkpoint needs, besides weights, for training to continue."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all."""

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
        try:
            with replacing(Path(path)) as file:
                torch.save(checkpoint, file)
        except (
            OSError,
            RuntimeError,
        ) as error:  # torch's writer hides an OSError with a RuntimeError
            raise UsageError(f"checkpoint {path} cannot be written: {error}") from error


class CheckpointCallback(Callback):
    """Saves checkpoints: every two minutes, after every epoch, and when a signal asks to stop.

    A first SIGINT or SIGTERM waits for the end of the step, saves and raises ``Interrupted``: a
    signal inside an optimiser step would leave weights of no step. A second one stops at once.

    Args:
        path: Gives the checkpoint's path, once training has begun.
        clock: The clock of the same trainer, which excludes the saving.
    """

    def __init__(self, path: Callable[[], Path], clock: EpochClock) -> None:
        self.path = path
        self.clock = clock
        self._place: dict[str, Any] | None = None
        self._asked = False
        self._training = False
        self._saved = time.monotonic()

    @contextmanager
    def handling_signals(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM in the context; restore the earlier handlers after it."""
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
        say("stopping after this step; press Ctrl-C again to stop at once")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Continue with the next batch; from here on a signal waits for the end of a step."""
        if self._place:
            _loader(trainer).load_state_dict(self._place)
        self._training = True
        # Lightning has installed a handler of its own, which stops without saving.
        signal.signal(signal.SIGTERM, self._on_signal)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save if a signal or the time asks for it, where the state is whole.

        Between the batches of one step the state lacks their gradients. Resumed after the last
        batch of an epoch, or of the training, Lightning would skip the validation.
        """
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        last = batch_idx + 1 == trainer.num_training_batches or trainer.should_stop
        if whole and not last:
            due = time.monotonic() - self._saved > CHECKPOINT_SECONDS
            # Saving and stopping involve all devices, so they have to agree.
            if trainer.strategy.reduce_boolean_decision(due or self._asked, all=False):
                self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the finished epoch."""
        self._save(trainer)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Save the loader's position.

        Lightning restores a loader only if it did not exist before, but the learning rate schedule
        needs it earlier, to count the steps.
        """
        checkpoint["loader"] = _loader(trainer).state_dict()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the loader's position until the loader exists."""
        self._place = checkpoint["loader"]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From here on signals stop at once again."""
        self._training = False
        self._stop_if_asked(trainer)

    def _save(self, trainer: Trainer) -> None:
        with self.clock.paused():
            trainer.save_checkpoint(self.path())
        self._saved = time.monotonic()
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self._asked, all=False):
            raise Interrupted("stopped by a signal")


def _loader(trainer: Trainer) -> Any:
    return trainer.train_dataloader  # Any: Lightning types it as optional


def load(path: Path, device: str | None = "cpu") -> FlowModule:
    """Build the module of a checkpoint, with its weights, ready to evaluate.

    Args:
        path: The checkpoint.
        device: Device of the module; None for a GPU if there is one.

    Raises:
        UsageError: The file is missing, damaged, or was not written by flowbench; or there is no
            such device.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    content = read(path)
    about = content["flowbench"]
    module = FlowModule(build(about["experiment"]), tuple(about["shape"]), about["classes"])
    _fill(module, content, path)
    try:
        return module.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device} is not valid: {error}") from error


def check_resumable(path: Path, module: FlowModule) -> None:
    """Check that training of this module can continue from a checkpoint.

    Raises:
        UsageError: The file is damaged, holds weights only, or was written by an experiment of
            another configuration.
    """
    content = read(path)
    if missing := sorted(TRAINING - content.keys()):
        raise UsageError(
            f"no training can continue from checkpoint {path}: {missing[0]} is missing"
        )
    written = flat(asdict(build(content["flowbench"]["experiment"])))
    asked = flat(asdict(module.experiment))
    for key in sorted(written.keys() | asked.keys()):
        here, there = asked.get(key), written.get(key)
        if here != there:
            raise UsageError(
                f"checkpoint {path} was written by another experiment: {key} is {there!r} there, "
                f"{here!r} here"
            )
    _fill(module, content, path)


def _fill(module: FlowModule, content: dict[str, Any], path: Path) -> None:
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip()
        raise UsageError(f"checkpoint {path} does not fit the flow it names: {reason}") from error


def read(path: Path) -> dict[str, Any]:
    """Read a checkpoint and check that flowbench wrote it.

    Raises:
        UsageError: The file is missing, damaged, or something else.
    """
    if not path.is_file():
        raise UsageError(f"checkpoint {path} cannot be read: there is no such file")
    if path.stat().st_size == 0:
        raise UsageError(f"checkpoint {path} cannot be read: it is empty")
    try:
        content = read_tensors(path)
    except OSError as error:
        raise UsageError(f"checkpoint {path} cannot be read: {error}") from error
    about = content.get("flowbench") if isinstance(content, dict) else None
    if not isinstance(about, dict) or not {"experiment", "shape", "classes"} <= about.keys():
        raise UsageError(f"checkpoint {path} was not written by flowbench")
    if not isinstance(content.get("state_dict"), dict):
        raise UsageError(f"checkpoint {path} has no weights: state_dict is missing")
    return content
