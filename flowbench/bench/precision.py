"""What bf16 does to learning: the same flow, weights, batches and noise, trained in either."""

from collections.abc import Iterator
from typing import Any

import torch

from flowbench.bench import training
from flowbench.bench.flows import CLASSES, SHAPE
from flowbench.bench.measure import spread
from flowbench.callbacks import EpochClock
from flowbench.config import Data
from flowbench.data.module import FlowData
from flowbench.evaluation.likelihood import bits_per_dim
from flowbench.experiment import known_warnings, make_trainer
from flowbench.module import FlowModule

EPOCHS = 4
OPTIONS = {"float32": "32-true", "bf16": "bf16-mixed"}


def rows() -> Iterator[dict[str, Any]]:
    """Train affine on mnist-5k; a row for each precision: losses of the validation images, time.

    ``difference`` is the loss's from float32's, as a share of it.
    """
    data = FlowData(Data("mnist-5k", batch=training.BATCH), seed=0)
    losses: dict[str, float] = {}
    for precision, option in OPTIONS.items():
        experiment = training.experiment("affine", max_epochs=EPOCHS, precision=option)
        torch.manual_seed(experiment.seed)
        module, clock = FlowModule(experiment, SHAPE, CLASSES), EpochClock()
        trainer = make_trainer(experiment)
        trainer.callbacks.append(clock)  # type: ignore[attr-defined]
        with known_warnings():
            trainer.fit(module, datamodule=data)
        losses[precision] = loss = module.evaluated.take()["val/loss"]
        taken, images, steps = clock.lap()
        exact = losses["float32"]
        yield {
            "case": f"affine, {precision}",
            "setting": f"{steps} steps on mnist-5k",
            **spread([taken / steps]),
            "images_per_second": images / taken,
            "val_loss": loss,
            "val_bpd": bits_per_dim(loss),
            "difference": (loss - exact) / abs(exact),
        }
