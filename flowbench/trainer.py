"""Lightning's Trainer: which of its options an experiment can set, and to what."""

import inspect
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from flowbench.callbacks import Steps
from flowbench.checkpoint import AtomicCheckpointIO
from flowbench.config import Experiment, check
from flowbench.errors import UsageError
from flowbench.kernels import memory
from flowbench.parsing import check_arguments

# Lightning's messages at every start would hide the lines that matter.
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
    "use_distributed_sampler": "the data are already split over the devices",
    "gradient_clip_val": "set optim.clip",
    "gradient_clip_algorithm": "optim.clip limits the norm",
    "fast_dev_run": "it records nothing; set trainer.max_steps to train a little",
    "barebones": "it turns the recording off",
    "reload_dataloaders_every_n_epochs": "a run continues in the middle of an epoch",
}
"""Options of the Trainer that cannot be set, and why."""


def make_trainer(experiment: Experiment) -> Trainer:
    """Make a trainer with the options of an experiment.

    Raises:
        UsageError: An option is unknown or cannot be set, its value is not valid, or nothing ends
            the training.
    """
    options = experiment.trainer
    known = [key for key in inspect.signature(Trainer).parameters if key not in OURS]
    for key in options:
        if key in OURS:
            raise UsageError(f"trainer.{key} cannot be set: {OURS[key]}")
        if key not in known:
            raise UsageError(f"unknown key trainer.{key}: valid are {', '.join(known)}")
    check_arguments(Trainer, options, "trainer")
    ends = {f"trainer.{key}": options.get(key) for key in ("max_epochs", "max_steps")}
    budget = experiment.seconds or experiment.flops
    if not (budget or any((end or 0) > 0 for end in ends.values())):
        given = ", ".join(f"{key} = {value!r}" for key, value in ends.items())
        valid = "one of them ends the training, an integer above 0, or seconds or flops does"
        raise UsageError(f"{given} is not valid: {valid}")
    limits = {"max_steps": -1, "max_epochs": options.get("max_epochs") or -1}
    memory.keep()
    with refused_early(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*fp16 is not supported on CPU")  # refused below
        trainer = Trainer(
            **{"devices": 1, "num_sanity_val_steps": 0, **QUIET, **options, **limits},
            callbacks=[Steps()],
            plugins=[AtomicCheckpointIO()],
            use_distributed_sampler=False,
        )
    device, world = trainer.strategy.root_device.type, trainer.world_size
    one = not experiment.capture or (device == "cuda" and world == 1)
    valid = f"false here: CUDA graphs need one NVIDIA GPU, not {world} of type {device}"
    check(one, "capture", experiment.capture, valid)
    half = str(options.get("precision")) in ("16", "16-mixed")  # Lightning would take bf16 instead
    check(not (half and device == "cpu"), "trainer.precision", "16-mixed", "bf16-mixed on a CPU")
    return trainer


@contextmanager
def refused_early(begun: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Turn what Lightning finds wrong with its options into a ``UsageError``.

    Args:
        begun: Whether the training has begun: after that an error has other causes, and passes.
    """
    try:
        yield
    except (MisconfigurationException, ValueError, TypeError, ImportError) as error:
        if begun() or isinstance(error, UsageError):
            raise
        raise UsageError(f"trainer: {error}") from error


@contextmanager
def known_warnings() -> Iterator[None]:
    """Hide a warning of torch that only Lightning can act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*LeafSpec.* is deprecated", FutureWarning)
        yield
