"""Recorded runs made up for the benchmark of the report: as many, and as wide, as real ones."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from flowbench.report.files import Recorded

SIDE, BLOCKS, CLASSES = 7, 8, 10


def recorded(transforms: int, seeds: int, epochs: int) -> Recorded:
    """Make finished runs with their curves, samples and the tables of their evaluation.

    Args:
        transforms: Number of transforms: affine, and splines of 2, 3, … bins.
        seeds: Runs of each.
        epochs: Epochs of each run.
    """
    generator = np.random.default_rng(0)
    names = ["affine", *(f"rqs-{bins}" for bins in range(2, transforms + 1))]
    runs, history = [], []
    tables: dict[str, list[pd.DataFrame]] = {}
    for rank, transform in enumerate(names):
        for seed in range(seeds):
            run = {"run_id": f"{rank:016x}{seed:016x}", "transform": transform, "seed": seed}
            curves = _curves(generator, rank, epochs)
            history.append(curves.assign(**run))
            runs.append({**run, **_settings(epochs), **curves.iloc[-1].to_dict()})
            runs[-1] |= _measured(generator, rank)
            for name, table in _tables(generator):
                tables.setdefault(name, []).append(table.assign(run_id=run["run_id"]))
    size = (2, CLASSES, 4 * SIDE, 4 * SIDE, 1)
    samples = {name: generator.integers(0, 256, size, dtype=np.uint8) for name in names}
    together = {name: pd.concat(parts, ignore_index=True) for name, parts in tables.items()}
    return Recorded(
        pd.DataFrame(runs).drop(columns="epoch"),
        pd.concat(history, ignore_index=True),
        samples,
        together,
    )


def _settings(epochs: int) -> dict[str, object]:
    settings = {"name": "planted", "status": "finished", "data": "mnist-5k", "noise": "uniform"}
    machine = {"device": "no device", "threads": 2, "torch": "none", "commit": "none"}
    return {**settings, **machine, "blocks": BLOCKS, "epochs": epochs, "classes": CLASSES}


def _curves(generator: np.random.Generator, rank: int, epochs: int) -> pd.DataFrame:
    epoch = np.arange(1, epochs + 1)
    curves = pd.DataFrame({"epoch": epoch})
    for stage in ("train", "val"):
        noise = generator.normal(0, 1e-3, (2, epochs))
        curves[f"{stage}/prior"] = 0.5 - 0.01 * rank + np.exp(-epoch) + noise[0]
        curves[f"{stage}/logdet"] = 2.5 + 0.01 * rank - np.exp(-epoch) + noise[1]
        curves[f"{stage}/loss"] = curves[f"{stage}/prior"] - curves[f"{stage}/logdet"]
        curves[f"{stage}/bpd"] = 8.3 + curves[f"{stage}/loss"] / np.log(2)
    curves["seconds_per_epoch"] = 10 + rank + generator.normal(0, 0.1, epochs)
    return curves


def _measured(generator: np.random.Generator, rank: int) -> dict[str, object]:
    bits = 3 + 0.1 * rank + generator.normal(0, 0.02)
    ratio = 1.3 * np.exp(generator.normal(0, 0.02))
    return {
        "test/loss": bits * np.log(2) - 5.8,
        "test/bpd": bits,
        "test/bpd_se": 0.002,
        "test/draws": 4,
        "fid_digits": 4 + rank + generator.normal(0, 0.4),
        "fid_digits_floor": 0.2,
        "kid_digits": 0.02 + 0.01 * rank + generator.normal(0, 0.002),
        "kid_digits_floor": 0.0004,
        "precision_digits": 0.8 - 0.02 * rank + generator.normal(0, 0.01),
        "precision_digits_floor": 0.93,
        "recall_digits": 0.6 + 0.02 * rank + generator.normal(0, 0.01),
        "recall_digits_floor": 0.92,
        "agreement_digits": 0.9 - 0.01 * rank,
        "extractor_digits": "planted",
        "extractor_digits/accuracy": 0.97,
        "bayes/accuracy": 0.93,
        "bayes/ece": 0.04,
        "bayes/images": 500,
        "fidelity/samples": 1000,
        "patches/ratio": ratio,
        "patches/ratio_low": ratio / 1.1,
        "patches/ratio_high": ratio * 1.1,
    }


def _tables(generator: np.random.Generator) -> Iterator[tuple[str, pd.DataFrame]]:
    patch = np.arange(SIDE**2)
    patches = pd.DataFrame({"patch": patch, "row": patch // SIDE, "column": patch % SIDE})
    for key in ("bpd", "distance", "floor"):
        patches[key] = generator.uniform(1, 2, len(patch))
    yield "patches", patches
    block, position = (axis.ravel() for axis in np.mgrid[:BLOCKS, : SIDE**2])
    logdet = generator.normal(0.4, 0.1, len(block))
    yield "positions", pd.DataFrame({"block": block, "position": position, "logdet": logdet})
    label, predicted = (axis.ravel() for axis in np.mgrid[:CLASSES, :CLASSES])
    count = np.where(label == predicted, 46, generator.poisson(0.5, len(label)))
    yield "confusion", pd.DataFrame({"label": label, "predicted": predicted, "count": count})
    confidence = (np.arange(15) + 0.5) / 15
    calibration = {"confidence": confidence, "accuracy": confidence**1.2, "count": 30}
    yield "calibration", pd.DataFrame(calibration)
