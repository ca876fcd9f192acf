"""What bf16 does to learning: the same flows, weights, batches and noise, trained in either."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import pandas as pd
import torch

from flowbench.bench.flows import CLASSES, SHAPE
from flowbench.bench.measure import spread
from flowbench.callbacks import EpochClock
from flowbench.config import Experiment
from flowbench.data.module import FlowData
from flowbench.evaluation.likelihood import bits_per_dim
from flowbench.module import FlowModule
from flowbench.parsing import build
from flowbench.report.stats import interval
from flowbench.terminal import tracked
from flowbench.trainer import known_warnings, make_trainer

MODEL = {"transform": "affine", "blocks": 2, "layers": 2, "width": 64}
"""Small, because it has to be trained to the end: while a loss still falls steeply, two trainings
that differ by rounding alone end several percent apart."""
EPOCHS = 20
SEEDS = 6
BATCH = 256
OPTIONS = {"float32": "32-true", "bf16": "bf16-mixed"}


def rows() -> Iterator[dict[str, Any]]:
    """Train small affine flows on mnist-5k; a row for each precision: validation loss, time.

    Losses are means over seeds. ``difference`` is how far the loss lies above float32's, as a share
    of it: the mean over seeds, which are paired, with its 95 % t interval.
    """
    runs = tracked(list(product(range(SEEDS), OPTIONS)), "training")
    trained = pd.DataFrame([_train(seed, precision) for seed, precision in runs])
    of = {precision: own.set_index("seed") for precision, own in trained.groupby("precision")}
    exact = of["float32"]["val_loss"]
    for precision in OPTIONS:
        own = of[precision]
        difference = interval((own["val_loss"] - exact) / exact.abs())
        yield {
            "case": f"affine, {precision}",
            "setting": f"{own['steps'].iloc[0]} steps on mnist-5k, {SEEDS} seeds",
            **spread(own["seconds"].tolist()),
            "images_per_second": own["images_per_second"].median(),
            "val_loss": own["val_loss"].mean(),
            "val_bpd": bits_per_dim(own["val_loss"].mean()),
            "difference": difference.mean,
            "difference_low": difference.low,
            "difference_high": difference.high,
        }


def experiment(seed: int, precision: str) -> Experiment:
    """Build the experiment that a seed trains."""
    trainer = {"max_epochs": EPOCHS, "precision": OPTIONS[precision]}
    data = {"name": "mnist-5k", "batch": BATCH}
    return build({"model": MODEL, "data": data, "trainer": trainer, "seed": seed})


def _train(seed: int, precision: str) -> dict[str, Any]:
    torch.manual_seed(seed)
    trained = experiment(seed, precision)
    module, clock = FlowModule(trained, SHAPE, CLASSES), EpochClock()
    trainer = make_trainer(trained)
    trainer.callbacks.append(clock)  # type: ignore[attr-defined]
    with known_warnings():
        trainer.fit(module, datamodule=FlowData(trained.data, seed))
    taken, images, steps = clock.lap()
    return {
        "seed": seed,
        "precision": precision,
        "val_loss": module.evaluated.take()["val/loss"],
        "seconds": taken / steps,
        "images_per_second": images / taken,
        "steps": steps,
    }
