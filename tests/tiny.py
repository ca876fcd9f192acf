"""What the tests of running, recording and resuming share: seconds where a real run takes hours."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flowbench.config import Experiment
from flowbench.data import Batch
from flowbench.evaluation import protocol
from flowbench.module import FlowModule
from flowbench.parsing import build
from flowbench.tracking.store import Store

OPTIONS = {
    "model.transform": "affine",
    "model.blocks": 2,
    "model.layers": 1,
    "model.width": 16,
    "model.patch": 7,
    "data.batch": 100,
    "evaluate.samples_every": 0,
    "evaluate.samples_per_class": 1,
    "evaluate.draws": 1,
    "evaluate.bayes": 0,
    "evaluate.samples": 0,
    "trainer.max_epochs": 2,
    "trainer.limit_train_batches": 6,
    "trainer.limit_val_batches": 2,
    "trainer.accelerator": "cpu",
}
LIBRARIES = [
    # MLflow's way with SQLAlchemy, and Lightning's with torch: nothing of ours.
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning"),
]
"""``pytestmark`` of the modules that run experiments."""
BATCHES = OPTIONS["trainer.limit_train_batches"]
TIMES = {"seconds_per_epoch", "images_per_second", "evaluation/seconds", "samples/per_second"}


def experiment(**options: Any) -> Experiment:
    """The smallest experiment; ``optim__ema=0.9`` sets optim.ema."""
    values: dict[str, Any] = {}
    for key, value in {**OPTIONS, **{k.replace("__", "."): v for k, v in options.items()}}.items():
        group, _, name = key.rpartition(".")
        (values.setdefault(group, {}) if group else values)[name] = value
    return build(values)


def arguments(results: Path, **options: Any) -> list[str]:
    """The same as a command line."""
    given = {**OPTIONS, **{k.replace("__", "."): v for k, v in options.items()}}
    return [*(f"--{key}={value}" for key, value in given.items()), f"--results={results}"]


def batch(pixels: Tensor, first: int = 0) -> Batch:
    """Images with labels from 0 to 9 in turn, numbered from ``first``."""
    count = torch.arange(len(pixels), device=pixels.device)
    return Batch(pixels, count % 10, first + count)


@cache
def _empty() -> Path:
    """A database with MLflow's tables, which take seconds to make; gone when the tests are over."""
    directory = Path(tempfile.mkdtemp(prefix="flowbench-test-"))
    atexit.register(shutil.rmtree, directory)
    return Store(directory).results / "mlflow.db"


def results(directory: Path) -> Path:
    """A results directory with an empty database in it."""
    directory.mkdir(exist_ok=True)
    shutil.copy(_empty(), directory)
    return directory


def runs(store: Store) -> dict[str, str]:
    """Id and status of every run of an experiment."""
    found = store.search("tags.`flowbench.role` != 'study'")
    return {run.info.run_id: run.info.status for run in found}


def history(store: Store, run_id: str) -> dict[tuple[str, int], float]:
    """Every metric of every epoch, but what a clock has measured."""
    points = {}
    for key in store.get(run_id).data.metrics:
        for point in store.client.get_metric_history(run_id, key):
            points[key, point.step] = point.value
    return {at: value for at, value in points.items() if at[0] not in TIMES}


def weights(store: Store, run_id: str) -> dict[str, Any]:
    """All tensors of a run's last checkpoint: weights, averages, moments of the optimiser."""
    content = torch.load(store.checkpoint(run_id), weights_only=True)
    kept = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")
    return {key: content[key] for key in (*kept, "global_step", "epoch") if key in content}


def same(a: Any, b: Any) -> bool:
    """Whether two nested states are equal to the last bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return bool(a == b)


def at(
    monkeypatch: pytest.MonkeyPatch, stage: str, epoch: int, batch: int, act: Callable[[], Any]
) -> None:
    """Do something once, at the start of a training or validation step (from 0), or of the test."""
    if stage == "test":
        evaluate = protocol.evaluate

        def acting(*arguments: Any) -> protocol.Evaluation:
            act()
            return evaluate(*arguments)

        monkeypatch.setattr(protocol, "evaluate", acting)
        return
    name = f"{stage}_step"
    step = getattr(FlowModule, name)
    done = []

    def patched(self: FlowModule, given: Any, batch_idx: int) -> Any:
        if not done and (self.current_epoch, batch_idx) == (epoch, batch):
            done.append(True)
            act()
        return step(self, given, batch_idx)

    monkeypatch.setattr(FlowModule, name, patched)
