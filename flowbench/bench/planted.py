"""Recorded runs made up for the report's benchmark and tests: what is planted in them is known."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from flowbench.config import Experiment, flat
from flowbench.report.files import Recorded, complete
from flowbench.schema import SECONDS, TRANSFORM, is_setting

IMAGES, SIDE, OFFSET = 4000, 7, 8.0
Law = Callable[[str, int, int], float]
"""A value of a transform with blocks and layers."""
Terms = Callable[[str, int, int], tuple[float, float]]
"""Prior and log-determinant, likewise."""
MACHINE = {"device": "CPU, 2 cores", "threads": 2, "torch": "2.10", "precision": "32-true"}


def twice(transform: str, blocks: int, layers: int) -> float:
    """Take a second per layer with affine, two with a spline."""
    return blocks * layers * (1.0 if transform == "affine" else 2.0)


def of_bits(law: Law) -> Terms:
    """Turn bits per dimension into a prior of 0.5 and what is left for the log-determinant."""
    return lambda *point: (0.5, 0.5 + (OFFSET - law(*point)) * np.log(2))


def runs(
    points: Iterable[tuple[str, int, int]],
    terms: Terms,
    seconds: Law = twice,
    seeds: int = 3,
    epochs: int = 4,
    sd: float = 1e-3,
    shared: float = 0.0,
    workers: float = 1,
) -> Recorded:
    """Make finished runs that were trained and not evaluated.

    Args:
        points: Transform, blocks and layers of each configuration.
        terms: Final prior and log-determinant of a configuration.
        seconds: Seconds per epoch of a configuration.
        seeds: Runs of each.
        epochs: Epochs of each run; the losses approach their final values.
        sd: Standard deviation of the noise, in bits per dimension and in the logarithm of seconds.
        shared: Standard deviation of the part that all runs of one seed share.
        workers: Workers that shared the machine.
    """
    generator = np.random.default_rng(0)
    common = generator.normal(0, shared, seeds) * np.log(2)
    every = flat(asdict(Experiment())).items()
    options: dict[str, Any] = {
        key: value if type(value) in (int, float) else str(value)
        for key, value in every
        if is_setting(key)
    }
    options |= {"model.width": 64, "model.patch": 4, "data.batch": 128, "optim.lr": 2e-3}
    rows, history, patches, samples = [], [], [], {}
    for transform, blocks, layers in points:
        samples[transform] = generator.integers(0, 256, (2, 10, 8, 8, 1), dtype=np.uint8)
        for seed in range(seeds):
            run_id = f"{transform}-{blocks}-{layers}-{seed}-{'0' * 8}"
            prior, logdet = terms(transform, blocks, layers)
            taken = seconds(transform, blocks, layers) * np.exp(generator.normal(0, sd, epochs))
            losses: dict[str, float] = {}
            for epoch in range(1, epochs + 1):
                left = np.exp(-(epoch - 1)) - np.exp(-(epochs - 1))
                for stage in ("train", "val"):
                    noise = generator.normal(0, sd * np.log(2) / np.sqrt(2), 2)
                    ends = prior + 0.1 * left + noise[0], logdet - left - common[seed] + noise[1]
                    losses |= _losses(stage, *ends)
                times = {SECONDS: taken[epoch - 1], "images_per_second": IMAGES / taken[epoch - 1]}
                history.append({"run_id": run_id, "epoch": epoch, "load": 1.5, **times, **losses})
            test = {f"test/{name}": losses[f"val/{name}"] for name in ("loss", "prior", "bpd")}
            settings = {TRANSFORM: transform, "model.blocks": blocks, "model.layers": layers}
            about = {"name": "planted", "status": "finished", "scale": "quick", "workers": workers}
            about |= {"commit": "12e4567", "parameters": 50_000 * blocks * layers}
            own = {"run_id": run_id, "seed": seed, **about, **MACHINE, **options, **settings}
            median = {SECONDS: np.median(taken[1:])}
            rows.append({**own, "trainer.max_epochs": epochs, **median, **losses, **test})
            patches.append(pd.DataFrame({"run_id": run_id, "patch": range(SIDE**2), "bpd": 1.0}))
    tables = {"patches": pd.concat(patches).assign(row=0, column=0)}
    return complete(Recorded(pd.DataFrame(rows), pd.DataFrame(history), samples, tables))


def _losses(stage: str, prior: float, logdet: float) -> dict[str, float]:
    loss = prior - logdet
    values = {"loss": loss, "prior": prior, "logdet": logdet, "bpd": OFFSET + loss / np.log(2)}
    return {f"{stage}/{name}": value for name, value in values.items()}


def evaluated(
    recorded: Recorded,
    noise: str = "uniform",
    ratio: float = 1.3,
    side: int = SIDE,
    classes: int = 10,
    suffix: str = "digits",
) -> Recorded:
    """Add everything that an evaluation leaves; each transform is a little worse than the last.

    Args:
        recorded: Runs.
        noise: Noise of the data.
        ratio: Patch ratio of every run, with a little noise.
        side: Patches along a side of the image.
        classes: Classes; 0 for data without labels.
        suffix: Name of the extractor.
    """
    generator = np.random.default_rng(1)
    parts: dict[str, list[pd.DataFrame]] = {}
    metrics = []
    order = list(dict.fromkeys(recorded.runs[TRANSFORM]))
    for run in recorded.runs.to_dict("records"):
        rank = order.index(run[TRANSFORM])
        blocks = int(run["model.blocks"])
        for name, table in _tables(generator, rank, noise, blocks, side, classes).items():
            table.insert(0, "run_id", run["run_id"])
            parts.setdefault(name, []).append(table)
        metrics.append(_metrics(generator, rank, noise, ratio, classes, suffix))
    evaluation = {name: pd.concat(tables, ignore_index=True) for name, tables in parts.items()}
    bits = {} if noise == "uniform" else {"val/bpd": np.nan, "test/bpd": np.nan}
    table = recorded.runs.assign(**{"data.noise": noise}, classes=classes, **bits)
    measured = pd.DataFrame(metrics, index=table.index)
    table = table.drop(columns=measured.columns, errors="ignore").join(measured)
    samples = dict(recorded.samples)
    for name, images in recorded.samples.items():
        samples[f"{name}/guided"] = 255 - images
        samples[f"{name}/denoised"] = images // 2
        shape = (5, *images.shape[1:])
        samples[f"{name}/trajectory"] = generator.integers(0, 256, shape, dtype=np.uint8)
    return complete(Recorded(table, recorded.history, samples, evaluation))


def _metrics(
    generator: np.random.Generator, rank: int, noise: str, ratio: float, classes: int, suffix: str
) -> dict[str, Any]:
    measured = ratio * np.exp(generator.normal(0, 0.02))
    metrics: dict[str, Any] = {
        "test/draws": 4,
        "patches/ratio": measured,
        "patches/ratio_low": measured / 1.1,
        "patches/ratio_high": measured * 1.1,
        f"fid_{suffix}": 4.0 + 3 * rank + generator.normal(0, 0.4),
        f"fid_{suffix}_floor": 0.21,
        f"kid_{suffix}": 0.02 + 0.01 * rank + generator.normal(0, 0.002),
        f"kid_{suffix}_floor": 0.0004,
        f"precision_{suffix}": 0.8 - 0.02 * rank + generator.normal(0, 0.01),
        f"precision_{suffix}_floor": 0.93,
        f"recall_{suffix}": 0.6 + 0.02 * rank + generator.normal(0, 0.01),
        f"recall_{suffix}_floor": 0.92,
        "fidelity/samples": 1000,
        "fidelity/real": 500,
        "fidelity/kid_subset": 500,
        f"extractor_{suffix}/accuracy": 0.968,
        f"extractor_{suffix}": "12e45678",
    }
    if noise == "uniform":
        bits = 3.0 + 0.1 * rank + generator.normal(0, 0.02)
        metrics |= {"test/bpd": bits, "test/bpd_se": 0.002, "test/bpd_iw": bits - 0.05}
    else:
        metrics |= {"test/nll": -1.4 + generator.normal(0, 0.02), "test/nll_se": 0.003}
    if classes:
        metrics |= {
            f"agreement_{suffix}": 0.9 - 0.05 * rank,
            "bayes/accuracy": 0.93,
            "bayes/ece": 0.04,
            "bayes/images": 500,
        }
    return metrics


def _tables(
    generator: np.random.Generator, rank: int, noise: str, blocks: int, side: int, classes: int
) -> Mapping[str, pd.DataFrame]:
    row, column = (axis.ravel() for axis in np.mgrid[:side, :side])
    patch = np.arange(side * side)
    middle = np.exp(-((row - side / 2) ** 2 + (column - side / 2) ** 2) / side)
    edge = np.isin(patch, [0, 1, side * side - 2, side * side - 1])
    score = 1 + 3 * middle + 0.2 * rank + generator.normal(0, 0.05, side * side)
    patches = pd.DataFrame({"patch": patch, "row": row, "column": column})
    patches["bpd" if noise == "uniform" else "nll"] = score
    patches["distance"] = 2 + rank + 6 * edge + generator.random(side * side)
    patches["floor"] = 0.4
    block, position = (axis.ravel() for axis in np.mgrid[:blocks, : side * side])
    logdet = generator.normal(0.4, 0.1, block.size) * (position > 0) / (1 + block)
    tables = {
        "patches": patches,
        "positions": pd.DataFrame({"block": block, "position": position, "logdet": logdet}),
    }
    if classes:
        label, predicted = (axis.ravel() for axis in np.mgrid[:classes, :classes])
        wrong = generator.poisson(0.4 + 0.2 * rank, label.size)
        count = np.where(label == predicted, 46, wrong)
        tables["confusion"] = pd.DataFrame({"label": label, "predicted": predicted, "count": count})
        confidence = (np.arange(15) + 0.5) / 15
        shares = {"confidence": confidence, "accuracy": confidence ** (1.2 + 0.2 * rank)}
        tables["calibration"] = pd.DataFrame({**shares, "count": np.r_[np.arange(3, 17), 300]})[1:]
        stages = np.arange(blocks + 1)
        tables["probe"] = pd.DataFrame({"block": stages, "accuracy": 0.9 - 0.1 * stages / blocks})
    sides = [
        pd.DataFrame({"set": name, "patch": patch, "row": row, "column": column, "ks": distance})
        for name, distance in (("train", 0.02), ("test", 0.03 + 0.01 * rank))
    ]
    tables["latents"] = pd.concat(sides, ignore_index=True)
    return tables


def untrained(recorded: Recorded) -> Recorded:
    """Reduce runs to those of a timing study: one seed, no losses."""
    kept = recorded.runs[recorded.runs["seed"] == 0]
    history = recorded.history[recorded.history["run_id"].isin(kept["run_id"])]
    losses = [name for name in kept if "/" in name]
    times = [name for name in history if "/" not in name]
    return complete(Recorded(kept.drop(columns=losses), history[times], {}))
