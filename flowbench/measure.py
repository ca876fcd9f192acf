"""A trained flow measured by the protocol of its experiment, and the result recorded."""

import tempfile
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flowbench import pretrained
from flowbench.checkpoint import load
from flowbench.data.module import FlowData
from flowbench.evaluation import protocol
from flowbench.evaluation.latents import Latents, explore
from flowbench.evaluation.protocol import Evaluation
from flowbench.evaluation.sampling import Sampling, grid
from flowbench.module import FlowModule
from flowbench.terminal import say
from flowbench.tracking.store import Store
from flowbench.tracking.tables import EVALUATION


def evaluate(
    run: str,
    store: Store,
    settings: Mapping[str, Any],
    device: str | None = None,
    out: Path | None = None,
) -> dict[str, float]:
    """Measure the flow of a run or a checkpoint, by the protocol of its experiment.

    Args:
        run: Id of a run, in which everything is recorded if the run is finished; or path of a
            checkpoint, or name of a pretrained flow.
        store: Where runs, and the results that evaluations share, are kept.
        settings: Fields of ``Evaluate`` that replace the experiment's.
        device: Device to use; None for a GPU if there is one.
        out: Directory for tables and images.

    Raises:
        UsageError: There is no such run, checkpoint or device, or a setting is not valid.
    """
    module = load(store.checkpoint_of(run), device)
    experiment = module.experiment
    changed = replace(experiment, evaluate=replace(experiment.evaluate, **settings))
    protocol.check_possible(changed)
    module.experiment = changed
    data = FlowData(changed.data, changed.seed)
    data.prepare_data()
    found = measured(module, module.device, data, store)
    if out:
        _write(found, out)
    if Path(run).exists() or run in pretrained.flows():
        return found.metrics
    recorded = store.client.get_metric_history(run, "train/loss")
    if recorded and store.get(run).info.status == "FINISHED":
        record(store, run, found, max(point.step for point in recorded))
    else:
        say(f"run {run} is not finished: the measurements are not recorded")
    return found.metrics


def latents(run: str, store: Store, count: int, seed: int, device: str | None) -> Latents:
    """Explore the latents of a trained flow.

    Args:
        run: Id of a run, path of a checkpoint, or name of a pretrained flow.
        store: Where runs are kept.
        count: Images of each part that are measured.
        seed: Of the samples.
        device: Device to use; None for a GPU if there is one.

    Raises:
        UsageError: There is no such run, checkpoint or device, or there are too few images.
    """
    module = load(store.checkpoint_of(run), device)
    data = FlowData(module.experiment.data, module.experiment.seed)
    data.prepare_data()
    flow = module.flow.to(module.device, torch.float32).eval()
    how = Sampling(seed, denoise_std=protocol.noise_std(module.experiment))
    return explore(flow, data.splits, module.dequantise, count, data.data.batch, how)


def measured(module: FlowModule, device: torch.device, data: FlowData, store: Store) -> Evaluation:
    """Measure the flow of a module in float32 on a device."""
    began = time.monotonic()
    # Training may have run in bf16, and Lightning has left the GPU.
    flow = module.flow.to(device, torch.float32).eval()
    found = protocol.evaluate(flow, module.dequantise, module.experiment, data.splits, store.cache)
    found.metrics["evaluation/seconds"] = time.monotonic() - began
    return found


def record(store: Store, run_id: str, found: Evaluation, epoch: int) -> None:
    """Record the measurements of a run's flow in place of earlier ones."""
    store.log(run_id, found.metrics, epoch)
    store.tag(run_id, {"skipped": "", **found.tags})
    with tempfile.TemporaryDirectory() as directory:
        _write(found, Path(directory))
        store.client.log_artifacts(run_id, directory)


def _write(found: Evaluation, directory: Path) -> None:
    """Write images as pictures and as arrays, and tables as CSV."""
    for folder in ("samples", EVALUATION):
        (directory / folder).mkdir(parents=True, exist_ok=True)
    if found.faults:
        (directory / "traceback.txt").write_text("\n".join(found.faults), encoding="utf-8")
    for name, images in found.images.items():
        np.save(directory / f"{name}.npy", images)
        Image.fromarray(grid(images).squeeze()).save(directory / "samples" / f"{name}.png")
    for name, table in found.tables.items():
        table.to_csv(directory / EVALUATION / f"{name}.csv", index=False)
